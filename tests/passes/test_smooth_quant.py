"""SmoothQuant: exact in floating point on real graphs, and what it refuses."""

import numpy as np
import pytest

pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from refdiff.calibration.ranges import smoothing_exponents
from refdiff.contracts.bundle import open_bundle
from refdiff.errors import InputError
from refdiff.passes.quantizable import quantizable_nodes
from refdiff.passes.smooth_quant import SmoothQuant, smoothable_tensors
from tests.support.small_graphs import BUNDLE, miniature_graph, noise, outputs, small_graph


def normed(scale=None, weight=None, bias=None):
    """A norm of eight channels and the one product that reads it."""
    weights = {
        "scale": np.ones(8, np.float32) if scale is None else scale,
        "bias": np.zeros(8, np.float32) if bias is None else bias,
        "w": noise(8, 5) if weight is None else weight,
    }
    body = "n = LayerNormalization<axis=-1>(x, scale, bias) y = MatMul(n, w)"
    return small_graph("float[4,8] x => float[4,5] y", body, weights)


def powers_of(model, tmp_path, feeds=None, nodes=("y",), strength=0.5):
    path = tmp_path / "g.onnx"
    ir.save(model, path)
    feeds = [{"x": noise(4, 8, seed=3)}] if feeds is None else feeds
    return smoothing_exponents(path, feeds, nodes, strength=strength)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd_text", "clip_image"])
def test_a_smoothed_graph_of_the_miniature_answers_exactly_as_before(name):
    feeds, _ = open_bundle(BUNDLE, verify="size").golden()[name]
    nodes = quantizable_nodes(miniature_graph(name).graph)
    powers = smoothing_exponents(BUNDLE / f"{name}.onnx", [feeds], nodes)
    assert any(any(each) for each in powers.values())
    expected = outputs(miniature_graph(name), feeds)
    got = outputs(SmoothQuant(powers, nodes)(miniature_graph(name)), feeds)
    for output, values in expected.items():
        assert np.abs(got[output] - values).max() <= 1e-5 * np.abs(values).max()


def test_smoothing_divides_the_tensor_itself_by_the_powers(tmp_path):
    scale, feeds = np.geomspace(0.01, 30.0, 8, dtype=np.float32), {"x": noise(4, 8, seed=3)}
    powers = powers_of(normed(scale), tmp_path)["n"]
    before = outputs(normed(scale), feeds, ("n",))["n"]
    after = outputs(SmoothQuant({"n": powers}, ["y"])(normed(scale)), feeds, ("n",))["n"]
    np.testing.assert_allclose(after, before / np.exp2(np.array(powers, np.float32)), rtol=1e-6)
    assert np.ptp(np.abs(after).max(axis=0)) < np.ptp(np.abs(before).max(axis=0))


def test_readers_of_one_norm_share_powers_made_from_all_their_weights(tmp_path):
    weights = {"scale": np.ones(8, np.float32), "v": noise(8, 3), "w": noise(3, 8, seed=1)}
    weights["w"][:, 5] *= 4096.0
    model = small_graph(
        "float[4,8] x => float[4,3] y",
        "n = LayerNormalization<axis=-1>(x, scale) a = MatMul(n, v) b = Gemm<transB=1>(n, w) y = Add(a, b)",
        weights,
    )
    (powers,) = powers_of(model, tmp_path, nodes=("a", "b")).values()
    assert int(np.argmin(powers)) == 5
    assert min(powers) <= -4


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_the_strength_says_whose_difficulty_is_evened_out(tmp_path, strength):
    uneven = np.exp2(np.arange(-4, 4)).astype(np.float32)
    model = normed(scale=uneven, weight=np.ones((8, 5), np.float32) * uneven[:, None])
    powers = powers_of(model, tmp_path, strength=strength)["n"]
    assert np.corrcoef(powers, np.arange(8))[0, 1] * (1 if strength else -1) > 0.9


def test_a_channel_that_nothing_passes_through_is_left_as_it_is(tmp_path):
    scale, weight = np.ones(8, np.float32), noise(8, 5)
    scale[3], weight[6] = 0.0, 0.0
    powers = powers_of(normed(scale, weight), tmp_path)["n"]
    assert powers[3] == powers[6] == 0
    assert max(map(abs, powers)) <= 2
    assert powers_of(normed(np.zeros(8, np.float32)), tmp_path) == {"n": (0,) * 8}


def test_feeds_and_values_that_say_nothing_are_refused(tmp_path):
    with pytest.raises(InputError, match="never run"):
        powers_of(normed(), tmp_path, feeds=[])
    with pytest.raises(InputError, match="n holds NaN or infinity in fp32, on record 1"):
        powers_of(normed(), tmp_path, feeds=[{"x": noise(4, 8)}, {"x": np.full((4, 8), np.nan, np.float32)}])
    with pytest.raises(InputError, match="a weight that reads n holds NaN"):
        powers_of(normed(weight=np.full((8, 5), np.nan, np.float32)), tmp_path)
    for strength in (-0.1, 1.5):
        with pytest.raises(InputError, match="expected 0 to 1"):
            powers_of(normed(), tmp_path, strength=strength)


@pytest.mark.parametrize(
    ("smoothing", "message"),
    [
        ({"n": (1, 2, 3)}, "smooths n with 3 powers of two, expected 8"),
        ({"n": (0,) * 7 + (99,)}, "expected 8 of -24 to 24"),
        ({"nothing": (0,) * 8}, "smooths 'nothing', but no LayerNormalization makes it"),
        ({"x": (0,) * 8}, "smooths 'x', but no LayerNormalization makes it"),
    ],
)
def test_smoothing_that_does_not_fit_the_graph_is_refused_by_name(smoothing, message):
    with pytest.raises(InputError, match=message):
        SmoothQuant(smoothing, ["y"])(normed())


def test_a_weight_or_scale_that_others_read_too_keeps_its_values_for_them():
    model = small_graph(
        "float[4,8] x => float[4,8] y",
        "n = LayerNormalization<axis=-1>(x, s) a = MatMul(n, w) m = LayerNormalization<axis=-1>(a, s) "
        "y = MatMul(m, w)",
        {"s": np.geomspace(0.1, 9, 8, dtype=np.float32), "w": noise(8, 8)},
    )
    feeds = {"x": noise(4, 8, seed=1)}
    expected = outputs(model, feeds)["y"]
    assert set(smoothable_tensors(model.graph, ["a", "y"])) == {"n", "m"}
    got = outputs(SmoothQuant({"n": (1, -2, 3, 0, 5, -6, 7, -3)}, ["a", "y"])(model), feeds)["y"]
    np.testing.assert_allclose(got, expected, rtol=1e-5)
