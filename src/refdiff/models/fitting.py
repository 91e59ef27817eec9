"""Put a checkpoint's tensors into a module: every tensor must have its place, and every place its tensor.

The loaders of this room return a `Part`: one of the stack's three models, sized but not yet in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from accelerate import init_empty_weights
from torch import nn

from refdiff.contracts.spec import ClipSpec, DiffusionSpec, SamSpec
from refdiff.contracts.stack import Loader
from refdiff.errors import InputError

Spec = TypeVar("Spec", DiffusionSpec, SamSpec, ClipSpec)


@dataclass(frozen=True, kw_only=True)
class Part(Generic[Spec]):
    """A model that can be loaded: Stable Diffusion, SAM or CLIP."""

    spec: Spec
    loaders: Mapping[str, Loader]
    """Component of the stack -> its loader."""
    sources: Mapping[str, str]
    """Component -> sha256 of its checkpoint, or "random, seed N"."""
    vocabulary: int | None = None
    """Rows of the token table; None for a model without a text tower."""


Module = TypeVar("Module", bound=nn.Module)

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""Accepted dtypes of weights; narrower ones need scales that a state dict does not have."""


def fit_module(
    build: Callable[[], Module],
    tensors: Mapping[str, torch.Tensor],
    *,
    file: Path,
    written_as: Callable[[str], str] = str,
) -> Module:
    """Build a module around a checkpoint's tensors; float32 tensors are not copied.

    Args:
        build: makes the module; its initial weights take no memory.
        tensors: by the module's own names. Half precision becomes float32.
        file: their origin, for messages.
        written_as: from the module's name of a tensor to the file's, for messages.

    Returns:
        The module in eval mode, without gradients. It may share memory with `tensors`.

    Raises:
        InputError: a tensor is missing, surplus, has another shape or dtype than the module's, or holds NaN.
    """
    # Some buffers are random: the caller's random state must not change.
    with torch.random.fork_rng(devices=()), init_empty_weights(include_buffers=False):
        module = build()
    expected = module.state_dict()
    _check_names(expected, tensors, file, written_as)
    for name, tensor in expected.items():
        problem = _mismatch(tensors[name], tensor)
        if problem is not None:
            raise InputError(f"{file}: tensor {written_as(name)} {problem}")
    ready = {name: _float32(tensors[name]) for name in expected}
    broken = next((name for name, tensor in ready.items() if not _is_finite(tensor)), None)
    if broken is not None:
        raise InputError(f"{file}: tensor {written_as(broken)} holds NaN or infinity; fetch it again")
    module.load_state_dict(ready, assign=True)
    return module.eval().requires_grad_(requires_grad=False)


def make_stand_ins(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors of the same shapes that take no memory: one zero, broadcast.

    With them `fit_module` refuses what it would refuse of the real ones, without reading a weight. Integers
    and tensors of a refused dtype are returned as they are. Meta tensors suffice.
    """
    return {
        name: torch.zeros(()).expand(tensor.shape)
        if tensor.is_floating_point() and _unsupported(tensor) is None
        else tensor
        for name, tensor in tensors.items()
    }


def check_dtypes(tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    """Refuse tensors that no module accepts, before anything is computed with them.

    Args:
        tensors: by the file's names.
        file: their origin, for messages.

    Raises:
        InputError: a tensor is sparse, quantized, or has a floating point dtype narrower than 16 bits.
    """
    for name, tensor in tensors.items():
        problem = _unsupported(tensor)
        if problem is not None:
            raise InputError(f"{file}: tensor {name} {problem}")


def _unsupported(tensor: torch.Tensor) -> str | None:
    if tensor.layout != torch.strided:
        return f"is stored as {tensor.layout}, expected a dense tensor; save it with to_dense()"
    if tensor.is_quantized or (tensor.is_floating_point() and tensor.dtype not in _FLOATS):
        known = ", ".join(map(str, _FLOATS))
        return f"is {tensor.dtype}, expected {known}; use a checkpoint that is not quantized"
    return None


def _check_names(
    expected: Mapping[str, torch.Tensor],
    tensors: Mapping[str, torch.Tensor],
    file: Path,
    written_as: Callable[[str], str],
) -> None:
    missing = [written_as(name) for name in expected if name not in tensors]
    surplus = [written_as(name) for name in tensors if name not in expected]
    for kind, names in (("missing", missing), ("not part of a known architecture", surplus)):
        if names:
            count = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise InputError(
                f"{file}: tensor {names[0]}{count} is {kind}; use a checkpoint of a known layout"
            )


def _mismatch(got: torch.Tensor, expected: torch.Tensor) -> str | None:
    if got.shape != expected.shape:
        return (
            f"has shape {list(got.shape)}, expected {list(expected.shape)} by the sizes of the others; "
            "this is not a known architecture"
        )
    odd = _unsupported(got)
    if odd is not None:
        return odd
    if got.is_floating_point() != expected.is_floating_point():
        return f"is {got.dtype}, expected {expected.dtype}; use a checkpoint that is not quantized"
    return None


def _is_finite(tensor: torch.Tensor) -> bool:
    """Return whether no value is NaN or infinite, in one pass without a copy; this reads the weights."""
    if not tensor.is_floating_point():
        return True
    # The sum of finite numbers may overflow; only then is each one checked.
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def _float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
