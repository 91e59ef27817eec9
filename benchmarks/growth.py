"""Measure how time and memory grow with phrases per image, candidates, image size and SAM's grid.

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.growth                  the miniature, all four series
    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.growth --bundle BUNDLE --phrases 1 4 --rounds 1

Every run encodes the image and segments all its phrases, in ONNX Runtime on the CPU. The points of a
series run in turns, back and forth from round to round; the peak memory of each is that of a process of its
own which does that one run. Where other programs share the cores, the processor time says more than the wall
clock, so both are kept. A bundle of random weights is measured over candidates and over phrases, the latter
under SAM thresholds chosen as in full_size_pipeline.py.
Adds one entry per series to results/growth.json; draw with growth_chart.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.growth_points import SERIES, VALUES, Point, phrases, picture, points
from benchmarks.records import RESULTS, add_entry
from benchmarks.watched import run_watched
from refdiff.contracts.bundle import Bundle, open_bundle
from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.session import SessionFactory
from refdiff.engines.factory import open_sessions
from refdiff.loading import segmenter_of

RECORD = RESULTS / "growth.json"
CLOCKS = ("seconds", "cpu_seconds")
DRAWN_SERIES = ("phrases", "candidates")
"""Series that mean something with random weights."""


def main() -> None:
    """Measure and record, or be the child that runs one point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", default="mini")
    parser.add_argument("--series", nargs="+", choices=SERIES, default=SERIES)
    parser.add_argument("--variants", nargs="+", choices=("official", "edge"), default=("official", "edge"))
    parser.add_argument("--phrases", nargs="+", type=int, default=VALUES["phrases"])
    parser.add_argument("--candidates", nargs="+", type=int, default=VALUES["candidates"])
    parser.add_argument("--keep-share", type=float, default=0.4, help="of masks, for random weights")
    parser.add_argument("--min-area", type=int, default=300, help="px, for random weights")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--point", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.point:
        run_alone(given.bundle, Point(**json.loads(given.point)), given.threads)
        return
    bundle = find_bundle(given.bundle)
    drawn = bundle.manifest.random_seed is not None
    set_thresholds = random_thresholds(bundle, given) if drawn else {}
    for series in [name for name in given.series if not drawn or name in DRAWN_SERIES]:
        chosen = points(
            series,
            given.variants,
            counts=given.phrases,
            candidates=given.candidates,
            thresholds=set_thresholds,
        )
        entry = {
            "threads": given.threads,
            "rounds": given.rounds,
            "thresholds": (set_thresholds if series == "phrases" else {}) or "the profiles' own",
            **measure(bundle, chosen, given),
        }
        alone = f", {given.variants[0]}" if len(given.variants) == 1 else ""
        add_entry(RECORD, f"{bundle.spec.name} {bundle.spec.diffusion.image_size} {series}{alone}", entry)


def random_thresholds(bundle: Bundle, given: argparse.Namespace) -> dict[str, Any]:
    """SAM thresholds under which the given share of random masks passes; torch comes with them."""
    from benchmarks.full_size_pipeline import thresholds

    [first, *_] = points("phrases", ["official"], counts=[1], candidates=[], thresholds={"set": "later"})
    sessions = open_sessions(bundle, backend="ort-cpu", threads=given.threads)
    options = thresholds(bundle, sessions, picture(first.size_xy), given.keep_share, given.min_area)
    sessions.close()
    names = ("pred_iou_threshold", "stability_threshold", "min_area_px")
    return {name: getattr(options.proposals, name) for name in names}


def measure(bundle: Bundle, chosen: Sequence[Point], given: argparse.Namespace) -> dict[str, Any]:
    """Measure times in turns, then each point's memory in a separate process."""
    runs: list[list[dict[str, Any]]] = [[] for _ in chosen]
    sessions = open_sessions(bundle, backend="ort-cpu", threads=given.threads)
    answer(bundle, sessions, chosen[0])  # opens the graphs
    for number in range(given.rounds):
        for point, results in list(zip(chosen, runs, strict=True))[:: -1 if number % 2 else 1]:
            results.append(answer(bundle, sessions, point))
            print(f"{point.curve}, {point.label}: {results[-1]}", file=sys.stderr)  # noqa: T201
    sessions.close()  # before the children load the same weights
    curves: dict[str, Any] = {}
    for point, results in zip(chosen, runs, strict=True):
        row = summary(point, results) | memory(given.bundle, point, given.threads)
        curves.setdefault(point.curve, {"profile": point.variant, "points": []})["points"].append(row)
    for curve in curves.values():
        if any(row["phrases"] > 1 for row in curve["points"]):
            curve["fit"] = {clock: affine_fit(curve["points"], clock) for clock in CLOCKS}
    return {"curves": curves}


def answer(bundle: Bundle, sessions: SessionFactory, point: Point) -> dict[str, Any]:
    """Run a point once: encode the image, segment every phrase, return the times."""
    image, asked = picture(point.size_xy), phrases(point.phrases, sided=point.sided)
    segmenter = segmenter_of(bundle, sessions, point.options(bundle.spec))
    started, cpu_started = time.perf_counter(), time.process_time()
    encoded = segmenter.encode(image)
    for phrase in asked:
        segmenter.segment(encoded, phrase)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    candidates = encoded.candidates
    return {
        "seconds": round(seconds, 4),
        "cpu_seconds": round(cpu_seconds, 4),
        "candidates": 0 if candidates is None else len(candidates),
        "kept": 0 if candidates is None else int(candidates.kept.sum()),
    }


def run_alone(bundle: str, point: Point, threads: int) -> None:
    """Run once in the child, and wait for the watcher to read the high-water mark."""
    opened = find_bundle("mini") if bundle == "mini" else open_bundle(Path(bundle), verify="size")
    answer(opened, open_sessions(opened, backend="ort-cpu", threads=threads), point)
    time.sleep(0.2)


def memory(bundle: str, point: Point, threads: int) -> dict[str, int]:
    """Peak memory of a process that runs the point once."""
    request = json.dumps(dataclasses.asdict(point))
    command = [
        sys.executable,
        "-m",
        "benchmarks.growth",
        "--bundle",
        bundle,
        "--threads",
        str(threads),
        "--point",
        request,
    ]
    used = run_watched(command)
    return {"peak_rss_bytes": used.peak_rss_bytes, "peak_private_bytes": used.peak_private_bytes}


def summary(point: Point, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return a point's row in the record: medians, minimum and maximum, every value."""
    row: dict[str, Any] = {
        "value": point.value,
        "label": point.label,
        "phrases": point.phrases,
        "picture_yx": list(point.size_xy[::-1]),
    }
    row |= {name: results[0][name] for name in ("candidates", "kept")}
    for clock in CLOCKS:
        values = [each[clock] for each in results]
        row[clock] = {
            "median": round(statistics.median(values), 4),
            "least": min(values),
            "most": max(values),
            "all": values,
        }
    return row


def affine_fit(rows: Sequence[dict[str, Any]], clock: str) -> dict[str, float]:
    """Least squares of cost = intercept + slope x phrases over the medians of a curve.

    Squares of relative errors are summed, so that the run of one phrase counts as much as that of many.

    Returns:
        Intercept and slope in seconds; the slope's share of the first phrase's whole cost, as measured; and
        the largest relative distance of a median from the line.
    """
    counts = np.array([row["phrases"] for row in rows], dtype=np.float64)
    costs = np.array([row[clock]["median"] for row in rows], dtype=np.float64)
    if len(counts) < 2:
        raise SystemExit(
            "got one count of phrases, expected two or more for a line; name them with --phrases"
        )
    slope, intercept = np.polyfit(counts, costs, 1, w=1 / costs)
    first = costs[np.argmin(counts)]
    return {
        "intercept": round(float(intercept), 4),
        "slope": round(float(slope), 5),
        "slope_over_first": round(float(slope / first), 4),
        "largest_relative_residual": round(float(np.abs((intercept + slope * counts) / costs - 1).max()), 4),
    }


if __name__ == "__main__":
    main()
