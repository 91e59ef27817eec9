"""What every loader of this room returns: one of the stack's three models, sized but not yet in memory.

Putting a checkpoint's tensors into a module: every key has to find its place, and no place stays empty.
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
    """A model that can be loaded."""

    spec: Spec
    loaders: Mapping[str, Loader]
    """Component of the stack -> what loads it."""
    sources: Mapping[str, str]
    """Component -> sha256 of its checkpoint, or "random, seed N"."""
    vocabulary: int | None = None
    """Rows of the token table, where the model has a text tower."""


Module = TypeVar("Module", bound=nn.Module)

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""What weights are trained and published in. Narrower kinds need scales that a state dict does not have."""


def fitted(
    build: Callable[[], Module],
    tensors: Mapping[str, torch.Tensor],
    *,
    file: Path,
    written_as: Callable[[str], str] = str,
) -> Module:
    """Build a module around a checkpoint's tensors, without a copy where they are float32 already.

    Args:
        build: makes the module; no memory is spent on the weights it starts with.
        tensors: by the module's own names. Half precision becomes float32.
        file: where they came from, for messages.
        written_as: from the module's name of a tensor to the file's, for messages.

    Returns:
        The module in eval mode, without gradients. It may share memory with `tensors`.

    Raises:
        InputError: a tensor is missing, surplus, of another shape or kind than the module's, or holds NaN.
    """
    # Buffers are drawn in earnest: the caller's random numbers stay what they were.
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


def stand_ins(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of the same shapes and kinds that cost no memory: one zero each, seen everywhere.

    For `fitted`, to find what it would refuse without reading a weight. What it refuses by its kind, and what
    is no floating point number, stands for itself. Meta tensors will do.
    """
    return {
        name: torch.zeros(()).expand(tensor.shape)
        if tensor.is_floating_point() and _odd_kind(tensor) is None
        else tensor
        for name, tensor in tensors.items()
    }


def check_kinds(tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    """Refuse what no module takes, before anything is computed of it.

    Args:
        tensors: by the file's names.
        file: where they came from, for messages.

    Raises:
        InputError: a tensor is sparse or quantized, or of floating point numbers narrower than 16 bits.
    """
    for name, tensor in tensors.items():
        problem = _odd_kind(tensor)
        if problem is not None:
            raise InputError(f"{file}: tensor {name} {problem}")


def _odd_kind(tensor: torch.Tensor) -> str | None:
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
    odd = _odd_kind(got)
    if odd is not None:
        return odd
    if got.is_floating_point() != expected.is_floating_point():
        return f"is {got.dtype}, expected {expected.dtype}; use a checkpoint that is not quantized"
    return None


def _is_finite(tensor: torch.Tensor) -> bool:
    """Whether no number is NaN or infinite, in one pass without a copy; the weights are read for it."""
    if not tensor.is_floating_point():
        return True
    # A sum of sound numbers may overflow: only then is it worth looking at each.
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def _float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
