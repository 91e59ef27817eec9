"""A graph may hold only what TensorRT is known to read."""

import pytest

pytestmark = pytest.mark.needs_torch
pytest.importorskip("torch")
ir = pytest.importorskip("onnx_ir")

from refdiff.errors import InputError
from refdiff.export.onnx_export import check_operators


def graph_of(*nodes: ir.Node) -> ir.Graph:
    return ir.Graph([], [], nodes=nodes, name="g")


def test_known_operators_pass() -> None:
    check_operators(graph_of(ir.Node("", "Relu", []), ir.Node("", "MatMul", [])), "unet")


@pytest.mark.parametrize(("domain", "kind"), [("", "NonZero"), ("com.microsoft", "MatMul")])
def test_another_is_named_with_its_node(domain: str, kind: str) -> None:
    unsupported = ir.Node(domain, kind, [], name="mid/strange")
    with pytest.raises(InputError, match=f"unet: the exporter wrote 1 {kind}, first at mid/strange"):
        check_operators(graph_of(ir.Node("", "Relu", []), unsupported), "unet")
