"""Options that `refdiff tune` found for one model, in a JSON file for reading.

They belong to one model, variant and mode; others are refused: weights of one mean nothing to another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refdiff.contracts.json_fields import (
    as_list,
    as_number,
    as_plain_text,
    as_table,
    as_whole,
    missing_or_wrong,
    read_json,
)
from refdiff.errors import InputError

if TYPE_CHECKING:
    from refdiff.contracts.options import Options

FORMAT = 1
_ADVICE = "make one with: refdiff tune BUNDLE --data ROOT -o FILE"


@dataclass(frozen=True, kw_only=True)
class TunedOptions:
    """Weights of the score's parts, and how the map is read."""

    model: str
    """Name of the model in the bundle's spec."""
    variant: str
    mode: str
    hard: float
    soft: float
    generative: float
    place: float
    contrast_balance: float
    rescale: bool
    end_token: float
    layer_weights: tuple[float, ...]
    coarse: float
    propagate: int

    def apply(self, options: Options, model: str) -> Options:
        """Return the options with those that were tuned.

        Args:
            options: of a variant.
            model: name of the bundle's model.

        Raises:
            InputError: they were tuned for another model, variant or mode.
        """
        wanted, got = (self.model, self.variant, self.mode), (model, options.variant, options.mode)
        if wanted != got:
            raise InputError(
                f"the options were tuned for model, variant and mode {', '.join(wanted)}, "
                f"got {', '.join(got)}; use them there, or tune again"
            )
        weights = {name: getattr(self, name) for name in _WEIGHTS}
        reading = {name: getattr(self, name) for name in _READING}
        return dataclasses.replace(
            options,
            fusion=dataclasses.replace(options.fusion, **weights),
            attention=dataclasses.replace(options.attention, **reading),
        )

    def to_json(self) -> dict[str, Any]:
        """Return what `read_tuned_options` reads."""
        return {"format": FORMAT, **dataclasses.asdict(self)}


_WEIGHTS = ("hard", "soft", "generative", "place", "contrast_balance")
_READING = ("rescale", "end_token", "layer_weights", "coarse", "propagate")


def read_tuned_options(path: Path) -> TunedOptions:
    """Read the options of a file; what else it says is for people.

    Raises:
        InputError: the file cannot be read, or was not written by `refdiff tune`.
    """
    document = read_json(path, InputError, _ADVICE)
    try:
        return _from_json(as_table(document, "the document"))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} holds no tuned options ({missing_or_wrong(error)}); {_ADVICE}") from error


def _from_json(document: Mapping[str, Any]) -> TunedOptions:
    if document["format"] != FORMAT:
        raise ValueError(f"format is {document['format']!r}, expected {FORMAT}")
    if not isinstance(document["rescale"], bool):
        raise TypeError(f"rescale is {document['rescale']!r}, expected true or false")
    weights = as_list(document["layer_weights"], "layer_weights")
    return TunedOptions(
        model=as_plain_text(document["model"], "model"),
        variant=as_plain_text(document["variant"], "variant"),
        mode=as_plain_text(document["mode"], "mode"),
        hard=as_number(document["hard"], "hard"),
        soft=as_number(document["soft"], "soft"),
        generative=as_number(document["generative"], "generative"),
        place=as_number(document["place"], "place"),
        contrast_balance=as_number(document["contrast_balance"], "contrast_balance"),
        rescale=document["rescale"],
        end_token=as_number(document["end_token"], "end_token"),
        layer_weights=tuple(as_number(each, "a layer weight") for each in weights),
        coarse=as_number(document["coarse"], "coarse"),
        propagate=as_whole(document["propagate"], "propagate", least=0),
    )
