"""Compare the complete pipeline with the original arithmetic, in turns in one run (or: make bench).

    .venv/bin/python -m benchmarks.bench                                  the miniature, on held-out scenes
    .venv/bin/python -m benchmarks.bench BUNDLE --photo PHOTO --phrase "the left wheel" --rounds 1

The contenders answer the same question one after the other, and each ratio is of two times from one turn:

    reference   Ref-Diff in torch as released: four UNet passes, every mask before the filter, no caches
    official    the runtime, ONNX Runtime on the CPU, the same arithmetic
    edge        the runtime, the variant for deployment
    mini-edge   the same with the small counterpart of the miniature
    small       the same with the bundle of small models that --small names, such as one of refdiff-edge

Run it on a machine that does nothing else: it refuses to record otherwise.
BUNDLE is one that `refdiff export MODEL --random-weights` wrote; torch draws the same weights again. Random
weights make random predicted IoUs, so the thresholds are set, before the clock starts, to let the same share
of each contender's masks pass. Adds an entry to results/bench.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.full_size_pipeline import choice_of, thresholds
from benchmarks.records import RESULTS, QuietMachine, add_entry
from refdiff.contracts.bundle import Bundle
from refdiff.contracts.graphs import GRAPHS
from refdiff.contracts.inspection import MINIATURE_NAME, find_bundle
from refdiff.contracts.options import Options, options_for
from refdiff.contracts.session import Array, SessionFactory
from refdiff.contracts.stack import COMPONENTS
from refdiff.data.synthetic import scene_sample
from refdiff.engines.factory import open_sessions
from refdiff.loading import segmenter_of
from refdiff.models.choice import ModelChoice, load_choice
from refdiff.profiling.spans import Stopwatch, TimedSessions
from refdiff.reference.pipeline import Reference
from refdiff.runtime.image import read_image

RECORD = RESULTS / "bench.json"
HELD_OUT = 1_000_000
"""First seed of the scenes nothing was chosen on."""

Question = tuple[Array, tuple[str, ...]]
"""An image and its phrases."""


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", nargs="?", default="mini")
    parser.add_argument("--photo", type=Path, help="for a bundle of random weights; shrunk to 720 lines")
    parser.add_argument("--phrase", default="the left wheel")
    parser.add_argument("--small", help="a bundle of small models, for a bundle of random weights")
    parser.add_argument("--scenes", type=int, default=12, help="of the miniature")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--many", type=int, default=16, help="phrases about one image, for official")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with QuietMachine() as machine:
        name, entry = measured(find_bundle(given.bundle), given)
    add_entry(RECORD, name, {**entry, "others_share_of_cores": round(machine.others, 4)})


def measured(bundle: Bundle, given: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Return the entry of a bundle, and its name."""
    watch = Stopwatch()
    sessions = opened(bundle, watch, given.threads)
    questions, options = asked(bundle, sessions, given)
    contenders = {
        "reference": reference(bundle, options["official"]),
        **{name: runtime(bundle, sessions, chosen, watch) for name, chosen in options.items()},
    }
    small = "mini-edge" if bundle.spec.name == MINIATURE_NAME else given.small
    if small is not None:
        contenders |= small_contender(find_bundle(small), given, watch)
    turns = [
        {name: contender(*each) for name, contender in contenders.items()}
        for each in warmed(bundle, contenders, questions * given.rounds)
    ]
    image, (phrase, *_) = questions[0]
    many = (
        phrase,
        *(f"{phrase} {number}" for number in range(1, given.many)),
    )  # the cache knows none of them
    entry = {
        "threads": given.threads,
        "picture_yx": list(image.shape[:2]),
        "turns": turns,
        "many": {"phrases": len(many), **contenders["official"](image, many)},
        **summary(turns),
    }
    entry["many"]["reference_over_official_per_phrase"] = round(
        entry["seconds"]["reference"] / (entry["many"]["seconds"] / len(many)), 2
    )
    if bundle.manifest.random_seed is None:
        entry["start"] = start()
    else:
        entry["options"] = {name: dataclasses.asdict(chosen.proposals) for name, chosen in options.items()}
    return f"{bundle.spec.name} {bundle.spec.diffusion.image_size}", entry


def small_contender(small: Bundle, given: argparse.Namespace, watch: Stopwatch) -> dict[str, Any]:
    """Return `edge` on a bundle of small models, under the name of the model."""
    sessions = opened(small, watch, given.threads)
    _, options = asked(small, sessions, given)
    return {small.spec.name: runtime(small, sessions, options["edge"], watch)}


def opened(bundle: Bundle, watch: Stopwatch, threads: int) -> SessionFactory:
    """Load every graph before the clock starts, as torch's models are."""
    sessions = TimedSessions(open_sessions(bundle, backend="ort-cpu", threads=threads), watch)
    for name in GRAPHS:
        sessions.open(name)
    return sessions


def asked(
    bundle: Bundle, sessions: SessionFactory, given: argparse.Namespace
) -> tuple[list[Question], dict[str, Options]]:
    """Return the samples, and the two variants."""
    options = {name: options_for(bundle.spec, variant=name) for name in ("official", "edge")}
    if bundle.manifest.random_seed is None:
        seeds = range(HELD_OUT, HELD_OUT + 10 * given.scenes)
        found = [each for each in map(scene_sample, seeds) if each is not None][: given.scenes]
        return [(each.read(), (each.phrase,)) for each in found], options
    if given.photo is None:
        raise SystemExit(f"{bundle.path} has random weights: name an image with --photo")
    with Image.open(given.photo) as photo:
        photo.thumbnail((1280, 720))
        image = read_image(np.asarray(photo.convert("RGB")))
    official = thresholds(bundle, sessions, image, 0.4, 300)
    same = official.proposals
    edge = dataclasses.replace(
        options["edge"].proposals,
        pred_iou_threshold=same.pred_iou_threshold,
        stability_threshold=same.stability_threshold,
    )
    return [(image, (given.phrase,))], {
        "official": official,
        "edge": dataclasses.replace(options["edge"], proposals=edge),
    }


def warmed(bundle: Bundle, contenders: Mapping[str, Any], questions: list[Question]) -> list[Question]:
    """Return the samples, after a warm-up on the last one; a full-size pass is long enough when cold."""
    if bundle.manifest.random_seed is None:
        for contender in contenders.values():
            contender(*questions[-1])
    return questions


def reference(bundle: Bundle, options: Options) -> Callable[..., dict[str, Any]]:
    """Torch; the release describes every mask and filters then, so here none is filtered."""
    stack = load_choice(
        ModelChoice() if bundle.manifest.random_seed is None else choice_of(bundle), "the comparison"
    )
    _ = [getattr(stack, name) for name in COMPONENTS]
    everything = dataclasses.replace(options.proposals, keep_largest=1 << 30)
    model = Reference(stack=stack, options=dataclasses.replace(options, proposals=everything))

    def ask(image: Array, phrases: Sequence[str]) -> dict[str, Any]:
        started = time.perf_counter()
        answers = [model.segment(image, phrase) for phrase in phrases]
        return {
            "seconds": round(time.perf_counter() - started, 4),
            "candidates": len(answers[0].candidates),
        }

    return ask


def runtime(
    bundle: Bundle, sessions: SessionFactory, options: Options, watch: Stopwatch
) -> Callable[..., dict[str, Any]]:
    """Run the runtime: an image is encoded once for all its phrases, and no text is cached from before."""

    def ask(image: Array, phrases: Sequence[str]) -> dict[str, Any]:
        segmenter = segmenter_of(bundle, sessions, options)
        watch.take()
        started = time.perf_counter()
        encoded = segmenter.encode(image)
        encoded_at = time.perf_counter()
        answers = segmenter.segment_many(encoded, phrases)
        seconds = time.perf_counter() - started
        graphs: dict[str, float] = {}
        for span in watch.take():
            if span.kind == "graph":
                graphs[span.name] = graphs.get(span.name, 0.0) + span.ms / 1e3
        return {
            "seconds": round(seconds, 4),
            "encode_seconds": round(encoded_at - started, 4),
            "graph_seconds": round(sum(graphs.values()), 4),
            "seconds_by_graph": {name: round(value, 4) for name, value in graphs.items()},
            "candidates": len(answers[0].candidates),
        }

    return ask


def summary(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians, and ratios within each turn."""
    names = list(turns[0])
    seconds = {name: statistics.median(turn[name]["seconds"] for turn in turns) for name in names}
    ratios = {
        name: statistics.median(turn["reference"]["seconds"] / turn[name]["seconds"] for turn in turns)
        for name in names[1:]
    }
    outside = {
        name: 1
        - sum(turn[name]["graph_seconds"] for turn in turns) / sum(turn[name]["seconds"] for turn in turns)
        for name in names[1:]
    }
    return {
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "reference_over": {name: round(value, 2) for name, value in ratios.items()},
        "share_outside_graphs": {name: round(value, 4) for name, value in outside.items()},
    }


def start() -> dict[str, Any]:
    """Cold costs of the miniature, each in a fresh process, and memory at 720 lines."""
    load = (
        "import time, refdiff; t=time.perf_counter(); refdiff.load('mini').close();"
        " print(time.perf_counter()-t)"
    )
    memory = (
        "import numpy as np, refdiff, pathlib\n"
        "image=np.random.default_rng(0).integers(0,255,(720,1280,3),dtype=np.uint8)\n"
        "with refdiff.load('mini') as s: s.segment(s.encode(image),'the red mug')\n"
        "print(*[l.split()[1] for l in pathlib.Path('/proc/self/status').read_text().splitlines()"
        " if l.startswith('VmHWM')])"
    )
    timed = "import time; t=time.perf_counter(); import refdiff; print(time.perf_counter()-t)"
    return {
        "import_s": round(statistics.median(float(fresh(timed)) for _ in range(7)), 4),
        "load_s": round(statistics.median(float(fresh(load)) for _ in range(5)), 4),
        "peak_resident_mb_720p_edge": round(int(fresh(memory)) / 1024, 1),
        "weights_mb": round(sum(f.stat().st_size for f in find_bundle("mini").path.iterdir()) / 1e6, 1),
    }


def fresh(code: str) -> str:
    """Return the output of a fresh Python process."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout  # noqa: S603


if __name__ == "__main__":
    main()
