"""`segment`: one picture and one phrase to an answer, and the answer to files."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.atomic_io import check_targets, write_files
from refdiff.contracts.inspection import check_trained, find_bundle
from refdiff.contracts.options import Options, options_for
from refdiff.contracts.results import Segmentation
from refdiff.engines.factory import BackendSessions, open_sessions
from refdiff.errors import InputError
from refdiff.loading import segmenter_of
from refdiff.runtime.image import png
from refdiff.runtime.masks import compress_coco_rle, to_coco_rle
from refdiff.runtime.overlay import overlay as draw_overlay
from refdiff.runtime.phrase import read_phrase
from refdiff.runtime.pipeline import Segmenter

PARTS = ("hard", "soft", "generative", "place")
"""Of the fused score, unweighted."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A segmentation, with what it was asked of and what it took."""

    image: NDArray[np.uint8]
    """[y, x, 3] RGB, upright."""
    result: Segmentation
    options: Options
    model: str
    backend: str
    backend_reason: str
    """Why this back-end."""
    encode_ms: float
    """Image-only work, shared by all phrases on one picture."""
    segment_ms: float
    """From the phrase to the answer; among many phrases, since the last answer: what some share is in the
    first of them."""
    random_weights: bool = False
    """The bundle's weights were drawn: the mask means nothing."""

    @property
    def matched(self) -> bool:
        """Whether anything was found."""
        return self.result.index is not None

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; the mask as compressed COCO run lengths."""
        result, height, width = self.result, *self.image.shape[:2]
        return {
            "phrase": result.phrase,
            "root": result.root,
            "matched": self.matched,
            "reason": result.reason,
            "score": result.score if math.isfinite(result.score) else None,
            "scores": parts_of(result),
            "box_xyxy_px": self._box(),
            "area_px": int(np.count_nonzero(result.mask)),
            "size": {"width": width, "height": height},
            "candidates": len(result.candidates),
            "kept": int(np.count_nonzero(result.candidates.kept)),
            "mask": compress_coco_rle(to_coco_rle(result.mask)),
            "model": self.model,
            "random_weights": self.random_weights,
            "variant": self.options.variant,
            "mode": self.options.mode,
            "seed": self.options.seed,
            "backend": self.backend,
            "backend_reason": self.backend_reason,
            "encode_ms": round(self.encode_ms, 2),
            "segment_ms": round(self.segment_ms, 2),
        }

    def _box(self) -> list[int] | None:
        """x0, y0, x1, y1, inclusive corners."""
        index = self.result.index
        return None if index is None else [int(side) for side in self.result.candidates.boxes_xyxy_px[index]]


def parts_of(result: Segmentation) -> dict[str, float] | None:
    """The parts of the chosen candidate's score; None when nothing was chosen."""
    if result.index is None:
        return None
    return {name: float(getattr(result.scores, name)[result.index]) for name in PARTS}


def segment(
    bundle: Path | str,
    picture: Path | str | bytes | NDArray[Any],
    phrase: str,
    *,
    focus: str | None = None,
    backend: str = "auto",
    variant: str = "edge",
    mode: str = "full",
    seed: int = 0,
    reader: str = "rules",
    threads: int | None = None,
    memory: str | None = None,
    allow_random_weights: bool = False,
) -> Answer:
    """Find what `phrase` names in `picture`; for many phrases on one picture, `load` the bundle instead.

    Args:
        bundle: its folder, or "mini" for the built-in one.
        picture: a file's path or bytes, or an array [y, x, 3] uint8 RGB.
        phrase: English, e.g. "the red mug on the left".
        focus: its head word, for a caller who knows better than the reader.
        backend: as in `load`, like all that follow.
        variant: see `load`.
        mode: see `load`.
        seed: see `load`.
        reader: see `load`.
        threads: see `load`.
        memory: see `load`.
        allow_random_weights: see `load`.

    Raises:
        BundleError: the bundle is missing, damaged or newer.
        InputError: the picture, the phrase or an option cannot be used.
        MissingDependencyError: the back-end's package, a GPU or its driver is missing.
        EngineError: a graph failed, or no plan fits.
    """
    read_phrase(phrase, focus=focus, word_boundaries=True)  # a phrase that cannot be used fails at once
    opened = find_bundle(bundle)
    check_trained(opened, allow_random_weights=allow_random_weights)
    options = options_for(opened.spec, variant=variant, mode=mode, seed=seed, reader=reader)
    sessions = open_sessions(opened, backend=backend, threads=threads, memory=memory)
    with segmenter_of(opened, sessions, options) as segmenter:
        answer = ask(segmenter, picture, phrase, focus=focus, model=opened.spec.name, sessions=sessions)
    return replace(answer, random_weights=opened.manifest.random_seed is not None)


def ask(
    segmenter: Segmenter,
    picture: Path | str | bytes | NDArray[Any],
    phrase: str,
    *,
    focus: str | None = None,
    model: str,
    sessions: BackendSessions,
) -> Answer:
    """Put one question to an open segmenter, and take the time."""
    start = time.perf_counter()
    scene = segmenter.encode(picture)
    encoded = time.perf_counter()
    result = segmenter.segment(scene, phrase, focus=focus)
    done = time.perf_counter()
    return Answer(
        image=scene.image,
        result=result,
        options=segmenter.options,
        model=model,
        backend=sessions.backend,
        backend_reason=sessions.reason,
        encode_ms=1e3 * (encoded - start),
        segment_ms=1e3 * (done - encoded),
    )


def check_outputs(
    picture: Path, *, output: Path | None, overlay: Path | None, overwrite: bool = False
) -> None:
    """Refuse, before any work, outputs that `save` could not write, or that would replace the picture itself.

    Raises:
        InputError: says which and why.
    """
    paths = output_paths(output, overlay)
    for path in paths.values():
        if path.exists() and picture.exists() and path.samefile(picture):
            raise InputError(f"output {path} is the picture itself; choose another name")
    check_targets(paths.values(), overwrite=overwrite)


def output_paths(output: Path | None, overlay: Path | None) -> dict[str, Path]:
    """What `save` will write: kind -> path. With `output`, overlay and JSON lie beside the mask.

    Raises:
        InputError: a name does not end in .png, or two are the same.
    """
    paths: dict[str, Path] = {}
    if output is not None:
        paths["mask"] = output
        paths["overlay"] = output.with_suffix(".overlay.png")
    if overlay is not None:
        paths["overlay"] = overlay
    for path in paths.values():
        if path.suffix.lower() != ".png":
            raise InputError(f"got output {path}, expected a name that ends in .png")
    if output is not None:
        paths["json"] = output.with_suffix(".json")
    if len(set(paths.values())) < len(paths):
        raise InputError(f"mask and overlay are both {output}; give them different names")
    return paths


def save(
    answer: Answer,
    *,
    output: Path | None = None,
    overlay: Path | None = None,
    overwrite: bool = False,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Path]:
    """Write mask, overlay and JSON, all or none.

    Args:
        answer: from `segment`.
        output: the mask's PNG, 255 inside and 0 outside; .overlay.png and .json are put beside it.
        overlay: the overlay's PNG, when it should be elsewhere, or alone.
        overwrite: replace files that are there.
        about: goes into the JSON before the answer.

    Returns:
        What was written: "mask", "overlay", "json" -> path.

    Raises:
        InputError: a place is taken, read-only or full.
    """
    paths = output_paths(output, overlay)
    contents = {
        "mask": lambda: png(np.where(answer.result.mask, np.uint8(255), np.uint8(0))),
        "overlay": lambda: png(draw_overlay(answer.image, answer.result)),
        "json": lambda: (
            json.dumps({**(about or {}), **answer.to_json()}, allow_nan=False, indent=1) + "\n"
        ).encode(),
    }
    write_files({path: contents[kind]() for kind, path in paths.items()}, overwrite=overwrite)
    return paths
