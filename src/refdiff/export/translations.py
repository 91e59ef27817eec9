"""How two torch operators become ONNX, where the exporter's own way computes shapes at run time.

Both results are plain operators with static shapes but for the batch: what TensorRT's parser fuses best, and
what the precision passes recognise by name (FIELD §2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset18

op: Any = opset18
"""Operators applied to symbolic values while a graph is built, which onnxscript does not type."""

OPSET = 18
"""The newest operator set TensorRT 10.3 (JetPack 6) reads in full; errors function written out, no `Gelu`."""


LARGE_GROUP = 1 << 18
"""Values per group from which a norm's sums are split. ONNX Runtime's InstanceNormalization adds them up one
after the other in single precision: an error of 1e-6 of the range at this size, 6e-6 at a million (the VAE's
first level at 512 px), 4e-5 at four (1024 px)."""


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,  # noqa: FBT001, FBT002 - the operator's signature
    scale: float | None = None,
    enable_gqa: bool = False,  # noqa: FBT001, FBT002 - the operator's signature
) -> Any:
    """Unmasked attention [b, heads, t, w]: Q scaled, one product, softmax, one product."""
    if attn_mask is not None or is_causal or enable_gqa or dropout_p:
        raise NotImplementedError("attention with a mask: use masked_attention in the wrapper")
    factor = int(query.shape[3]) ** -0.5 if scale is None else scale
    if factor != 1.0:
        query = op.Mul(query, op.Constant(value=_tensor(np.float32(factor))))
    weights = op.Softmax(op.MatMul(query, op.Transpose(key, perm=[0, 1, 3, 2])), axis=-1)
    return op.MatMul(weights, value)


def group_norm(
    states: Any,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-05,
    cudnn_enabled: bool = True,  # noqa: FBT001, FBT002, ARG001 - the operator's signature
) -> Any:
    """Normalise [b, c, ...] per group as an instance norm over groups, then scale and shift per channel."""
    channels, *places = (int(size) for size in states.shape[1:])
    values = channels // num_groups * math.prod(places)
    normed = (_instance_norm if values <= LARGE_GROUP else _norm_in_rows)(states, num_groups, eps)
    normed = op.Reshape(normed, _ints(-1, channels, *places))
    spread = _ints(1, channels, *[1] * len(places))
    return op.Add(op.Mul(normed, op.Reshape(weight, spread)), op.Reshape(bias, spread))


def _instance_norm(states: Any, groups: int, eps: float) -> Any:
    one, zero = (op.Constant(value=_tensor(np.full(groups, v, np.float32))) for v in (1.0, 0.0))
    return op.InstanceNormalization(op.Reshape(states, _ints(0, groups, -1)), one, zero, epsilon=eps)


def _norm_in_rows(states: Any, groups: int, eps: float) -> Any:
    """The same, its sums taken along the rows and then over them: a mean of means of equal rows."""
    grouped = op.Reshape(states, _ints(0, groups, -1, int(states.shape[-1])))
    centred = op.Sub(grouped, _mean_in_rows(grouped))
    variance = _mean_in_rows(op.Mul(centred, centred))
    return op.Div(centred, op.Sqrt(op.Add(variance, op.Constant(value=_tensor(np.float32(eps))))))


def _mean_in_rows(grouped: Any) -> Any:
    return op.ReduceMean(op.ReduceMean(grouped, _ints(3), keepdims=1), _ints(2), keepdims=1)


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For `torch.onnx.export(custom_translation_table=...)`."""
    return {
        torch.ops.aten.scaled_dot_product_attention.default: attention,
        torch.ops.aten.group_norm.default: group_norm,
    }


def _ints(*values: int) -> Any:
    return op.Constant(value=_tensor(np.array(values, np.int64)))


def _tensor(value: Any) -> ir.TensorProtocol:
    return ir.tensor(np.asarray(value))
