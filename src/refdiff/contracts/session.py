"""The interface of a back-end: one session per graph, named arrays in, named arrays out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.graphs import GraphSpec, TensorSpec
from refdiff.errors import InputError

Array = NDArray[Any]
Float = NDArray[np.float32]
Bool = NDArray[np.bool_]
ImageArray = NDArray[np.uint8]
"""[y, x, 3] RGB, 0..255."""


class DeviceArray(Protocol):
    """An output that stayed on the device that computed it; the next graph there can be fed it.

    It is a view of its session's buffer, valid until that session runs again or is closed; later use is an
    InputError.
    """

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of its values."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, as of a host array."""
        ...

    def to_host(self) -> Array:
        """Wait for the device and return a copy on the host.

        Raises:
            InputError: its session has run again or was closed.
            EngineError: the copy failed.
        """
        ...


Feed = Array | DeviceArray
"""An input of a session, or an output that may have stayed on the device."""


def to_host(values: Feed) -> Array:
    """Return the values as a host array; a host array is returned as it is."""
    return values if isinstance(values, np.ndarray) else values.to_host()


Measure = Literal["runs", "layers"]
"""Measurements that sessions are opened for: the device's time for a run, or for each layer of it."""


@dataclass(frozen=True, kw_only=True)
class LayerTime:
    """Time that one layer of a graph took in all runs of its session."""

    name: str
    operator: str
    """Empty where the back-end does not say."""
    calls: int
    ms: float


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Times that a back-end measured itself; empty where its session was not opened to measure them."""

    device_ms: float | None = None
    """Device time of the last run in ms, without copies."""
    layers: Sequence[LayerTime] = ()
    """All layers over all runs so far, in the order they first ran."""


class Session(Protocol):
    """One loaded graph."""

    @property
    def graph(self) -> GraphSpec:
        """The contract this session fulfils."""
        ...

    @property
    def max_batch(self) -> int | None:
        """Most rows of the graph's axis b in one run; None: any number."""
        ...

    @overload
    def run(
        self,
        feeds: Mapping[str, Feed],
        outputs: Sequence[str] | None = None,
        *,
        keep_on_device: Literal[False] = False,
    ) -> dict[str, Array]: ...

    @overload
    def run(
        self,
        feeds: Mapping[str, Feed],
        outputs: Sequence[str] | None = None,
        *,
        keep_on_device: bool,
    ) -> Mapping[str, Feed]: ...

    def run(
        self,
        feeds: Mapping[str, Feed],
        outputs: Sequence[str] | None = None,
        *,
        keep_on_device: bool = False,
    ) -> Mapping[str, Feed]:
        """Run once.

        Args:
            feeds: input -> host array, or an output that a session of the same factory kept on the device.
            outputs: the outputs to return; None: all of them.
            keep_on_device: return the outputs as `DeviceArray`s, without waiting for the device; a back-end
                without device memory of its own returns host arrays all the same.

        Raises:
            InputError: a feed is missing, surplus, of the wrong dtype or shape, or no longer valid.
            EngineError: the back-end failed.
        """
        ...

    def timings(self) -> Timings:
        """Return what the back-end measured; waits for the device.

        Raises:
            EngineError: the device failed, or the session is closed or did not write its measurements.
        """
        ...

    def close(self) -> None:
        """Free what the session holds; calling it twice is fine."""
        ...


class SessionWrapper:
    """A session that passes everything on to another one; subclasses override `_run`."""

    def __init__(self, inner: Session) -> None:
        self._inner = inner

    @property
    def graph(self) -> GraphSpec:
        """The contract this session fulfils."""
        return self._inner.graph

    @property
    def max_batch(self) -> int | None:
        """That of the inner session."""
        return self._inner.max_batch

    @overload
    def run(
        self,
        feeds: Mapping[str, Feed],
        outputs: Sequence[str] | None = None,
        *,
        keep_on_device: Literal[False] = False,
    ) -> dict[str, Array]: ...

    @overload
    def run(
        self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None = None, *, keep_on_device: bool
    ) -> Mapping[str, Feed]: ...

    def run(
        self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None = None, *, keep_on_device: bool = False
    ) -> Mapping[str, Feed]:
        """Run once; see `Session`."""
        return self._run(feeds, outputs, keep_on_device=keep_on_device)

    def timings(self) -> Timings:
        """Return the inner session's timings."""
        return self._inner.timings()

    def close(self) -> None:
        """Close the inner session."""
        self._inner.close()

    def _run(
        self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None, *, keep_on_device: bool
    ) -> Mapping[str, Feed]:
        return self._inner.run(feeds, outputs, keep_on_device=keep_on_device)


class SessionFactory(Protocol):
    """Opens the session of a named graph at its first use; a graph that is never run is never loaded."""

    def open(self, name: str) -> Session:
        """Return the session of graph `name`, opened on the first call and kept."""
        ...

    def close(self) -> None:
        """Close every session that was opened."""
        ...


def check_feeds(graph: GraphSpec, feeds: Mapping[str, Feed]) -> None:
    """Check names, dtypes and shapes; a named dimension must have the same size everywhere.

    Raises:
        InputError: the first difference.
    """
    missing = [name for name in graph.input_names if name not in feeds]
    surplus = [name for name in feeds if name not in graph.input_names]
    if missing or surplus:
        raise InputError(
            f"{graph.name}: got inputs {', '.join(feeds) or 'none'}, "
            f"expected exactly {', '.join(graph.input_names)}"
        )
    sizes: dict[str, int] = {}
    for tensor in graph.inputs:
        _check_tensor(graph.name, tensor, feeds[tensor.name], sizes)


def wanted_outputs(graph: GraphSpec, outputs: Sequence[str] | None) -> list[str]:
    """Return the names of the outputs to compute; None means all.

    Raises:
        InputError: the graph does not have one of them.
    """
    if outputs is None:
        return list(graph.output_names)
    unknown = [name for name in outputs if name not in graph.output_names]
    if unknown:
        raise InputError(
            f"{graph.name} has no output {unknown[0]!r}, it has: {', '.join(graph.output_names)}"
        )
    return list(outputs)


def feeds_to_host(feeds: Mapping[str, Feed]) -> dict[str, Array]:
    """Return all feeds as host arrays, for a session without device memory of its own."""
    return {name: to_host(values) for name, values in feeds.items()}


def read_rows(graph: GraphSpec, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Return the feeds without rows that the graph does not read, which give the same results.

    Args:
        graph: `sam_masks` is fed all 64 prompts and reads only the chosen ones; at full size the features of
            one prompt have 4 MB. Other graphs read everything.
        feeds: input -> array.
    """
    if graph.name != "sam_masks":
        return dict(feeds)
    chosen = feeds["chosen"]
    read = {name: array[chosen] for name, array in feeds.items() if name != "chosen"}
    return {**read, "chosen": np.arange(len(chosen), dtype=chosen.dtype)}


def half_rounded(array: Array) -> Array:
    """Return a copy at half-precision values, which a half-precision graph can be fed without loss.

    Args:
        array: any shape; other types than float32 keep their values.

    Returns:
        The same shape and dtype.
    """
    if array.dtype != np.float32:
        return np.array(array)
    return array.astype(np.float16).astype(np.float32)


def _check_tensor(graph_name: str, tensor: TensorSpec, array: Feed, sizes: dict[str, int]) -> None:
    where = f"{graph_name}: input {tensor.name}"
    if str(array.dtype) != tensor.dtype:
        raise InputError(f"{where} is {array.dtype}, expected {tensor.dtype}; convert it with .astype")
    fits = len(array.shape) == len(tensor.shape)
    for got, expected in zip(array.shape, tensor.shape, strict=False):
        fits = fits and got == (sizes.setdefault(expected, got) if isinstance(expected, str) else expected)
    if not fits:
        named = ", ".join(f"{name}={size}" for name, size in sizes.items())
        hint = f" with {named}" if named else ""
        raise InputError(f"{where} is {list(array.shape)}, expected {list(tensor.shape)}{hint}")
