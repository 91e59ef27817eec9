"""Attentions that are written as ONNX's operator compute what their three nodes compute."""

from collections import Counter

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnx_ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from refdiff.contracts.bundle import open_bundle
from refdiff.contracts.graphs import TAP_OUTPUTS
from refdiff.contracts.parity import relative_error
from refdiff.engines.check_session import CheckSession
from refdiff.errors import InputError
from refdiff.passes.attention_operator import OPSET, WIDENED, UseAttentionOperator
from refdiff.passes.graph_files import load_typed, serialized
from tests.support.small_graphs import BUNDLE, small_graph

SINGLE = onnx_ir.DataType.FLOAT
IN_FP32 = UseAttentionOperator(types={SINGLE})
"""The pass on graphs that a CPU computes exactly; builds rewrite half precision only."""


def kinds(model):
    return Counter(node.op_type for node in model.graph)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd_text", "unet_taps", "sam_encoder", "clip_image"])
def test_a_rewritten_graph_of_the_miniature_gives_the_same_outputs(name):
    path = BUNDLE / f"{name}.onnx"
    feeds, _ = open_bundle(BUNDLE, verify="size").golden()[name]
    before, model = kinds(onnx_ir.load(path)), IN_FP32(load_typed(path))
    after = kinds(model)
    assert after["Softmax"] == 0
    assert after["Attention"] == before["Softmax"] > 0
    got = CheckSession(serialized(model, BUNDLE), folder=BUNDLE).run(feeds)
    for output, expected in CheckSession(path).run(feeds).items():
        assert relative_error(got[output], expected) < 1e-6


def test_the_taps_come_from_the_nodes_they_came_from():
    path = BUNDLE / "unet.onnx"
    makers = []
    for model in (load_typed(path), IN_FP32(load_typed(path))):
        outputs = {value.name: value.producer() for value in model.graph.outputs}
        makers.append(
            {name: (outputs[name].name, outputs[name].op_type) for name in TAP_OUTPUTS if name in outputs}
        )
    assert makers[0] == makers[1] != {}


def test_single_precision_is_left_as_it_is():
    path = BUNDLE / "sd_text.onnx"
    model = UseAttentionOperator()(load_typed(path))
    assert kinds(model) == kinds(onnx_ir.load(path))
    assert model.opset_imports[""] == onnx_ir.load(path).opset_imports[""] < OPSET


SHAPES = "float16[2,4,9,{0}] q, float16[2,4,{0},7] k, float16[2,4,7,{0}] v"
BODY = "product = MatMul(q, k) wide = Cast<to=1>(product) soft = Softmax<axis=-1>(wide)"
REST = "half = Cast<to=10>(soft) y = MatMul(half, v)"


def rewritten(read, *, made="float16[2,4,9,w] y", body=f"{BODY} {REST}"):
    return UseAttentionOperator()(small_graph(f"{read} => {made}", body))


def test_casts_around_the_softmax_go_and_keys_are_turned():
    model = rewritten(SHAPES.format(16))
    assert kinds(model) == {"Transpose": 1, "Attention": 1}
    (attention,) = (node for node in model.graph if node.op_type == "Attention")
    assert (attention.name, attention.outputs[0].name) == ("soft", "y")
    assert [attention.inputs[index].name for index in (0, 2)] == ["q", "v"]
    assert attention.attributes["scale"].as_float() == 1
    assert model.opset_imports[""] == OPSET


@pytest.mark.parametrize("added", ["Add(product, mask)", "Add(mask, product)"])
def test_what_is_added_to_the_product_becomes_the_mask(added):
    body = f"product = MatMul(q, k) sum = {added} soft = Softmax<axis=-1>(sum) y = MatMul(soft, v)"
    read = SHAPES.replace("float16", "float").format(16) + ", float[1,1,9,7] mask"
    model = small_graph(f"{read} => float[2,4,9,16] y", body)
    rng = np.random.default_rng(0)
    feeds = {
        value.name: rng.standard_normal(list(value.shape)).astype(np.float32) for value in model.graph.inputs
    }
    exact = CheckSession(serialized(model, None)).run(feeds)["y"]
    got = CheckSession(serialized(IN_FP32(model), None)).run(feeds)["y"]
    assert kinds(model)["Attention"] == 1
    assert relative_error(got, exact) < 1e-6
    feeds["mask"] = np.zeros_like(feeds["mask"])
    without = CheckSession(serialized(model, None)).run(feeds)["y"]
    assert relative_error(without, exact) > 1e-3


LEFT = {
    "narrow heads": {"read": SHAPES.format(8)},
    "wide heads": {"read": SHAPES.format(264)},
    "values of another width": {
        "read": "float16[2,4,9,16] q, float16[2,4,16,7] k, float16[2,4,7,32] v",
    },
    "one head of one image": {"read": "float16[1,1,9,16] q, float16[1,1,16,7] k, float16[1,1,7,16] v"},
    "no axis of heads": {
        "read": "float16[2,9,16] q, float16[2,16,7] k, float16[2,7,16] v",
        "made": "float16[2,9,16] y",
    },
    "logits are an output": {
        "read": SHAPES.format(16),
        "made": "float16[2,4,9,16] y, float16[2,4,9,7] product",
    },
    "probabilities are read twice": {
        "read": SHAPES.format(16),
        "made": "float16[2,4,9,16] y, float16[2,4,9,7] also",
        "body": f"{BODY} {REST} also = Neg(half)",
    },
    "softmax over another axis": {
        "read": SHAPES.format(16),
        "body": f"{BODY} {REST}".replace("axis=-1", "axis=2"),
    },
    "mask in another type": {
        "read": SHAPES.format(16) + ", float[1,1,9,7] mask",
        "body": "product = MatMul(q, k) wide = Cast<to=1>(product) sum = Add(wide, mask) "
        f"soft = Softmax<axis=-1>(sum) {REST}",
    },
    "a scale behind the product": {
        "read": SHAPES.format(16) + ", float16 scale",
        "body": "product = MatMul(q, k) less = Mul(product, scale) soft = Softmax<axis=-1>(less) "
        "y = MatMul(soft, v)",
    },
}


@pytest.mark.parametrize("case", LEFT.values(), ids=LEFT)
def test_an_attention_of_another_form_is_left(case):
    model = rewritten(**case)
    assert kinds(model)["Attention"] == 0
    assert kinds(model)["Softmax"] == 1
    assert model.opset_imports[""] == 18


def test_an_operator_that_changes_its_meaning_is_refused_by_name():
    read = SHAPES.format(16) + ", float16[1,4,8,8] x, float16[2] s"
    body = f"{BODY} {REST} norm = GroupNormalization<num_groups=2>(x, s, s)"
    with pytest.raises(InputError, match=r"node norm \(GroupNormalization\) may mean something else"):
        rewritten(read, made="float16[2,4,9,16] y, float16[1,4,8,8] norm", body=body)


@pytest.mark.parametrize("operator", sorted(WIDENED))
def test_an_operator_that_may_be_raised_keeps_what_its_attributes_mean(operator):
    old, new = (onnx.defs.get_schema(operator, opset, "") for opset in (18, OPSET))
    for name, attribute in old.attributes.items():
        assert new.attributes[name].type == attribute.type
        assert new.attributes[name].default_value == attribute.default_value
    assert [each.name for each in new.inputs[: len(old.inputs)]] == [each.name for each in old.inputs]
