"""Ranges that entropy chooses, and how far they may be trusted."""

import numpy as np
import pytest

pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from refdiff.calibration.ranges import PERCENT, Histogram, channel_maxima, collect_ranges
from refdiff.calibration.recipes import METHODS
from refdiff.engines.intermediate_tensors import probe
from refdiff.errors import InputError
from tests.support.small_graphs import noise, small_graph


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
    reach = counted(values).entropy_range()
    assert reach == counted(positive).entropy_range()
    assert error(values, reach) < 3 * error(values, float(values.max()))


def test_more_zeros_change_nothing_for_entropy_whenever_they_come():
    values = np.random.default_rng(1).exponential(size=5_000)
    plain = counted(values).entropy_range()
    zeros = np.zeros(1_000_000)
    assert counted(np.concatenate([values, zeros])).entropy_range() == plain
    assert counted(values * 0, values, np.concatenate([values, zeros]) / 4).entropy_range() > plain / 2


@pytest.mark.parametrize("spread", ["normal", "uniform", "laplace", "standard_t"])
def test_no_method_reaches_beyond_the_largest_value_or_loses_the_bulk(spread):
    rng = np.random.default_rng(2)
    values = rng.standard_t(5, 50_000) if spread == "standard_t" else getattr(rng, spread)(size=50_000)
    histogram = counted(values)
    assert np.quantile(np.abs(values), 0.99) < histogram.entropy_range() <= histogram.largest
    assert histogram.largest == np.abs(values).max()


@pytest.fixture
def doubling(tmp_path):
    path = tmp_path / "g.onnx"
    ir.save(small_graph("float[n,3] x => float[n,3] y", "y = Add(x, x)"), path)
    return path


@pytest.mark.parametrize("rows", [(4000,), (4000, 4000, 4000), (4, 40_000, 1), (1, 1, 20_000)])
def test_a_percentile_is_the_value_that_few_enough_exceed(doubling, rows):
    # The small runs hold the giants: more of them than their own share.
    feeds = [{"x": noise(n, 3, seed=n + i, scale=100.0 / n)} for i, n in enumerate(rows)]
    every = np.sort(np.concatenate([np.abs(2 * feed["x"]).ravel() for feed in feeds]))
    expected = every[int(np.ceil(len(every) * PERCENT / 100)) - 1]
    assert collect_ranges(doubling, feeds, ["y"], method="percentile")["y"] == expected
    assert collect_ranges(doubling, feeds, ["y"], method="minmax")["y"] == every[-1]


class ReadOften(list):
    """Feeds that count how often they are run through."""

    times = 0

    def __iter__(self):
        self.times += 1
        return super().__iter__()


def test_a_run_that_may_hold_more_of_the_largest_is_run_again(doubling):
    feeds = ReadOften([{"x": noise(100, 3, scale=1000.0)}, {"x": noise(1000, 3, seed=1)}])
    every = np.sort(np.concatenate([np.abs(2 * feed["x"]).ravel() for feed in feeds[:]]))
    found = collect_ranges(doubling, feeds, ["y"], percent=90.0)
    assert found["y"] == every[int(np.ceil(len(every) * 0.9)) - 1]
    again, feeds.times = feeds.times, 0
    collect_ranges(doubling, feeds, ["y"], method="minmax")
    assert again > feeds.times > 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_named_with_its_record(doubling, method, bad):
    feeds = [{"x": noise(5, 3)}, {"x": noise(5, 3)}]
    feeds[1]["x"][2, 1] = bad
    with pytest.raises(InputError, match="y holds NaN or infinity in fp32, on record 1"):
        collect_ranges(doubling, feeds, ["y"], method=method)


def test_channel_maxima_are_those_of_the_last_axis(doubling):
    feed = {"x": noise(50, 3)}
    ((_, _, channels),) = probe(doubling, [feed], ["y"], reduction=channel_maxima)
    np.testing.assert_array_equal(channels, np.abs(2 * feed["x"]).max(axis=0))


@pytest.mark.parametrize("method", METHODS)
def test_ranges_are_those_of_the_tensor_as_smoothing_leaves_it(tmp_path, method):
    path = tmp_path / "g.onnx"
    ir.save(small_graph("float[4,3] x => float[4,3] y", "y = Add(x, x)"), path)
    feeds = [{"x": noise(4, 3, seed=seed)} for seed in range(3)]
    plain = collect_ranges(path, feeds, ["y"], method=method)["y"]
    halved = collect_ranges(path, feeds, ["y"], method=method, smoothing={"y": (3, 3, 3)})["y"]
    assert halved == pytest.approx(plain / 8)
    largest = max(float(np.abs(each["x"]).max()) for each in feeds) * 2
    assert 0 < plain <= largest
