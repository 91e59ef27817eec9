"""Measure what each small part of `mini-edge` costs in accuracy and gives in time, alone and all together.

    .venv/bin/python -m benchmarks.mini_edge edge        # accuracy of the variant, on held-out scenes
    .venv/bin/python -m benchmarks.mini_edge official
    .venv/bin/python -m benchmarks.mini_edge time        # of `edge`; refused on a busy machine

A part is one or more graphs, taken from the bundle `mini-edge` while the others come from `mini`. The figures
of "none" and "all" are those of `refdiff eval mini` and `refdiff eval mini-edge` on these scenes. For time,
every mixture answers each scene in turns, on one thread and without a cache of texts. Overlaps are kept in
runs/ as they come, so an interrupted run for accuracy resumes. Writes results/mini-edge.json, one entry per
argument.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from functools import cache, partial
from typing import Any

import numpy as np

from benchmarks.edge_substitutes import Runner, SharedRuns, _difference, _timed, mark
from benchmarks.records import RESULTS, QuietMachine, add_entry, resumed
from refdiff.accuracy.metrics import Overlap, metrics
from refdiff.contracts.bundle import Bundle
from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.onnx_file import read_onnx
from refdiff.contracts.options import options_for
from refdiff.data.synthetic import HELD_OUT_FROM, scene_sample, scene_samples
from refdiff.engines.factory import open_sessions
from refdiff.runtime.pipeline import Segmenter
from refdiff.runtime.tokenizer import Tokenizer

PARTS = {
    "vae": ("vae_encoder",),
    "unet": ("unet", "unet_taps"),
    "sam encoder and decoder": ("sam_encoder", "sam_decoder", "sam_masks"),
    "clip image": ("clip_image",),
}
"""Part -> its graphs. SAM's decoder belongs to its encoder: it was trained with it."""

MIXTURES: dict[str, tuple[str, ...]] = {
    "none": (),
    **{part: (part,) for part in PARTS},
    "all": tuple(PARTS),
}


class MixedSessions:
    """Sessions of two bundles: of the small one for some graphs, of the other for the rest."""

    def __init__(self, large: Any, small: Any, graphs: tuple[str, ...]) -> None:
        self._large, self._small, self._graphs = large, small, graphs

    def open(self, name: str) -> Any:
        """Open the session of a graph."""
        return (self._small if name in self._graphs else self._large).open(name)

    def close(self) -> None:
        """Leave both open: other mixtures use them."""


def main() -> None:
    """Measure one of the three and record it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=("edge", "official", "time"))
    parser.add_argument("--count", type=int, default=None)
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    if given.kind == "time":
        with QuietMachine() as machine:
            entry = times(given.count or 24)
        entry["others_share_of_cores"] = round(machine.others, 4)
    else:
        entry = accuracy(given.kind, given.count or 500, given.jobs)
    add_entry(RESULTS / "mini-edge.json", given.kind, entry)


def accuracy(variant: str, count: int, jobs: int) -> dict[str, Any]:
    """Measure each mixture on the same scenes, and its difference to the miniature."""
    bundles = {name: find_bundle(name).manifest.sha256 for name in ("mini", "mini-edge")}
    seeds = range(HELD_OUT_FROM, HELD_OUT_FROM + count)
    found = resumed("mini-edge.jsonl", f"{variant} {bundles}", partial(_marks, variant), seeds, jobs)
    marks = {name: [Overlap(**each[name]) for each in found if each] for name in MIXTURES}
    return {
        "seed": HELD_OUT_FROM,
        "scenes": count,
        "bundles": bundles,
        "mixtures": {
            name: {**asdict(metrics(each)), "against_none": _difference(each, marks["none"])}
            for name, each in marks.items()
        },
    }


def _marks(variant: str, seed: int) -> dict[str, Any]:
    """Return each mixture's overlap on one scene; none for a seed without a phrase."""
    sample = scene_sample(seed)
    if sample is None:
        return {}
    for each in _shared():
        each.forget()
    return {name: asdict(mark(_mixture(variant, name), sample)) for name in MIXTURES}


@cache
def _shared() -> tuple[SharedRuns, SharedRuns]:
    large, small = (SharedRuns(open_sessions(find_bundle(name), threads=1)) for name in ("mini", "mini-edge"))
    return large, small


@cache
def _mixture(variant: str, name: str) -> Segmenter:
    return mixture(_shared(), name, variant)


def times(count: int) -> dict[str, Any]:
    """Time an image and a phrase with each mixture, in turns, in reverse order on every other scene."""
    sessions = (
        open_sessions(find_bundle("mini"), threads=1),
        open_sessions(find_bundle("mini-edge"), threads=1),
    )
    runners = {}
    for name in MIXTURES:
        segmenter = mixture(sessions, name, "edge")
        runners[name] = Runner(segmenter.encode, segmenter.segment)
    samples = list(scene_samples(range(HELD_OUT_FROM, HELD_OUT_FROM + count + 1)))
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for runner in runners.values():
        _timed(runner, samples[-1], samples[-1].phrase)
    for index, sample in enumerate(samples[:-1]):
        for name in list(runners)[:: 1 - 2 * (index % 2)]:
            seconds[name].append(_timed(runners[name], sample, sample.phrase)[0])
    milliseconds = {name: 1e3 * np.array(each) for name, each in seconds.items()}
    return {
        "threads": 1,
        "scenes": count,
        "mixtures": {
            name: {
                "ms": {f"p{p}": round(float(np.percentile(each, p)), 2) for p in (50, 90)},
                "faster_than_none": round(float(np.median(milliseconds["none"] / each)), 2),
            }
            for name, each in milliseconds.items()
        },
    }


def mixture(sessions: tuple[Any, Any], name: str, variant: str) -> Segmenter:
    """Open the pipeline with the graphs and tables of a mixture's parts from the small bundle."""
    graphs = tuple(graph for part in MIXTURES[name] for graph in PARTS[part])
    large, small = find_bundle("mini"), find_bundle("mini-edge")

    def owner(graph: str) -> Bundle:
        return small if graph in graphs else large

    return Segmenter(
        sessions=MixedSessions(*sessions, graphs),
        spec=large.spec,
        options=replace(options_for(large.spec, variant=variant), cache_texts=False),
        tokenizer=Tokenizer(large.tokenizer_json(), large.spec.context_length),
        positions=owner("clip_image").clip_positions(),
        prompts=owner("sam_decoder").prompt_vectors(),
        read_graph=lambda graph: read_onnx(owner(graph).graph_path(graph)),
    )


if __name__ == "__main__":
    main()
