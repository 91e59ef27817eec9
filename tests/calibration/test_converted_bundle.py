"""What a converted bundle holds: each graph is measured, timed where a device is, and refused or kept."""

import dataclasses
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from refdiff import engines
from refdiff.accuracy.tolerances import GraphTolerance, graph_tolerance
from refdiff.calibration.convert import PrecisionOptions
from refdiff.calibration.converted_bundle import write_converted_bundle
from refdiff.contracts.bundle import open_bundle
from refdiff.contracts.graphs import GRAPHS
from refdiff.contracts.recipe import Rule, read_recipe
from refdiff.errors import EngineError, GateError, InputError, MissingDependencyError
from refdiff.passes.convert import convert_graph
from refdiff.passes.graph_files import check_contract
from tests.support.recipes import half_recipe_of_mini, with_eight_bits_in
from tests.support.small_graphs import BUNDLE


def recipe(half="fp16"):
    return half_recipe_of_mini(half)


def write(recipe, output, *, precision="fp16", progress=lambda line: None, **options):
    return write_converted_bundle(
        open_bundle(BUNDLE), recipe, precision=precision, output=output, progress=progress, **options
    )


def strict_for(*pairs):
    """Tolerances that nothing of these graphs meets in these precisions."""
    strict = GraphTolerance(error=1e-9, correlation=0.0)
    return lambda *asked: strict if asked in pairs else graph_tolerance(*asked)


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


EIGHT_BITS = ("sd_text", "vae_encoder", "sam_encoder", "clip_text", "clip_image")
"""Graphs that the recipe of `judged` has in eight bits."""


@dataclasses.dataclass(frozen=True)
class Judged:
    """A bundle in which each graph met its own fate, and what was said."""

    path: Path
    lines: list[str]
    timed: list[str]

    def line(self, start):
        (line,) = [line for line in self.lines if line.startswith(start)]
        return line


@pytest.fixture(scope="module")
def judged(mini_in, tmp_path_factory):
    """`sd_text` is faster in eight bits, `vae_encoder` as fast as in half precision.

    `sam_encoder` is too inexact in eight bits. `clip_text` is slower in them, and too inexact in half
    precision. `clip_image` cannot be timed.
    """
    race = FakeRace({"sd_text": (1, 2), "vae_encoder": (2, 2), "clip_text": (2, 1)})
    made, lines = with_eight_bits_in(mini_in("int8") / "recipe.json", *EIGHT_BITS), []
    output = tmp_path_factory.mktemp("judged") / "b"
    limits = strict_for(("int8", "sam_encoder"), ("fp16", "clip_text"))
    write(made, output, precision="int8", race=race, tolerances=limits, progress=lines.append)
    return Judged(output, lines, race.asked)


@pytest.mark.slow
def test_every_graph_is_in_the_precision_it_was_judged_for(judged):
    manifest = open_bundle(judged.path).manifest
    assert manifest.precision == "int8"
    precisions = {name: graph.precision for name, graph in manifest.graphs.items()}
    kept = dict.fromkeys(("sd_text", "clip_text", "clip_image"), "int8")
    assert precisions == dict.fromkeys(GRAPHS, "fp16") | kept
    assert not [path for path in judged.path.rglob("*") if path.name.startswith(".half")]


@pytest.mark.slow
def test_eight_bits_outside_the_tolerance_fall_back_and_say_why(judged):
    line = judged.line("sam_encoder: fp16")
    assert "kept out of eight bits: in int8 embedding is" in line
    excluded = read_recipe(judged.path / "recipe.json").graphs["sam_encoder"].excluded
    assert excluded[-1].origin == "gate"
    assert "of its range from torch" in excluded[-1].because


@pytest.mark.slow
def test_eight_bits_stay_only_where_a_device_is_faster_with_them(judged):
    assert sorted(judged.timed) == sorted(set(EIGHT_BITS) - {"sam_encoder"})
    slower = read_recipe(judged.path / "recipe.json").graphs["vae_encoder"].excluded[-1]
    assert slower.origin == "gate"
    assert "int8 takes 2.000 ms, in fp16" in slower.because
    assert judged.line("sd_text").endswith("; 1.000 ms, in fp16 2.000 ms (a GPU)")
    assert judged.line("clip_image").endswith("; not timed: no memory left")


@pytest.mark.slow
def test_eight_bits_stay_where_half_precision_is_faster_and_too_inexact(judged):
    said = "; 2.000 ms, in fp16 1.000 ms (a GPU): slower, and kept, for fp16 is outside its"
    assert said in judged.line("clip_text: int8")


@pytest.mark.slow
def test_a_bundle_without_eight_bits_is_not_named_after_them(mini_in, tmp_path):
    made = with_eight_bits_in(mini_in("int8") / "recipe.json", "clip_text")
    race = FakeRace({"clip_text": (2, 1)})
    write(made, tmp_path / "b", precision="int8", race=race)
    assert open_bundle(tmp_path / "b").manifest.precision == "fp16"
    path = tmp_path / "b" / "recipe.json"
    PrecisionOptions(precision="fp16", recipe=path).check()
    again = tmp_path / "clip_text.onnx"
    convert_graph(BUNDLE / again.name, again, read_recipe(path).graphs["clip_text"])
    assert again.read_bytes() == (tmp_path / "b" / again.name).read_bytes()


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
def test_half_precision_outside_the_tolerance_leaves_nothing_and_points_to_bisect(tmp_path):
    race, limits = FakeRace({}), strict_for(("fp16", "vae_encoder"))
    with pytest.raises(
        GateError, match=r"vae_encoder in fp16: moments is .* refdiff bisect .* --graph vae_e"
    ):
        write(recipe(), tmp_path / "b", race=race, tolerances=limits)
    assert race.asked == []  # half precision is not timed
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
