"""Regions of single precision: which nodes the rules find, and how a set of nodes is closed."""

from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")

from refdiff.contracts.inspection import MINIATURES, find_bundle
from refdiff.contracts.recipe import Half, match_rules
from refdiff.passes.half_precision import HalfPrecision
from refdiff.passes.keep_fp32 import MOVES, close_regions, default_fp32_nodes, default_half_weights
from tests.support.small_graphs import (
    FLOATS,
    MINIATURE,
    casts,
    fp32_nodes_of,
    miniature_graph,
    small_graph,
)


def rules_of(model: ir.Model, half: Half = "fp16") -> dict[str, frozenset[str]]:
    """The first word of each rule's reason -> the nodes it names."""
    known = [node.name for node in model.graph]
    rules = default_fp32_nodes(model.graph, half)
    return {rule.because.split(":")[0]: match_rules([rule], known, where="graph") for rule in rules}


def norm_modules(name: str) -> frozenset[str]:
    """Modules that hold a norm written out, by the names their authors gave them."""
    written_out = {
        "unet": (".norm", ".norm1", ".norm2", ".conv_norm_out"),
        "unet_taps": (".norm", ".norm1", ".norm2"),
        "vae_encoder": (".group_norm", ".norm1", ".norm2", ".conv_norm_out"),
        "sam_encoder": ("neck.1", "neck.3"),
    }.get(name, ())
    nodes = list(miniature_graph(name).graph)
    layers = {node.name.rpartition("/")[0] for node in nodes if node.op_type == "LayerNormalization"}
    modules = {node.name.rpartition("/")[0] for node in nodes}
    return frozenset(module for module in modules - layers if module.endswith(written_out))


@pytest.mark.slow
@pytest.mark.parametrize("name", MINIATURE)
def test_norms_are_all_nodes_of_the_modules_called_so(name: str) -> None:
    graph = miniature_graph(name).graph
    modules = norm_modules(name)
    expected = {node.name for node in graph if node.name.rpartition("/")[0] in modules}
    assert rules_of(miniature_graph(name)).get("norms", frozenset()) == expected
    holders = {
        node.name for node in graph if node.op_type in ("InstanceNormalization", "ReduceMean", "Pow", "Sqrt")
    }
    assert holders <= expected


@pytest.mark.parametrize("name", MINIATURE)
def test_softmaxes_are_named_one_by_one(name: str) -> None:
    graph = miniature_graph(name).graph
    softmaxes = {node.name for node in graph if node.op_type == "Softmax"}
    assert rules_of(miniature_graph(name)).get("softmax", set()) == softmaxes
    assert bool(softmaxes) == (name != "sam_masks")
    if not softmaxes:
        return
    (rule,) = (rule for rule in default_fp32_nodes(graph) if rule.because.startswith("softmax"))
    assert not any("*" in pattern for pattern in rule.nodes)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("unet", {f"unet.time_proj/{kind}" for kind in ("Mul", "Sin", "Cos", "Unsqueeze")}),
        ("unet_taps", {f"unet.time_proj/{kind}" for kind in ("Mul", "Sin", "Cos", "Unsqueeze")}),
        ("clip_text", set()),
        ("vae_encoder", set()),
    ],
)
def test_angles_reach_back_to_the_graphs_inputs(name: str, expected: set[str]) -> None:
    found = rules_of(miniature_graph(name)).get("angles", frozenset())
    assert {node.rpartition("_")[0] if node[-1].isdigit() else node for node in found} == expected


@pytest.mark.parametrize("name", ["unet", "unet_taps"])
def test_taps_are_one_product_and_its_scale_per_layer(name: str) -> None:
    model = miniature_graph(name)
    (taps,) = (value for value in model.graph.outputs if value.name == "taps")
    found = rules_of(model)["taps"]
    kinds = Counter(node.op_type for node in model.graph if node.name in found)
    assert kinds["MatMul"] == taps.shape[1] == 3
    assert set(kinds) - MOVES == {"MatMul", "Mul"}
    assert all(value.producer().op_type != "Softmax" for value in taps.producer().inputs)


def test_graphs_without_taps_have_no_such_rule() -> None:
    assert "taps" not in rules_of(miniature_graph("sam_encoder"))


def test_bfloat16_leaves_what_onnx_has_none_of() -> None:
    model = miniature_graph("sam_encoder")
    einsums = {node.name for node in model.graph if node.op_type == "Einsum"}
    assert rules_of(model, "bf16")["Einsum"] == einsums != set()
    assert "Einsum" not in rules_of(model, "fp16")


@pytest.mark.parametrize("half", ["fp16", "bf16"])
@pytest.mark.parametrize("name", MINIATURE)
def test_only_operators_of_their_own_are_regions_of_one_node(name: str, half: Half) -> None:
    # Widening a softmax by the product before it keeps TensorRT from fusing the attention; it was measured
    # (benchmarks/results/attention-regions.json). bfloat16 has operators that stay single wherever they are.
    model = miniature_graph(name)
    alone = {"Softmax"} if half == "fp16" else {"Softmax", "Einsum"}
    kinds = {node.name: node.op_type for node in model.graph}
    lonely = [names for names in connected(model.graph, fp32_nodes_of(model, half)) if len(names) == 1]
    assert {kinds[name] for names in lonely for name in names} <= alone


def connected(graph: ir.Graph, fp32: frozenset[str]) -> list[set[str]]:
    """Regions as sets of nodes that hand float tensors to each other."""
    neighbours = defaultdict[str, set[str]](set)
    for node in graph:
        for value in node.inputs:
            maker = value.producer() if value is not None and value.dtype in FLOATS else None
            if maker is not None and {maker.name, node.name} <= fp32:
                neighbours[node.name].add(maker.name)
                neighbours[maker.name].add(node.name)
    left, found = set(fp32), []
    while left:
        front, region = [left.pop()], set[str]()
        while front:
            region.add(name := front.pop())
            front += neighbours[name] - region
        left -= region
        found.append(region)
    return found


@pytest.mark.parametrize("name", MINIATURE)
def test_patterns_name_no_node_that_the_rule_did_not_find(name: str) -> None:
    model = miniature_graph(name)
    computing = {node.name for node in model.graph if any(v.dtype in FLOATS for v in node.outputs)}
    for nodes in rules_of(model).values():
        assert nodes <= computing


@pytest.mark.parametrize("name", MINIATURE)
def test_what_draws_sams_masks_computes_in_single_precision(name: str) -> None:
    graph = miniature_graph(name).graph
    known = {node.name for node in graph}
    found = match_rules(default_half_weights(name, graph), known, where="graph")
    last = {"image_encoder.neck.2/Conv"} if name == "sam_encoder" else set()
    assert found == (known if name in ("sam_decoder", "sam_masks") else last)


@pytest.mark.parametrize("bundle", MINIATURES)
def test_between_the_norms_of_sams_neck_nothing_is_rounded(bundle: str) -> None:
    graph = ir.load(find_bundle(bundle).graph_path("sam_encoder")).graph
    rules = (*default_fp32_nodes(graph), *default_half_weights("sam_encoder", graph))
    kept = close_regions(graph, match_rules(rules, {node.name for node in graph}, where="graph"))
    neck = {node.name for node in graph if ".neck." in node.name and node.op_type not in MOVES}
    assert neck - kept == {"image_encoder.neck.0/Conv"}


def test_a_module_with_other_modules_inside_is_no_pattern() -> None:
    model = small_graph(
        "float[2, 4] x => float[2, 4] y",
        "norm__mean = ReduceMean (x) norm__sub = Sub(x, norm__mean) "
        "norm__linear__mul = Mul(norm__sub, norm__sub) y = Neg(norm__linear__mul)",
    )
    assert rules_of(model)["norms"] == {"norm/mean", "norm/sub"}


def test_a_norm_outside_any_module_is_a_region_of_its_own() -> None:
    model = small_graph("float[2, 4] x => float[1, 1] y", "a = Relu(x) b = ReduceMean(a) y = Neg(b)")
    assert rules_of(model)["norms"] == {"b"}


def test_a_node_between_regions_joins_them() -> None:
    graph = small_graph(
        "float[2] x => float[2] y", "a = Relu(x) b = Exp(a) c = Neg(b) d = Exp(c) e = Neg(d) y = Relu(e)"
    ).graph
    assert close_regions(graph, {"b", "d"}) == {"b", "c", "d"}


def test_a_node_that_something_else_reads_does_not_join() -> None:
    graph = small_graph(
        "float[2] x => float[2] y, float[2] z", "a = Exp(x) b = Neg(a) y = Exp(b) c = Relu(b) z = Neg(c)"
    ).graph
    assert close_regions(graph, {"a", "y"}) == {"a", "y"}


def test_reading_a_shape_asks_for_no_precision() -> None:
    graph = small_graph(
        "float[2] x => float[2] y, int64[1] z", "a = Exp(x) b = Neg(a) y = Exp(b) z = Shape(b)"
    ).graph
    assert close_regions(graph, {"a", "y"}) == {"a", "b", "y"}


def test_a_node_between_a_region_and_an_output_joins() -> None:
    graph = small_graph("float[2] x => float[2] y", "a = Relu(x) b = Exp(a) y = Neg(b)").graph
    assert close_regions(graph, {"b"}) == {"b", "y"}


def test_a_chain_of_moves_between_regions_joins_them() -> None:
    graph = small_graph(
        "float[2, 3] x => float[3, 2] y",
        "a = Exp(x) b = Transpose(a) c = Unsqueeze(b, axes) d = Squeeze(c, axes) e = Exp(d) y = Relu(e)",
        {"axes": np.array([0])},
    ).graph
    assert close_regions(graph, {"a", "e", "y"}) == {"a", "b", "c", "d", "e", "y"}
    assert close_regions(graph, {"a"}) == {"a"}


@pytest.mark.slow
def test_a_move_from_an_input_to_a_region_joins() -> None:
    graph = small_graph(
        "float[2, 3] x => float[3, 2] y", "a = Transpose(x) b = Exp(a) c = Relu(b) y = Neg(c)"
    ).graph
    assert close_regions(graph, {"b"}) == {"a", "b"}


def test_moves_at_a_boundary_leave() -> None:
    graph = small_graph(
        "float[2, 3] x => float[2, 3] y",
        "a = Relu(x) b = Transpose(a) c = Exp(b) d = Transpose(c) e = Relu(d) y = Neg(e)",
    ).graph
    assert close_regions(graph, {"b", "c", "d"}) == {"c"}


def test_a_move_inside_a_region_stays() -> None:
    graph = small_graph(
        "float[2, 3] x => float[3, 2] y",
        "a = Relu(x) b = Exp(a) c = Transpose(b) d = Exp(c) e = Relu(d) y = Neg(e)",
    ).graph
    assert close_regions(graph, {"b", "c", "d"}) == {"b", "c", "d"}


def test_a_move_that_is_an_output_stays_although_others_read_it() -> None:
    graph = small_graph(
        "float[2, 3] x => float[3, 2] y, float[3, 2] z", "a = Exp(x) y = Transpose(a) b = Relu(y) z = Neg(b)"
    ).graph
    assert close_regions(graph, {"a", "y"}) == {"a", "y"}


Step = tuple[str, tuple[int, ...]]
"""An operator, and the tensors it reads; 0 is the input."""


@st.composite
def small_dags(draw: st.DrawFn) -> tuple[tuple[Step, ...], frozenset[str], frozenset[int]]:
    """Nodes that compute or move; some of them in fp32; some of them outputs."""
    count = draw(st.integers(1, 12))
    steps = list[Step]()
    for index in range(count):
        kind = draw(st.sampled_from(["Exp", "Add", "Reshape", "Reshape", "Concat"]))
        reads = tuple(
            draw(st.integers(max(0, index - 3), index)) for _ in range(1 + (kind in ("Add", "Concat")))
        )
        steps.append((kind, reads))
    fp32 = draw(st.frozensets(st.integers(1, count)))
    outs = draw(st.frozensets(st.integers(1, count)))
    return tuple(steps), frozenset(f"t{index}" for index in fp32), outs


def built(steps: tuple[Step, ...], outs: frozenset[int]) -> ir.Model:
    """Node i is named t<i>, and so is its one tensor; what is not read is an output."""
    tensors = [ir.Value(name="t0", type=ir.TensorType(ir.DataType.FLOAT))]
    shape = ir.Value(name="shape", type=ir.TensorType(ir.DataType.INT64))
    nodes = list[ir.Node]()
    for index, (kind, reads) in enumerate(steps, 1):
        inputs = [tensors[each] for each in reads] + ([shape] if kind == "Reshape" else [])
        node = ir.Node("", kind, inputs, name=f"t{index}")
        node.outputs[0].name, node.outputs[0].type = f"t{index}", ir.TensorType(ir.DataType.FLOAT)
        nodes.append(node)
        tensors.append(node.outputs[0])
    made = [value for index, value in enumerate(tensors[1:], 1) if index in outs or not value.uses()]
    graph = ir.Graph([tensors[0], shape], made, nodes=nodes, opset_imports={"": 18}, name="dag")
    return ir.Model(graph, ir_version=10)


@pytest.mark.slow
@settings(max_examples=300)
@given(small_dags())
def test_closing_any_graph_keeps_what_computes_and_leaves_no_hole(
    drawn: tuple[tuple[Step, ...], frozenset[str], frozenset[int]],
) -> None:
    steps, fp32, outs = drawn
    model = built(steps, outs)
    single = close_regions(model.graph, fp32)
    moves = {node.name for node in model.graph if node.op_type in MOVES}
    assert fp32 - moves <= single
    assert close_regions(model.graph, single) == single
    for name, makers, users, leaves in surroundings(model.graph):
        inside = makers <= single and users <= single
        if (makers or name in moves) and (users or leaves) and inside:
            assert name in single, "a hole"
        elif name in moves & single:
            assert not makers or makers & single, "a move that enters from half precision alone"
            assert leaves or not users or users & single, "a move that goes out to half precision alone"


def surroundings(graph: ir.Graph) -> Iterator[tuple[str, set[str], set[str], bool]]:
    """Each node, who makes what it reads, who reads what it makes, and whether that leaves the graph."""
    for node in graph:
        makers = {v.producer().name for v in node.inputs if v.producer() is not None}
        users = {use.node.name for v in node.outputs for use in v.uses()}
        yield node.name, makers, users, node.outputs[0].is_graph_output()


@pytest.mark.slow
@settings(max_examples=300)
@given(small_dags())
def test_no_casts_cancel_in_any_closed_graph(
    drawn: tuple[tuple[Step, ...], frozenset[str], frozenset[int]],
) -> None:
    steps, fp32, outs = drawn
    model = built(steps, outs)
    HalfPrecision("fp16", close_regions(model.graph, fp32))(model)
    for cast in casts(model):
        assert behind(cast) is None


def behind(cast: ir.Node) -> ir.Node | None:
    """The cast before this one, where there is nothing between but moves without other readers."""
    node = cast.inputs[0].producer()
    while node is not None and node.op_type == "Reshape":
        value = node.outputs[0]
        if len(value.uses()) > 1 or value.is_graph_output():
            return None
        node = node.inputs[0].producer()
    return node if node is not None and node.op_type == "Cast" else None
