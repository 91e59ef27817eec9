"""Which attentions a network has, what keeps each from being fused, and whether the plan fused it."""

import json
from itertools import pairwise

import pytest

from refdiff.engines.trt.attention_blocks import (
    PlanLayer,
    attention_blocks,
    layers_in_log,
    layers_of_engine,
    mark_fused,
)
from refdiff.engines.trt.monitor import make_log
from tests.support.attentions import attention, tensor
from tests.support.fake_builder import Inspected, Layer, Network, Severity, fake_flavour, fake_tensorrt

BUILT = (
    "Name: _gemm_mha_v2_myl0_5, LayerType: kgen, Inputs: [ { Name: q, Dimensions: [2,4,7,16] }], "
    "TacticName: _gemm_mha_v2_0x1, Metadata: [ONNX Layer: /MatMul]\x1e[ONNX Layer: /Softmax]"
    "\x1e[ONNX Layer: /MatMul_1]"
)


def only(network):
    (block,) = attention_blocks(network)
    return block


def test_an_attention_is_named_by_its_three_nodes():
    block = only(attention())
    assert (block.product, block.softmax, block.mixing) == ("/MatMul", "/Softmax", "/MatMul_1")
    assert (block.heads, block.head_size, block.precision) == (4, 16, "HALF")
    assert block.obstacles == ()
    assert block.fused is None


def test_scale_and_mask_between_product_and_softmax_are_no_obstacle():
    between = [
        Layer("ELEMENTWISE", "/Div", [tensor("scale", ())], [tensor("scaled")]),
        Layer("ELEMENTWISE", "/Add", [tensor("mask", (2, 1, 7, 7))], [tensor("masked")]),
    ]
    assert only(attention(between=between)).obstacles == ()


@pytest.mark.parametrize(("size", "fits"), [(8, False), (16, True), (20, False), (160, True), (512, False)])
def test_heads_of_odd_sizes_are_an_obstacle(size, fits):
    obstacles = only(attention(head_size=size)).obstacles
    assert obstacles == (() if fits else (f"heads of {size}, expected 16 to 256 in steps of 8",))


def test_values_of_another_width_are_an_obstacle():
    obstacles = only(attention(head_size=32, value_size=16)).obstacles
    assert obstacles == ("values of 16, expected as wide as its heads, 32",)


def test_products_in_float32_are_an_obstacle():
    assert only(attention(dtype="FLOAT")).obstacles == ("products in float32",)


def test_sam_s_position_bias_is_an_obstacle():
    by_rows = (8, 7, 1, 7, 1)
    between = [
        Layer("SHUFFLE", "/Reshape", [], [tensor("rows", by_rows)]),
        Layer("ELEMENTWISE", "/Add", [tensor("bias", by_rows)], [tensor("biased", by_rows)]),
        Layer("SHUFFLE", "/Reshape_1", [], [tensor("flat")]),
    ]
    assert only(attention(between=between)).obstacles == ("position bias by rows and columns",)


def test_a_single_head_of_a_single_image_is_an_obstacle():
    assert only(attention(images=1, heads=1)).obstacles == ("a single head of a single image",)
    assert only(attention(images=2, heads=1)).obstacles == ()
    assert only(attention(images=1, heads=2)).obstacles == ()


def test_an_operator_is_its_own_product_and_softmax_and_one_kernel():
    shapes = [tensor("q", (2, 4, 7, 16)), tensor("k", (2, 4, 7, 16)), tensor("v", (2, 4, 7, 16))]
    inputs = Layer("ATTENTION_INPUT", "/attn_AttentionInput", shapes, [tensor("inner")])
    (block,) = attention_blocks(Network(layers=[inputs]))
    assert (block.product, block.softmax, block.mixing) == ("/attn", "/attn", "/attn")
    assert (block.heads, block.head_size, block.precision, block.obstacles) == (4, 16, "HALF", ())
    kernels = [
        PlanLayer(name=name, nodes=frozenset({"/attn"})) for name in ("move", "_gemm_mha_v2", "move_1")
    ]
    (fused,) = mark_fused((block,), kernels)
    assert (fused.fused, fused.kernel) == (True, "_gemm_mha_v2")
    assert mark_fused((block,), []) == (block,)


@pytest.mark.parametrize(
    ("name", "what"),
    [("logits", "logits"), ("wide", "logits"), ("soft", "probabilities"), ("half", "probabilities")],
)
def test_nothing_between_the_products_may_leave_the_graph_or_be_read(name, what):
    shown = only(attention(outputs=("mixed", name)))
    assert shown.obstacles == (f"its {what} are the output {name}",)
    reader = Layer("REDUCE", "/mean", [tensor(name)], [tensor("mean")])
    assert only(attention(also=[reader])).obstacles == (f"its {what} are also read by /mean",)


def test_asking_for_a_shape_reads_nothing():
    sizes = Layer("SHAPE", "/Shape", [tensor("wide")], [tensor("sizes", (4,))])
    assert only(attention(also=[sizes])).obstacles == ()


def test_a_softmax_that_is_no_attention_s_is_passed_over():
    alone = Layer("SOFTMAX", "/Softmax", [tensor("x")], [tensor("y")])
    assert attention_blocks(Network(layers=[alone])) == ()
    unread = attention().layers[:3]
    assert attention_blocks(Network(layers=unread)) == ()


def test_a_long_chain_of_sums_is_not_searched_for_a_product():
    names = [f"x{index}" for index in range(60)]
    sums = [
        Layer("ELEMENTWISE", f"/Add_{a}", [tensor(a), tensor(a)], [tensor(b)]) for a, b in pairwise(names)
    ]
    soft = Layer("SOFTMAX", "/Softmax", [tensor(names[-1])], [tensor("soft")])
    assert attention_blocks(Network(layers=[*sums, soft])) == ()


def test_the_log_says_which_nodes_a_kernel_holds():
    log = make_log(fake_flavour(fake_tensorrt()))
    log.log(Severity.VERBOSE, f"Layers:\n{BUILT}\n\nBindings:\nq")
    log.log(Severity.VERBOSE, "chatter")
    assert log.lines == []
    (layer,) = layers_in_log(log.layers)
    assert layer.name == "_gemm_mha_v2_myl0_5"
    assert layer.nodes == {"/MatMul", "/Softmax", "/MatMul_1"}


def test_the_inspector_says_the_same():
    said = {"Layers": [{"Name": "_gemm_mha_v2_myl0_5", "Metadata": BUILT.split("Metadata: ")[1]}]}
    layers = layers_of_engine(fake_tensorrt(), Inspected(json.dumps(said)))
    assert layers == layers_in_log([BUILT])


@pytest.mark.parametrize("said", ["", "{}", '{"Layers": ["_gemm_mha_v2_myl0_5"]}'])
def test_an_inspector_without_details_says_nothing(said):
    assert layers_of_engine(fake_tensorrt(), Inspected(said)) == ()


def test_fused_is_what_one_kernel_computes_in_every_profile():
    blocks = attention_blocks(attention())
    whole = PlanLayer(name="mha", nodes=frozenset({"/MatMul", "/cast", "/Softmax", "/MatMul_1"}))
    part = PlanLayer(name="softmax", nodes=frozenset({"/cast", "/Softmax"}))
    other = PlanLayer(name="gemm", nodes=frozenset({"/MatMul"}))
    assert [(b.fused, b.kernel) for b in mark_fused(blocks, [other, whole])] == [(True, "mha")]
    assert [(b.fused, b.kernel) for b in mark_fused(blocks, [other, part])] == [(False, "softmax")]
    assert [b.fused for b in mark_fused(blocks, [whole, part])] == [False]
    assert mark_fused(blocks, [other]) == blocks
