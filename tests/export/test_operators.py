"""A graph may hold only what TensorRT is known to read, in the form that ONNX Runtime fuses."""

import inspect
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.needs_torch
torch = pytest.importorskip("torch")
ir = pytest.importorskip("onnx_ir")
onnxruntime = pytest.importorskip("onnxruntime")

import refdiff
from refdiff.contracts.graphs import GRAPHS, GraphSpec, TensorSpec
from refdiff.errors import InputError
from refdiff.export.onnx_export import check_operators, export_graph, gelu, translations


def graph_of(*nodes: ir.Node) -> ir.Graph:
    return ir.Graph([], [], nodes=nodes, name="g")


def test_known_operators_pass() -> None:
    check_operators(graph_of(ir.Node("", "Relu", []), ir.Node("", "MatMul", [])), "unet")


@pytest.mark.parametrize(("domain", "kind"), [("", "NonZero"), ("com.microsoft", "MatMul")])
def test_another_is_named_with_its_node(domain: str, kind: str) -> None:
    unsupported = ir.Node(domain, kind, [], name="mid/strange")
    with pytest.raises(InputError, match=f"unet: the exporter wrote 1 {kind}, first at mid/strange"):
        check_operators(graph_of(ir.Node("", "Relu", []), unsupported), "unet")


def fused(path: Path, folder: Path) -> Counter[str]:
    """Return the operators of a graph after ONNX Runtime's fusions on the CPU."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "fused.onnx")
    options.log_severity_level = 4  # it warns that the file is for this processor
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "fused.data")
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in ir.load(folder / "fused.onnx").graph)


VALUES = GraphSpec("values", (TensorSpec("x", "float32", ("b", 8)),), (TensorSpec("y", "float32", ("b", 8)),))


def test_translations_have_the_parameters_of_their_operators() -> None:
    for operator, translation in translations().items():
        own = {argument.name for argument in operator._schema.arguments}
        assert set(inspect.signature(translation).parameters) <= own, translation.__name__


def test_a_gelu_is_exact_and_one_operator_in_onnx_runtime(tmp_path: Path) -> None:
    path = export_graph(torch.nn.GELU().eval(), VALUES, tmp_path)
    assert Counter(node.op_type for node in ir.load(path).graph) == {"Div": 1, "Erf": 1, "Add": 1, "Mul": 2}
    assert fused(path, tmp_path) == {"Gelu": 1}
    x = np.concatenate([np.linspace(-6, 6, 72), [-6e4, -1e-7, 0, 1e-7, 20, 100, 4e4, 6e4]])
    x = x.astype(np.float32).reshape(-1, 8)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    expected = torch.nn.functional.gelu(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=1e-6, atol=1e-6)


def test_no_part_of_a_gelu_is_larger_than_its_input(tmp_path: Path) -> None:
    """In float16, x · (1 + erf) would be infinite from half its range on."""
    graph = ir.load(export_graph(torch.nn.GELU().eval(), VALUES, tmp_path)).graph
    (last,) = (node for node in graph if node.op_type == "Mul" and node.outputs[0] in graph.outputs)
    kinds = sorted(value.producer().op_type for value in last.inputs)
    assert kinds == ["Add", "Mul"]


def test_a_gelu_by_tanh_is_the_one_of_torch_and_any_other_is_refused(tmp_path: Path) -> None:
    """EfficientViT takes it; its cube is infinite in float16 from 40 on, where tanh is 1."""
    path = export_graph(torch.nn.GELU("tanh").eval(), VALUES, tmp_path)
    assert Counter(node.op_type for node in ir.load(path).graph) == {"Tanh": 1, "Add": 2, "Mul": 6}
    x = np.concatenate([np.linspace(-6, 6, 72), [-6e4, -1e-7, 0, 1e-7, 20, 100, 4e4, 6e4]])
    x = x.astype(np.float32).reshape(-1, 8)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    expected = torch.nn.functional.gelu(torch.from_numpy(x), approximate="tanh").numpy()
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(NotImplementedError, match="GELU approximated by 'sigmoid'"):
        gelu(None, "sigmoid")


@pytest.mark.parametrize("bundle", ["bundle", "bundle-edge"])
def test_every_gelu_of_the_built_in_bundles_is_fused(bundle: str, tmp_path: Path) -> None:
    folder = Path(refdiff.__file__).parent / "miniature" / bundle
    written = {name: Counter(n.op_type for n in ir.load(folder / f"{name}.onnx").graph) for name in GRAPHS}
    gelus = {name: kinds["Erf"] for name, kinds in written.items() if kinds["Erf"]}
    assert {"sam_encoder", "sam_masks", "unet", "unet_taps"} <= gelus.keys()
    for name, count in gelus.items():
        kinds = fused(folder / f"{name}.onnx", tmp_path)
        assert (kinds["Erf"], kinds["Gelu"] + kinds["BiasGelu"]) == (0, count), name
