"""Measure prompts at the heatmap's peaks with negative points where it is cold (METHOD §10.13).

    .venv/bin/python -m benchmarks.negatives

The miniature's fp32 bundle in ONNX Runtime on held-out scenes, `edge`, mode `full`. Its SAM was trained on
single points. Writes results/negative-points.json.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from benchmarks.edge_substitutes import SharedRuns, mark
from benchmarks.records import RESULTS, add_entry
from refdiff.accuracy.metrics import Overlap, metrics
from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.options import ProposalOptions, options_for
from refdiff.data.synthetic import HELD_OUT_FROM, scene_samples
from refdiff.engines.factory import open_sessions
from refdiff.loading import segmenter_of

RECORD = RESULTS / "negative-points.json"
PEAKS = 16
TRIED = {
    "the grid, as in `edge`": {},
    "16 peaks and the warm grid": {"peaks": PEAKS},
    **{f"the same, {k} negative": {"peaks": PEAKS, "negatives": k} for k in (1, 2, 4, 8)},
}


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    given = parser.parse_args()
    add_entry(RECORD, "edge", measured(HELD_OUT_FROM, given.count))


def measured(seed: int, count: int) -> dict[str, Any]:
    """Return the accuracy with each kind of prompts, and the difference to the first."""
    bundle = find_bundle("mini")
    base = options_for(bundle.spec, variant="edge")
    shared = SharedRuns(open_sessions(bundle, threads=1))
    segmenters = {name: segmenter_of(bundle, shared, _changed(base, each)) for name, each in TRIED.items()}
    overlaps: dict[str, list[Overlap]] = {name: [] for name in TRIED}
    for done, sample in enumerate(scene_samples(range(seed, seed + count)), start=1):
        shared.forget()
        for name, segmenter in segmenters.items():
            overlaps[name].append(mark(segmenter, sample))
        if done % 20 == 0:
            sys.stderr.write(f"{done}/{count} scenes\n")
    first = next(iter(overlaps.values()))
    return {
        "seed": seed,
        "scenes": count,
        "prompts": {
            name: {**asdict(metrics(each)), **_against(each, first)} for name, each in overlaps.items()
        },
    }


def _changed(base: Any, changes: dict[str, int]) -> Any:
    proposals: ProposalOptions = replace(base.proposals, **changes)
    return replace(base, proposals=proposals)


def _against(ours: list[Overlap], theirs: list[Overlap]) -> dict[str, float]:
    gaps = 100 * np.array([a.iou - b.iou for a, b in zip(ours, theirs, strict=True)])
    return {"points": float(gaps.mean()), "standard_error": float(gaps.std(ddof=1) / np.sqrt(len(gaps)))}


if __name__ == "__main__":
    main()
