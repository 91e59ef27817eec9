"""benchmarks/growth.py on the smallest counts: that what it records means what it says."""

import importlib
import json
from dataclasses import asdict

import pytest

from refdiff.contracts.inspection import find_bundle
from refdiff.engines.factory import open_sessions


@pytest.fixture
def module():
    pytest.importorskip("onnxruntime")
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def row(count, cost):
    clock = {"median": cost, "least": cost, "most": cost, "all": [cost]}
    return {
        "value": count,
        "label": str(count),
        "phrases": count,
        "cpu_seconds": clock,
        "seconds": clock,
        "peak_rss_bytes": 3 * 10**8,
        "peak_private_bytes": 2 * 10**8,
    }


def test_costs_on_a_line_give_that_line_back(module):
    fit = module("growth").affine_fit([row(n, 2 + 0.5 * n) for n in (1, 4, 16)], "cpu_seconds")
    assert fit == {"intercept": 2, "slope": 0.5, "slope_over_first": 0.2, "largest_relative_residual": 0}


def test_the_residual_shows_costs_off_the_line(module):
    fit = module("growth").affine_fit([row(1, 1.0), row(2, 2.0), row(3, 9.0)], "seconds")
    assert fit["largest_relative_residual"] > 0.2


def test_a_point_survives_the_way_to_a_child(module):
    points, spec = module("growth_points"), find_bundle("mini").spec
    for series in points.SERIES:
        for point in points.points(
            series, ("official", "edge"), counts=(1, 2), candidates=(10,), thresholds={}
        ):
            restored = points.Point(**json.loads(json.dumps(asdict(point))))
            assert restored.options(spec) == point.options(spec)
            assert tuple(restored.size_xy) == point.size_xy
    assert points.picture((85, 48)).shape == (48, 85, 3)


def test_phrases_differ_and_only_sided_ones_name_sides(module):
    phrases = module("growth_points").phrases
    assert len(set(phrases(64, sided=False))) == len(set(phrases(64, sided=True))) == 64
    assert not any("left" in text or "right" in text for text in phrases(64, sided=False))
    assert [text.split()[-1] for text in phrases(3, sided=True)][1:] == ["left", "right"]


@pytest.mark.slow
def test_as_many_candidates_are_kept_as_the_point_says(module):
    growth, points = module("growth"), module("growth_points")
    bundle = find_bundle("mini")
    sessions = open_sessions(bundle, backend="ort-cpu", threads=1)
    most = points.points("candidates", ("official",), counts=(), candidates=(10, 200), thresholds={})[-1]
    result = growth.answer(bundle, sessions, most)
    sessions.close()
    assert result["kept"] == most.value == 200
    assert growth.summary(most, [result, result])["seconds"]["median"] == result["seconds"]


def test_the_table_and_the_picture_hold_every_curve(module):
    growth, chart, tables = module("growth"), module("growth_chart"), module("tables.runs")
    rows = [row(1, 1.0), row(4, 1.6)]
    fit = {clock: growth.affine_fit(rows, clock) for clock in growth.CLOCKS}
    curves = {name: {"variant": "edge", "points": rows, "fit": fit} for name in ("edge", "edge, sides named")}
    table = tables.growth_table({"miniature 1 phrases": {"curves": curves}})
    assert "4: 1.60 (1.60)" in table
    assert "| edge, sides named | 0.800 | 0.2000 | 0.200 (0.200) | 0.0% |" in table
    both = chart.draw_growth({"phrases": {"curves": curves}})
    alone = chart.draw_growth({"phrases": {"curves": {"edge": curves["edge"]}}})
    assert both.size == alone.size
    assert both.tobytes() != alone.tobytes()


@pytest.mark.parametrize(("logarithmic", "first", "last"), [(True, 0.1, 20), (False, 0, 12)])
def test_ticks_enclose_the_values(module, logarithmic, first, last):
    ticks = module("growth_chart").y_ticks([0.2, 11.0], logarithmic=logarithmic)
    assert ticks[0] <= first + 1e-9
    assert ticks[-1] >= last - 1e-9
    assert ticks == sorted(ticks)
