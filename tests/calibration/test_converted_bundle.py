"""What a converted bundle holds: each graph is measured, timed where a device is, and refused or kept."""

import dataclasses
import sys

import pytest

pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from refdiff import engines
from refdiff.accuracy.tolerances import GraphTolerance, graph_tolerance
from refdiff.calibration.convert import PrecisionOptions, convert
from refdiff.calibration.converted_bundle import write_converted_bundle
from refdiff.calibration.recipes import half_recipe
from refdiff.contracts.bundle import open_bundle
from refdiff.contracts.graphs import GRAPHS
from refdiff.contracts.recipe import Rule, read_recipe
from refdiff.errors import EngineError, GateError, InputError, MissingDependencyError
from refdiff.passes.graph_files import check_contract
from tests.support.recipes import with_eight_bits_in
from tests.support.small_graphs import BUNDLE


def recipe(half="fp16"):
    return half_recipe(open_bundle(BUNDLE), half)


def write(recipe, output, *, precision="fp16", progress=lambda line: None, **options):
    return write_converted_bundle(
        open_bundle(BUNDLE), recipe, precision=precision, output=output, progress=progress, **options
    )


def strict_for(precision, graph):
    """Tolerances that nothing of one graph meets in one precision."""
    strict = GraphTolerance(error=1e-9, correlation=0.0)
    return lambda *asked: strict if asked == (precision, graph) else graph_tolerance(*asked)


@pytest.mark.slow
def test_eight_bits_outside_the_tolerance_fall_back_and_say_why(mini_in, tmp_path):
    made, lines = with_eight_bits_in(mini_in("int8") / "recipe.json", "sd_text", "clip_text"), []
    output, tolerances = tmp_path / "b", strict_for("int8", "clip_text")
    write(made, output, precision="int8", tolerances=tolerances, progress=lines.append)
    manifest = open_bundle(output).manifest
    precisions = {name: graph.precision for name, graph in manifest.graphs.items()}
    assert precisions == dict.fromkeys(GRAPHS, "fp16") | {"sd_text": "int8"}
    (line,) = [line for line in lines if line.startswith("clip_text: fp16")]
    assert "kept out of eight bits: in int8 vector is" in line
    excluded = read_recipe(output / "recipe.json").graphs["clip_text"].excluded
    assert excluded[-1].origin == "gate"
    assert "of its range from torch" in excluded[-1].because


class FakeRace:
    """A device on which every form takes a given time."""

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


@pytest.mark.slow
def test_eight_bits_stay_only_where_a_device_is_faster_with_them(mini_in, tmp_path):
    eight = ("sd_text", "clip_text", "vae_encoder", "clip_image")
    made = with_eight_bits_in(mini_in("int8") / "recipe.json", *eight)
    race = FakeRace({"sd_text": (1, 2), "clip_text": (2, 1), "vae_encoder": (2, 2)})
    output, lines = tmp_path / "b", []
    write(made, output, precision="int8", race=race, progress=lines.append)
    assert sorted(race.asked) == sorted(eight)
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


@pytest.mark.slow
def test_eight_bits_stay_where_half_precision_is_faster_and_too_inexact(mini_in, tmp_path):
    made = with_eight_bits_in(mini_in("int8") / "recipe.json", "sd_text", "clip_text")
    race, lines, output = FakeRace(dict.fromkeys(GRAPHS, (2, 1))), [], tmp_path / "b"
    tolerances = strict_for("fp16", "clip_text")
    write(made, output, precision="int8", race=race, tolerances=tolerances, progress=lines.append)
    manifest = open_bundle(output).manifest
    assert manifest.precision == "int8"
    assert [name for name, graph in manifest.graphs.items() if graph.precision == "int8"] == ["clip_text"]
    (kept,) = [line for line in lines if line.startswith("clip_text: int8")]
    assert "; 2.000 ms, in fp16 1.000 ms (a GPU): slower, and kept, for fp16 is outside its" in kept


@pytest.mark.slow
def test_a_bundle_without_eight_bits_is_not_named_after_them(mini_in, tmp_path):
    made = with_eight_bits_in(mini_in("int8") / "recipe.json", "clip_text")
    race = FakeRace(dict.fromkeys(GRAPHS, (2, 1)))
    write(made, tmp_path / "b", precision="int8", race=race)
    assert open_bundle(tmp_path / "b").manifest.precision == "fp16"
    again = tmp_path / "again"
    convert(BUNDLE, PrecisionOptions(precision="fp16", recipe=tmp_path / "b" / "recipe.json"), output=again)
    for name in ("clip_text.onnx", "unet.onnx"):
        assert (again / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_without_onnxruntime_it_is_said_what_is_missing(tmp_path, monkeypatch):
    made = recipe()
    for module in ("lean", "bounded_attention", "rounded", "ort"):
        monkeypatch.delitem(sys.modules, f"refdiff.engines.{module}", raising=False)
        monkeypatch.delattr(engines, module, raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"needs onnxruntime.*\[cpu\]"):
        write(made, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_half_precision_is_not_timed(tmp_path):
    race = FakeRace({})
    write(recipe(), tmp_path / "b", race=race)
    assert race.asked == []


def test_half_precision_outside_the_tolerance_leaves_nothing_and_points_to_bisect(tmp_path):
    with pytest.raises(GateError, match=r"sd_text in fp16: context is .* refdiff bisect .* --graph sd_text"):
        write(recipe(), tmp_path / "b", tolerances=strict_for("fp16", "sd_text"))
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_of_other_weights_is_refused(tmp_path):
    foreign = dataclasses.replace(recipe(), sources={"unet": "ab"})
    with pytest.raises(InputError, match="other weights"):
        write(foreign, tmp_path / "b")


def test_a_recipe_that_names_an_unknown_node_is_refused(tmp_path):
    made = recipe()
    graph = made.graphs["sd_text"]
    graph = dataclasses.replace(graph, fp32=(*graph.fp32, Rule(nodes=("nothing/*",), because="a test")))
    wrong = dataclasses.replace(made, graphs={**made.graphs, "sd_text": graph})
    with pytest.raises(InputError, match=r"sd_text: .*nothing"):
        write(wrong, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []
