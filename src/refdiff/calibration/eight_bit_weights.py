"""A weight in eight bits: one symmetric scale per output channel, values computed while they are written."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from refdiff.calibration.lazy_weights import converted
from refdiff.contracts.recipe import QuantisedType
from refdiff.contracts.session import Array, Float
from refdiff.errors import InputError


@dataclass(frozen=True)
class EightBits:
    """One of the two types."""

    dtype: ir.DataType
    largest: float
    """Of its values; int8's -128 is not used, so that both signs reach equally far."""

    @property
    def farthest(self) -> float:
        """The largest reach that a float16 step serves."""
        return float(np.finfo(np.float16).max) * self.largest


TYPES: dict[QuantisedType, EightBits] = {
    "int8": EightBits(ir.DataType.INT8, 127.0),
    "fp8": EightBits(ir.DataType.FLOAT8E4M3FN, 448.0),
}

_SMALLEST = float(np.finfo(np.float16).smallest_subnormal)


def scale_of(reach: NDArray[np.floating], bits: EightBits) -> Float:
    """The step for tensors that reach so far: a float16 value, rounded up, so that nothing new is cut off.

    Infinite for a reach that no float16 step serves.
    """
    wanted = np.maximum(np.asarray(reach, np.float64) / bits.largest, _SMALLEST)
    with np.errstate(over="ignore"):
        nearest = wanted.astype(np.float16)
        above = np.nextafter(nearest, np.float16(np.inf))
    return np.where(nearest.astype(np.float64) < wanted, above, nearest).astype(np.float32)


def in_eight_bits(
    tensor: ir.TensorProtocol, bits: EightBits, axis: int, *, name: str
) -> tuple[ir.LazyTensor, Float]:
    """A float32 weight in eight bits, and its scales [channels].

    Args:
        tensor: the weight.
        bits: the type.
        axis: of its output channels.
        name: of the new tensor.

    Raises:
        InputError: it holds NaN, infinity, or values too large for any float16 step.
    """
    scale = scale_of(_reach(tensor.numpy(), axis), bits)
    if not np.isfinite(scale).all():
        raise InputError(
            f"the weight {tensor.name} holds NaN or values beyond {bits.farthest:.3g}, "
            "expected finite ones; mend the model first"
        )
    across = [-1 if index == axis else 1 for index in range(len(tensor.shape))]

    def convert(values: Float) -> Array:
        return rounded(values / scale.reshape(across), bits)

    return converted(tensor, bits.dtype, convert, name=name), scale


def rounded(steps: Float, bits: EightBits) -> Array:
    """Numbers of steps, as eight-bit values."""
    limited = np.clip(steps, -bits.largest, bits.largest)
    if bits.dtype == ir.DataType.INT8:
        limited = np.rint(limited)
    result: Array = limited.astype(bits.dtype.numpy())
    return result


def _reach(values: Float, axis: int) -> Float:
    others = tuple(index for index in range(values.ndim) if index != axis)
    reach: Float = np.maximum(values.max(axis=others), -values.min(axis=others))
    return reach
