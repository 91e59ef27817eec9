"""Attentions become ONNX Runtime's operator where it computes the same."""

from collections import Counter

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from onnx_ir.passes.common import RemoveUnusedNodesPass

from refdiff.contracts.parity import relative_error
from refdiff.engines.check_session import CheckSession
from refdiff.passes.graph_files import serialized
from refdiff.passes.multi_head_attention import MultiHeadAttention
from tests.support.small_graphs import small_graph

HEADS = "float[b,4,9,16] q, float[b,4,16,7] k, float[b,4,7,8] v"
MADE = "float[b,4,9,8] y"
SHAPES = {"q": (2, 4, 9, 16), "k": (2, 4, 16, 7), "v": (2, 4, 7, 8)}
PLAIN = "p = MatMul(q, k) s = Softmax<axis=-1>(p) y = MatMul(s, v)"
SCALED = "p = MatMul(q, k) d = {0}(p, four) s = Softmax<axis=-1>(d) y = MatMul(s, v)"
BIASED = "p = MatMul(q, k) d = Add(p, bias) s = Softmax<axis=-1>(d) y = MatMul(s, v)"
PLACES = "{0} t = Transpose<perm=[0,2,1,3]>(y)"

ONE_HEAD = "p = MatMul(q, k) s = Softmax<axis=-1>(p) y = MatMul(s, v)"

CASES = {
    "plain": (f"{HEADS} => {MADE}", PLAIN, SHAPES),
    "divided": (f"{HEADS}, float four => {MADE}", SCALED.format("Div"), SHAPES),
    "times": (f"{HEADS}, float four => {MADE}", SCALED.format("Mul"), SHAPES),
    "bias of each head": (f"{HEADS}, float[1,4,9,7] bias => {MADE}", BIASED, SHAPES | {"bias": (1, 4, 9, 7)}),
    "bias of each image": (
        f"{HEADS}, float[b,1,9,7] bias => {MADE}",
        BIASED,
        SHAPES | {"bias": (2, 1, 9, 7)},
    ),
    "places first": (f"{HEADS} => float[b,9,4,8] t", PLACES.format(PLAIN), SHAPES),
    "no axis of heads": (
        "float[b,9,16] q, float[b,16,7] k, float[b,7,8] v => float[b,9,8] y",
        ONE_HEAD,
        {"q": (2, 9, 16), "k": (2, 16, 7), "v": (2, 7, 8)},
    ),
    "one image for all": (
        "float[n,p,16] q, float[1,16,7] k, float[1,7,8] v => float[n,p,8] y",
        ONE_HEAD,
        {"q": (3, 5, 16), "k": (1, 16, 7), "v": (1, 7, 8)},
    ),
}


def kinds(model):
    return Counter(node.op_type for node in model.graph)


def graph(signature, body):
    factor = {"four": np.array(4, np.float32)} if "four" in body else {}
    return small_graph(signature.replace(", float four", ""), body, factor)


@pytest.mark.parametrize(("signature", "body", "shapes"), CASES.values(), ids=CASES)
def test_an_attention_is_one_operator_and_gives_the_same(signature, body, shapes):
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    before = CheckSession(serialized(graph(signature, body), None)).run(feeds)
    attentions = MultiHeadAttention()
    model = attentions(graph(signature, body))
    assert attentions.count == kinds(model)["MultiHeadAttention"] == 1
    RemoveUnusedNodesPass()(model)
    assert not {"Softmax", "MatMul"} & set(kinds(model))
    after = CheckSession(serialized(model, None)).run(feeds)
    assert after.keys() == before.keys()
    for name, values in before.items():
        assert after[name].shape == values.shape
        assert relative_error(after[name], values) < 1e-5


LEFT = {
    "bias that is spread over the queries": (
        f"{HEADS}, float[1,1,1,7] bias => {MADE}",
        BIASED,
    ),
    "bias without an axis of images": (f"{HEADS}, float[4,9,7] bias => {MADE}", BIASED),
    "bfloat16": (f"{HEADS} => {MADE}".replace("float[", "bfloat16["), PLAIN),
    "heads of another number": (
        "float[b,4,9,16] q, float[b,1,16,7] k, float[b,1,7,8] v => float[b,4,9,8] y",
        PLAIN,
    ),
    "one image in the keys alone": (
        "float[b,4,9,16] q, float[1,4,16,7] k, float[1,4,7,8] v => float[b,4,9,8] y",
        PLAIN,
    ),
    "one image in the queries alone": (
        "float[1,9,16] q, float[n,16,7] k, float[n,7,8] v => float[n,9,8] y",
        ONE_HEAD,
    ),
    "softmax over another axis": (f"{HEADS} => {MADE}", PLAIN.replace("axis=-1", "axis=2")),
    "logits that are an output": (f"{HEADS} => {MADE}, float[b,4,9,7] p", PLAIN),
    "heads of an unknown number": (
        "float[b,h,9,16] q, float[b,h,16,7] k, float[b,h,7,8] v => float[b,h,9,8] y",
        PLAIN,
    ),
}


@pytest.mark.parametrize(("signature", "body"), LEFT.values(), ids=LEFT)
def test_what_the_operator_does_not_compute_is_left(signature, body):
    attentions = MultiHeadAttention()
    model = attentions(graph(signature, body))
    assert attentions.count == kinds(model)["MultiHeadAttention"] == 0
    assert kinds(model)["Softmax"] == 1
    assert "com.microsoft" not in model.opset_imports
