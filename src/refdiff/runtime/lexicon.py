"""The words that the phrase rules know: closed classes, and common words of referring phrases.

Everything is lower case. A word in no list counts as a noun.
"""

from __future__ import annotations

from typing import Literal

Place = Literal["left", "right", "top", "bottom", "middle"]
Superlative = Literal["largest", "smallest"]
Size = Literal["large", "small"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


DETERMINERS = _words(
    "the a an this these those my your his her their our its some any each every all both there"
)

STOPS = _words(
    """on in at to of with without w from by for off over under underneath beneath below above atop behind
    beside besides near nearby next against between among amongst across along alongside around
    inside into onto out outside through toward towards up down like about as than and or but while
    where when that that's which who who's whose whom what is are was were be being been am isn't
    aren't has have had having does do did can could will would should may wears wear holds hold
    sits sit sat stands stand stood looks look plays play eats rides ride walks faces says say goes
    got gets hits swings shows lies lay laying reads runs touches worn held shown made seen cut i
    you we he she it they me us him them i'm you're he's she's it's they're"""
)
"""Prepositions, relatives, finite verbs, pronouns: a noun chunk ends before them."""

PLACES: dict[str, Place] = {
    **dict.fromkeys(("left", "leftmost"), "left"),
    **dict.fromkeys(("right", "rightmost"), "right"),
    **dict.fromkeys(("top", "topmost", "upper", "uppermost", "highest"), "top"),
    **dict.fromkeys(("back", "background", "backmost", "rear", "farthest", "furthest"), "top"),
    **dict.fromkeys(("bottom", "bottommost", "lower", "lowest"), "bottom"),
    **dict.fromkeys(("front", "foreground", "frontmost", "closest", "nearest"), "bottom"),
    **dict.fromkeys(("middle", "center", "centre", "central", "mid"), "middle"),
}
"""Word of place -> side of the image: the front is low in an image, the back is high."""

SUPERLATIVES: dict[str, Superlative] = {
    **dict.fromkeys(("biggest", "largest", "hugest", "greatest", "tallest", "widest", "fattest"), "largest"),
    **dict.fromkeys(("smallest", "littlest", "tiniest", "shortest", "thinnest", "skinniest"), "smallest"),
}
SIZES: dict[str, Size] = {
    **dict.fromkeys(("big", "bigger", "large", "larger", "huge", "giant", "enormous"), "large"),
    **dict.fromkeys(("small", "smaller", "little", "tiny", "mini", "miniature"), "small"),
}

COLORS = _words(
    """red orange yellow green blue purple violet pink brown black white grey gray beige tan teal cyan
    magenta maroon navy turquoise golden silver blonde blond"""
)

MODIFIERS = (
    _words(
        """first second third fourth fifth last other another same only just most more very too so far away
    partial whole half entire full empty single double plain main medium old older oldest young
    younger youngest new tall taller short shorter long longer fat thin skinny chubby wide narrow
    thick round square flat curly straight bald hairy furry fluffy fuzzy shiny bright dark pale
    clear dirty clean blurry sunny wooden metallic striped stripy plaid checkered spotted dotted
    open closed male female asian african american nude naked shirtless visible closer further
    farther nearer mostly almost here"""
    )
    | COLORS
    | frozenset(SIZES)
    | frozenset(SUPERLATIVES)
    | frozenset(PLACES)
)
"""Adjectives, places, adverbs: one before the noun belongs to it, one after it ends it ("guy blue shirt")."""

ING_NOUNS = _words(
    """thing something anything everything nothing building ring earring king wing string painting drawing
    railing ceiling clothing frosting icing dressing topping stuffing filling awning duckling
    gosling sibling wedding swing spring pudding ping bling sling darling dumpling seedling being
    lighting paneling siding flooring carving"""
)
ED_NOUNS = _words(
    "bed red shed sled seed weed feed breed steed speed reed bunkbed seabed moped biped thoroughbred"
)
EST_NOUNS = _words("nest chest vest guest forest west crest test rest pest contest quest priest breast")

COMPOUNDS = _words(
    """cutting-board frying-pan dining-table dining-chair dining-room washing-machine parking-meter
    parking-lot rolling-pin mixing-bowl measuring-cup baking-sheet baking-tray serving-bowl
    serving-plate serving-dish living-room swimming-pool chewing-gum sewing-machine shopping-bag
    shopping-cart sleeping-bag walking-stick wrapping-paper tank-top crop-top table-top"""
)
"""Two-word nouns; their parts alone would not count as nouns."""

FRAMES = _words("picture pic image photo photograph frame screen shot scene view page")
"""Words that mean the image itself in "left of the ..."."""

UNSEEN = FRAMES | _words("side sides corner edge end row line hand half one ones thing way direction")
"""Nouns that name no other thing in the image: "on the left side", "in the row"."""

VIEWERS = _words("us me you camera viewer lens photographer")
"""Words that mean the front in "closest to ..."."""
