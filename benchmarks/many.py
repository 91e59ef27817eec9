"""Many phrases and many images on the miniature: what is shared, what overlaps, what stays in memory.

    .venv/bin/python -m benchmarks.many phrases     1, 4, 16, 64 phrases on one image, three ways
    .venv/bin/python -m benchmarks.many rows        a UNet and text call of 1 to 16 rows
    .venv/bin/python -m benchmarks.many folder      24 scenes, stages one after the other and at the same time
    .venv/bin/python -m benchmarks.many memory      peak memory against the length of the folder

Variants take turns in one process (`memory`: one process each). Seconds on the clock are those of a machine
that may have other work; seconds of processor time are the process's own, and say what spinning costs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.records import RESULTS, add_entry
from benchmarks.watched import run_watched
from refdiff.batch import folder as surveying
from refdiff.batch import folder_run
from refdiff.contracts.bundle import Bundle
from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.options import BackendOptions, options_for
from refdiff.data.synthetic import scene_samples
from refdiff.engines.factory import BackendSessions, open_sessions
from refdiff.loading import segmenter_of
from refdiff.runtime.batching import UNET_ROWS
from refdiff.runtime.pipeline import Segmenter

RECORD = RESULTS / "many.json"
SEED = 1_000_000
COUNTS = (1, 4, 16, 64)
ROWS = (1, 2, 4, 8, 16)
SCENES = 24
LENGTHS = (6, 24, 96)
DIFFERENT = 6
"""Scenes in a folder of `memory`, over and over: another length is not another mixture."""
PHRASES = ("the red mug", "the ball on the left", "the book", "the largest thing")
ENVIRONMENTS: tuple[dict[str, str], ...] = ({}, {"OPENBLAS_NUM_THREADS": "1"}, {"MALLOC_ARENA_MAX": "1"})
Timed = tuple[float, float]
"""Seconds on the clock, seconds of processor time."""


def main() -> None:
    """Measure one part and record it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("phrases", "rows", "folder", "memory"))
    parser.add_argument("--variant", default="edge")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime, in `phrases` and `rows`")
    parser.add_argument(
        "--size", default="own", help="size of the images in `folder` and `memory`, e.g. 1280x720"
    )
    given = parser.parse_args()
    parts: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
        "phrases": phrases,
        "rows": rows,
        "folder": folder,
        "memory": memory,
    }
    name = {"phrases": given.variant, "rows": f"{given.threads} threads"}.get(given.part, given.size)
    load = os.getloadavg()[0]
    entry = parts[given.part](given)
    entry |= {"rounds": given.rounds, "load_average": [round(load, 1), round(os.getloadavg()[0], 1)]}
    add_entry(RECORD, f"{given.part}, {name}", entry)


def _many(segmenter: Segmenter, image: NDArray[np.uint8], some: Sequence[str]) -> None:
    segmenter.segment_many(segmenter.encode(image), some)


def _loop(segmenter: Segmenter, image: NDArray[np.uint8], some: Sequence[str]) -> None:
    encoded = segmenter.encode(image)
    for phrase in some:
        segmenter.segment(encoded, phrase)


def _encode_each(segmenter: Segmenter, image: NDArray[np.uint8], some: Sequence[str]) -> None:
    for phrase in some:
        segmenter.segment(segmenter.encode(image), phrase)


WAYS = {"segment_many": _many, "segment in a loop": _loop, "encode for each phrase": _encode_each}


def phrases(given: argparse.Namespace) -> dict[str, Any]:
    """Time `segment_many`, `segment` in a loop, and one encoding per phrase; encoding always counts."""
    bundle = find_bundle("mini")
    sessions = open_sessions(bundle, backend="ort-cpu", threads=given.threads)
    asked = list(dict.fromkeys(each.phrase for each in islice(scene_samples(range(SEED, SEED + 400)), 200)))
    image = next(scene_samples([SEED + 7])).read()
    options = options_for(bundle.spec, variant=given.variant)

    def measured(way: str, count: int) -> Timed:
        segmenter = segmenter_of(bundle, sessions, options)  # one that knows no text yet
        return timed(lambda: WAYS[way](segmenter, image, asked[:count]))

    measured("segment_many", 2)  # loads the graphs
    times: dict[tuple[str, int], list[Timed]] = {(way, count): [] for way in WAYS for count in COUNTS}
    for _ in range(given.rounds):
        for (way, count), taken in times.items():
            taken.append(measured(way, count))
    sessions.close()
    base = "segment_many"
    return {
        "profile": given.variant,
        "threads": given.threads,
        "size_yx": list(image.shape[:2]),
        "ways": {way: {str(count): summary(times[way, count], count) for count in COUNTS} for way in WAYS},
        "ratio_to_segment_many": {
            way: {str(count): ratio(times[way, count], times[base, count]) for count in COUNTS}
            for way in WAYS
            if way != base
        },
        "affine": {way: affine({count: times[way, count] for count in COUNTS}) for way in WAYS},
    }


def rows(given: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds per row of calls of so many rows, and how far they raise this process's peak memory."""
    bundle = find_bundle("mini")
    diffusion, length = bundle.spec.diffusion, bundle.spec.context_length
    sessions = open_sessions(bundle, backend="ort-cpu", threads=given.threads)
    rng = np.random.default_rng(0)

    def feeds(graph: str, count: int) -> dict[str, NDArray[Any]]:
        ids = rng.integers(0, 500, (count, length)).astype(np.int32)
        if graph == "sd_text":
            return {"ids": ids}
        if graph == "clip_text":
            return {"ids": ids, "end": np.full(count, 10, np.int32)}
        side = diffusion.latent_size
        return {
            "latent": rng.normal(size=(count, diffusion.latent_channels, side, side)).astype(np.float32),
            "timestep": np.full(count, 51, np.float32),
            "context": rng.normal(size=(count, length, diffusion.context_width)).astype(np.float32),
        }

    document: dict[str, Any] = {"threads": given.threads, "default": UNET_ROWS, "graphs": {}}
    for graph in ("sd_text", "clip_text", "unet_taps", "unet"):
        session, fed = sessions.open(graph), {count: feeds(graph, count) for count in ROWS}
        times: dict[int, list[Timed]] = {count: [] for count in ROWS}
        peaks = {}
        for count in ROWS:  # upwards: the peak only rises
            session.run(fed[count])
            peaks[str(count)] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        for _ in range(given.rounds):
            for count, taken in times.items():
                taken.append(timed(partial(session.run, fed[count])))
        per_row = {str(count): summary(taken, count) for count, taken in times.items()}
        document["graphs"][graph] = {"per_row": per_row, "peak_rss_bytes": peaks}
    return document


def folder(given: argparse.Namespace) -> dict[str, Any]:
    """Run a folder with its stages in sequence or overlapped, and its threads spinning or not."""
    with tempfile.TemporaryDirectory() as scratch:
        pictures, out = write_scenes(Path(scratch), SCENES, given.size), Path(scratch) / "out"

        def run(overlapped: bool, spinning: bool, threads: int) -> None:  # noqa: FBT001 - keys of a table
            shutil.rmtree(out, ignore_errors=True)
            with staged(overlapped=overlapped, spinning=spinning):
                surveying.segment_many(
                    "mini",
                    pictures,
                    PHRASES,
                    output=out,
                    backend=BackendOptions(name="ort-cpu", threads=threads),
                )

        variants = [(o, s, t) for o in (False, True) for s in (True, False) for t in (1, 2)]
        times: dict[tuple[bool, bool, int], list[Timed]] = {each: [] for each in variants}
        for _ in range(given.rounds):
            for variant, taken in times.items():
                taken.append(timed(partial(run, *variant)))
    before = times[False, True, 2]
    return {
        "scenes": SCENES,
        "phrases": list(PHRASES),
        "size": given.size,
        "openblas_threads": os.environ.get("OPENBLAS_NUM_THREADS"),
        "variants": [
            {
                "overlapped": overlapped,
                "spinning": spinning,
                "threads": threads,
                **summary(taken, SCENES),
                "ratio_of_before": ratio(before, taken),
            }
            for (overlapped, spinning, threads), taken in times.items()
        ],
    }


def memory(given: argparse.Namespace) -> dict[str, Any]:
    """Peak memory and processor time of the command on folders of growing length."""
    entries = []
    for variables in ENVIRONMENTS:
        for length in LENGTHS:
            with tempfile.TemporaryDirectory() as scratch:
                pictures = write_scenes(Path(scratch), length, given.size, DIFFERENT)
                command = [sys.executable, "-m", "refdiff", "segment", "mini", str(pictures), *PHRASES]
                with environment(variables):
                    before = children_cpu()
                    watched = run_watched([*command, "-o", str(Path(scratch) / "out")])
            entries.append(
                {
                    "pictures": length,
                    "environment": variables,
                    "seconds": round(watched.seconds, 2),
                    "cpu_seconds": round(children_cpu() - before, 2),
                    "peak_rss_bytes": watched.peak_rss_bytes,
                    "peak_private_bytes": watched.peak_private_bytes,
                }
            )
    return {"size": given.size, "phrases": list(PHRASES), "runs": entries}


def write_scenes(scratch: Path, count: int, size: str, different: int = SCENES) -> Path:
    """Write a folder of held-out scenes as JPEG files, repeated where not all are different."""
    target = scratch / "pictures"
    target.mkdir()
    scenes = islice(scene_samples(range(SEED, SEED + 4 * different)), different)
    for number, sample in zip(range(count), cycle(scenes), strict=False):
        picture = Image.fromarray(sample.read())
        if size != "own":
            width, height = map(int, size.split("x"))
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        picture.save(target / f"{number:03}.jpg", quality=92)
    return target


@contextlib.contextmanager
def staged(*, overlapped: bool, spinning: bool) -> Iterator[None]:
    """Folder runs with or without overlap and spinning, while the block runs."""
    with contextlib.ExitStack() as patches:
        patches.enter_context(patch.object(surveying, "open_backend", partial(_open, spinning=spinning)))
        if not overlapped:
            patches.enter_context(patch.object(folder_run, "BackgroundWriter", _WriteNow))
            patches.enter_context(patch.object(folder_run, "prefetch", _read_now))
        yield


def _open(bundle: Bundle, backend: BackendOptions, *, spinning: bool) -> BackendSessions:
    return open_sessions(bundle, backend=backend.name, threads=backend.threads, spinning=spinning)


class _WriteNow:
    """Stands in for `BackgroundWriter`: everything is written in the caller's thread, at once."""

    def __init__(self, *, pending: int) -> None:
        """Nothing waits."""

    def __enter__(self) -> _WriteNow:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing is left to write."""

    def submit(self, write: Callable[..., Any], *arguments: Any) -> None:
        """Write."""
        write(*arguments)


@contextlib.contextmanager
def _read_now(items: Sequence[Any], read: Callable[[Any], Any], *, ahead: int) -> Iterator[Iterator[Any]]:  # noqa: ARG001
    yield map(read, items)


@contextlib.contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Set the children's variables for OpenBLAS's threads and malloc's arenas."""
    before = {name: os.environ.pop(name, None) for name in ("OPENBLAS_NUM_THREADS", "MALLOC_ARENA_MAX")}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def children_cpu() -> float:
    """Processor seconds of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def timed(work: Callable[[], object]) -> Timed:
    """Run once."""
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - cpu


def summary(times: Sequence[Timed], count: int) -> dict[str, float]:
    """Milliseconds of one of `count`: on the clock and of processor time."""
    clock, cpu = ([1e3 * each[i] / count for each in times] for i in (0, 1))
    return {
        "n": len(times),
        "p50_ms": round(statistics.median(clock), 2),
        "least_ms": round(min(clock), 2),
        "cpu_p50_ms": round(statistics.median(cpu), 2),
        "cpu_least_ms": round(min(cpu), 2),
    }


def ratio(slow: Sequence[Timed], fast: Sequence[Timed]) -> dict[str, float]:
    """Return how many times as long: the median over rounds, whose two sides ran one after the other."""
    clock, cpu = (statistics.median(s[i] / f[i] for s, f in zip(slow, fast, strict=True)) for i in (0, 1))
    return {"clock": round(clock, 2), "cpu": round(cpu, 2)}


def affine(times: dict[int, list[Timed]]) -> dict[str, float]:
    """Fit a line to the least processor times: milliseconds without a phrase, and for each."""
    counts = np.array(list(times), float)
    taken = np.array([1e3 * min(cpu for _, cpu in each) for each in times.values()])
    weights = 1 / taken  # relative errors: the shortest counts as much as the longest
    (slope, start), *_ = np.polyfit(counts, taken, 1, w=weights, full=True)
    residual = np.abs(start + slope * counts - taken) / taken
    return {
        "cpu_ms_at_none": round(float(start), 2),
        "cpu_ms_per_phrase": round(float(slope), 2),
        "slope_of_first": round(float(slope / taken[0]), 3),
        "largest_relative_residual": round(float(residual.max()), 3),
    }


if __name__ == "__main__":
    main()
