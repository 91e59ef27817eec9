"""Check the feeds of a graph, and prepare them for a run or a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from refdiff.contracts.graphs import GraphSpec, TensorSpec
from refdiff.contracts.session import Array, Feed, to_host
from refdiff.errors import InputError


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
