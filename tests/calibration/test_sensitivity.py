"""What blocks cost in eight bits, and the blocks that a budget pays for."""

import dataclasses
import itertools
import json

import pytest

pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from refdiff.calibration.sensitivity import (
    BlockCost,
    SensitivityReport,
    block_of,
    budget_points,
    draw_costs,
    group_by_block,
    within_budget,
)
from refdiff.cli import main
from refdiff.contracts.recipe import Quantized
from tests.support.recipes import half_recipe_of_mini, with_eight_bits_in
from tests.support.small_graphs import BUNDLE


def test_blocks_are_modules_up_to_their_first_index():
    assert block_of("unet.down_blocks.1.attentions.0.proj_in/Conv") == "unet.down_blocks.1"
    assert block_of("unet.mid_block.attentions.0/MatMul") == "unet.mid_block.attentions.0"
    assert block_of("unet.conv_in/Conv") == "unet"
    assert block_of("graph/MatMul_3") == "graph"
    assert group_by_block(["a.0.x/MatMul", "b/MatMul", "a.0/Gemm"]) == {
        "a.0": ("a.0.x/MatMul", "a.0/Gemm"),
        "b": ("b/MatMul",),
    }


@pytest.mark.parametrize(("text", "points"), [("mIoU -0.5", 0.5), ("miou-2", 2.0), (" mIoU - 0.25 ", 0.25)])
def test_a_budget_is_read(text, points):
    assert budget_points(text) == points


def report_of(costs):
    return SensitivityReport(
        type="int8",
        variant="edge",
        count=2,
        truth="a test's",
        half_miou=0.8,
        costs=tuple(
            BlockCost(graph="clip_text", block=name, nodes=(name,), miou=0.8 - cost / 100, cost_points=cost)
            for name, cost in sorted(costs.items(), key=lambda item: -item[1])
        ),
    )


class FakeAccuracy:
    """Costs that simply add up."""

    half_miou = 0.8

    def __init__(self, costs):
        self._costs = costs

    def miou(self, recipes):
        chosen = recipes["clip_text"].quantized
        names = () if chosen is None else chosen.nodes
        return self.half_miou - sum(self._costs[name] for name in names) / 100


@pytest.mark.slow
@pytest.mark.parametrize(
    ("points", "kept"),
    [(10.0, {"a", "b", "c", "d"}), (1.0, {"a", "b", "c"}), (0.35, {"a", "b"}), (0.0, set())],
)
def test_a_budget_keeps_as_many_blocks_as_it_pays_for(points, kept):
    costs = {"a": 0.1, "b": 0.2, "c": 0.4, "d": 3.0}
    eight = Quantized(type="int8", nodes=tuple(costs), ranges={}, method="minmax")
    base = half_recipe_of_mini()
    graph = dataclasses.replace(base.graphs["clip_text"], quantized=eight)
    base = dataclasses.replace(base, graphs={**base.graphs, "clip_text": graph})
    chosen = within_budget(FakeAccuracy(costs), base, report_of(costs), points, lambda line: None)
    result = chosen.graphs["clip_text"]
    assert set(() if result.quantized is None else result.quantized.nodes) == kept
    assert {node for rule in result.excluded if rule.origin == "sensitivity" for node in rule.nodes} == (
        set(costs) - kept
    )


def first_blocks_of(recipe, name, count):
    whole = recipe.graphs[name]
    blocks = list(group_by_block(whole.quantized.nodes).values())[:count]
    nodes = tuple(itertools.chain(*blocks))
    return dataclasses.replace(whole, quantized=dataclasses.replace(whole.quantized, nodes=nodes))


@pytest.mark.slow
def test_each_block_is_tried_alone_and_drawn(mini_in, tmp_path, capsys):
    """For one block of each of two graphs: every block is one run of the pipeline."""
    tried = dict.fromkeys(("sd_text", "clip_text"), 1)
    made = with_eight_bits_in(mini_in("int8") / "recipe.json", *tried)
    made = dataclasses.replace(
        made,
        graphs={**made.graphs, **{name: first_blocks_of(made, name, count) for name, count in tried.items()}},
    )
    recipe, picture = tmp_path / "recipe.json", tmp_path / "costs.png"
    recipe.write_text(made.to_text())
    command = ["sensitivity", str(BUNDLE), "--recipe", str(recipe), "--count", "1", "--json"]
    assert main([*command, "--feeds", str(tmp_path)]) == 2
    capsys.readouterr()
    assert main([*command, "--picture", str(picture)]) == 0
    report = json.loads(capsys.readouterr().out)
    expected = [
        (name, block) for name in tried for block in group_by_block(made.graphs[name].quantized.nodes)
    ]
    assert len(expected) == 2
    assert sorted((cost["graph"], cost["block"]) for cost in report["costs"]) == sorted(expected)
    points = [cost["cost_points"] for cost in report["costs"]]
    assert points == sorted(points, reverse=True)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_chart_of_costs_is_a_picture():
    assert draw_costs(report_of({"a": 1.0, "b": -0.5})).startswith(b"\x89PNG")
