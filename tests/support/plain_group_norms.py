"""The definition of ONNX Runtime's GroupNorm in plain operators, for a CPU, which has no kernel for it."""

import numpy as np
import onnx_ir as ir

from refdiff.passes.rewriting import Row

SINGLE = ir.DataType.FLOAT


def with_plain_group_norms(model: ir.Model) -> ir.Model:
    """Replace each com.microsoft.GroupNorm by what its documentation says, in single precision."""
    for node in [node for node in model.graph if node.op_type == "GroupNorm"]:
        assert node.domain == "com.microsoft"
        assert node.attributes["channels_last"].as_int() == 1
        _expand(model.graph, node)
        model.graph.remove(node, safe=True)
    return model


def _expand(graph: ir.Graph, node: ir.Node) -> None:
    source, gamma, beta = node.inputs
    assert gamma.dtype == beta.dtype == SINGLE, "the CUDA kernel refuses other types"
    groups, name = node.attributes["groups"].as_int(), node.name
    shape = Row(graph, source, f"{name}/shape")
    shape.add("Shape")
    shape.value.type = ir.TensorType(ir.DataType.INT64)
    row = Row(graph, source, f"{name}/plain")
    row.cast(SINGLE)
    row.reshape(0, -1, groups, len(gamma.const_value.numpy()) // groups)
    whole = row.value
    row.add("ReduceMean", row.ints(1, 3), keepdims=1)
    mean = row.value
    row.value = whole
    row.add("Sub", mean)
    centred = row.value
    row.add("Mul", centred)
    row.add("ReduceMean", row.ints(1, 3), keepdims=1)
    row.add("Add", row.weight(f"{name}/eps", np.array(node.attributes["epsilon"].as_float(), np.float32)))
    row.add("Sqrt")
    deviation = row.value
    row.value = centred
    row.add("Div", deviation)
    row.add("Reshape", shape.value)
    row.add("Mul", gamma)
    row.add("Add", beta)
    if node.attributes["activation"].as_int():
        normed = row.value
        row.add("Sigmoid")
        row.add("Mul", normed)
    row.cast(node.outputs[0].dtype)
    graph.insert_before(node, list(shape.nodes))
    row.replace(node.outputs[0])
