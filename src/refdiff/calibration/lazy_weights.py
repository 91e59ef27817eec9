"""Weights that are converted while they are written: one tensor in memory at a time (FIELD §1)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from refdiff.contracts.session import Array
from refdiff.errors import InputError


def converted(
    tensor: ir.TensorProtocol, dtype: ir.DataType, convert: Callable[[Array], Array], *, name: str
) -> ir.LazyTensor:
    """A tensor of the same shape whose values are computed when they are asked for, and not kept."""

    def evaluate() -> ir.TensorProtocol:
        return ir.tensor(convert(tensor.numpy()), dtype=dtype, name=name)

    return ir.LazyTensor(evaluate, dtype=dtype, shape=ir.Shape(tensor.shape.numpy()), name=name)


def in_half(tensor: ir.TensorProtocol, dtype: ir.DataType, *, name: str) -> ir.LazyTensor:
    """A float32 tensor in half precision.

    Raises:
        InputError: when it is written, where a finite value becomes infinite.
    """

    def convert(values: NDArray[np.float32]) -> Array:
        with np.errstate(over="ignore"):
            half: Array = values.astype(dtype.numpy())
        largest = float(np.abs(values).max(initial=0.0))
        if np.isfinite(largest) and not np.isfinite(half.astype(np.float32)).all():
            raise InputError(
                f"{tensor.name} holds {largest:.3g}, more than {dtype.name} can; keep its nodes in fp32 "
                "(refdiff audit finds them)"
            )
        return half

    return converted(tensor, dtype, convert, name=name)
