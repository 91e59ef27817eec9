"""Find the nodes around a value, and insert a row of new ones in place of an old result."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from refdiff.contracts.session import Array


def maker(value: ir.Value | None) -> ir.Node | None:
    """Return the node that makes a value, looking through casts."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Cast":
        return node
    return maker(node.inputs[0])


def only_reader(node: ir.Node) -> ir.Node | None:
    """Return the only node that reads a result, looking through casts; None if there are more."""
    value = node.outputs[0]
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    reader = uses[0].node
    return only_reader(reader) if reader.op_type == "Cast" else reader


def origin(value: ir.Value | None) -> ir.Value | None:
    """Return the value before the casts that make this one."""
    node = None if value is None else value.producer()
    return value if node is None or node.op_type != "Cast" else origin(node.inputs[0])


def constant(value: ir.Value | None) -> Array | None:
    """Return the values of a weight, also of one that is cast; None for what is computed."""
    source = origin(value)
    if source is None or not source.is_initializer() or source.const_value is None:
        return None
    return source.const_value.numpy()


class Row:
    """New nodes; each reads the one before it.

    Args:
        graph: gets the nodes and their constants.
        value: what the first node reads; it must have a type.
        name: start of the nodes' names.
    """

    def __init__(self, graph: ir.Graph, value: ir.Value, name: str) -> None:
        self.value = value
        """What the next node reads."""
        self._graph = graph
        self._name = name
        self._nodes: list[ir.Node] = []

    @property
    def nodes(self) -> Sequence[ir.Node]:
        """The nodes, in their order."""
        return self._nodes

    def add(
        self, operator: str, *others: ir.Value | None, domain: str = "", **settings: int | float | list[int]
    ) -> None:
        """Add a node; its result has the type of what it reads.

        Args:
            operator: its operator.
            others: its inputs behind the first.
            domain: of the operator.
            settings: its attributes.
        """
        attributes = [ir.convenience.convert_attribute(name, value) for name, value in settings.items()]
        name = f"{self._name}/{operator}/{len(self._nodes)}"
        node = ir.Node(domain, operator, [self.value, *others], attributes=attributes, name=name)
        node.outputs[0].name = name
        node.outputs[0].type = None if self.value.dtype is None else ir.TensorType(self.value.dtype)
        self._nodes.append(node)
        self.value = node.outputs[0]

    def cast(self, dtype: ir.DataType) -> None:
        """Add a cast, unless the value has this type."""
        if self.value.dtype != dtype:
            self.add("Cast", to=int(dtype))
            self.value.type = ir.TensorType(dtype)

    def reshape(self, *sizes: int) -> None:
        """Add a reshape; 0 keeps a size, and -1 is what is left."""
        self.add("Reshape", self.ints(*sizes))

    def ints(self, *values: int) -> ir.Value:
        """Return a constant of the graph with these integers."""
        return self.weight(f"ints/{'_'.join(map(str, values))}", np.array(values, np.int64))

    def weight(self, name: str, values: Array) -> ir.Value:
        """Return a constant of the graph, which is made unless there is one of this name."""
        tensor = ir.tensor(values, name=f"refdiff/{name}")
        shape, kind = ir.Shape(values.shape), ir.TensorType(tensor.dtype)
        value = ir.Value(name=tensor.name, shape=shape, type=kind, const_value=tensor)
        return self._graph.initializers.setdefault(str(tensor.name), value)

    def replace(self, result: ir.Value) -> None:
        """Insert the nodes behind a result's node; their last value takes its name, readers and outputs."""
        last = result.producer()
        if last is None:
            raise ValueError(f"{result.name} is not the result of a node")
        self._graph.insert_after(last, self._nodes)
        name, result.name = result.name, f"{result.name}/replaced"
        self.value.name, self.value.shape, self.value.type = name, result.shape, result.type
        ir.convenience.replace_all_uses_with(result, self.value, replace_graph_outputs=True)
