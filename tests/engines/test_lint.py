"""The risks a network is searched for, one by one."""

from pathlib import Path

import pytest

from refdiff.engines.lint import RISKS, find_risks
from tests.support.fake_builder import Layer, Network, Tensor, fake_flavour, fake_tensorrt

FLAVOUR = fake_flavour(fake_tensorrt())


def tensor(name="x", shape=(1, 4, 8, 8), dtype="FLOAT"):
    return Tensor(name, shape, dtype)


def rules(*layers, inputs=(), outputs=()):
    network = Network(inputs=list(inputs), outputs=list(outputs), layers=list(layers))
    found = find_risks(FLAVOUR, network)
    assert all(each.because == RISKS[each.rule] for each in found)
    return [(each.rule, each.layer) for each in found]


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        ("NON_ZERO", "data-dependent shape"),
        ("NMS", "data-dependent shape"),
        ("LOOP_OUTPUT", "control flow"),
        ("CONDITION", "control flow"),
        ("PLUGIN_V3", "plugin"),
    ],
)
def test_a_risky_layer_is_named(kind, rule):
    assert rules(Layer(kind, "/here")) == [(rule, "/here")]


@pytest.mark.parametrize(("dtype", "risky"), [("HALF", True), ("BF16", True), ("FLOAT", False)])
def test_softmax_belongs_in_fp32(dtype, risky):
    layer = Layer("SOFTMAX", "/softmax", outputs=[tensor(dtype=dtype)])
    assert rules(layer) == ([("half-precision softmax", "/softmax")] if risky else [])


@pytest.mark.parametrize(
    ("scale", "dtype", "risky"),
    [((1, 16, 1), "HALF", True), ((1, 16, 1), "FLOAT", False), ((1, 1, 96), "HALF", False)],
    ids=["group norm in half", "group norm in fp32", "layer norm in half"],
)
def test_norms_over_a_group_belong_in_fp32(scale, dtype, risky):
    layer = Layer("NORMALIZATION", "/norm", [tensor(), tensor("scale", scale)], [tensor("y", dtype=dtype)])
    assert rules(layer) == ([("half-precision norm", "/norm")] if risky else [])


@pytest.mark.parametrize(("mode", "risky"), [("CUBIC", True), ("LINEAR", False), ("NEAREST", False)])
def test_resizing_cubically_belongs_outside(mode, risky):
    layer = Layer("RESIZE", "/resize", outputs=[tensor()], resize_mode=mode)
    assert rules(layer) == ([("cubic resize", "/resize")] if risky else [])


def test_a_softmax_that_leaves_the_graph_is_found_behind_casts_and_means():
    soft, cast, mean, out = (tensor(name) for name in ("soft", "cast", "mean", "taps"))
    layers = [
        Layer("SOFTMAX", "/softmax", [tensor()], [soft]),
        Layer("CAST", "/cast", [soft], [cast]),
        Layer("REDUCE", "/mean", [cast], [mean]),
        Layer("SHUFFLE", "/reshape", [mean], [out]),
    ]
    assert rules(*layers, outputs=[out]) == [("attention is an output", "taps")]


def test_logits_that_leave_the_graph_are_no_risk():
    logits = tensor("taps")
    product = Layer("MATRIX_MULTIPLY", "/product", [tensor(), tensor()], [logits])
    soft = Layer("SOFTMAX", "/softmax", [logits], [tensor("soft")])
    assert rules(product, soft, outputs=[logits]) == []


def test_pictures_of_any_size_are_a_risk_and_batches_are_none():
    assert rules(inputs=[tensor("image", (1, 3, -1, -1))]) == [("dynamic image size", "image")]
    assert rules(inputs=[tensor("latent", (-1, 4, 64, 64)), tensor("mask", (-1, -1, -1))]) == []


def test_every_risk_is_documented():
    text = (Path(__file__).parents[2] / "docs" / "engines.md").read_text(encoding="utf-8")
    assert [rule for rule in RISKS if f"| {rule} |" not in text] == []
