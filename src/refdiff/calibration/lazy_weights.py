"""Weights that are converted while they are written: one tensor in memory at a time (FIELD §1)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from refdiff.contracts.session import Array
from refdiff.errors import InputError

SMALL_BYTES = 1 << 14
"""What is written inside the ONNX file is smaller; onnx_ir wraps errors that arise while it writes there."""


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
        with np.errstate(over="ignore"):
            half: Array = values.astype(dtype.numpy())
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
