"""Weights that are converted while they are written: one tensor in memory at a time (FIELD §1)."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from refdiff.contracts.session import Array
from refdiff.errors import InputError

SMALL_BYTES = 1 << 14
"""What is written inside the ONNX file is smaller; onnx_ir wraps errors that arise while it writes there."""


_SAFE = 65504.0
"""No finite value below it becomes infinite, in neither type."""

_PART = 1 << 18
"""Values that are cast together: they and their result stay in a core's cache."""


def converted(
    tensor: ir.TensorProtocol, dtype: ir.DataType, convert: Callable[[Array], Array], *, name: str
) -> ir.LazyTensor:
    """A tensor of the same shape whose values are computed when they are asked for, and not kept."""

    def evaluate() -> ir.TensorProtocol:
        return ir.tensor(convert(tensor.numpy()), dtype=dtype, name=name)

    return ir.LazyTensor(evaluate, dtype=dtype, shape=ir.Shape(tensor.shape.numpy()), name=name)


def in_half(tensor: ir.TensorProtocol, dtype: ir.DataType, *, name: str) -> ir.TensorProtocol:
    """A float32 tensor in half precision; a small one is converted now.

    Raises:
        InputError: a finite value becomes infinite; of a large tensor, when it is written.
    """

    def convert(values: NDArray[np.float32]) -> Array:
        half = _cast(values, dtype)
        # A NaN or an infinity makes these false too, and is looked at closely: it may have been there before.
        if not (values.max(initial=0.0) < _SAFE and values.min(initial=0.0) > -_SAFE):
            lost = np.isinf(half) & np.isfinite(values)
            if lost.any():
                raise InputError(
                    f"{tensor.name} holds {np.abs(values[lost]).max():.6g}, more than {dtype.name} can; "
                    "keep its nodes in fp32 (refdiff audit finds them)"
                )
        return half

    if tensor.nbytes < SMALL_BYTES:
        return ir.tensor(convert(tensor.numpy()), dtype=dtype, name=name)
    return converted(tensor, dtype, convert, name=name)


def _cast(values: NDArray[np.float32], dtype: ir.DataType) -> Array:
    """The values in another type; large arrays in parts, one on each core: numpy casts to half slowly."""
    half: Array = np.empty(values.shape, dtype.numpy())
    source, target = values.reshape(-1), half.reshape(-1)

    def cast(start: int) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            np.copyto(target[start : start + _PART], source[start : start + _PART], casting="unsafe")

    if source.size <= _PART:
        cast(0)
    else:
        with ThreadPoolExecutor(os.cpu_count()) as cores:
            list(cores.map(cast, range(0, source.size, _PART)))
    return half
