"""The tensors of ONNX Runtime's sessions: their contract, and those that stay on a device between graphs.

A plain run copies every input to the device and every output back. With bindings, an output stays where it
was computed, and the next session on that device reads it there. Each run allocates new outputs, so an
output on the device is valid for as long as it is referenced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from refdiff.contracts.graphs import GraphSpec, TensorSpec
from refdiff.contracts.session import Array, Feed, to_host
from refdiff.errors import EngineError

_NAMES = {"float32": "tensor(float)", "int32": "tensor(int32)"}
"""Type of the contract -> ONNX Runtime's name of it."""

_DTYPES = {name: np.dtype(dtype) for dtype, name in _NAMES.items()}


class DeviceTensor:
    """An output of a session that stayed on its device; see `refdiff.contracts.session.DeviceArray`.

    Args:
        value: ONNX Runtime's OrtValue.
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of its values."""
        return _DTYPES[self.value.data_type()]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, as of a host array."""
        return tuple(self.value.shape())

    def to_host(self) -> Array:
        """Return a copy on the host.

        Raises:
            EngineError: the copy failed.
        """
        try:
            return np.array(self.value.numpy())
        except Exception as error:  # ONNX Runtime's exceptions share no public base
            raise EngineError(f"an output could not be copied from the device: {error}") from error


def run_bound(
    session: Any, feeds: Mapping[str, Feed], wanted: Sequence[str], *, device: str, keep: bool
) -> list[Feed]:
    """Run a session on bound tensors, and wait for it.

    Args:
        session: ONNX Runtime's session.
        feeds: input -> host array, or an output that stayed on the device.
        wanted: the outputs to compute.
        device: ONNX Runtime's name of the session's device.
        keep: return the outputs as `DeviceTensor`s; else as host arrays.

    Returns:
        The outputs, in the order of `wanted`.
    """
    binding = session.io_binding()
    for name, feed in feeds.items():
        if isinstance(feed, DeviceTensor):
            binding.bind_ortvalue_input(name, feed.value)
        else:
            binding.bind_cpu_input(name, np.ascontiguousarray(to_host(feed)))
    for name in wanted:
        binding.bind_output(name, device if keep else "cpu")
    session.run_with_iobinding(binding)
    return [DeviceTensor(value) if keep else value.numpy() for value in binding.get_outputs()]


def check_tensors(session: Any, graph: GraphSpec, file: str) -> None:
    """Refuse a graph whose inputs and outputs are not the contract's; ONNX Runtime may not know a size.

    Args:
        session: ONNX Runtime's session.
        graph: the contract.
        file: name of the graph's file, for the message.

    Raises:
        EngineError: they differ.
    """
    for side in ("inputs", "outputs"):
        tensors, expected = getattr(session, f"get_{side}")(), getattr(graph, side)
        got = [(each.name, each.type, list(each.shape)) for each in tensors]
        if len(got) != len(expected) or not all(map(_fits, got, expected)):
            raise EngineError(f"{file} has {side} {got}, expected {expected}; export again")


def _fits(got: tuple[str, str, list[Any]], expected: TensorSpec) -> bool:
    name, kind, shape = got
    if (name, kind) != (expected.name, _NAMES.get(expected.dtype)) or len(shape) != len(expected.shape):
        return False
    # A fixed size may be unknown to ONNX Runtime; one that the contract names must not be fixed.
    pairs = zip(shape, expected.shape, strict=True)
    return all(size == wanted or not isinstance(size, int) for size, wanted in pairs)
