"""Norms become channels-last operators where the CUDA kernels take them."""

import re

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from refdiff.contracts.parity import relative_error
from refdiff.engines.check_session import CheckSession
from refdiff.passes.channels_last_norms import ChannelsLastNorms
from refdiff.passes.graph_files import serialized
from tests.support.plain_group_norms import with_plain_group_norms
from tests.support.small_graphs import small_graph

AFFINE = "wide = Mul(tall, gamma) z = Add(wide, beta)"

INSTANCE = (
    "g = Reshape(x, groups) n = InstanceNormalization<epsilon=0.001>(g, one, zero) tall = Reshape(n, whole)"
)

ROWS = (
    "g = Reshape(x, rows) m1 = ReduceMean<keepdims=1>(g, three) m2 = ReduceMean<keepdims=1>(m1, two) "
    "c = Sub(g, m2) s = Mul(c, c) v1 = ReduceMean<keepdims=1>(s, three) v2 = ReduceMean<keepdims=1>(v1, two) "
    "e = Add(v2, eps) d = Sqrt(e) n = Div(c, d) tall = Reshape(n, whole)"
)

CHANNELS = (
    "m = ReduceMean<keepdims=1>(x, one_axis) c = Sub(x, m) s = Pow(c, two_power) "
    "v = ReduceMean<keepdims=1>(s, one_axis) e = Add(v, eps) d = Sqrt(e) tall = Div(c, d)"
)


def weights(channels=8, groups=4, rows=5):
    rng = np.random.default_rng(1)
    floats = {
        "gamma": rng.standard_normal((1, channels, 1, 1)),
        "beta": rng.standard_normal((1, channels, 1, 1)),
        "one": np.ones(groups),
        "eight": np.full(groups, 8),
        "zero": np.zeros(groups),
        "eps": np.array(1e-3),
        "two_power": np.array(2.0),
    }
    ints = {
        "groups": [0, groups, -1],
        "rows": [0, groups, -1, rows],
        "whole": [-1, channels, 6, 5],
        "three": [3],
        "two": [2],
        "one_axis": [1],
    }
    return {name: values.astype(np.float32) for name, values in floats.items()} | {
        name: np.array(values) for name, values in ints.items()
    }


def graph(body, made="float[b,8,6,5] z", **sizes):
    channels = sizes.get("channels", 8)
    used = {name: each for name, each in weights(**sizes).items() if re.search(rf"\b{name}\b", body)}
    return small_graph(f"float[b,{channels},6,5] x => {made}", body, used)


def runs_equally(body, *, made="float[b,8,6,5] z"):
    feeds = {"x": 3 + np.random.default_rng(0).standard_normal((2, 8, 6, 5)).astype(np.float32)}
    exact = CheckSession(serialized(graph(body, made), None)).run(feeds)
    norms = ChannelsLastNorms()
    model = norms(graph(body, made))
    got = CheckSession(serialized(with_plain_group_norms(model), None)).run(feeds)
    assert got.keys() == exact.keys()
    for name, values in exact.items():
        assert relative_error(got[name], values) < 1e-5
    return norms


def activations(model):
    return [node.attributes["activation"].as_int() for node in model.graph if node.op_type == "GroupNorm"]


@pytest.mark.parametrize("norm", [INSTANCE, ROWS], ids=["instance", "rows"])
@pytest.mark.parametrize("silu", ["", " gate = Sigmoid(z) y = Mul(z, gate)"], ids=["plain", "silu"])
def test_a_group_norm_of_either_form_is_one_operator(norm, silu):
    body, made = f"{norm} {AFFINE}{silu}", f"float[b,8,6,5] {'y' if silu else 'z'}"
    norms = runs_equally(body, made=made)
    assert (norms.group_norms, norms.channel_norms) == (1, 0)
    model = ChannelsLastNorms()(graph(body, made))
    assert activations(model) == [int(bool(silu))]
    assert [value.name for value in model.graph.outputs] == [made[-1]]


def test_a_norm_that_more_than_its_silu_reads_keeps_its_own_value():
    body = f"{INSTANCE} {AFFINE} gate = Sigmoid(z) y = Mul(z, gate)"
    made = "float[b,8,6,5] y, float[b,8,6,5] z"
    runs_equally(body, made=made)
    assert activations(ChannelsLastNorms()(graph(body, made))) == [0]


def test_a_norm_over_channels_is_a_layer_norm():
    norms = runs_equally(f"{CHANNELS} {AFFINE}")
    assert (norms.group_norms, norms.channel_norms) == (0, 1)


LEFT = {
    "an odd number of channels in a group": (INSTANCE, {"groups": 8}),
    "more groups than the kernel takes": (INSTANCE, {"channels": 132, "groups": 66}),
    "means over other axes": (ROWS.replace("v2 = ReduceMean<keepdims=1>(v1, two)", "v2 = Identity(v1)"), {}),
    "another power": (CHANNELS.replace("Pow(c, two_power)", "Mul(c, x)"), {}),
    "the mean of another tensor": (CHANNELS.replace("c = Sub(x, m)", "o = Neg(x) c = Sub(o, m)"), {}),
    "an instance norm with a scale": (INSTANCE.replace("(g, one, zero)", "(g, eight, zero)"), {}),
    "a result that is read before the scale": (f"{INSTANCE} also = Neg(tall)", {}),
}


@pytest.mark.parametrize(("norm", "sizes"), LEFT.values(), ids=LEFT)
def test_what_the_kernel_does_not_take_is_left(norm, sizes):
    channels = sizes.get("channels", 8)
    made = f"float[b,{channels},6,5] z" + (f", float[b,{channels},6,5] also" if "also" in norm else "")
    model = graph(f"{norm} {AFFINE}", made, **sizes)
    before = [node.op_type for node in model.graph]
    norms = ChannelsLastNorms()
    assert [node.op_type for node in norms(model).graph] == before
    assert (norms.group_norms, norms.channel_norms) == (0, 0)
    assert "com.microsoft" not in model.opset_imports
