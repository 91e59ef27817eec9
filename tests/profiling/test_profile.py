"""`refdiff profile` on the built-in bundle: one short run looked at from all sides, and what is refused."""

import dataclasses
import json
import math
import re
import sys
from importlib import resources
from pathlib import Path

import pytest
from PIL import Image

from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.options import BackendOptions
from refdiff.profiling.spans import GraphCall, Span

pytest.importorskip("onnxruntime")

from refdiff.cli import main
from refdiff.contracts.bundle import open_bundle
from refdiff.errors import InputError, MissingDependencyError
from refdiff.miniature.scenes import render_scene
from refdiff.profiling import profile, records
from refdiff.profiling.macs import SIDE, MacCounter, MatrixProduct
from refdiff.profiling.records import read_record
from refdiff.profiling.report import ProfileReport
from refdiff.profiling.tables import profile_page
from tests.reports.test_reports import Reading
from tests.support.jetson import jetson, tell
from tests.support.plans import BUNDLE

RUNS, SCENES = 2, 1


def conditions(report: ProfileReport) -> str:
    """The lines of the page's last section."""
    return "\n".join(profile_page(report).sections[-1].lines)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> ProfileReport:
    """Of a Jetson whose GPU clock falls before the last round."""
    root = jetson(tmp_path_factory.mktemp("jetson"))
    said: list[str] = []

    def progress(line: str) -> None:
        said.append(line)
        if line == f"round {RUNS}/{RUNS}":
            tell(root, "sys/class/devfreq/17000000.gpu/cur_freq", "306000000")

    report = profile.profile(
        "mini",
        samples=profile.profile_samples(find_bundle("mini"), scenes=SCENES),
        measure=profile.ProfileOptions(runs=RUNS, warmup=0, layers=True),
        backend=BackendOptions(name="ort-cpu", threads=1),
        root=root,
        progress=progress,
    )
    assert {"cold start", "sampling memory", "layers"} <= set(said)
    return report


def test_the_shares_of_the_parts_add_up_to_everything(report: ProfileReport) -> None:
    assert sum(row.share for row in report.stages) == pytest.approx(1)
    assert {row.part.stage for row in report.stages} == {
        *("picture", "proposals", "latent", "soft", "reading", "attention", "text", "crops", "scoring"),
        "between stages",
    }
    for sample in report.samples:
        spans = dict(report.spans)[report.spans[report.samples.index(sample)][0]]
        assert sample.ms == pytest.approx(sum(span.ms for span in spans if span.kind == "verb"))


def test_every_graph_that_edge_runs_is_there_with_its_arithmetic(report: ProfileReport) -> None:
    rows = {row.graph: row for row in report.graphs}
    assert set(rows) == {
        *(
            "sd_text",
            "vae_encoder",
            "unet_taps",
            "sam_encoder",
            "sam_decoder",
            "sam_masks",
            "clip_text",
            "clip_image",
        ),
    }
    assert rows["unet_taps"].calls == 1  # the phrase's branch alone
    if report.macs_problem is None:
        assert rows["sam_encoder"].macs == 556_236_800
        for row in rows.values():
            attained = 2 * row.macs * len(report.samples) / 1e9
            seconds = row.share * sum(sample.ms for sample in report.samples) / 1e3
            assert row.gflops == pytest.approx(attained / seconds, rel=1e-3)
            assert row.of_peak == pytest.approx(row.gflops / report.peak.gflops)


def test_copies_are_the_bytes_of_feeds_and_outputs(report: ProfileReport) -> None:
    row = next(row for row in report.graphs if row.graph == "sam_encoder")
    spec = open_bundle(BUNDLE, verify="size").spec.sam
    assert row.fed_bytes == 4 * 3 * spec.image_size**2
    assert row.returned_bytes == 4 * spec.embed_channels * spec.embed_size**2


def test_a_cold_start_is_distinguished_and_loads_every_graph(report: ProfileReport) -> None:
    steps = dict(report.cold_steps)
    assert {f"load {row.graph}" for row in report.graphs} <= set(steps)
    assert all(ms >= 0 for ms in steps.values())
    assert all(row.part.stage != "loading" for row in report.stages)


def test_the_kernel_s_memory_is_in_it(report: ProfileReport) -> None:
    use = report.memory
    if sys.platform == "linux":
        assert use.highest.private <= use.highest.resident <= use.high_water_resident * 1.01
        assert use.loaded.private > use.before.private or use.before.private > 50e6
        assert use.stages["proposals"].private <= use.highest.private


def test_layers_carry_the_names_of_the_model_s_modules(report: ProfileReport) -> None:
    graphs = {each.graph: each for each in report.layers}
    assert set(graphs) == {row.graph for row in report.graphs}
    assert any(layer.name.startswith("unet.down_blocks") for layer in graphs["unet_taps"].layers)
    document = graphs["unet_taps"].to_json()
    assert sum(layer["share"] for layer in document["layers"]) == pytest.approx(1, abs=1e-2)
    shown = [layer["ms"] for layer in document["layers"]]
    assert shown == sorted(shown, reverse=True)


@pytest.mark.slow
def test_the_questions_of_a_throttled_round_are_marked(report: ProfileReport) -> None:
    marked = [sample.round for sample in report.samples if sample.throttled]
    assert marked == [RUNS - 1] * SCENES
    lines = conditions(report)
    assert (
        f"throttled samples: {SCENES} of {SCENES * RUNS}: 17000000.gpu at 306 MHz, 931 at the start" in lines
    )
    assert "power mode: MODE_30W" in lines
    assert "17000000.gpu 931 -> 306 MHz" in lines
    assert "0 cpu-thermal 48 -> 48 °C" in lines


def test_the_report_says_which_clock_every_number_is_of(report: ProfileReport) -> None:
    assert "clock of stages and graphs: time.perf_counter_ns" in conditions(report)
    assert report.clocks["device"] is None


def test_the_document_is_json_and_a_record_once_it_is_long_enough(report: ProfileReport) -> None:
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert document["options"]["questions"][0]["phrase"]
    with pytest.raises(InputError, match="1 of 2 were throttled"):
        read_record(document, "a.json")
    document["samples"] = [
        {**sample, "round": number, "throttled": []} for number in range(5) for sample in document["samples"]
    ]
    assert read_record(document, "a.json").rows["all"][0] > 0


def test_the_page_needs_nothing_else_and_holds_every_stage_and_graph(report: ProfileReport) -> None:
    page = profile_page(report).to_html()
    read = Reading(page)
    text = " ".join(read.texts)
    assert "--trace FILE" in text
    for row in report.stages:
        assert row.part.name in text
    longest = max((layer for each in report.layers for layer in each.layers), key=lambda layer: layer.ms)
    assert longest.name in text
    links = [value for _, name, value in read.attributes if name in ("src", "href", "srcset", "action")]
    assert links == []
    assert "@import" not in page
    assert not re.search(r"url\(|https?://", page)


def test_page_and_trace_appear_together_or_not_at_all(report: ProfileReport, tmp_path: Path) -> None:
    html, trace = tmp_path / "p.html", tmp_path / "t.json"
    call = GraphCall(shapes={}, fed_bytes=0, returned_bytes=0, device_ms=math.nan)  # not in JSON
    span = Span(name="unet", kind="graph", parent=None, start_ns=0, end_ns=1, call=call)
    untraceable = dataclasses.replace(report, spans=(("a scene", (span,)),))
    with pytest.raises(ValueError, match="JSON"):
        records.save_profile(untraceable, html=html, trace=trace)
    assert list(tmp_path.iterdir()) == []
    assert records.save_profile(report, html=str(html), trace=trace) == {"html": html, "trace": trace}
    events = json.loads(trace.read_text())["traceEvents"]
    assert sum(event.get("cat") == "graph" for event in events) > RUNS * SCENES * 7
    with pytest.raises(InputError, match="exists"):
        records.save_profile(report, html=html)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mini", "--runs", "0"], "expected 1 and 0 or more"),
        (["mini", "--warmup", "-1"], "expected 1 and 0 or more"),
        (["nowhere"], "does not exist"),
        (["mini", "--image", "absent.png", "--phrase", "the mug"], "cannot be read"),
        (["mini", "--image", "README", "--phrase", "the mug"], "README"),
        (["mini", "--phrase", "the mug"], "no --image"),
        (["mini", "--image", "photo.png"], "no --phrase"),
        (["mini", "--image", "photo.png", "--phrase", "the mug", "--scenes", "2"], "--scenes too"),
        (["mini", "--scenes", "7"], "expected 1 to 6"),
        (["mini", "--html", "absent/p.html"], "not a folder"),
        (["mini", "--html", "README"], "exists"),
        (["mini", "--html", "p", "--trace", "p"], "different names"),
        (["mini", "--variant", "fast"], "fast"),
        (["mini", "--mode", "half"], "half"),
        (["mini", "--backend", "abacus"], "abacus"),
        (["mini", "--memory", "8GB", "--backend", "ort-cpu"], "is for plans"),
        (["mini", "--image", "photo.png", "--phrase", "  "], "phrase"),
        ([], "name a bundle"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README").write_text("no picture")
    Image.fromarray(render_scene(1_000_007).image).save("photo.png")
    before = sorted(tmp_path.iterdir())
    assert main(["profile", *arguments]) == 2
    streams = capsys.readouterr()
    (line,) = [line for line in streams.err.splitlines() if line.startswith("error")]
    assert said in line
    assert streams.out == ""
    assert sorted(tmp_path.iterdir()) == before


def test_the_scenes_are_not_asked_of_another_model(tiny_bundle: Path, capsys) -> None:
    assert main(["profile", str(tiny_bundle)]) == 2
    assert "--image photo.jpg --phrase" in capsys.readouterr().err


@pytest.mark.slow
def test_a_picture_of_one_s_own_is_profiled_in_every_mode(tiny_bundle: Path, tmp_path: Path, capsys) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(render_scene(1_000_007).image).save(photo)
    html, trace = tmp_path / "p.html", tmp_path / "t.json"
    command = ["profile", str(tiny_bundle), "--image", str(photo), "--phrase", "the red mug", "--runs", "1"]
    command += ["--warmup", "0", "--threads", "1", "--backend", "ort-cpu"]
    assert main([*command, "--mode", "gen", "--json", "--html", str(html), "--trace", str(trace)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["options"]["questions"][0]["name"] == "photo.png"
    assert {row["graph"] for row in document["graphs"]} == {"sd_text", "vae_encoder", "unet_taps"}
    assert html.read_text().startswith("<!doctype html>")
    assert json.loads(trace.read_text())["traceEvents"]
    assert main([*command, "--variant", "official"]) == 0
    said = capsys.readouterr().out
    assert "clip_image" in said
    assert "unet_taps" in said


def test_without_the_export_extra_multiply_adds_are_unknown_and_it_is_said_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "refdiff.passes.graph_files", raising=False)
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    counter = MacCounter(open_bundle(BUNDLE, verify="size"))
    assert counter("sam_encoder", {"image": (1, 3, 160, 160)}) is None
    assert "pip install '.[export]'" in counter.problem


def test_the_peak_s_graph_is_one_matrix_product() -> None:
    onnx = pytest.importorskip("onnx")
    path = resources.files("refdiff.profiling") / "matmul.onnx"
    model = onnx.load_from_string(path.read_bytes())
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["MatMul"]
    for value in model.graph.input:
        assert [dim.dim_value for dim in value.type.tensor_type.shape.dim] == [SIDE, SIDE]


def test_the_peak_counts_two_operations_for_a_multiply_add() -> None:
    moments = iter((1.0, 1.5))
    product = MatrixProduct("ort-cpu", 1, clock=lambda: next(moments))
    assert product.gflops() == pytest.approx(2 * SIDE**3 / 0.5 / 1e9)
    assert product.how == f"a float32 product of {SIDE}×{SIDE} in ort-cpu, 1 threads"


def test_a_peak_that_cannot_be_measured_here_is_refused() -> None:
    with pytest.raises(MissingDependencyError, match="ort-cuda"):
        MatrixProduct("tensorrt-rtx", None)
