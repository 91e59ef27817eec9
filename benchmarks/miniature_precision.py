"""Measure what fewer bits cost in task accuracy: the miniature against its fp32 bundle.

    .venv/bin/python -m benchmarks.miniature_precision fp16=BUNDLE int8=BUNDLE … --count 500 --jobs 2
    .venv/bin/python -m benchmarks.miniature_precision fp16=BUNDLE … --exact mini-edge --output RECORD.json

Every held-out scene is asked one question of the fp32 bundle --exact and of each named bundle, in ONNX
Runtime, by each of --backends; the fp32 one on the CPU, whose answers are the reference. Half-precision
arithmetic is executed by ort-rounded, which rounds every result, and by ort-cuda. Answers are kept in runs/
as they come, so an interrupted run resumes. Adds an entry per bundle to results/miniature-precision.json, or
to --output.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import refdiff
from benchmarks.records import RESULTS, add_entry, resumed
from refdiff.accuracy.metrics import Overlap, metrics, overlap
from refdiff.contracts.inspection import find_bundle, inspect
from refdiff.contracts.options import BackendOptions, RunOptions
from refdiff.data.sample import true_mask
from refdiff.data.synthetic import HELD_OUT_FROM, scene_sample
from refdiff.verification.task_agreement import Agreement, compare, summarize

VARIANTS = ("official", "edge")

RECORD = RESULTS / "miniature-precision.json"

EXACT = "fp32"


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs="+", help="name=folder")
    parser.add_argument("--exact", default="mini", help="the fp32 bundle they were converted from")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=HELD_OUT_FROM)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--backends", nargs="+", default=["ort-rounded"])
    parser.add_argument("--output", type=Path, default=RECORD)
    given = parser.parse_args()
    bundles = {EXACT: given.exact, **dict(each.split("=", 1) for each in given.bundles)}
    backends = tuple(given.backends)
    marked: dict[tuple[str, str, str], list[tuple[Overlap, Agreement]]] = {}
    seeds = range(given.seed, given.seed + given.count)
    hashes = {name: find_bundle(folder).manifest.sha256 for name, folder in bundles.items()}
    ask = partial(_mark, bundles, backends)
    for marks in resumed("precision.jsonl", f"{hashes} {backends}", ask, seeds, given.jobs):
        for key, (score, agreement) in marks.items():
            variant, name, backend = key.split("|")
            mark = (Overlap(**score), Agreement(**agreement))
            marked.setdefault((variant, name, backend), []).append(mark)
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


def _mark(bundles: dict[str, str], backends: tuple[str, ...], seed: int) -> dict[str, Any]:
    """Return overlap and agreement for "variant|bundle's name|back-end"; nothing without a phrase."""
    sample, marks = scene_sample(seed), {}
    if sample is None:
        return {}
    for variant in VARIANTS:
        exact = _answer(bundles[EXACT], variant, "ort-cpu", sample)
        for name, folder in bundles.items():
            for backend in backends if name != EXACT else ("ort-cpu",):
                answer = exact if name == EXACT else _answer(folder, variant, backend, sample)
                kept = answer.candidates.masks[answer.candidates.kept]
                score = overlap(answer.mask, true_mask(sample), kept)
                marks[f"{variant}|{name}|{backend}"] = (asdict(score), asdict(compare(exact, answer)))
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
