"""Measure gain and cost of each cheap substitute of METHOD §10, alone and together, against `official`.

    .venv/bin/python -m benchmarks.edge_substitutes accuracy --seed 3000000 --count 200     # choosing
    .venv/bin/python -m benchmarks.edge_substitutes accuracy --seed 1000000 --count 200     # held out
    .venv/bin/python -m benchmarks.edge_substitutes cost

The miniature's fp32 bundle in ONNX Runtime on one thread. Settings are chosen on scenes that neither training
nor any other record uses (seeds from 3,000,000) and confirmed on the held-out ones. Accuracy and cost are
measured separately: for accuracy, variants share the results of equal graph runs on a scene; for cost, every
variant answers each scene without caches, and then a second phrase on it, all of them in turns, including
the torch reference of `official`. Answers are kept in runs/ as they come, so an interrupted run resumes.
Writes results/edge-substitutes.json, one entry per kind and first seed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.edge_variants import Variant, variants
from benchmarks.records import RESULTS, add_entry, provenance
from refdiff.accuracy.metrics import Overlap, metrics, overlap
from refdiff.contracts.atomic_io import hash_file
from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.manifest import MANIFEST_NAME
from refdiff.contracts.options import options_for
from refdiff.contracts.session import Array, Session, SessionFactory
from refdiff.data.sample import Sample, true_mask
from refdiff.data.synthetic import scene_samples
from refdiff.engines.factory import open_sessions
from refdiff.loading import segmenter_of
from refdiff.runtime.pipeline import Segmenter

RECORD = RESULTS / "edge-substitutes.json"
KEPT = Path(__file__).parent.parent / "runs" / "edge-substitutes.jsonl"
CHOOSING_FROM = 3_000_000
TORCH = "torch reference, official"


class SharedRuns:
    """Sessions that run equal feeds once, until their cache is cleared."""

    def __init__(self, inner: SessionFactory) -> None:
        self._inner = inner
        self._known: dict[str, dict[str, Array]] = {}

    def open(self, name: str) -> Any:
        """Open the session of a graph."""
        return _SharedSession(self._inner.open(name), self._known)

    def forget(self) -> None:
        """Clear the cache: the next scene has nothing in common with this one."""
        self._known.clear()

    def close(self) -> None:
        """Close what was opened."""
        self._inner.close()


class _SharedSession:
    def __init__(self, inner: Session, known: dict[str, dict[str, Array]]) -> None:
        self.graph, self.max_batch, self._inner, self._known = inner.graph, inner.max_batch, inner, known

    def run(
        self,
        feeds: Mapping[str, Array],
        outputs: Sequence[str] | None = None,
        *,
        keep_on_device: bool = False,  # noqa: ARG002 - what is known is kept on the host
    ) -> dict[str, Array]:
        digest = hashlib.blake2b(f"{self.graph.name} {outputs}".encode())
        for name in sorted(feeds):
            digest.update(
                f"{name} {feeds[name].shape} ".encode() + np.ascontiguousarray(feeds[name]).tobytes()
            )
        key = digest.hexdigest()
        if key not in self._known:
            self._known[key] = self._inner.run(feeds, outputs)
        return self._known[key]


def main() -> None:
    """Measure one of the two and record it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("accuracy", "cost"))
    parser.add_argument("--seed", type=int, default=CHOOSING_FROM)
    parser.add_argument("--count", type=int, default=None)
    parser.add_argument("--output", type=Path, default=RECORD)
    given = parser.parse_args()
    spec = find_bundle("mini").spec
    tried = variants(options_for(spec, variant="official"), options_for(spec, variant="edge"))
    if given.kind == "accuracy":
        entry = accuracy(tried, given.seed, given.count or 300)
    else:
        entry = cost(tried, given.seed, given.count or 12)
    add_entry(given.output, f"{given.kind} from seed {given.seed}", entry)


def accuracy(tried: Sequence[Variant], seed: int, count: int) -> dict[str, Any]:
    """MIoU of each variant, and its difference to the two profiles over the same scenes."""
    marks = _marks(tried, list(scene_samples(range(seed, seed + count))))
    by_name = {
        each.name: [marks[key(each.options), s] for s in sorted({s for _, s in marks})] for each in tried
    }
    measured = {}
    for name, overlaps in by_name.items():
        against = {base: _difference(overlaps, by_name[base]) for base in ("official", "edge")}
        measured[name] = {**asdict(metrics(overlaps)), "against": against}
    return {"seed": seed, "scenes": count, "variants": measured}


def _marks(tried: Sequence[Variant], samples: Sequence[Sample]) -> dict[tuple[str, int], Overlap]:
    """Compute each variant's overlap on each scene, unless it is kept already."""
    KEPT.parent.mkdir(exist_ok=True)
    lines = KEPT.read_text().splitlines() if KEPT.exists() else []
    kept = {(e["key"], e["seed"]): Overlap(**e["overlap"]) for e in map(json.loads, lines)}
    shared = SharedRuns(open_sessions(find_bundle("mini"), threads=1))
    segmenters = {key(each.options): _segmenter(shared, each) for each in tried}
    marks, started = {}, time.perf_counter()
    with KEPT.open("a") as file:
        for done, sample in enumerate(samples, start=1):
            shared.forget()
            for name, segmenter in segmenters.items():
                seed = _seed(sample)
                found = kept.get((name, seed))
                if found is None:
                    found = mark(segmenter, sample)
                    line = {"key": name, "seed": seed, "overlap": asdict(found)}
                    file.write(json.dumps(line) + "\n")
                marks[name, seed] = found
            file.flush()
            if done % 20 == 0:
                _tell(f"{done}/{len(samples)} scenes after {time.perf_counter() - started:.0f} s")
    return marks


def key(options: Any) -> str:
    """Return a short name for options, bundle and commit."""
    return hashlib.blake2b(f"{options!r} {program()}".encode(), digest_size=8).hexdigest()


@cache
def program() -> str:
    """Return the bundle and the commit."""
    return f"{hash_file(find_bundle('mini').path / MANIFEST_NAME)} {provenance()['commit']}"


def _seed(sample: Sample) -> int:
    if sample.seed is None:
        raise ValueError(f"{sample.id} is no rendered scene")
    return sample.seed


def mark(segmenter: Segmenter, sample: Sample) -> Overlap:
    """Answer a sample, and compare the answer with the true mask."""
    answer = segmenter.segment(segmenter.encode(sample.read()), sample.phrase)
    kept = np.asarray(answer.candidates.masks[answer.candidates.kept])
    return overlap(answer.mask, true_mask(sample), kept)


def _difference(ours: Sequence[Overlap], theirs: Sequence[Overlap]) -> dict[str, float]:
    """Points of mIoU between the two, and the standard error of that over the scenes."""
    gaps = 100 * np.array([a.iou - b.iou for a, b in zip(ours, theirs, strict=True)])
    return {"points": float(gaps.mean()), "standard_error": float(gaps.std(ddof=1) / np.sqrt(len(gaps)))}


def cost(tried: Sequence[Variant], seed: int, count: int) -> dict[str, Any]:
    """Time an image and a phrase, all variants in turns, in reverse order on every other scene."""
    sessions = open_sessions(find_bundle("mini"), threads=1)
    runners = {TORCH: _reference()}
    for each in tried:
        segmenter = _segmenter(sessions, each)
        runners[each.name] = Runner(segmenter.encode, segmenter.segment)
    every = list(scene_samples(range(seed, seed + 2 * count + 1)))
    samples, others, warm_up = every[:count], every[count : 2 * count], every[-1]
    for runner in runners.values():
        _timed(runner, warm_up, warm_up.phrase)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runners}
    for index, (sample, other) in enumerate(zip(samples, others, strict=True)):
        for name in list(runners)[:: 1 - 2 * (index % 2)]:
            seconds[name].append(_timed(runners[name], sample, other.phrase))
        _tell(f"{index + 1}/{len(samples)} scenes")
    measured = {
        name: _cost(name, {each: np.array(times) for each, times in seconds.items()}) for name in runners
    }
    return {"seed": seed, "scenes": len(samples), "threads": 1, "variants": measured}


class Runner(NamedTuple):
    """A variant to time: its work on an image, and that on a phrase."""

    encode: Callable[[Any], Any]
    segment: Callable[[Any, str], Any]


def _timed(runner: Runner, sample: Sample, other: str) -> tuple[float, float]:
    """Measure the seconds for the image with its phrase, and for another phrase on it."""
    started = time.perf_counter()
    encoded = runner.encode(sample.read())
    runner.segment(encoded, sample.phrase)
    answered = time.perf_counter()
    runner.segment(encoded, other)
    return answered - started, time.perf_counter() - answered


def _cost(name: str, seconds: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    first, further = seconds[name].T
    return {
        "ms": _percentiles(first),
        "further_phrase_ms": _percentiles(further),
        "time_over": {
            base: float(np.median(first / seconds[base][:, 0])) for base in (TORCH, "official", "edge")
        },
    }


def _percentiles(seconds: NDArray[np.float64]) -> dict[str, float]:
    return {f"p{percent}": float(np.percentile(1e3 * seconds, percent)) for percent in (50, 90, 99)}


def _segmenter(sessions: Any, variant: Variant) -> Segmenter:
    return segmenter_of(find_bundle("mini"), sessions, variant.options)


def _reference() -> Runner:
    import torch

    from refdiff.miniature.stack import load_miniature
    from refdiff.reference.pipeline import Reference

    torch.set_num_threads(1)
    stack = load_miniature()
    reference = Reference(stack=stack, options=options_for(stack.spec, variant="official"))
    return Runner(reference.encode, reference.segment_encoded)


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
