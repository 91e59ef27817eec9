"""Measure other ways to read the map from the UNet's logits (METHOD §10.8 to §10.10), and other timesteps.

    .venv/bin/python -m benchmarks.maps edge
    .venv/bin/python -m benchmarks.maps official

The miniature's fp32 bundle in ONNX Runtime on held-out scenes. The graphs run once per scene and timestep;
the readings are compared on the same logits. Writes results/maps.json, one entry per variant.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.records import RESULTS, add_entry
from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.options import VARIANTS, AttentionOptions, BackendOptions, RunOptions
from refdiff.data.synthetic import RenderedScenes
from refdiff.evaluation.cached_scores import CachedScores, cache_scores

RECORD = RESULTS / "maps.json"
BASE = "as it is"
TIMESTEPS = (1, 101, 201, 301, 501)


def main() -> None:
    """Measure a variant and record it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variant", choices=("edge", "official"))
    parser.add_argument("--count", type=int, default=200)
    given = parser.parse_args()
    layers = find_bundle("mini").spec.diffusion.tapped_layers
    tried = readings(VARIANTS[given.variant].attention, layers, sweep=given.variant == "edge")
    scenes = RenderedScenes(count=given.count)
    cached = cache_scores(
        "mini",
        scenes,
        list(tried.values()),
        options=RunOptions(variant=given.variant),
        backend=BackendOptions(threads=1),
        progress=_tell,
    )
    entry = {"seed": scenes.seed, "scenes": scenes.count, "readings": measured(cached, list(tried))}
    add_entry(RECORD, given.variant, entry)


def readings(
    base: AttentionOptions, layers: tuple[str, ...], *, sweep: bool
) -> Mapping[str, AttentionOptions]:
    """Return what is tried by name; `sweep` adds timesteps, and each runs the UNet again."""
    alone = {
        f"layer {name} alone": {"layer_weights": tuple(float(each == name) for each in layers)}
        for name in layers
    }
    changes: dict[str, dict[str, Any]] = {
        BASE: {},
        "rescaled over content tokens": {"rescale": True},
        "end token, 0.5": {"end_token": 0.5},
        "end token, 1": {"end_token": 1.0},
        "end token, 2": {"end_token": 2.0},
        "rescaled, end token 1": {"rescale": True, "end_token": 1.0},
        **alone,
    }
    if sweep:
        for t in TIMESTEPS:
            changes[f"t = {t}"] = {"timesteps": (t,), "start_level": t}
        changes["rescaled, end token 1, t = 201"] = {
            **changes["rescaled, end token 1"],
            **changes["t = 201"],
        }
    return {name: replace(base, **change) for name, change in changes.items()}


def measured(cached: CachedScores, names: list[str]) -> dict[str, Any]:
    """Return accuracy and contrast of each reading, and the difference to the first."""
    fusion = cached.options.fusion
    found: dict[str, Any] = {}
    ious: dict[tuple[str, str], NDArray[np.float64]] = {}
    for at, name in enumerate(names):
        found[name] = {"truth_contrast": float(cached.truth_contrast[at].mean())}
        for mode in ("full", "gen+seg"):
            chosen = cached.choose(fusion, at, heat_alone=mode == "gen+seg")
            intersection, union = cached.overlaps(chosen)
            ious[name, mode] = intersection / union
            gaps = 100 * (ious[name, mode] - ious[names[0], mode])
            found[name][mode] = {
                "miou": float(ious[name, mode].mean()),
                "oiou": float(intersection.sum() / union.sum()),
                "points": float(gaps.mean()),
                "standard_error": float(gaps.std(ddof=1) / np.sqrt(len(gaps))),
                "changed_answers": int(np.count_nonzero(gaps)),
            }
    return found


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
