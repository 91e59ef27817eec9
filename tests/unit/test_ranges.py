"""Ranges that entropy chooses, and how far they may be trusted."""

import numpy as np
import pytest

pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from refdiff.calibration.histogram import Histogram  # noqa: E402 - after the check that onnx_ir is here
from refdiff.calibration.ranges import METHODS, collect  # noqa: E402
from refdiff.engines.probe import probe  # noqa: E402
from tests.unit.small_graphs import noise, small_graph  # noqa: E402


def counted(*arrays):
    histogram = Histogram()
    for array in arrays:
        histogram.add(array)
    return histogram


def error(values, reach):
    """Mean squared error of symmetric int8 with that reach."""
    step = reach / 127
    return float(np.mean((np.clip(np.rint(values / step), -127, 127) * step - values) ** 2))


def test_zeros_of_a_relu_do_not_cut_off_its_values():
    values = np.maximum(np.random.default_rng(0).standard_normal(100_000) - 1.5, 0.0)
    positive = values[values > 0]
    reach = counted(values).entropy_reach()
    assert reach == counted(positive).entropy_reach()
    assert error(values, reach) < 3 * error(values, float(values.max()))


def test_more_zeros_change_nothing_for_entropy_whenever_they_come():
    values = np.random.default_rng(1).exponential(size=5_000)
    plain = counted(values).entropy_reach()
    zeros = np.zeros(1_000_000)
    assert counted(np.concatenate([values, zeros])).entropy_reach() == plain
    assert counted(values * 0, values, np.concatenate([values, zeros]) / 4).entropy_reach() > plain / 2


@pytest.mark.parametrize("spread", ["normal", "uniform", "laplace", "standard_t"])
def test_no_method_reaches_beyond_the_largest_value_or_loses_the_bulk(spread):
    rng = np.random.default_rng(2)
    values = rng.standard_t(5, 50_000) if spread == "standard_t" else getattr(rng, spread)(size=50_000)
    histogram = counted(values)
    for reach in (histogram.entropy_reach(), histogram.percentile_reach(99.999)):
        assert np.quantile(np.abs(values), 0.99) < reach <= histogram.largest == np.abs(values).max()


def test_every_value_is_counted_once_however_the_reach_grows():
    pieces = [noise(777, seed=seed, scale=10.0**seed) for seed in range(5)]
    together = np.abs(np.concatenate(pieces))
    for order in (pieces, pieces[::-1]):
        histogram = counted(*order)
        for percent in (50.0, 90.0, 99.0):
            bin_width = 2 * histogram.largest / 2048  # doubling leaves the counters at least half used
            exact = float(np.quantile(together, percent / 100))
            assert abs(histogram.percentile_reach(percent) - exact) <= 2 * bin_width + 0.05 * exact


@pytest.mark.parametrize("method", METHODS)
def test_ranges_are_those_of_the_tensor_as_smoothing_leaves_it(tmp_path, method):
    path = tmp_path / "g.onnx"
    ir.save(small_graph("float[4,3] x => float[4,3] y", "y = Add(x, x)"), path)
    feeds = [{"x": noise(4, 3, seed=seed)} for seed in range(3)]
    plain = collect(probe, path, feeds, ["y"], method=method)["y"]
    halved = collect(probe, path, feeds, ["y"], method=method, smoothing={"y": (3, 3, 3)})["y"]
    assert halved == pytest.approx(plain / 8)
    largest = max(float(np.abs(each["x"]).max()) for each in feeds) * 2
    assert 0 < plain <= largest
