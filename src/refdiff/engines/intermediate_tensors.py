"""The tensors inside a graph, on given feeds: what ranges, headroom and comparisons are made from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from refdiff.contracts.session import Array
from refdiff.engines.ort import CheckSession
from refdiff.errors import InputError
from refdiff.passes.graph_files import load_typed
from refdiff.passes.round_half import HALVES, round_every_node

MOST_BYTES = 1 << 30
"""Of the tensors asked for in one run; more are fetched in several runs."""


def probe(
    model: ir.Model | Path,
    feeds: Sequence[Mapping[str, Array]],
    names: Sequence[str],
    *,
    folder: Path | None = None,
    most_bytes: int = MOST_BYTES,
    reduction: Callable[[ir.Value], Sequence[ir.Node]] | None = None,
) -> Iterator[tuple[int, str, Array]]:
    """Run a graph on each of the feeds and hand out tensors by name.

    Half-precision results are rounded at every node (`rounded`), whatever this processor's kernels can do.

    Args:
        model: a graph whose tensors have their types, which is left as it is; or its file.
        feeds: one mapping of arrays for each run.
        names: tensors, inner ones or outputs.
        folder: where the weights of a graph lie; of a file, its own folder.
        most_bytes: of tensors held at once.
        reduction: nodes to put behind each tensor; the result of the last one is handed out in its place. It
            is taken to be small: one run serves all tensors.

    Yields:
        Index of the feed, name, values: float32 where the tensor is of half precision. Each pair once, in no
        promised order.

    Raises:
        InputError: the graph has no such tensor, or tensors without a type.
        EngineError: ONNX Runtime cannot load or run the graph.
    """
    graph, folder = (model, folder) if isinstance(model, ir.Model) else (load_typed(model), model.parent)
    largest = max((_batch(feed) for feed in feeds), default=1)
    most = most_bytes if reduction is None else math.inf
    for group in _groups(graph, list(dict.fromkeys(names)), largest, most):
        session = CheckSession(_exposing(graph, group, reduction or _read), folder=folder)
        for index, feed in enumerate(feeds):
            results = session.run(feed, [_probed(name) for name in group])
            for name in group:
                yield index, name, results.pop(_probed(name))


def _exposing(
    model: ir.Model, names: Sequence[str], making: Callable[[ir.Value], Sequence[ir.Node]]
) -> bytes:
    """The graph with what is made of these tensors as its only outputs."""
    copy = model.clone()
    values = _values(copy.graph)
    outputs = [_exposed(copy.graph, values[name], making(values[name])) for name in names]
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(outputs)
    round_every_node(copy)
    return bytes(ir.serde.serialize_model(copy).SerializeToString())


def _read(value: ir.Value) -> Sequence[ir.Node]:
    """A copy of the value, float32 where it is of half precision inside."""
    half = value.dtype in HALVES
    attributes = [ir.AttrInt64("to", int(ir.DataType.FLOAT))] if half else []
    node = ir.Node("", "Cast" if half else "Identity", [value], attributes=attributes)
    node.outputs[0].shape = value.shape
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT) if half else value.type
    return [node]


def _exposed(graph: ir.Graph, value: ir.Value, nodes: Sequence[ir.Node]) -> ir.Value:
    """The result of the nodes, under a name of its own: an output cannot be read twice under one name."""
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
    made = (value for node in graph for value in node.outputs)
    every = (*graph.inputs, *graph.initializers.values(), *made)
    return {str(value.name): value for value in every}


def _bytes(value: ir.Value, batch: int) -> int:
    """About how much one run makes of it; a dimension without a size counts as the batch."""
    sizes = [] if value.shape is None else [size if isinstance(size, int) else batch for size in value.shape]
    return 4 * math.prod(sizes)


def _batch(feed: Mapping[str, Array]) -> int:
    return max((len(array) for array in feed.values() if array.ndim), default=1)


def _probed(name: str) -> str:
    return f"{name}/probed"
