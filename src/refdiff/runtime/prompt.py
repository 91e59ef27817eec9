"""A caller's own prompt for SAM: positive and negative points, a box, the logits of an earlier mask.

Places are (x, y) in px of the image. Axes: q = tokens of a prompt, l = side of a mask's logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.graphs import PROMPT_TOKENS
from refdiff.contracts.session import Float
from refdiff.errors import InputError
from refdiff.runtime.prompt_tokens import FIRST_CORNER, LAST_CORNER, NEGATIVE, NOT_A_POINT, POSITIVE

Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What is known of the thing that is to be segmented; `read_prompt` makes one."""

    places: NDArray[np.float64]
    """[q, 2] of (x, y), px of the image: points, then the padding or a box's corners, as in SAM."""
    labels: NDArray[np.int64]
    """[q]: see `prompt_tokens`."""


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
