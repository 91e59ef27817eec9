"""Round trips of full-size checkpoints: written in each format, read by the real loaders, compared.

    PYTHONPATH=. .venv/bin/python -m benchmarks.checkpoint_formats --scratch DIR

Writes random weights of the published architectures with the writers of tests/, opens and loads them as an
export does, and adds one entry per format to results/checkpoint-formats.json: seconds, bytes, private memory,
and whether tensors and one forward pass are the source's to the last bit. A difference is a part of the range
of an answer. Files are deleted after each.

The forward pass is that of a copy of the loaded module: in a mapped file tensors begin at any address, and
matrix kernels sum in another order where memory is not aligned to 64 bytes. Layouts of transformers hold the
same numbers under other names and packing: there the answers of transformers' own module are compared.
"""

from __future__ import annotations

import argparse
import copy
import gc
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import full_size_checkpoints as full
from benchmarks.full_size_checkpoints import Answers, Modules
from benchmarks.records import RESULTS, add_entry
from refdiff.contracts.heap import trim_heap
from refdiff.models.clip import VIT_B_16, VIT_B_32, VIT_L_14, load_clip
from refdiff.models.diffusion import SD15, SD21, load_diffusion
from refdiff.models.fitting import Part
from refdiff.models.sam import VIT_B, VIT_H, load_sam

RECORD = RESULTS / "checkpoint-formats.json"
_UNREAD = ("decoder.", "post_quant_conv.")
"""Parts of a VAE that the method has no use for, and the loader leaves in the file."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """One way to store one model."""

    draw: Callable[[], Modules]
    write: Callable[[Modules, Path], Path]
    """Into a folder; returns what the loader is given."""
    load: Callable[[Path], Part[Any]]
    answers: Callable[[Modules], Answers]
    """One forward pass of each component."""
    their_answers: Callable[[Modules], Answers] | None = None
    """Forward pass of sources of another class than the loaded module."""
    half: bool = False
    """The source is rounded to half precision before it is written."""


def main() -> None:
    """Measure each format in a separate process, so that memory is measured clean."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, required=True, help="folder for files of up to 4.3 GB")
    parser.add_argument("--only", choices=FORMATS, help="measure this one, here")
    given = parser.parse_args()
    if given.only:
        torch.set_num_threads(2)
        with tempfile.TemporaryDirectory(dir=given.scratch) as folder, torch.no_grad():
            add_entry(RECORD, given.only, measure(FORMATS[given.only], Path(folder)))
        return
    for name in FORMATS:
        command = [
            sys.executable,
            "-m",
            "benchmarks.checkpoint_formats",
            "--scratch",
            str(given.scratch),
            "--only",
            name,
        ]
        subprocess.run(command, check=True)  # noqa: S603 - this script


def measure(layout: Format, folder: Path) -> dict[str, Any]:
    """Write, describe, load, compare."""
    source = layout.draw()
    if layout.half:
        source = {name: module.half() for name, module in source.items()}
    started = time.perf_counter()
    path = layout.write(source, folder)
    written = time.perf_counter()
    source = {name: module.float() for name, module in source.items()}
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    _tidy()
    with _private_growth() as growth:
        opened = time.perf_counter()
        part = layout.load(path)
        described = time.perf_counter()
        loaded = {name: load() for name, load in part.loaders.items()}
        done = time.perf_counter()
    return {
        "written_bytes": size,
        "seconds_to_write": round(written - started, 2),
        "seconds_to_describe": round(described - opened, 2),
        "seconds_to_load": round(done - described, 2),
        "peak_private_growth_bytes": growth[0],
        **_compared(layout, source, loaded),
    }


def _compared(layout: Format, source: Modules, loaded: dict[str, Any]) -> dict[str, Any]:
    report: dict[str, Any] = {}
    if layout.their_answers is None:
        counts = [_same_tensors(source[name], module) for name, module in loaded.items()]
        report["tensors"] = sum(total for total, _ in counts)
        report["equal_tensors"] = sum(same for _, same in counts)
    copied = {name: copy.deepcopy(loaded.pop(name)) for name in tuple(loaded)}
    got, expected = layout.answers(copied), (layout.their_answers or layout.answers)(source)
    return {
        **report,
        "forward_equal": all(torch.equal(got[name], expected[name]) for name in expected),
        "largest_forward_difference": max(_error(got[name], expected[name]) for name in expected),
    }


def _same_tensors(source: Any, loaded: Any) -> tuple[int, int]:
    """Count the tensors expected, and those present and equal to the last bit."""
    theirs = {key: value for key, value in source.state_dict().items() if not key.startswith(_UNREAD)}
    ours = loaded.state_dict()
    # A tensor too many counts as one that should not differ.
    return len(theirs.keys() | ours.keys()), sum(
        key in ours and torch.equal(ours[key], value) for key, value in theirs.items()
    )


def _error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest error, relative to the range of the expected values."""
    return float((got - expected).abs().max() / (expected.max() - expected.min()))


@contextmanager
def _private_growth() -> Iterator[list[int]]:
    """Yield a list that gets one number: the largest sampled growth of anonymous memory in bytes."""
    before, peak, over = _private_bytes(), [0], threading.Event()

    def sample() -> None:
        while not over.wait(0.01):
            peak[0] = max(peak[0], _private_bytes() - before)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield peak
    finally:
        over.set()
        sampler.join()
        peak[0] = max(peak[0], _private_bytes() - before)


def _private_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def _tidy() -> None:
    """Freed pages kept for later would hide what loading takes."""
    gc.collect()
    trim_heap()


_sd = partial(load_diffusion, image_size=512)
_clip = partial(load_clip, activation="quick_gelu")

FORMATS: Mapping[str, Format] = {
    "SD 1.5, original .safetensors": Format(
        draw=partial(full.draw_diffusion, SD15),
        write=partial(full.write_ldm, suffix=".safetensors"),
        load=_sd,
        answers=full.diffusion_answers,
    ),
    "SD 1.5, original .ckpt": Format(
        draw=partial(full.draw_diffusion, SD15),
        write=partial(full.write_ldm, suffix=".ckpt"),
        load=_sd,
        answers=full.diffusion_answers,
    ),
    "SD 1.5, diffusers folder, fp16": Format(
        draw=partial(full.draw_diffusion, SD15),
        write=full.write_diffusers,
        load=_sd,
        answers=full.diffusion_answers,
        half=True,
    ),
    "SD 2.1, original .safetensors, fp16": Format(
        draw=partial(full.draw_diffusion, SD21),
        write=partial(full.write_ldm, suffix=".safetensors", open_clip=True),
        load=partial(_sd, prediction="v_prediction"),
        answers=full.diffusion_answers,
        half=True,
    ),
    "SAM ViT-B, original .pth": Format(
        draw=partial(full.draw_sam, VIT_B), write=full.write_pth, load=load_sam, answers=full.sam_answers
    ),
    "SAM ViT-H, original .pth": Format(
        draw=partial(full.draw_sam, VIT_H), write=full.write_pth, load=load_sam, answers=full.sam_answers
    ),
    "SAM ViT-B, transformers folder": Format(
        draw=full.draw_transformers_sam,
        write=full.write_transformers,
        load=load_sam,
        answers=full.sam_answers,
        their_answers=full.transformers_sam_answers,
    ),
    "CLIP ViT-B/16, OpenAI archive, fp16": Format(
        draw=partial(full.draw_clip, VIT_B_16),
        write=full.write_archive,
        load=load_clip,
        answers=full.clip_answers,
        half=True,
    ),
    "CLIP ViT-B/16, open_clip folder": Format(
        draw=partial(full.draw_clip, VIT_B_16),
        write=full.write_open_clip_folder,
        load=load_clip,
        answers=full.clip_answers,
    ),
    "CLIP ViT-B/16, transformers folder": Format(
        draw=full.draw_transformers_clip,
        write=full.write_transformers,
        load=load_clip,
        answers=full.normalized,
        their_answers=full.transformers_clip_answers,
    ),
    "CLIP ViT-L/14, bare .safetensors": Format(
        draw=partial(full.draw_clip, VIT_L_14), write=full.write_bare, load=_clip, answers=full.clip_answers
    ),
    "CLIP ViT-B/32, bare .safetensors": Format(
        draw=partial(full.draw_clip, VIT_B_32), write=full.write_bare, load=_clip, answers=full.clip_answers
    ),
}


if __name__ == "__main__":
    main()
