"""Candidates: SAM's automatic mode over two sessions, and the area filter (METHOD §2).

Axes: m = grid points, p = prompts of one decoder call, k = masks, n = candidates, y/x = picture rows/columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.graphs import POINTS_PER_BATCH, POINTS_PER_DRAWING
from refdiff.contracts.options import ProposalOptions
from refdiff.contracts.results import Candidates
from refdiff.contracts.session import Array, Bool, Feed, Float, SessionFactory, to_host
from refdiff.contracts.spec import SamSpec
from refdiff.errors import EngineError
from refdiff.runtime import masks
from refdiff.runtime.resize import MaskResize, sam_input, sam_size
from refdiff.runtime.small_regions import without_small_regions

MASK_THRESHOLD = 0.0  # segment_anything.modeling.Sam.mask_threshold
_CHUNK_PX = 1 << 20  # pixels of logits looked at together: 4 MiB, which a processor's cache holds


def propose(
    sessions: SessionFactory,
    spec: SamSpec,
    image: NDArray[np.uint8],
    options: ProposalOptions,
) -> Candidates:
    """Every candidate mask of the picture, best predicted IoU first.

    Args:
        sessions: opens `sam_encoder`, `sam_decoder` and `sam_masks`.
        spec: SAM's sizes.
        image: [y, x, 3].
        options: grid, thresholds and area filter.

    Raises:
        EngineError: a graph failed or returned values that are not finite.

    Returns:
        At least one candidate: where SAM finds nothing, all of the picture is one.
    """
    embedding = embed(sessions, spec, image)
    grid = grid_points(options.points_per_side)
    size_yx = (image.shape[0], image.shape[1])
    return propose_at(grid, sessions, spec, embedding, size_yx, options)


def embed(sessions: SessionFactory, spec: SamSpec, image: NDArray[np.uint8]) -> Feed:
    """SAM's embedding of a picture; on a device it stays there, good until the encoder's next run.

    Raises:
        EngineError: the graph failed or returned values that are not finite.
    """
    pixels, _ = sam_input(image, spec)
    embedding = sessions.open("sam_encoder").run({"image": pixels}, keep_on_device=True)["embedding"]
    if isinstance(embedding, np.ndarray):  # one on the device is judged by what the decoder makes of it
        _check_finite("sam_encoder", embedding)
    return embedding


def propose_at(
    prompts: NDArray[np.float64],
    sessions: SessionFactory,
    spec: SamSpec,
    embedding: Feed,
    size_yx: tuple[int, int],
    options: ProposalOptions,
) -> Candidates:
    """As `propose`, on an embedded picture and at points [m, 2] of (x, y), shares of the picture."""
    resized_yx = sam_size(size_yx, spec.image_size)
    points = picture_points(prompts, resized_yx)
    resize = MaskResize(
        low_res=spec.low_res_size, square=spec.image_size, resized_yx=resized_yx, size_yx=size_yx
    )
    chunk = max(1, _CHUNK_PX // (size_yx[0] * size_yx[1]))
    found = [
        _survivors(resize(low_res[start : start + chunk]), predicted[start : start + chunk], options)
        for low_res, predicted in _drawn(sessions, embedding, points, options)
        for start in range(0, len(low_res), chunk)
    ]
    unique = _without_duplicates(found, options.nms_iou)
    if unique is not None and options.min_region_share > 0:
        unique = _tidied(unique, size_yx, options)
    return _candidates(unique, size_yx, options)


def grid_points(points_per_side: int) -> NDArray[np.float64]:
    """SAM's even grid [m, 2] of (x, y) in 0..1, row by row."""
    offset = 1 / (2 * points_per_side)
    side = np.linspace(offset, 1 - offset, points_per_side)
    x, y = np.meshgrid(side, side)
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def picture_points(prompts: NDArray[np.float64], resized_yx: tuple[int, int]) -> Float:
    """Points [m, 2], from 0..1 to px of SAM's resized picture; the half-pixel shift is the decoder's."""
    return np.asarray(prompts * np.array(resized_yx[::-1]), dtype=np.float32)


def keep_by_area(areas_px: NDArray[np.int64], size_yx: tuple[int, int], options: ProposalOptions) -> Bool:
    """The area filter of METHOD §2: among the largest, and above both minimum areas. [n] -> [n]."""
    largest = np.argsort(-areas_px, kind="stable")[: options.keep_largest]
    kept = np.zeros(len(areas_px), dtype=np.bool_)
    kept[largest] = True
    least = max(options.min_area_px, options.min_area_share * size_yx[0] * size_yx[1])
    return kept & (areas_px > least)


@dataclass(frozen=True)
class _Found:
    """What is kept of one chunk until duplicates go; masks are packed to bits, so 1,000 of them fit."""

    packed: NDArray[np.uint8]
    """[k, ceil(y*x / 8)]."""
    predicted_iou: Float
    boxes: NDArray[np.int64]


def _drawn(
    sessions: SessionFactory, embedding: Feed, points: Float, options: ProposalOptions
) -> Iterator[tuple[Float, Float]]:
    """Low-resolution logits [k, l, l] and predicted IoU [k] of the masks that are good enough.

    SAM asks for the predicted IoU once its masks are as large as the picture. Here it decides whose masks are
    drawn at all, and which of them are blown up.
    """
    decoder, masks_of = sessions.open("sam_decoder"), sessions.open("sam_masks")
    for start in range(0, len(points), POINTS_PER_BATCH):
        batch = points[start : start + POINTS_PER_BATCH]
        missing = POINTS_PER_BATCH - len(batch)  # the graph is static: repeat the last point, drop its masks
        padded = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
        decoded = dict(decoder.run({"embedding": embedding, "points": padded}, keep_on_device=True))
        iou = to_host(decoded.pop("iou"))
        if not np.isfinite(iou).all():
            _check_finite("sam_encoder", to_host(embedding))  # what is wrong there is wrong here
            raise _not_finite("sam_decoder")
        iou = iou[: len(batch)]
        good = _good(iou, options)  # [p, 3]
        rows = np.arange(len(batch)) if options.decode_all_prompts else np.flatnonzero(good.any(axis=1))
        for first in range(0, len(rows), POINTS_PER_DRAWING):
            chosen = rows[first : first + POINTS_PER_DRAWING]
            low_res = masks_of.run({**decoded, "chosen": chosen.astype(np.int32)})["low_res"]
            _check_finite("sam_masks", low_res)
            yield low_res[good[chosen]], iou[chosen][good[chosen]]


def _good(predicted: Float, options: ProposalOptions) -> Bool:
    """Whose predicted IoU is above the threshold; a threshold of 0 is none, as in SAM."""
    if options.pred_iou_threshold <= 0:
        return np.ones(predicted.shape, dtype=np.bool_)
    return np.asarray(predicted > options.pred_iou_threshold)


def _check_finite(graph: str, values: Array) -> None:
    """NaN passes no threshold, so without this a broken engine would look like a picture without objects."""
    if not np.isfinite(values).all():
        raise _not_finite(graph)


def _not_finite(graph: str) -> EngineError:
    return EngineError(f"{graph} returned values that are not finite; find where: refdiff check BUNDLE")


def _survivors(logits: Float, predicted: Float, options: ProposalOptions) -> _Found:
    """The stable masks of one chunk; SAM's crop-edge filter never fires on a whole picture."""
    stability = masks.stability(logits, threshold=MASK_THRESHOLD, offset=options.stability_offset)
    steady = stability >= options.stability_threshold
    binary = logits[steady] > MASK_THRESHOLD
    packed = np.packbits(binary.reshape(len(binary), math.prod(binary.shape[1:])), axis=1)
    return _Found(packed, predicted[steady], masks.boxes(binary))


def _without_duplicates(found: list[_Found], max_iou: float) -> _Found | None:
    """Everything found, best predicted IoU first, duplicates gone; None when nothing was found."""
    found = [part for part in found if len(part.predicted_iou)]
    if not found:
        return None
    boxes = np.concatenate([part.boxes for part in found])
    predicted = np.concatenate([part.predicted_iou for part in found])
    best = masks.suppress_duplicates(boxes, predicted, max_iou=max_iou)
    return _Found(np.concatenate([part.packed for part in found])[best], predicted[best], boxes[best])


def _tidied(found: _Found, size_yx: tuple[int, int], options: ProposalOptions) -> _Found:
    """The masks without small regions; of two that have become alike the clean one stays, as in SAM."""
    least_px = options.min_region_share * size_yx[0] * size_yx[1]
    binary = _unpacked(found.packed, size_yx)
    tidy = np.stack([without_small_regions(mask, least_px) for mask in binary])
    clean = (tidy == binary).all(axis=(1, 2)).astype(np.float32)
    boxes = masks.boxes(tidy)
    best = np.sort(masks.suppress_duplicates(boxes, clean, max_iou=options.nms_iou))
    packed = np.packbits(tidy[best].reshape(len(best), -1), axis=1)
    return _Found(packed, found.predicted_iou[best], boxes[best])


def _unpacked(packed: NDArray[np.uint8], size_yx: tuple[int, int]) -> Bool:
    flat = np.unpackbits(packed, axis=1, count=size_yx[0] * size_yx[1])
    return flat.view(np.bool_).reshape(-1, *size_yx)


def _candidates(found: _Found | None, size_yx: tuple[int, int], options: ProposalOptions) -> Candidates:
    if found is None:
        binary = np.ones((1, *size_yx), dtype=np.bool_)
        predicted, boxes = np.zeros(1, dtype=np.float32), masks.boxes(binary)
    else:
        binary = _unpacked(found.packed, size_yx)
        predicted, boxes = found.predicted_iou.astype(np.float32), found.boxes
    areas_px = masks.areas(binary)
    kept = keep_by_area(areas_px, size_yx, options)
    if (
        found is None and options.drop_filtered
    ):  # the release answers with the whole picture; edge with no match
        kept[:] = False
    return Candidates(
        masks=binary,
        predicted_iou=predicted,
        areas_px=areas_px,
        boxes_xyxy_px=boxes,
        kept=kept,
    )
