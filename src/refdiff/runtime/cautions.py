"""Cautions about a phrase: what the models cannot read in it, although they answer it.

In: the text of a phrase. Out: lines of the form `topic: statement; detail`, and the words they are about.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from refdiff.runtime.head import words_of


class _Words(NamedTuple):
    """Common words of a language in phrases: function words, sides, colors and people."""

    clear: frozenset[str]
    """Words that no English phrase has."""
    shared: frozenset[str]
    """Words that English phrases may have too, as words, names or typing errors."""


def _language(clear: str, shared: str) -> _Words:
    return _Words(_words(clear), _words(shared))


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_LANGUAGES = {
    "German": _language(
        """der mann und ein eine einen einem einer eines auf von vom neben hinter unter zwischen rechts ist
        zum zur beim bei trägt rote roten roter rotes blau blaue blauen blauer grün grüne grünen
        gelb gelbe gelben schwarz schwarze schwarzen weiß weiße weißen braune braunen graue kleine kleinen
        große großen frau mädchen junge hund katze rechte rechten linke linken ganz vorne oben unten""",
        "die dem den an am in links man person vor mit im rot des das",
    ),
    "French": _language(
        """une avec derrière devant près à gauche droite bleu bleue verte
        noire blanc blanche jaune grise homme femme fille garçon qui côté milieu celui celle
        l' d' qu' chien debout assis assise""",
        """la le les un du des de est et en sur dans plus grand grande petit petite chat au aux son sa gris
        marron rouge vert noir pour""",
    ),
    "Spanish": _language(
        """una unos unas que está este esta detrás detrás debajo izquierda derecha rojo roja azul
        negra blanco blanca amarillo amarilla hombre mujer niño niña perro gato pequeño junto tiene lado""",
        "la los las un de del con en y al por para sobre verde negro grande chica el",
    ),
    "Italian": _language(
        """gli una della dello nel nella sul sulla alla che sinistra destra rosso rossa nero nera bianca
        giallo gialla piccolo piccola uomo donna ragazzo ragazza dietro davanti vicino sotto sopra accanto
        l' dell' all' sull' nell' un' d' più""",
        "il lo la le i un uno di del dei con su a al e blu verde bianco grande cane",
    ),
    "Portuguese": _language(
        """uma dos nos nas ao à esquerda direita vermelho vermelha azul preto preta branca amarelo amarela
        homem mulher menino menina cachorro atrás está que pequena perto""",
        "o a os as das um de da do no na com em verde branco grande frente e mais",
    ),
    "Dutch": _language(
        """het een aan rechts rode rood blauw blauwe groen groene geel zwart zwarte witte bruine grijs
        grote kleine vrouw jongen meisje hond naast achter onder boven bij staat linker rechter""",
        "de van op met en in links gele wit man kat voor die dat zit is kind bruin",
    ),
    "Swedish, Danish or Norwegian": _language(
        """ett som på och og till vänster höger venstre højre høyre röda röd rød røde blå gröna grønne
        svart svarta vita hvide hvite kvinna kvinnan kvinde kvinnen ved""",
        "den en et i av med till mannen stol det",
    ),
    "Polish": _language(
        """lewej prawej stronie czerwony czerwona niebieski zielony biały czarny obok który która kobieta
        mężczyzna chłopiec dziewczyna""",
        "na z w za pies kot po",
    ),
    "Turkish": _language(
        """k\u0131rm\u0131z\u0131 mavi yeşil siyah beyaz sar\u0131 sağ sağdaki soldaki olan bir üzerinde
        kad\u0131n""",
        "sol adam ve",
    ),
    "Indonesian": _language(
        "yang merah biru hijau hitam putih kiri kanan sebelah dengan",
        "di dan orang kuning",
    ),
}

_ENGLISH = _words(
    """the with and who that this of to at on from by is are has his her wearing holding sitting standing in a
    left right one guy man woman red blue green black white yellow shirt behind front next"""
)

_NEGATION = re.compile(
    r"\b(?:not|no|non|without|w/o|never|neither|nor|nothing|none|except|cannot|isnt|arent|doesnt|dont"
    r"|\w+n['\u2019]t)\b",
    re.IGNORECASE,
)
_LATIN = re.compile(r"[\u0000-\u024f\u1e00-\u1eff\u2c60-\u2c7f\ua720-\ua7ff\ufb00-\ufb06\uff00-\uff5e]")


def phrase_cautions(text: str) -> tuple[str, ...]:
    """Return what an answer to the phrase must say of it (`Segmentation.cautions`).

    Args:
        text: a phrase, as written or normalized.

    Returns:
        One line each, such as `language: the words "die", "rote" look German; the models read English only`;
        nothing for a plain English phrase.
    """
    cautions = []
    foreign = _foreign_words(text)
    if foreign is not None:
        language, words = foreign
        verb = "word {} looks" if len(words) == 1 else "words {} look"
        cautions.append(
            f"language: the {verb.format(_quote(words))} {language}; the models read English only"
        )
    letters = _other_scripts(text)
    if letters:
        cautions.append(f"language: {_quote(letters)} cannot be read; the models read English only")
    negations = tuple(dict.fromkeys(match.group().lower() for match in _NEGATION.finditer(text)))
    if negations:
        cautions.append(f"negation: {_quote(negations)} is not understood; name the thing by what it is")
    return tuple(cautions)


def _foreign_words(text: str) -> tuple[str, tuple[str, ...]] | None:
    """Return the language that a phrase looks written in, and the words that say so; None: English.

    A phrase looks foreign with a word that English does not have, and either a second word of the same
    language or no common English word. Of languages that are not written in Latin letters, nothing is found
    here.
    """
    parts = [(word.text, text[word.start : word.end]) for word in words_of(text)]
    is_english = any(word in _ENGLISH for word, _ in parts)
    best: tuple[str, tuple[str, ...]] | None = None
    for language, known in _LANGUAGES.items():
        clear = [shown for word, shown in parts if known.clear.intersection((word, _elision(word)))]
        hits = [shown for word, shown in parts if word in known.shared or shown in clear]
        if clear and (len(hits) > 1 or not is_english) and len(hits) > len(best[1] if best else ()):
            best = language, tuple(dict.fromkeys(hits))
    return best


def _elision(word: str) -> str:
    """Return the "l'" of "l'homme"; all of a word without an apostrophe."""
    return word[: word.find("'") + 1] or word


def _other_scripts(text: str) -> tuple[str, ...]:
    """Return the words in letters that are not Latin."""
    words = re.findall(r"[^\W\d_]+", text)
    return tuple(word for word in words if not _LATIN.match(word))


def _quote(words: tuple[str, ...]) -> str:
    return ", ".join(f'"{word}"' for word in words)
