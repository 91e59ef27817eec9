"""From an fp32 bundle to fewer bits: the bundle that is written, and options that are refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

import refdiff
from refdiff.accuracy.metrics import iou, pairwise_iou
from refdiff.calibration.convert import PRECISIONS, PrecisionOptions, convert
from refdiff.cli import main
from refdiff.contracts.bundle import open_bundle
from refdiff.contracts.graphs import GRAPHS, graph_contract
from refdiff.contracts.options import BackendOptions
from refdiff.contracts.parity import correlation
from refdiff.contracts.recipe import read_recipe
from refdiff.errors import InputError
from refdiff.export.export import export
from refdiff.miniature.scenes import render_scene
from refdiff.passes.convert import convert_graph
from refdiff.passes.graph_files import check_contract
from tests.support.recipes import half_recipe_of_mini, with_eight_bits_in
from tests.support.small_graphs import BUNDLE

HALF_BY_RULE = ("sam_decoder", "sam_masks")
"""SAM's decoder and its masks hold nothing in eight bits."""


def recipe(half="fp16"):
    return half_recipe_of_mini(half)


def precision_of(graph: str, bundle: str) -> str:
    """The precision of a graph in a bundle, by the built-in rules."""
    return "fp16" if graph in HALF_BY_RULE and bundle in ("int8", "fp8") else bundle


@pytest.fixture(params=["fp16", "bf16", "int8", "fp8"])
def converted(request, mini_in) -> Path:
    return mini_in(request.param)


@pytest.mark.slow
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
    assert bundle.golden_answer().phrase == open_bundle(BUNDLE).golden_answer().phrase


@pytest.mark.slow
def test_it_is_as_small_as_its_bits(converted):
    sizes = {
        folder: sum(path.stat().st_size for path in folder.glob("*.data")) for folder in (converted, BUNDLE)
    }
    share = {"fp16": 0.505, "bf16": 0.51, "int8": 0.30, "fp8": 0.30}[converted.name]
    assert sizes[converted] <= share * sizes[BUNDLE]


def answer(bundle, backend):
    image, phrase = render_scene(1_000_003).image, "the ball"  # there is one, and it wins by a margin
    with refdiff.load(bundle, backend=BackendOptions(name=backend)) as segmenter:
        return segmenter.segment(segmenter.encode(image), phrase)


@pytest.fixture(scope="module")
def exact():
    return answer(BUNDLE, "ort-cpu")


@pytest.mark.slow
def test_it_answers_like_fp32(converted, exact):
    ours = answer(converted, "ort-rounded")
    assert correlation(ours.heat, exact.heat) > 0.99
    found = pairwise_iou(ours.candidates.masks, exact.candidates.masks)
    assert found[:, exact.index].max() > 0.9
    if converted.name in ("fp16", "int8"):  # the others may choose differently on one scene
        assert iou(ours.mask, exact.mask) > 0.9


@pytest.mark.slow
def test_taps_and_full_unet_share_their_weights(converted):
    files = {name: open_bundle(converted).manifest.graphs[name].files for name in ("unet", "unet_taps")}
    assert files["unet"][1] == files["unet_taps"][1] == "unet.onnx.data"


@pytest.mark.slow
def test_a_recipe_gives_the_same_bundle_again(mini_in, tmp_path):
    int8 = mini_in("int8")
    convert(
        BUNDLE, PrecisionOptions(precision="int8", recipe=int8 / "recipe.json"), output=tmp_path / "again"
    )
    for path in int8.glob("*.onnx*"):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("converted", ["bf16", "fp8"], indirect=True)
def test_a_recipe_gives_the_same_graphs_again(converted, tmp_path):
    recipes = read_recipe(converted / "recipe.json").graphs
    for name in ("sd_text", "unet", "sam_encoder"):
        again = tmp_path / f"{name}.onnx"
        convert_graph(BUNDLE / again.name, again, recipes[name])
        for path in converted.glob(f"{name}.onnx*"):
            assert (tmp_path / path.name).read_bytes() == path.read_bytes()


class AskedError(Exception):
    """A device was asked for its latencies."""


class Device:
    """A device that says when it is asked."""

    where = "a GPU"

    def medians_ms(self, graph, forms, feeds, *, scratch):
        raise AskedError(graph.name)


def eight_bits_in_the_first(mini_in, tmp_path: Path, **options) -> PrecisionOptions:
    path = tmp_path / "recipe.json"
    path.write_text(with_eight_bits_in(mini_in("int8") / "recipe.json", GRAPHS[0]).to_text())
    return PrecisionOptions(precision="int8", recipe=path, **options)


class WrittenError(Exception):
    """The first graph is written."""


def until_the_first_is_written(lines: list[str]) -> Callable[[str], None]:
    """Progress that keeps its lines, and stops the conversion after a graph."""

    def progress(line: str) -> None:
        lines.append(line)
        if line.startswith(GRAPHS[0]):
            raise WrittenError

    return progress


@pytest.mark.slow
@pytest.mark.parametrize(("timed", "ends_with"), [(True, AskedError), (False, WrittenError)])
def test_a_device_is_looked_for_unless_it_is_not_wanted(timed, ends_with, mini_in, tmp_path):
    lines, options = [], eight_bits_in_the_first(mini_in, tmp_path, timed=timed)
    with pytest.raises(ends_with):
        convert(
            BUNDLE,
            options,
            output=tmp_path / "b",
            progress=until_the_first_is_written(lines),
            find_race=lambda progress: (Device(), "a GPU"),
        )
    assert ("eight bits have to be faster on a GPU" in lines) == timed
    assert any(line.startswith(f"{GRAPHS[0]}: int8") for line in lines) == (not timed)


@pytest.mark.slow
def test_without_a_gpu_it_is_said_that_nothing_is_timed(mini_in, tmp_path):
    lines, options = [], eight_bits_in_the_first(mini_in, tmp_path)
    with pytest.raises(WrittenError):
        convert(BUNDLE, options, output=tmp_path / "b", progress=until_the_first_is_written(lines))
    assert [line for line in lines if "by accuracy alone" in line and "shows no GPU" in line]


@pytest.mark.slow
def test_what_was_converted_is_not_converted_again(converted, tmp_path):
    with pytest.raises(InputError, match=f"is in {converted.name}, expected fp32"):
        convert(converted, "fp16", output=tmp_path / "b")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--precision", "int2"], "unknown precision 'int2'"),
        (["--precision", "fp32"], "is in fp32 already"),
        (["--precision", "fp16", "--feeds", "somewhere"], "--feeds is for int8 and fp8"),
        (["--precision", "fp16", "--smooth", "0.5"], "--smooth is for int8 and fp8"),
        (["--precision", "fp16", "--smooth", "0"], "--smooth is for int8 and fp8"),
        (["--precision", "fp16", "--ranges", "minmax"], "--ranges is for int8 and fp8"),
        (["--precision", "fp16", "--untimed"], "--untimed is for int8 and fp8"),
        (["--precision", "int8", "--budget", "a lot"], "got budget 'a lot'"),
        (["--precision", "int8", "--ranges", "mean"], "unknown method 'mean'"),
        (["--precision", "int8", "--feeds", "nowhere"], "nowhere holds no recorded feeds"),
        (["--precision", "fp16", "--recipe", "none.json"], "there is no recipe none.json"),
    ],
)
def test_options_that_do_not_go_together_end_with_two(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", str(BUNDLE), *arguments, "-o", str(tmp_path / "b")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_a_recipe_of_another_precision_is_refused(tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(recipe("bf16").to_text())
    with pytest.raises(InputError, match="is a recipe for bf16, got --precision fp16; use --precision bf16"):
        convert(BUNDLE, PrecisionOptions(precision="fp16", recipe=path), output=tmp_path / "b")


@pytest.mark.slow
def test_a_recipe_of_eight_bits_is_no_half_precision_recipe(mini_in, tmp_path):
    options = PrecisionOptions(precision="fp16", recipe=mini_in("int8") / "recipe.json")
    with pytest.raises(InputError, match="is a recipe for int8, got --precision fp16"):
        convert(BUNDLE, options, output=tmp_path / "b")


@pytest.mark.parametrize("option", ["recipe", "feeds"])
@pytest.mark.parametrize("verb", [convert, export])
def test_what_is_not_there_is_missed_before_any_work(option, verb, tmp_path):
    lines, options = [], PrecisionOptions(precision="int8", **{option: tmp_path / "nowhere"})
    with pytest.raises(InputError, match="nowhere"):
        verb("mini", options, output=tmp_path / "b", progress=lines.append)
    assert lines == []


def test_a_bundle_is_no_model_and_its_command_is_named(tmp_path, capsys):
    assert main(["export", str(BUNDLE), "--precision", "fp16", "-o", str(tmp_path / "b")]) == 2
    assert f"convert a bundle with: refdiff convert {BUNDLE}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


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
