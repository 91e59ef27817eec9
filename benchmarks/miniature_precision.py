"""Measure what fewer bits cost in task accuracy: the miniature against its fp32 bundle.

    .venv/bin/python -m benchmarks.miniature_precision fp16=BUNDLE int8=BUNDLE … --count 500 --jobs 2

Every held-out scene is asked one question of the built-in fp32 bundle and of each named bundle, in ONNX
Runtime, by each of --backends; the built-in one on the CPU, whose answers are the reference. Half-precision
arithmetic is executed by ort-rounded, which rounds every result, and by ort-cuda. Adds an entry per bundle to
results/miniature-precision.json, or to --output.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import refdiff
from benchmarks.records import RESULTS, add_entry
from refdiff.accuracy.agreement import Agreement, compare, summarize
from refdiff.accuracy.metrics import Overlap, metrics, overlap
from refdiff.contracts.inspection import inspect
from refdiff.contracts.options import BackendOptions, RunOptions
from refdiff.data.sample import true_mask
from refdiff.data.synthetic import HELD_OUT_FROM, scene_sample

VARIANTS = ("official", "edge")

RECORD = RESULTS / "miniature-precision.json"

EXACT = "fp32"

Marks = dict[tuple[str, str, str], tuple[Overlap, Agreement]]
"""Variant, bundle's name, back-end -> the overlap with the truth, and the agreement with fp32."""


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs="+", help="name=folder")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=HELD_OUT_FROM)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--backends", nargs="+", default=["ort-rounded"])
    parser.add_argument("--output", type=Path, default=RECORD)
    given = parser.parse_args()
    bundles = {EXACT: "mini", **dict(each.split("=", 1) for each in given.bundles)}
    backends = tuple(given.backends)
    marked: dict[tuple[str, str, str], list[tuple[Overlap, Agreement]]] = {}
    seeds = range(given.seed, given.seed + given.count)
    with ProcessPoolExecutor(given.jobs, mp_context=multiprocessing.get_context("spawn")) as workers:
        tasks = ((seed, tuple(bundles.items()), backends) for seed in seeds)
        for done, marks in enumerate(workers.map(_mark, tasks), start=1):
            for key, mark in marks.items():
                marked.setdefault(key, []).append(mark)
            if done % 20 == 0:
                sys.stderr.write(f"{done}/{given.count} scenes\n")
    for name, folder in bundles.items():
        inspected = inspect(folder)
        graphs = inspected.manifest.graphs.items()
        entry = {
            "seed": given.seed,
            "scenes": given.count,
            "size_bytes": inspected.size_bytes,
            "graphs": {graph: record.precision for graph, record in graphs},
            "profiles": {
                variant: {
                    backend: _summary(marked[variant, name, backend])
                    for backend in (backends if name != EXACT else ("ort-cpu",))
                }
                for variant in VARIANTS
            },
        }
        add_entry(given.output, name, entry)


def _summary(marks: list[tuple[Overlap, Agreement]]) -> dict[str, Any]:
    return {
        "metrics": asdict(metrics([each for each, _ in marks])),
        "agreement_with_fp32": summarize([each for _, each in marks]),
    }


def _mark(task: tuple[int, tuple[tuple[str, str], ...], tuple[str, ...]]) -> Marks:
    seed, bundles, backends = task
    sample, marks = scene_sample(seed), {}
    if sample is None:
        return {}
    for variant in VARIANTS:
        exact = _answer("mini", variant, "ort-cpu", sample)
        for name, folder in bundles:
            for backend in backends if name != EXACT else ("ort-cpu",):
                answer = exact if name == EXACT else _answer(folder, variant, backend, sample)
                kept = answer.candidates.masks[answer.candidates.kept]
                key = (variant, name, backend)
                marks[key] = (overlap(answer.mask, true_mask(sample), kept), compare(exact, answer))
    return marks


def _answer(folder: str, variant: str, backend: str, sample: Any) -> Any:
    segmenter = _segmenter(folder, variant, backend)
    return segmenter.segment(segmenter.encode(sample.read()), sample.phrase)


@cache
def _segmenter(folder: str, variant: str, backend: str) -> Any:
    return refdiff.load(
        folder, options=RunOptions(variant=variant), backend=BackendOptions(name=backend, threads=1)
    )


if __name__ == "__main__":
    main()
