"""`segment`: an image and a phrase in, a prediction and its files out."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.batch.prompted import PromptedMasks
from refdiff.contracts.atomic_io import check_targets, write_files
from refdiff.contracts.bundle import Bundle
from refdiff.contracts.inspection import check_trained, find_bundle
from refdiff.contracts.options import (
    DEFAULT_BACKEND,
    DEFAULT_RUN,
    BackendOptions,
    Options,
    RunOptions,
)
from refdiff.engines.factory import BackendSessions
from refdiff.errors import InputError
from refdiff.loading import open_backend, segmenter_of
from refdiff.runtime.image import ImageLike, png
from refdiff.runtime.masks import compress_coco_rle, to_coco_rle
from refdiff.runtime.phrase import parse_phrase
from refdiff.runtime.pipeline import Segmenter
from refdiff.runtime.segmentation import Segmentation

PARTS = ("hard", "soft", "generative", "place")
"""Parts of the fused score, unweighted."""

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A segmentation, and how it was computed."""

    image: NDArray[np.uint8]
    """[y, x, 3] RGB, upright."""
    result: Segmentation
    options: Options
    model: str
    backend: str
    backend_reason: str
    """Reason why this back-end was chosen."""
    encode_ms: float
    """Time of the work on the image alone, which all phrases on one image share."""
    segment_ms: float
    """Time from the phrase to the result. Of several phrases on one image: time since the previous result;
    work that some of them share counts for the first of these."""
    random_weights: bool = False
    """The bundle's weights are random: the mask means nothing."""

    @property
    def matched(self) -> bool:
        """Whether a mask was returned; that it shows what the phrase names is not certain."""
        return self.result.matched

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; the mask is encoded as compressed COCO run lengths."""
        result, height, width = self.result, *self.image.shape[:2]
        return {
            "phrase": result.phrase,
            "root": result.root,
            "matched": self.matched,
            "reason": result.reason,
            "confidence": result.confidence,
            "cautions": list(result.cautions),
            "score": result.score if math.isfinite(result.score) else None,
            "scores": parts_of(result),
            "box_xyxy_px": self._box(),
            "area_px": result.area,
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
        """Return x0, y0, x1, y1: inclusive corners in px."""
        index = self.result.index
        return None if index is None else [int(side) for side in self.result.candidates.boxes_xyxy_px[index]]


def parts_of(result: Segmentation) -> dict[str, float] | None:
    """Return the parts of the selected candidate's score, or None if none was selected."""
    if result.index is None:
        return None
    return {name: float(getattr(result.scores, name)[result.index]) for name in PARTS}


def segment(
    bundle: Path | str,
    image: ImageLike,
    phrase: str,
    *,
    focus: str | None = None,
    options: RunOptions = DEFAULT_RUN,
    backend: BackendOptions = DEFAULT_BACKEND,
) -> Prediction:
    """Segment what `phrase` refers to in `image`; for several phrases on one image, use `load` instead.

    Args:
        bundle: its folder, or "mini" for the built-in one.
        image: what `Segmenter.encode` takes.
        phrase: English, e.g. "the red mug on the left".
        focus: the phrase's head word, if the reader gets it wrong.
        options: what is computed.
        backend: where and how the graphs run.

    Raises:
        BundleError: the bundle is missing, damaged or newer.
        InputError: the image, the phrase or an option cannot be used.
        MissingDependencyError: the back-end's package, a GPU or its driver is missing.
        EngineError: a graph failed, or no plan fits.
    """
    parse_phrase(phrase, focus=focus, word_boundaries=True)  # a phrase that cannot be used fails at once
    opened = find_bundle(bundle, expect=options.expect)
    check_trained(opened, allow_random_weights=options.allow_random_weights)
    sessions = open_backend(opened, backend)
    with segmenter_of(opened, sessions, options.pipeline_options(opened.spec)) as segmenter:
        return predict(segmenter, image, phrase, focus=focus, bundle=opened, sessions=sessions)


def predict(
    segmenter: Segmenter,
    image: ImageLike,
    phrase: str,
    *,
    focus: str | None = None,
    bundle: Bundle,
    sessions: BackendSessions,
) -> Prediction:
    """Segment one phrase with an open segmenter, and measure the time.

    Args:
        segmenter: over the sessions.
        image: see `segment`.
        phrase: see `segment`.
        focus: see `segment`.
        bundle: the segmenter's bundle.
        sessions: the segmenter's sessions.
    """
    start = time.perf_counter()
    encoded = segmenter.encode(image)
    encoded_at = time.perf_counter()
    result = segmenter.segment(encoded, phrase, focus=focus)
    took_ms = 1e3 * (encoded_at - start), 1e3 * (time.perf_counter() - encoded_at)
    _LOGGER.info("%r: encode %.0f ms, segment %.0f ms", phrase, *took_ms)
    return _prediction(segmenter, encoded.pixels, result, bundle, sessions, took_ms)


def predict_each(
    segmenter: Segmenter,
    image: NDArray[np.uint8],
    phrases: Sequence[str],
    *,
    bundle: Bundle,
    sessions: BackendSessions,
    batch_size: int,
) -> Iterator[Prediction]:
    """Segment several phrases on one image; the graphs run as the predictions are taken.

    Args:
        segmenter: over the sessions.
        image: [y, x, 3] uint8 RGB.
        phrases: in the order of the predictions.
        bundle: the segmenter's bundle.
        sessions: the segmenter's sessions.
        batch_size: largest batch of the UNet.
    """
    start = time.perf_counter()
    encoded = segmenter.encode(image)
    last = time.perf_counter()
    encode_ms = 1e3 * (last - start)
    for result in segmenter.segment_each(encoded, phrases, batch_size=batch_size):
        took_ms = encode_ms, 1e3 * (time.perf_counter() - last)
        yield _prediction(segmenter, encoded.pixels, result, bundle, sessions, took_ms)
        last = time.perf_counter()


def _prediction(
    segmenter: Segmenter,
    image: NDArray[np.uint8],
    result: Segmentation,
    bundle: Bundle,
    sessions: BackendSessions,
    took_ms: tuple[float, float],
) -> Prediction:
    """Build a prediction; `took_ms` is the time to encode and the time to segment."""
    return Prediction(
        image=image,
        result=result,
        options=segmenter.options,
        model=bundle.spec.name,
        backend=sessions.backend,
        backend_reason=sessions.reason,
        encode_ms=took_ms[0],
        segment_ms=took_ms[1],
        random_weights=bundle.manifest.random_seed is not None,
    )


def check_outputs(image: Path, *, output: Path | None, overlay: Path | None, overwrite: bool = False) -> None:
    """Refuse, before any work, outputs that `save` could not write, or that would replace the image itself.

    Raises:
        InputError: names the output and the reason.
    """
    paths = output_paths(output, overlay)
    for path in paths.values():
        if path.exists() and image.exists() and path.samefile(image):
            raise InputError(f"output {path} is the image itself; choose another name")
    check_targets(paths.values(), overwrite=overwrite)


def output_paths(output: Path | None, overlay: Path | None) -> dict[str, Path]:
    """Return the files that `save` will write: kind -> path; overlay and JSON lie next to the mask.

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
    prediction: Prediction | PromptedMasks,
    *,
    output: Path | None = None,
    overlay: Path | None = None,
    overwrite: bool = False,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Path]:
    """Write mask, overlay and JSON, all or none.

    Args:
        prediction: from `segment` or `segment_prompt`.
        output: the mask's PNG, 255 inside and 0 outside; .overlay.png and .json are put next to it.
        overlay: the overlay's PNG, if it is wanted elsewhere or without the mask.
        overwrite: replace existing files.
        about: entries that precede the prediction in the JSON.

    Returns:
        The written files: "mask", "overlay", "json" -> path.

    Raises:
        InputError: a file exists, or the disk is read-only or full.
    """
    paths = output_paths(output, overlay)
    contents = {
        "mask": lambda: png(np.where(prediction.result.mask, np.uint8(255), np.uint8(0))),
        "overlay": lambda: png(prediction.result.overlay()),
        "json": lambda: (
            json.dumps({**(about or {}), **prediction.to_json()}, allow_nan=False, indent=1) + "\n"
        ).encode(),
    }
    write_files({path: contents[kind]() for kind, path in paths.items()}, overwrite=overwrite)
    return paths
