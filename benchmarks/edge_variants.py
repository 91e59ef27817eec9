"""The substitutes of METHOD §10 as changes of options, and the variants that measure them.

A substitute that `edge` has is measured in `official` and taken out of `edge`; one it does not have is added
to both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from refdiff.contracts.options import Options

Changes = Mapping[str, Mapping[str, Any]]
"""Group of options -> field -> value."""

IN_EDGE: dict[str, dict[str, tuple[str, ...]]] = {
    "8x8 grid with lower thresholds": {
        "proposals": ("points_per_side", "pred_iou_threshold", "stability_threshold")
    },
    "twenty largest, filtered ones out": {"proposals": ("keep_largest", "drop_filtered")},
    "one pass at t = 51, early exit, posterior mean": {
        "attention": ("timesteps", "start_level", "sample_posterior")
    },
    "no guidance, so no pass for the empty prompt": {"attention": ("guidance",)},
    "map read at the last content token": {"attention": ("focus",)},
    "map resized in float": {"attention": ("uint8_lanczos",)},
    "map weighs 0.1": {"fusion": ("generative",)},
    "ramp on the map": {"fusion": ("ramp_on_heat",)},
    "places and box relations": {"fusion": ("place",)},
    "letterboxed crops": {"crops": ("letterbox",)},
    "word boundaries": {"crops": ("word_boundaries",)},
    "masked attention on a smaller picture": {"crops": ("soft_long_side",)},
}
"""Substitute -> the options that make it."""

NOT_IN_EDGE: dict[str, Changes] = {
    "small regions removed": {"proposals": {"min_region_share": 0.0026}},  # 800 px of 640x480, as in TAS
    "prompts at 16 peaks and the warm grid": {"proposals": {"peaks": 16}},
    "contrast balance 1.8": {"fusion": {"contrast_balance": 1.8}},
    "negative phrases, 0.5": {"crops": {"negative": 0.5}},
}
"""Substitute -> the values that make it."""


@dataclass(frozen=True)
class Variant:
    """Options under a name."""

    name: str
    options: Options


def changed(options: Options, changes: Changes) -> Options:
    """Return the options with other values."""
    groups = {group: replace(getattr(options, group), **dict(values)) for group, values in changes.items()}
    return replace(options, **groups)


def variants(official: Options, edge: Options) -> list[Variant]:
    """Both profiles, and each substitute added to the one and taken from, or added to, the other."""
    found = [Variant("official", official), Variant("edge", edge)]
    for name, fields in IN_EDGE.items():
        found.append(Variant(f"official + {name}", changed(official, _values(edge, fields))))
        found.append(Variant(f"edge - {name}", changed(edge, _values(official, fields))))
    for name, changes in NOT_IN_EDGE.items():
        found.append(Variant(f"official + {name}", changed(official, changes)))
        found.append(Variant(f"edge + {name}", changed(edge, changes)))
    return found


def _values(options: Options, fields: Mapping[str, tuple[str, ...]]) -> Changes:
    return {group: {n: getattr(getattr(options, group), n) for n in names} for group, names in fields.items()}
