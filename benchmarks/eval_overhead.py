"""Measure what an evaluation costs besides the pipeline, in processor time: other load matters little.

    .venv/bin/python -m benchmarks.eval_overhead              10 and 60 images of 768x448 px

Scenes are rendered, enlarged, and evaluated from image and mask files with a folder of records, in one
process with one thread. Time is split by its place: opening the bundle and the back-end, decoding
images, inside `encode` and `segment_many`, and all else: truths, overlaps, run lengths, records, metrics.
The last is the overhead. The first run of a process, which has the imports too, is recorded by itself.
Writes results/eval-overhead.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.records import RESULTS, add_entry
from refdiff.contracts.options import BackendOptions, RunOptions
from refdiff.data.sample import Sample, SampleList
from refdiff.data.synthetic import RenderedScenes
from refdiff.data.truth import MaskFile
from refdiff.evaluation import answering, evaluate
from refdiff.runtime.pipeline import Segmenter

RECORD = RESULTS / "eval-overhead.json"
SIZE = (768, 448)
SPENT: dict[str, float] = defaultdict(float)
"""Place -> processor seconds."""


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 60])
    parser.add_argument("--variant", default="edge")
    given = parser.parse_args()
    timed(Segmenter, "encode", "pipeline")
    timed(Segmenter, "segment_many", "pipeline")
    timed(Sample, "read", "decoding")
    for module, name in ((evaluate, "find_model"), (evaluate, "choose_backend"), (answering, "open_model")):
        timed(module, name, "opening")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        samples = written(folder, max(given.counts))
        least = min(given.counts)
        cold = measured(samples[:least], given.variant, folder / "cold")
        entry = {
            f"{count} images": measured(samples[:count], given.variant, folder / f"run {count}")
            for count in given.counts
        }
        entry[f"{least} images, with the imports"] = cold
    add_entry(RECORD, given.variant, {"size_px": list(SIZE), **entry})
    for count, parts in entry.items():
        print(count, parts)  # noqa: T201 - what a benchmark is for


def timed(owner: Any, name: str, place: str) -> None:
    """Make a function or a method count its processor time."""
    inner: Callable[..., Any] = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return inner(*args, **kwargs)
        finally:
            SPENT[place] += time.process_time() - start

    setattr(owner, name, call)


def written(folder: Path, count: int) -> tuple[Sample, ...]:
    """Write scenes as image and mask files, and return samples that read them."""
    samples = []
    for scene in RenderedScenes(count=count):
        image, mask = folder / f"{scene.id}.png", folder / f"{scene.id} mask.png"
        Image.fromarray(scene.read()).resize(SIZE).save(image)
        Image.fromarray(np.asarray(scene.truth)).resize(SIZE).save(mask)
        samples.append(dataclasses.replace(scene, image=image, truth=MaskFile(path=mask)))
    return tuple(samples)


def measured(samples: tuple[Sample, ...], variant: str, output: Path) -> dict[str, float]:
    """Return processor seconds by place, and the share of all else in everything but the opening."""
    SPENT.clear()
    start = time.process_time()
    options, backend = RunOptions(variant=variant), BackendOptions(name="ort-cpu", threads=1)
    evaluate.evaluate("mini", SampleList(samples), options=options, backend=backend, output=output)
    total = time.process_time() - start
    rest = total - sum(SPENT.values())
    parts = {"total_s": total, **{f"{name}_s": SPENT[name] for name in ("opening", "decoding", "pipeline")}}
    parts |= {"else_s": rest, "overhead": rest / (total - SPENT["opening"]), "overhead_of_all": rest / total}
    return {name: round(value, 4) for name, value in parts.items()}


if __name__ == "__main__":
    main()
