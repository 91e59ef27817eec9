"""Converted bundles with a fault planted in one graph, their manifests re-hashed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from tests.support.damage import copy_of, rehash
from tests.support.small_graphs import node

Plant = Callable[[ir.Model], str]
"""Changes a graph, and returns the name of the node to blame."""


def planted(bundle: Path, target: Path, graph: str, plant: Plant) -> tuple[Path, str]:
    """A copy of a bundle with a fault in one graph, and the node to blame."""
    copy = copy_of(bundle, target)
    return copy, plant_in(copy, graph, plant)


def plant_in(bundle: Path, graph: str, plant: Plant) -> str:
    """Plant a fault in a new bundle; weights that are not changed stay in their file."""
    path = bundle / f"{graph}.onnx"
    model = ir.load(path)
    blamed = plant(model)
    ir.save(model, path)
    rehash(bundle, path.name)
    return blamed


def overflow(name: str, *, half: bool = True) -> Plant:
    """Half precision cannot hold what is between these two products; fp32 can, and they cancel.

    Args:
        name: of a node, of whose result some value is 2 or more.
        half: whether that is of half precision in this graph.
    """
    up, down = f"{name}/up", f"{name}/down"

    def plant(model: ir.Model) -> str:
        producer = node(model, name)
        value = producer.outputs[0]
        readers = list(value.uses())
        first = _times(model.graph, value, 2.0**15, up, half=half)
        second = _times(model.graph, first.outputs[0], 2.0**-15, down, half=half)
        model.graph.insert_after(producer, [first, second])
        for use in readers:
            use.node.replace_input_with(use.idx, second.outputs[0])
        return up

    return plant


def nan_in_weight(name: str) -> Plant:
    """One value of the weight that a node reads."""

    def plant(model: ir.Model) -> str:
        reader = node(model, name)
        array = _array(reader, 1).copy()
        array.reshape(-1)[array.size // 2] = np.nan
        _set(reader, 1, array)
        return name

    return plant


def weight_times(name: str, factor: float) -> Plant:
    """All of the weight that a node reads, in the type it is stored in."""

    def plant(model: ir.Model) -> str:
        reader = node(model, name)
        array = _array(reader, 1)
        _set(reader, 1, (array.astype(np.float32) * factor).astype(array.dtype))
        return name

    return plant


def result_times(name: str, factor: float) -> Plant:
    """All of a node's result, which is float32."""
    added = f"{name}/times"

    def plant(model: ir.Model) -> str:
        producer = node(model, name)
        value = producer.outputs[0]
        readers = list(value.uses())
        times = _times(model.graph, value, factor, added, half=False)
        model.graph.insert_after(producer, times)
        for use in readers:
            use.node.replace_input_with(use.idx, times.outputs[0])
        return added

    return plant


def scale_times(name: str, factor: float) -> Plant:
    """The step of a pair of Q/DQ, given by its second node, or of a weight's DQ."""

    def plant(model: ir.Model) -> str:
        second = node(model, name)
        scale = second.inputs[1]
        assert scale is not None
        wrong = (_array(second, 1).astype(np.float32) * factor).astype(_array(second, 1).dtype)
        scale.const_value = ir.tensor(wrong, name=scale.name)
        return name

    return plant


def _times(graph: ir.Graph, value: ir.Value, factor: float, name: str, *, half: bool) -> ir.Node:
    tensor = ir.tensor(np.array(factor, np.float16 if half else np.float32), name=f"{name}.by")
    by = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(by)
    made = ir.Node("", "Mul", [value, by], name=name)
    made.outputs[0].name = name
    made.outputs[0].type, made.outputs[0].shape = value.type, value.shape
    return made


def _array(reader: ir.Node, index: int) -> np.ndarray:
    value = reader.inputs[index]
    assert value is not None
    assert value.const_value is not None
    return np.array(value.const_value.numpy())


def _set(reader: ir.Node, index: int, array: np.ndarray) -> None:
    value = reader.inputs[index]
    assert value is not None
    value.const_value = ir.tensor(array, name=value.name)
