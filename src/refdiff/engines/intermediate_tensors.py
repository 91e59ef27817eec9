"""Read tensors inside a graph on given feeds, for ranges, dynamic range and comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from refdiff.contracts.session import Array
from refdiff.engines.check_session import CheckSession
from refdiff.errors import InputError
from refdiff.passes.graph_files import load_typed, serialized
from refdiff.passes.round_half import HALVES, RoundHalf

Probe = Callable[..., Iterator[tuple[int, str, Array]]]
"""As `probe`."""

MOST_BYTES = 1 << 30
"""Bytes of the tensors read in one run; more are read in several runs."""


def probe(
    model: ir.Model | Path,
    feeds: Sequence[Mapping[str, Array]],
    names: Sequence[str],
    *,
    folder: Path | None = None,
    most_bytes: int = MOST_BYTES,
    reduction: Callable[[ir.Value], Sequence[ir.Node]] | None = None,
    session_type: type[CheckSession] = CheckSession,
) -> Iterator[tuple[int, str, Array]]:
    """Run a graph on each of the feeds and yield tensors by name.

    Half-precision results are rounded at every node (`passes.round_half`), on any processor.

    Args:
        model: a graph whose tensors have types, which is not modified; or its file.
        feeds: one mapping of arrays for each run.
        names: names of inner tensors or outputs.
        folder: folder of the weights of a graph; for a file, its own folder.
        most_bytes: largest size of the tensors in memory at once.
        reduction: makes nodes to append to each tensor; the result of the last one is yielded in its place.
            It is assumed to be small, so one run serves all tensors.
        session_type: what each group of tensors is computed by.

    Yields:
        Index of the feed, name, values: float32 for a half-precision tensor. Each pair once, in any order.

    Raises:
        InputError: the graph has no such tensor, or tensors without a type.
        EngineError: ONNX Runtime cannot load or run the graph.
    """
    graph, folder = (model, folder) if isinstance(model, ir.Model) else (load_typed(model), model.parent)
    largest = max((_batch(feed) for feed in feeds), default=1)
    most = most_bytes if reduction is None else math.inf
    for group in _groups(graph, list(dict.fromkeys(names)), largest, most):
        session = session_type(_expose(graph, group, reduction or _copy_node, folder), folder=folder)
        for index, feed in enumerate(feeds):
            results = session.run(feed, [_probed(name) for name in group])
            for name in group:
                yield index, name, results.pop(_probed(name))


def _expose(
    model: ir.Model,
    names: Sequence[str],
    making: Callable[[ir.Value], Sequence[ir.Node]],
    folder: Path | None,
) -> bytes:
    """Return the serialized graph with the results of `making` as its only outputs."""
    copy = model.clone()
    values = _values(copy.graph)
    outputs = [_expose_value(copy.graph, values[name], making(values[name])) for name in names]
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(outputs)
    RoundHalf()(copy)
    return serialized(copy, folder)


def _copy_node(value: ir.Value) -> Sequence[ir.Node]:
    """Return the node that copies a value, as float32 if it is of half precision."""
    half = value.dtype in HALVES
    attributes = [ir.AttrInt64("to", int(ir.DataType.FLOAT))] if half else []
    node = ir.Node("", "Cast" if half else "Identity", [value], attributes=attributes)
    node.outputs[0].shape = value.shape
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT) if half else value.type
    return [node]


def _expose_value(graph: ir.Graph, value: ir.Value, nodes: Sequence[ir.Node]) -> ir.Value:
    """Add the nodes and return their result under a new name, since output names must be unique."""
    out = nodes[-1].outputs[0]
    out.name = _probed(str(value.name))
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], nodes)
    else:
        graph.insert_after(producer, nodes)
    return out


def _groups(model: ir.Model, names: Sequence[str], batch: int, most_bytes: float) -> Iterator[list[str]]:
    values = _values(model.graph)
    untyped = [name for name, value in values.items() if name and value.dtype is None]
    if untyped:
        raise InputError(f"{untyped[0]!r} has no type, expected types everywhere; hand over the graph's file")
    unknown = [name for name in names if name not in values]
    if unknown:
        raise InputError(f"the graph {model.graph.name or ''} has no tensor {unknown[0]!r}")
    group, held = list[str](), 0
    for name in names:
        size = _bytes(values[name], batch)
        if group and held + size > most_bytes:
            yield group
            group, held = [], 0
        group.append(name)
        held += size
    if group:
        yield group


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    results = (value for node in graph for value in node.outputs)
    every = (*graph.inputs, *graph.initializers.values(), *results)
    return {str(value.name): value for value in every}


def _bytes(value: ir.Value, batch: int) -> int:
    """Return the approximate bytes of a value in one run; a dimension without a size counts as the batch."""
    sizes = [] if value.shape is None else [size if isinstance(size, int) else batch for size in value.shape]
    return 4 * math.prod(sizes)


def _batch(feed: Mapping[str, Array]) -> int:
    return max((len(array) for array in feed.values() if array.ndim), default=1)


def _probed(name: str) -> str:
    return f"{name}/probed"
