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
    "the a an this these those my your his her their our its some any each every all both there no"
)

INDEFINITES = _words(
    "nobody noone somebody someone anybody anyone everybody everyone nothing something anything everything"
)
"""Pronouns that name a thing themselves, or open a clause behind one ("the guy nobody looks at")."""

STOPS = _words(
    """on in at to of with without w from by for off over under underneath beneath below above atop behind
    beside besides near nearby next against between among amongst across along alongside around
    inside into onto out outside through toward towards up down like about as than and or but while
    during before after until past opposite per via except
    where when because if though although since whether nor then
    that that's thats which who who's whos whose whom what is are was were be being been am isn't isnt
    aren't wasn't weren't doesn't doesnt don't dont didn't can't cannot won't couldn't hasn't haven't
    has have had having does do did can could will would should may might must wears wear holds
    sits sat stood eats goes got gets says went came comes seems appears belongs contains includes
    i you we he it she they me us him them himself herself itself themselves
    i'm you're he's hes she's shes it's they're there's theres"""
)
"""Prepositions, relatives, finite verbs, pronouns: a noun chunk ends before them."""

VERBS_OR_NOUNS = _words(
    """hold sit looks look plays play rides ride walks faces say swings shows lies lay reads runs hits
    touches leans hangs leads drives flies throws catches carries"""
)
"""Finite verbs behind a noun ("the man faces us"), nouns in front ("the faces on the left")."""

HOLDINGS = _words("holding wearing carrying touching facing using having")
"""Participles whose object follows, with or without a determiner ("holding umbrella")."""

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
    magenta maroon navy turquoise aqua burgundy khaki golden gold silver blonde blond brunette"""
)

ADVERBS = _words(
    """not never ever just only most more less least very too so far away almost quite rather still also
    again always else even way kinda sorta somewhat maybe perhaps please here apart aside ahead together"""
)
"""Adverbs that do not end in "ly", and adverbial "way": they never stand for the thing."""

PARTICIPLES = _words(
    """hidden broken eaten frozen fallen bitten written woven taken driven ridden shaven torn worn held shown
    made seen cut lit bent built sunburnt burnt"""
)
"""Participles that do not end in "ed" or "ing"."""

MODIFIERS = (
    _words(
        """first second third fourth fifth sixth seventh eighth ninth tenth last other another same two three
    four five six seven eight nine ten several many few
    partial whole half entire full empty single double plain main medium old older oldest young
    younger youngest new tall taller short shorter long longer fat fatter thin thinner skinny chubby wide
    wider narrow thick thicker round square flat curly straight bald hairy furry fluffy fuzzy shiny bright
    brighter dark darker lighter pale clear dirty clean cleaner blurry sunny wooden metallic striped stripy
    plaid checkered spotted dotted
    open closed male female asian african american nude naked shirtless visible close closer further
    farther nearer higher asleep awake alone upright sideways upside happy sad angry cute pretty
    ugly nice fancy cool weird wet dry hot cold soft heavy tiny fresh raw ripe normal regular similar
    different identical opposite pregnant drunk sleepy messy bushy cloudy snowy sandy grassy muddy
    unmade uncut unlit"""
    )
    | ADVERBS
    | PARTICIPLES
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
    lighting paneling siding flooring carving bedding seating crossing covering stocking legging
    landing molding marking writing lightning evening morning offspring"""
)
ED_NOUNS = _words(
    "bed red shed sled seed weed feed breed steed speed reed bunkbed seabed moped biped thoroughbred flatbed"
)
EST_NOUNS = _words("nest chest vest guest forest west crest test rest pest contest quest priest breast")
LY_NOUNS = _words(
    "belly fly butterfly dragonfly family jelly lily bully ally assembly doily gully rally lolly holly trolly"
)

PARTICLES = _words("up off out down")
PHRASALS = _words(
    """pick-up see-through take-out pop-up close-up stand-up pull-out fold-up fold-out built-in cut-out
    drive-through turned-on"""
)
"""A verb and a particle that describe what follows ("pick up truck")."""

COMPOUNDS = _words(
    """cutting-board frying-pan dining-table dining-chair dining-room washing-machine parking-meter
    parking-lot rolling-pin mixing-bowl measuring-cup baking-sheet baking-tray serving-bowl
    serving-plate serving-dish living-room swimming-pool chewing-gum sewing-machine shopping-bag
    shopping-cart sleeping-bag walking-stick wrapping-paper tank-top crop-top table-top carrying-case
    drive-way door-way hall-way run-way walk-way"""
)
"""Two-word nouns; their parts alone would not count as nouns."""

FRAMES = _words("picture pic image photo photograph frame screen shot scene view page")
"""Words that mean the image itself in "left of the ..."."""

UNSEEN = FRAMES | _words("side sides corner edge end row line hand half one ones thing way direction")
"""Nouns that name no other thing in the image: "on the left side", "in the row"."""

PARTS = _words("side corner row half part edge end hand")
"""Parts of the image behind a place: "on the left side"."""

VIEWERS = _words("us me you camera viewer lens photographer")
"""Words that mean the front in "closest to ..."."""
