"""The values that an answer is chosen from; the runtime and the reference make the same ones.

Axes: n = candidates, y/x = image rows/columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.session import Bool, Float

DENSE_BYTES = 1 << 28
"""Most bytes of an image's masks that are kept as one array, a byte per pixel; more are packed to bits."""


class _Bits(NamedTuple):
    """One mask, cut to its box."""

    rows: slice
    columns: slice
    packed: NDArray[np.uint8]
    """[ceil(rows * columns / 8)]."""


class PackedMasks(Sequence[Bool]):
    """The masks of a large image, a bit per pixel of their boxes. They are used like an array [n, y, x].

    `masks[i]` and iteration unpack one mask [y, x]. A slice, indices or truth values choose some of the masks
    and unpack nothing. `numpy.asarray(masks)` unpacks all, a byte per pixel each.

    Args:
        masks: [y, x] each.
        size_yx: the image's size in px.
    """

    def __init__(self, masks: Iterable[Bool], size_yx: tuple[int, int]) -> None:
        self._size_yx = size_yx
        self._bits = [_pack(mask) for mask in masks]

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of the array: n, y, x."""
        return (len(self._bits), *self._size_yx)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(each.packed.nbytes for each in self._bits)

    def __len__(self) -> int:
        return len(self._bits)

    @overload
    def __getitem__(self, index: int | np.integer[Any]) -> Bool: ...
    @overload
    def __getitem__(self, index: slice | NDArray[Any] | Sequence[int]) -> PackedMasks: ...
    def __getitem__(self, index: Any) -> Bool | PackedMasks:
        if isinstance(index, (int, np.integer)):
            return self._unpack(self._bits[index])
        some = PackedMasks((), self._size_yx)
        some._bits = [self._bits[i] for i in np.arange(len(self))[index]]
        return some

    def __iter__(self) -> Iterator[Bool]:
        return map(self._unpack, self._bits)

    def __array__(self, dtype: Any = None, *, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("packed masks cannot be an array without a copy; leave out copy=False")
        return np.stack(list(self)).astype(dtype or np.bool_, copy=False)

    def _unpack(self, bits: _Bits) -> Bool:
        mask = np.zeros(self._size_yx, dtype=np.bool_)
        cut = mask[bits.rows, bits.columns]
        cut[...] = np.unpackbits(bits.packed, count=cut.size).reshape(cut.shape)
        return mask


Masks = Bool | PackedMasks
"""Masks [n, y, x]."""


def stack_masks(
    masks: Iterable[Bool], count: int, size_yx: tuple[int, int], *, dense_bytes: int = DENSE_BYTES
) -> Masks:
    """Keep masks [y, x] as one array [n, y, x], or packed where that would take too much memory.

    Args:
        masks: taken one by one.
        count: n.
        size_yx: the image's size in px.
        dense_bytes: most bytes of an array.
    """
    if count * math.prod(size_yx) > dense_bytes:
        return PackedMasks(masks, size_yx)
    stacked = np.empty((count, *size_yx), dtype=np.bool_)
    for place, mask in zip(stacked, masks, strict=True):
        place[...] = mask
    return stacked


def _pack(mask: Bool) -> _Bits:
    rows, columns = (_span(np.asarray(mask.any(axis=axis))) for axis in (1, 0))
    return _Bits(rows, columns, np.packbits(mask[rows, columns]))


def _span(used: Bool) -> slice:
    """Return the part of an axis from the first True to the last."""
    places = np.flatnonzero(used)
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The masks a phrase chooses from, best predicted IoU first."""

    masks: Masks
    """[n, y, x]: an array, or `PackedMasks` where it would take more than 256 MiB."""
    predicted_iou: Float
    """[n], 0..1; level sets of mode `gen` carry 1."""
    areas_px: NDArray[np.int64]
    """[n]."""
    boxes_xyxy_px: NDArray[np.int64]
    """[n, 4], inclusive corners: a one-pixel mask has x0 == x1."""
    kept: Bool
    """[n], False for masks that the area filter of METHOD §2 removed."""

    def __len__(self) -> int:
        return len(self.masks)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The parts of the fused score, each [n] and unweighted; a part the mode does not use is all zero."""

    hard: Float
    """Cosine of the text with the candidate's crop (METHOD §5)."""
    soft: Float
    """Cosine of the text with the image, under soft masked attention (METHOD §6)."""
    generative: Float
    """Mean heat inside the mask minus mean heat outside (METHOD §7)."""
    place: Float
    """Fit to the place that the phrase names (METHOD §10.4, §10.5)."""
    total: Float
    """The score that decides, after weights and filter; -inf for a candidate that cannot win."""
