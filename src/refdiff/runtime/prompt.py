"""A caller's own prompt for SAM, points, a box, an earlier mask, and SAM's prompt encoder in numpy.

The tokens equal those of `segment_anything.modeling.PromptEncoder`. A prompt is a list of places with a label
each: (x, y) in px of the image in a `Prompt`, in px of SAM's resized image where tokens are made; half a
pixel is added to the latter, as in SAM.

Axes: n = prompts, q = tokens of a prompt, c = embedding channels, s = embedding side, l = 4 s = side of a
mask's logits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.graphs import PROMPT_TOKENS
from refdiff.contracts.prompt_vectors import NORM_EPS, MaskLayer, PromptVectors
from refdiff.contracts.session import Float
from refdiff.errors import InputError

Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What is known of the thing that is to be segmented; `read_prompt` makes one."""

    places: NDArray[np.float64]
    """[q, 2] of (x, y), px of the image: points, then the padding or a box's corners, as in SAM."""
    labels: NDArray[np.int64]
    """[q]: `POSITIVE`, `NEGATIVE`, `FIRST_CORNER`, `LAST_CORNER` or `NOT_A_POINT`."""


def read_prompt(
    size_yx: Size,
    box: Sequence[float] | None,
    points: Sequence[Sequence[float]],
    labels: Sequence[int] | None,
) -> Prompt:
    """Check a prompt against the image's size.

    Args:
        size_yx: the image's size in px.
        box: x0, y0, x1, y1 with its end excluded, or None.
        points: (x, y) of each.
        labels: 1 for a point on the thing, 0 for a negative one; None: all are on it.

    Raises:
        InputError: it names no place on the thing, or a place outside of the image.
    """
    kinds = _read_labels(labels, len(points))
    places = _read_points(size_yx, points)
    if box is None and not (kinds == POSITIVE).any():
        raise InputError(
            f"got {_count(len(points), 'negative point')} alone, expected a box or a point on the thing"
            if len(points)
            else "got no prompt, expected a box or a point on the thing"
        )
    ending = [NOT_A_POINT] if box is None else [FIRST_CORNER, LAST_CORNER]
    most = PROMPT_TOKENS - len(ending)
    if len(points) > most:
        raise InputError(f"got {len(points)} points, expected at most {most}; leave some out")
    last = np.zeros((1, 2)) if box is None else _read_box(size_yx, box)
    return Prompt(places=np.concatenate([places, last]), labels=np.concatenate([kinds, ending]))


def read_logits(mask: object, side: int) -> Float:
    """Check the logits of an earlier mask: [l, l].

    Raises:
        InputError: they are no logits, or have another size.
    """
    logits = np.asarray(mask)
    if logits.dtype.kind != "f" or logits.shape != (side, side):
        raise InputError(
            f"got a mask of {logits.dtype} {list(logits.shape)}, expected float logits {[side, side]}: "
            "the `logits` of an earlier answer of `refine`"
        )
    if not np.isfinite(logits).all():
        raise InputError("got a mask with values that are not finite, expected logits; leave the mask out")
    return logits.astype(np.float32)


def _read_labels(labels: Sequence[int] | None, points: int) -> NDArray[np.int64]:
    if labels is None:
        return np.full(points, POSITIVE)
    kinds = list(labels)
    if len(kinds) != points:
        raise InputError(
            f"got {_count(len(kinds), 'label')} for {_count(points, 'point')}, expected one each"
        )
    for kind in kinds:
        if kind not in (NEGATIVE, POSITIVE):
            raise InputError(
                f"got label {kind!r}, expected 1 for a point on the thing or 0 for one that is not"
            )
    return np.array(kinds, dtype=np.int64)


def _read_points(size_yx: Size, points: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    places = np.zeros((len(points), 2))
    for place, point in zip(places, points, strict=True):
        x, y = place[:] = _read_numbers(point, 2, "point", "x, y")
        if not (0 <= x < size_yx[1] and 0 <= y < size_yx[0]):
            raise InputError(f"got point {x:g}, {y:g}, outside of the image; {_size_text(size_yx)}")
    return places


def _read_box(size_yx: Size, box: Sequence[float]) -> NDArray[np.float64]:
    x0, y0, x1, y1 = numbers = _read_numbers(box, 4, "box", "x0, y0, x1, y1")
    text = ", ".join(f"{number:g}" for number in numbers)
    if x1 <= x0 or y1 <= y0:
        raise InputError(f"got box {text} without an area, expected x0 < x1 and y0 < y1")
    if min(x0, y0) < 0 or x1 > size_yx[1] or y1 > size_yx[0]:
        raise InputError(f"got box {text}, which leaves the image; {_size_text(size_yx)}")
    return numbers.reshape(2, 2)


def _read_numbers(values: object, count: int, what: str, names: str) -> NDArray[np.float64]:
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.zeros(0)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise InputError(f"got {what} {values!r}, expected {count} finite numbers: {names} in px")
    return numbers


def _size_text(size_yx: Size) -> str:
    return f"its size is {size_yx[1]}x{size_yx[0]} px"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


NOT_A_POINT, NEGATIVE, POSITIVE, FIRST_CORNER, LAST_CORNER = -1, 0, 1, 2, 3
"""Labels of places, as in SAM. A prompt without a box ends with one place that is not a point."""

_erf = np.frompyfunc(math.erf, 1, 1)


def point_tokens(vectors: PromptVectors, points: Float, negatives: Float | None = None) -> Float:
    """Return the tokens [n, k + 2, c] of prompts of one positive point each.

    Args:
        vectors: of the bundle.
        points: [n, 2] of (x, y), px of SAM's resized image.
        negatives: [k, 2], negative points of every prompt; None: there are none.
    """
    others = np.zeros((0, 2), np.float32) if negatives is None else negatives
    shared = np.concatenate([others, np.zeros((1, 2), np.float32)])  # of all prompts, the padding last
    places = np.concatenate([points[:, None], np.tile(shared, (len(points), 1, 1))], axis=1)
    labels = np.array([POSITIVE, *[NEGATIVE] * len(others), NOT_A_POINT])
    return place_tokens(vectors, places, np.tile(labels, (len(points), 1)))


def place_tokens(vectors: PromptVectors, places: Float, labels: NDArray[np.int64]) -> Float:
    """Return the tokens [n, q, c] of labeled places.

    Args:
        vectors: of the bundle.
        places: [n, q, 2] of (x, y), px of SAM's resized image; where the label is `NOT_A_POINT`, anything.
        labels: [n, q], -1..3.
    """
    tokens = np.empty((*labels.shape, vectors.labels.shape[1]), dtype=np.float32)
    real = labels != NOT_A_POINT
    tokens[~real] = vectors.not_a_point
    tokens[real] = _fourier_features(vectors, places[real]) + vectors.labels[labels[real]]
    return tokens


def _fourier_features(vectors: PromptVectors, places: Float) -> Float:
    """Return sines, then cosines, of places [k, 2]: [k, c].

    In single precision and in SAM's order: the angles reach 30, where another order moves them by 5e-6.
    """
    shares = (places.astype(np.float32) + np.float32(0.5)) / np.float32(vectors.side)
    angles = np.float32(2 * math.pi) * ((2 * shares - 1) @ vectors.frequencies)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)


def mask_embedding(vectors: PromptVectors, logits: Float) -> Float:
    """Return the embedding [1, c, s, s] of a mask's low-resolution logits [l, l]."""
    pixels = logits[..., None]  # [rows, columns, channels]
    for layer in vectors.mask_layers:
        if len(layer.product) > pixels.shape[2]:
            pixels = _join_pixels(pixels)
        pixels = _apply(layer, pixels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], dtype=np.float32)


def _join_pixels(pixels: Float) -> Float:
    """Put the channels of 2 x 2 pixels side by side: [2 y, 2 x, c] -> [y, x, 4 c]."""
    height, width, channels = pixels.shape
    split = pixels.reshape(height // 2, 2, width // 2, 2, channels)
    return split.transpose(0, 2, 1, 3, 4).reshape(height // 2, width // 2, 4 * channels)


def _apply(layer: MaskLayer, pixels: Float) -> Float:
    """Return the product, and after it the norm over channels and GELU where the layer has them."""
    found = pixels @ layer.product + layer.bias
    if layer.scale is None or layer.shift is None:
        return found
    centered = found - found.mean(axis=-1, keepdims=True)
    spread = np.sqrt((centered * centered).mean(axis=-1, keepdims=True) + np.float32(NORM_EPS))
    normed = layer.scale * (centered / spread) + layer.shift
    distribution = 0.5 * (1.0 + _erf(normed.astype(np.float64) / math.sqrt(2.0)).astype(np.float64))
    return np.asarray(normed * distribution, dtype=np.float32)
