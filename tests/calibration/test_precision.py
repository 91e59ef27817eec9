"""From an fp32 bundle to fewer bits: what is written, what is measured, what is refused."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from refdiff.contracts.options import BackendOptions

pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

import refdiff
from refdiff import engines
from refdiff.accuracy.metrics import iou, pairwise_iou
from refdiff.accuracy.tolerances import GraphTolerance
from refdiff.calibration import convert as converting
from refdiff.calibration import precision as precision_room
from refdiff.calibration.block_costs import (
    BlockCost,
    SensitivityReport,
    blocks,
    budget_points,
    draw_costs,
    within_budget,
)
from refdiff.calibration.convert import convert
from refdiff.calibration.precision import PRECISIONS, half_recipe
from refdiff.cli import main
from refdiff.contracts.bundle import open_bundle
from refdiff.contracts.graphs import GRAPHS, graph_contract
from refdiff.contracts.parity import correlation
from refdiff.contracts.recipe import Quantized, Recipe, Rule, read_recipe
from refdiff.errors import EngineError, GateError, InputError, MissingDependencyError
from refdiff.export.export import export
from refdiff.miniature.scenes import render_scene
from refdiff.passes.convert import convert_graph
from refdiff.passes.graph_files import check_contract
from tests.support.small_graphs import BUNDLE


@pytest.fixture(params=["fp16", "bf16", "int8", "fp8"])
def converted(request, mini_in) -> Path:
    return mini_in(request.param)


def recipe(half="fp16"):
    bundle = open_bundle(BUNDLE)
    return half_recipe(BUNDLE, model=bundle.spec.name, sources=bundle.manifest.sources, half=half)


def with_eight_bits_in(path: Path, *names: str) -> Recipe:
    """Return a written recipe with these graphs alone in eight bits, which is converted in half the time."""
    made = read_recipe(path)
    graphs = {
        name: graph if name in names else dataclasses.replace(graph, quantized=None)
        for name, graph in made.graphs.items()
    }
    return dataclasses.replace(made, graphs=graphs)


HALF_BY_RULE = ("sam_decoder", "sam_masks")


def precision_of(graph: str, bundle: str) -> str:
    """SAM's decoder and its masks hold nothing in eight bits, by rule."""
    return "fp16" if graph in HALF_BY_RULE and bundle in ("int8", "fp8") else bundle


def test_a_converted_bundle_keeps_the_contract_and_carries_its_recipe(converted):
    bundle = open_bundle(converted)
    manifest = bundle.manifest
    assert manifest.precision == converted.name
    assert dict(manifest.sources) == dict(open_bundle(BUNDLE).manifest.sources)
    for name, graph in graph_contract(bundle.spec).items():
        check_contract(bundle.graph_path(name), graph)
        assert manifest.graphs[name].precision == precision_of(name, converted.name)
        assert set(manifest.graphs[name].parity) == set(graph.output_names)
    written = read_recipe(converted / "recipe.json")
    assert set(written.graphs) == set(GRAPHS) - {"unet_taps"}
    for name, each in written.graphs.items():
        assert each.precision == precision_of(name, converted.name)
    assert bundle.golden().keys() == open_bundle(BUNDLE).golden().keys()


def test_it_is_as_small_as_its_bits(converted):
    sizes = {
        folder: sum(path.stat().st_size for path in folder.glob("*.data")) for folder in (converted, BUNDLE)
    }
    share = {"fp16": 0.505, "bf16": 0.51, "int8": 0.30, "fp8": 0.30}[converted.name]
    assert sizes[converted] <= share * sizes[BUNDLE]


def test_it_answers_like_fp32(converted):
    image, phrase = render_scene(1_000_003).image, "the ball"  # there is one, and it wins by a margin
    answers = []
    for bundle, backend in ((BUNDLE, "ort-cpu"), (converted, "ort-rounded")):
        with refdiff.load(bundle, backend=BackendOptions(name=backend)) as segmenter:
            answers.append(segmenter.segment(segmenter.encode(image), phrase))
    exact, ours = answers
    assert correlation(ours.heat, exact.heat) > 0.99
    found = pairwise_iou(ours.candidates.masks, exact.candidates.masks)
    assert found[:, exact.index].max() > 0.9
    if converted.name in ("fp16", "int8"):  # the others may choose differently on one scene
        assert iou(ours.mask, exact.mask) > 0.9


def test_taps_and_full_unet_share_their_weights(converted):
    files = {name: open_bundle(converted).manifest.graphs[name].files for name in ("unet", "unet_taps")}
    assert files["unet"][1] == files["unet_taps"][1] == "unet.onnx.data"


def test_a_recipe_gives_the_same_bytes_again(converted, tmp_path):
    export(
        str(BUNDLE),
        precision=converted.name,
        recipe=converted / "recipe.json",
        output=tmp_path / "again",
    )
    for path in converted.glob("*.onnx*"):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_eight_bits_outside_the_tolerance_fall_back_and_say_why(mini_in, tmp_path, monkeypatch):
    real = converting.graph_tolerance
    strict = GraphTolerance(error=1e-9, correlation=0.0)

    def tolerance(precision, name):
        return strict if (precision, name) == ("int8", "clip_text") else real(precision, name)

    monkeypatch.setattr(converting, "graph_tolerance", tolerance)
    made, lines = with_eight_bits_in(mini_in("int8") / "recipe.json", "sd_text", "clip_text"), []
    convert(BUNDLE, made, precision="int8", output=tmp_path / "b", progress=lines.append)
    manifest = open_bundle(tmp_path / "b").manifest
    precisions = {name: graph.precision for name, graph in manifest.graphs.items()}
    assert precisions == dict.fromkeys(GRAPHS, "fp16") | {"sd_text": "int8"}
    (said,) = [line for line in lines if line.startswith("clip_text: fp16")]
    assert "kept out of eight bits: in int8 vector is" in said
    left = read_recipe(tmp_path / "b" / "recipe.json").graphs["clip_text"].excluded
    assert left[-1].origin == "gate"
    assert "of its range from torch" in left[-1].because


class Clock:
    """A device on which every form takes as long as it is told."""

    where = "a GPU"

    def __init__(self, times) -> None:
        self.times = times
        self.asked: list[str] = []

    def medians_ms(self, graph, forms, feeds, *, scratch):
        self.asked.append(graph.name)
        assert scratch.is_dir()
        assert set(feeds) == set(graph.input_names)
        for path in forms.values():
            check_contract(path, graph)
        types = {name: {node.op_type for node in ir.load(path).graph} for name, path in forms.items()}
        assert "QuantizeLinear" in types["int8"]
        assert "QuantizeLinear" not in types["fp16"]
        if graph.name not in self.times:
            raise EngineError("no memory left")
        return dict(zip(("int8", "fp16"), self.times[graph.name], strict=True))


def test_eight_bits_stay_only_where_a_device_is_faster_with_them(mini_in, tmp_path):
    eight = ("sd_text", "clip_text", "vae_encoder", "clip_image")
    made, lines = with_eight_bits_in(mini_in("int8") / "recipe.json", *eight), []
    clock = Clock({"sd_text": (1, 2), "clip_text": (2, 1), "vae_encoder": (2, 2)})
    output = tmp_path / "b"
    convert(BUNDLE, made, precision="int8", output=output, clock=clock, progress=lines.append)
    assert sorted(clock.asked) == sorted(eight)
    slower = {"clip_text", "vae_encoder"}
    for name, graph in open_bundle(output).manifest.graphs.items():
        assert graph.precision == ("int8" if name in set(eight) - slower else "fp16")
    written = read_recipe(output / "recipe.json").graphs
    for name in slower:
        assert written[name].excluded[-1].origin == "gate"
        assert "int8 takes 2.000 ms, in fp16" in written[name].excluded[-1].because
    (kept,) = [line for line in lines if line.startswith("sd_text")]
    assert kept.endswith("; 1.000 ms, in fp16 2.000 ms (a GPU)")
    (unknown,) = [line for line in lines if line.startswith("clip_image")]
    assert unknown.endswith("; not timed: no memory left")
    assert not [path for path in output.rglob("*") if path.name.startswith(".half")]


def test_eight_bits_stay_where_half_precision_is_faster_and_too_inexact(mini_in, tmp_path, monkeypatch):
    real = converting.graph_tolerance
    strict = GraphTolerance(error=1e-9, correlation=0.0)

    def tolerance(precision, name):
        return strict if (precision, name) == ("fp16", "clip_text") else real(precision, name)

    monkeypatch.setattr(converting, "graph_tolerance", tolerance)
    clock, lines, output = Clock(dict.fromkeys(GRAPHS, (2, 1))), [], tmp_path / "b"
    made = with_eight_bits_in(mini_in("int8") / "recipe.json", "sd_text", "clip_text")
    convert(BUNDLE, made, precision="int8", output=output, clock=clock, progress=lines.append)
    manifest = open_bundle(output).manifest
    assert manifest.precision == "int8"
    assert [name for name, graph in manifest.graphs.items() if graph.precision == "int8"] == ["clip_text"]
    (kept,) = [line for line in lines if line.startswith("clip_text: int8")]
    assert "; 2.000 ms, in fp16 1.000 ms (a GPU): slower, and kept, for fp16 is outside its" in kept


def test_a_bundle_without_eight_bits_is_not_called_after_them(mini_in, tmp_path):
    made = with_eight_bits_in(mini_in("int8") / "recipe.json", "clip_text")
    clock = Clock(dict.fromkeys(GRAPHS, (2, 1)))
    convert(BUNDLE, made, precision="int8", output=tmp_path / "b", clock=clock)
    assert open_bundle(tmp_path / "b").manifest.precision == "fp16"
    again = tmp_path / "again"
    export(str(BUNDLE), precision="fp16", recipe=tmp_path / "b" / "recipe.json", output=again)
    for name in ("clip_text.onnx", "unet.onnx"):
        assert (again / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_without_onnxruntime_it_is_said_what_is_missing(tmp_path, monkeypatch):
    for module in ("lean", "bounded_attention", "rounded", "ort"):
        monkeypatch.delitem(sys.modules, f"refdiff.engines.{module}", raising=False)
        monkeypatch.delattr(engines, module, raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"needs onnxruntime.*refdiff\[cpu\]"):
        convert(BUNDLE, recipe(), precision="fp16", output=tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_half_precision_is_not_timed(tmp_path):
    clock = Clock({})
    convert(BUNDLE, recipe(), precision="fp16", output=tmp_path / "b", clock=clock)
    assert clock.asked == []


@pytest.mark.parametrize("timed", [True, False])
def test_the_clock_is_looked_for_unless_it_is_not_wanted(timed, mini_in, tmp_path, monkeypatch):
    clock = Clock(dict.fromkeys(GRAPHS, (2, 1)))
    monkeypatch.setattr(precision_room, "find_latency_race", lambda tell: (clock, "a GPU"))
    path, output, lines = tmp_path / "recipe.json", tmp_path / "b", []
    path.write_text(with_eight_bits_in(mini_in("int8") / "recipe.json", "clip_text").to_text())
    export(str(BUNDLE), precision="int8", recipe=path, timed=timed, output=output, progress=lines.append)
    assert ("eight bits have to be faster on a GPU" in lines) == timed
    assert open_bundle(output).manifest.graphs["clip_text"].precision == ("fp16" if timed else "int8")


def test_without_a_gpu_it_is_said_that_nothing_is_timed(mini_in, tmp_path, monkeypatch):
    monkeypatch.setattr(precision_room, "find_latency_race", lambda tell: (None, "this machine shows no GPU"))
    path, lines = tmp_path / "recipe.json", []
    path.write_text(with_eight_bits_in(mini_in("int8") / "recipe.json", "clip_text").to_text())
    export(str(BUNDLE), precision="int8", recipe=path, output=tmp_path / "b", progress=lines.append)
    assert [line for line in lines if "by accuracy alone" in line and "shows no GPU" in line]


def test_half_precision_outside_the_tolerance_leaves_nothing_and_points_to_bisect(tmp_path, monkeypatch):
    strict = GraphTolerance(error=1e-9, correlation=0.0)
    monkeypatch.setattr(converting, "graph_tolerance", lambda precision, name: strict)
    with pytest.raises(GateError, match=r"sd_text in fp16: context is .* refdiff bisect .* --graph sd_text"):
        convert(BUNDLE, recipe(), precision="fp16", output=tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_of_other_weights_is_refused(tmp_path):
    foreign = dataclasses.replace(recipe(), sources={"unet": "ab"})
    with pytest.raises(InputError, match="other weights"):
        convert(BUNDLE, foreign, precision="fp16", output=tmp_path / "b")


def test_a_recipe_that_names_an_unknown_node_is_refused(tmp_path):
    made = recipe()
    graph = made.graphs["sd_text"]
    graph = dataclasses.replace(graph, fp32=(*graph.fp32, Rule(nodes=("nobody/*",), because="a test")))
    wrong = dataclasses.replace(made, graphs={**made.graphs, "sd_text": graph})
    with pytest.raises(InputError, match=r"sd_text: .*nobody"):
        convert(BUNDLE, wrong, precision="fp16", output=tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_what_was_converted_is_not_converted_again(converted, tmp_path):
    with pytest.raises(InputError, match=f"is in {converted.name}, expected fp32"):
        export(str(converted), precision="fp16", output=tmp_path / "b")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--precision", "int2"], "unknown precision 'int2'"),
        (["--precision", "fp32"], "is in fp32 already"),
        (["--precision", "fp16", "--feeds", "somewhere"], "--feeds is for int8 and fp8"),
        (["--precision", "fp16", "--smooth", "0.5"], "--smooth is for int8 and fp8"),
        (["--precision", "fp16", "--smooth", "0"], "--smooth is for int8 and fp8"),
        (["--precision", "fp16", "--ranges", "minmax"], "--ranges is for int8 and fp8"),
        (["--precision", "fp16", "--size", "512"], "is a bundle, which takes no --size"),
        (["--precision", "fp16", "--seed", "1"], "is a bundle, which takes no --seed"),
        (["--precision", "fp16", "--untimed"], "--untimed is for int8 and fp8"),
        (["--precision", "int8", "--budget", "a lot"], "got budget 'a lot'"),
        (["--precision", "int8", "--ranges", "mean"], "unknown method 'mean'"),
        (["--precision", "int8", "--feeds", "nowhere"], "nowhere holds no recorded feeds"),
        (["--precision", "fp16", "--recipe", "none.json"], "there is no recipe none.json"),
    ],
)
def test_options_that_do_not_go_together_end_with_two(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(BUNDLE), *arguments, "-o", str(tmp_path / "b")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_a_recipe_of_another_precision_is_refused(tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(recipe("bf16").to_text())
    with pytest.raises(InputError, match="is a recipe for bf16, got --precision fp16; use --precision bf16"):
        export(str(BUNDLE), precision="fp16", recipe=path, output=tmp_path / "b")


def test_a_recipe_of_eight_bits_is_no_half_precision_recipe(mini_in, tmp_path):
    written = mini_in("int8") / "recipe.json"
    with pytest.raises(InputError, match="is a recipe for int8, got --precision fp16"):
        export(str(BUNDLE), precision="fp16", recipe=written, output=tmp_path / "b")


@pytest.mark.parametrize("option", ["recipe", "feeds"])
def test_what_is_not_there_is_missed_before_any_work(option, tmp_path):
    lines = []
    with pytest.raises(InputError, match="nowhere"):
        export(
            "mini",
            precision="int8",
            output=tmp_path / "b",
            progress=lines.append,
            **{option: tmp_path / "nowhere"},
        )
    assert lines == []


@pytest.mark.parametrize(("text", "points"), [("mIoU -0.5", 0.5), ("miou-2", 2.0), (" mIoU - 0.25 ", 0.25)])
def test_a_budget_is_read(text, points):
    assert budget_points(text) == points


def reported(costs):
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


class FakeTrials:
    """Costs that simply add up."""

    half_miou = 0.8

    def __init__(self, costs):
        self._costs = costs

    def miou(self, recipes):
        chosen = recipes["clip_text"].quantized
        names = () if chosen is None else chosen.nodes
        return self.half_miou - sum(self._costs[name] for name in names) / 100


@pytest.mark.parametrize(
    ("points", "kept"),
    [(10.0, {"a", "b", "c", "d"}), (1.0, {"a", "b", "c"}), (0.35, {"a", "b"}), (0.0, set())],
)
def test_a_budget_keeps_as_many_blocks_as_it_pays_for(points, kept, monkeypatch):
    costs = {"a": 0.1, "b": 0.2, "c": 0.4, "d": 3.0}

    class Opened:
        def __enter__(self):
            return FakeTrials(costs)

        def __exit__(self, *rest):
            return None

    monkeypatch.setattr("refdiff.calibration.block_costs.trials", lambda *rest, **options: Opened())
    eight = Quantized(type="int8", nodes=tuple(costs), ranges={}, method="minmax")
    base = recipe()
    graph = dataclasses.replace(base.graphs["clip_text"], quantized=eight)
    base = dataclasses.replace(base, graphs={**base.graphs, "clip_text": graph})
    chosen = within_budget(open_bundle(BUNDLE), base, reported(costs), points, progress=lambda line: None)
    result = chosen.graphs["clip_text"]
    assert set(() if result.quantized is None else result.quantized.nodes) == kept
    assert {node for rule in result.excluded if rule.origin == "sensitivity" for node in rule.nodes} == (
        set(costs) - kept
    )


def test_each_block_is_tried_alone_and_drawn(mini_in, tmp_path, capsys, monkeypatch):
    """Of two graphs: every block is one run of the pipeline."""
    tried = ("sd_text", "clip_text")
    made = with_eight_bits_in(mini_in("int8") / "recipe.json", *tried)
    monkeypatch.setattr(precision_room, "eight_bit_recipe", lambda *rest, **options: made)
    picture = tmp_path / "costs.png"
    assert main(["sensitivity", str(BUNDLE), "--count", "1", "--json", "--picture", str(picture)]) == 0
    report = json.loads(capsys.readouterr().out)
    expected = [(name, block) for name in tried for block in blocks(made.graphs[name].quantized.nodes)]
    assert sorted((cost["graph"], cost["block"]) for cost in report["costs"]) == sorted(expected)
    points = [cost["cost_points"] for cost in report["costs"]]
    assert points == sorted(points, reverse=True)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_chart_of_costs_is_a_picture():
    assert draw_costs(reported({"a": 1.0, "b": -0.5})).startswith(b"\x89PNG")


def test_fp32_is_among_the_precisions_and_the_first():
    assert PRECISIONS == ("fp32", "fp16", "bf16", "int8", "fp8")


def test_a_half_weight_that_does_not_fit_names_itself(tmp_path):
    copy = tmp_path / "source"
    shutil.copytree(BUNDLE, copy)
    model = ir.load(copy / "clip_text.onnx")
    weight = next(v for v in model.graph.initializers.values() if v.name.endswith(".weight.T"))
    large = np.array(weight.const_value.numpy())
    large[0, 0] = 1e6
    weight.const_value = ir.tensor(large, name=weight.name)
    ir.save(model, copy / "clip_text.onnx")

    with pytest.raises(InputError, match=rf"{weight.name} holds 1e\+06"):
        convert_graph(copy / "clip_text.onnx", tmp_path / "out.onnx", recipe().graphs["clip_text"])
