"""Accuracy of the miniature on held-out scenes, reference and runtime side by side.

    .venv/bin/python -m benchmarks.miniature_accuracy --count 500 --jobs 2

Every scene is asked one question (`refdiff.data.synthetic`). The reference finds its candidates once
per scene and variant and answers in every mode; the runtime answers in mode `full`. The numbers of a mode are
those of `refdiff eval mini` with the same count, seed, mode, variant and runtime.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import refdiff
from benchmarks.records import provenance
from refdiff.accuracy.metrics import Overlap, metrics, overlap
from refdiff.contracts.options import MODES, BackendOptions, RunOptions, options_for
from refdiff.data.synthetic import HELD_OUT_FROM, scene_sample
from refdiff.verification.task_agreement import Agreement, compare, summarize

VARIANTS = ("official", "edge")
SELECTED = "gen, between-class"
"""Mode gen with METHOD §8's second selector, whichever the variant has."""

RECORD = Path(__file__).parent / "results" / "miniature-accuracy.json"


@dataclass(frozen=True)
class Marks:
    """One scene under one variant."""

    by_mode: dict[str, Overlap]
    """Mode, or `SELECTED` -> the reference's overlap; "runtime" -> the runtime's, in mode full."""
    agreement: Agreement


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=HELD_OUT_FROM)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RECORD)
    given = parser.parse_args()
    seeds = range(given.seed, given.seed + given.count)
    started = time.perf_counter()
    marked: dict[str, list[Marks]] = {variant: [] for variant in VARIANTS}
    with ProcessPoolExecutor(given.jobs, mp_context=multiprocessing.get_context("spawn")) as workers:
        for done, marks in enumerate(workers.map(_mark, seeds), start=1):
            for variant, each in marks.items():
                marked[variant].append(each)
            if done % 20 == 0:
                _tell(f"{done}/{given.count} scenes after {time.perf_counter() - started:.0f} s")
    record = {
        **provenance(),
        "refdiff": refdiff.__version__,
        "weights": dict(_stack().sources),
        "seed": given.seed,
        "scenes": given.count,
        "profiles": {variant: _summary(marks) for variant, marks in marked.items()},
        "seconds": round(time.perf_counter() - started, 1),
    }
    given.output.write_text(json.dumps(record, indent=1) + "\n")
    _tell(json.dumps(record["variants"], indent=1))


def _summary(marks: list[Marks]) -> dict[str, Any]:
    names = (*MODES, SELECTED, "runtime")
    return {
        "modes": {name: asdict(metrics([each.by_mode[name] for each in marks])) for name in names},
        "agreement": summarize([each.agreement for each in marks]),
    }


def _mark(seed: int) -> dict[str, Marks]:
    sample = scene_sample(seed)
    return {} if sample is None else {variant: _mark_profile(variant, sample) for variant in VARIANTS}


def _mark_profile(variant: str, sample: Any) -> Marks:
    references, segmenter = _reference(variant), _segmenter(variant)
    encoded = references["full"].encode(sample.read())
    bare = replace(encoded, candidates=None)
    answers = {
        mode: reference.segment_encoded(bare if mode in ("gen", SELECTED) else encoded, sample.phrase)
        for mode, reference in references.items()
    }
    runtime = segmenter.segment(segmenter.encode(sample.read()), sample.phrase)
    agreement = compare(answers["full"], runtime)
    answers["runtime"] = runtime
    return Marks({name: _overlap(answer, sample.truth) for name, answer in answers.items()}, agreement)


def _overlap(answer: Any, truth: Any) -> Overlap:
    return overlap(answer.mask, truth, answer.candidates.masks[answer.candidates.kept])


@cache
def _stack() -> Any:
    import torch

    from refdiff.miniature.stack import load_miniature

    torch.set_num_threads(1)
    return load_miniature()


@cache
def _reference(variant: str) -> dict[str, Any]:
    from refdiff.reference.pipeline import Reference

    stack = _stack()
    options = {mode: options_for(stack.spec, variant=variant, mode=mode) for mode in MODES}
    fusion = replace(options["gen"].fusion, level_selector="between-class")
    options[SELECTED] = replace(options["gen"], fusion=fusion)
    return {mode: Reference(stack=stack, options=chosen) for mode, chosen in options.items()}


@cache
def _segmenter(variant: str) -> Any:
    return refdiff.load("mini", options=RunOptions(variant=variant), backend=BackendOptions(threads=1))


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
