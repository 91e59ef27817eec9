"""Every verb's tables on terminals of 80, 100 and 140 columns: no number and no heading is broken."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace as Some
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from refdiff.batch import tables as batch
from refdiff.cli import build as engines
from refdiff.cli import precision as calibration
from refdiff.cli.verbs import bundle_section
from refdiff.contracts.inspection import bundle_path, inspect
from refdiff.diagnostics.doctor import doctor_table
from refdiff.diagnostics.facts import Diagnosis
from refdiff.evaluation.report import evaluation_section
from refdiff.models.fetch import fetch_section
from refdiff.profiling import tables as profiling
from refdiff.reports.page import Page, Section
from refdiff.reports.table import Cell, Column, Printable, Table, numeric, outcome
from refdiff.verification import tables as verification

PHRASE = "the small red ceramic mug that stands on the left of the two thick books behind the vase"
FOLDER = Path("/home/robot/projects/grasping/refdiff-vitb-fp16-rounded/engines/tensorrt-10.16-sm_87")
GRAPHS = (
    "sd_text",
    "vae_encoder",
    "unet",
    "unet_taps",
    "sam_encoder",
    "sam_decoder",
    "sam_masks",
    "clip_image",
)
SHA = "287b5a8c0a941d44"


def shown(printable: Printable, width: int) -> str:
    console = Console(
        width=width, force_terminal=True, color_system=None, markup=False, emoji=False, highlight=False
    )
    with console.capture() as captured:
        console.print(printable.to_rich(), overflow="fold")
    return captured.get()


def tables_of(printable: Printable) -> Iterator[Table]:
    if isinstance(printable, Table):
        yield printable
    elif isinstance(printable, Section):
        yield from printable.tables
    elif isinstance(printable, Page):
        for section in printable.sections:
            yield from section.tables


def check_readable(printable: Printable, width: int) -> None:
    text = shown(printable, width)
    lines = text.splitlines()
    assert max(map(cell_len, lines)) <= width
    for table in tables_of(printable):
        widths, hidden = table.fit(width)
        for name in hidden:
            assert name in " ".join(text.split())
        for at, column in enumerate(table.columns):
            if at not in widths:
                continue
            assert all(len(word) <= widths[at] for word in column.name.split())
            if column.numeric:
                for row in table.cells:
                    for line in row[at].text.splitlines() if at < len(row) else ():
                        assert re.search(rf"(?<!\S){re.escape(line)}(?!\S)", text), line


def demo() -> Printable:
    scores = {"hard": -0.123, "soft": 0.234, "generative": 0.345, "place": 0.456}
    row = {
        "phrase": PHRASE,
        "iou": 0.9751,
        "score": 0.3217,
        "scores": scores,
        "encode_ms": 1234,
        "segment_ms": 12,
        "image": str(FOLDER / "scene-1.png"),
        "model": "mini-edge",
    }
    scenes = [Some(to_json=lambda: row, iou=0.9751)] * 6
    return batch.demo_table(Some(scenes=scenes, miou=0.8345, sheet=FOLDER / "sheet.png"))  # type: ignore[arg-type]


def audit() -> Printable:
    graphs = [
        Some(
            graph=name,
            runs=1024,
            tensors=range(12345),
            nearest=Some(largest=65504.5),
            room=0.000123,
            findings=[],
            deviations=[Some(error=1.2e-3)],
            complaints=["x"],
            proposed=[Some(because="sums beyond the range of half precision", nodes=["/unet/down.0/attn1"])],
        )
        for name in GRAPHS
    ]
    report = Some(graphs=graphs, complaints=[], bundle=FOLDER, model="refdiff-vitb", half="bf16")
    return calibration.audit_table(report, None)  # type: ignore[arg-type]


def sensitivity() -> Printable:
    costs = [
        Some(graph=name, block="down_blocks.2.attentions.1", nodes=range(9), miou=0.84, cost_points=-12.25)
        for name in GRAPHS
    ]  # fmt: skip
    report = Some(
        costs=costs, type="int8", variant="official", count=500, truth="the scenes", half_miou=0.8431
    )
    return calibration.sensitivity_table(report)  # type: ignore[arg-type]


def calibrated() -> Printable:
    report = Some(
        bundle=FOLDER,
        model="refdiff",
        backend="ort-cpu",
        variants=["official", "edge"],
        mode="full",
        graphs=dict.fromkeys(GRAPHS, 123456),
        new=1,
        resumed=0,
        pictures=1,
        feeds=FOLDER,
        size_bytes=3.2e9,
        seconds=12.3,
    )
    return calibration.calibration_table(report)  # type: ignore[arg-type]


def built() -> Printable:
    identity = Some(graph="sam_encoder", precision="fp16+fp32", key="0123456789abcdef")
    metadata = Some(
        identity=identity, plan_bytes=1.23e9, activation_bytes=2.34e9, attention=(), seconds=1234.5
    )
    graphs = [Some(metadata=metadata, plan=FOLDER / "a.plan", reused=False)]
    report = Some(
        graphs=graphs,
        bundle=FOLDER,
        flavour="tensorrt-rtx",
        version="1.7.1.116",
        reason="both are installed",
        targets=["8.6", "8.9"],
        device=None,
    )
    return engines.build_section(report, fusion=True)  # type: ignore[arg-type]


def linted() -> Printable:
    refusal = Some(
        node="/vae/encoder/mid_block/attentions.0/Softmax",
        operator="Softmax",
        reason="no kernel",
        cure="fp32",
    )
    finding = Some(
        rule="attention-in-single-precision", layer="/unet/down_blocks.2/attn", because="it is not fused"
    )
    graph = Some(
        graph="vae_encoder",
        precision="fp16",
        layers=1234,
        refusals=[refusal],
        findings=[finding],
        attention=(),
    )
    report = Some(
        graphs=[graph], passed=False, bundle=FOLDER, flavour="tensorrt", version="10.16", reason="asked for"
    )
    return engines.lint_section(report)  # type: ignore[arg-type]


def examined() -> Printable:
    found = "TensorrtExecutionProvider is needed, this onnxruntime has: CPUExecutionProvider"
    findings = [
        Diagnosis("machine", "disk for plans", "ok", f"54.8 GB free in {FOLDER}"),
        Diagnosis("packages", "tensorrt-rtx", "ok", "not installed", "pip install '.[rtx]' (x86-64 only)"),
        Diagnosis("back-ends", "ort-tensorrt", "warn", found, "use --backend ort-cuda"),
        Diagnosis("verdict", "verdict", "fail", "no back-end can run anything here", "see the lines above"),
    ]
    return doctor_table(Some(findings=findings))  # type: ignore[arg-type]


def fetched() -> Printable:
    name = "unet/diffusion_pytorch_model.non_ema.safetensors"
    row = Some(name=name, size_bytes=3.44e9, sha256=SHA * 4, state="to download")
    wanted = Some(repo="stable-diffusion-v1-5/stable-diffusion-v1-5")
    repo = Some(
        wanted=wanted,
        commit=SHA,
        url=lambda: "https://hub/a/b",
        folder=FOLDER,
        files=[row],
        licence="creativeml-openrail-m",
        problem="offline",
        complete=False,
        lacking=[row],
    )
    return fetch_section(Some(repos=[repo], to_download_bytes=3.44e9))  # type: ignore[arg-type]


def evaluated() -> Printable:
    part = Some(
        count=50000,
        miou=0.8481,
        miou_interval=(0.8, 0.9),
        oiou=0.8262,
        oiou_interval=(0.8, 0.9),
        precision_at=dict.fromkeys((0.5, 0.6, 0.7, 0.8, 0.9), 0.9),
        oracle_miou=0.9012,
        absent=10000,
        lost_to_proposals=0.1,
        lost_to_ranking=0.1,
        lost_to_edges=0.1,
        unmatched=12345,
        giou=0.5,
        no_target_accuracy=0.5,
        target_accuracy=None,
    )
    parts = {"refcoco+ testA": part, "a very long subset": part}
    model = Some(runtime="onnx", options=Some(variant="official", mode="gen+seg"))
    report = Some(model=model, records=range(5), summary=part, by_subset=parts, by_cue=parts, seconds=1.0)
    return evaluation_section(report)  # type: ignore[arg-type]


def compared() -> Printable:
    change = Some(
        row="segment/sam_decoder", verdict="slower", before_ms=12345.678, after_ms=23456.789, noise_ms=123.456
    )
    report = Some(
        changes=[change],
        differences=["threads: 1, 2"],
        machine_change=0.1,
        left_out=(1, 2),
        slower=True,
        before="a",
        after="b",
    )
    return profiling.comparison_table(report)  # type: ignore[arg-type]


def ladder() -> Printable:
    columns = (
        *(Column("graph", grouped=True), Column("output")),
        *numeric("error"),
        *numeric("correlation", "limit", optional=1),
    )
    rows = [(f"{name} (fp32)", "attention", "1.23e-05", "0.999999", "≥ 0.9999") for name in GRAPHS]
    return Table(columns=(*columns, Column()), rows=[(*row, outcome(passed=False)) for row in rows])


VERBS: dict[str, Callable[[], Printable]] = {
    "demo": demo,
    "audit": audit,
    "sensitivity": sensitivity,
    "calibrate": calibrated,
    "build": built,
    "lint": linted,
    "doctor": examined,
    "fetch": fetched,
    "eval": evaluated,
    "profile --compare": compared,
    "ladder": ladder,
}


@pytest.mark.parametrize("width", [80, 100, 140])
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_s_tables_are_readable(verb: str, width: int) -> None:
    check_readable(VERBS[verb](), width)


@pytest.mark.parametrize("width", [80, 100, 140])
def test_a_bundle_s_tables_are_readable(tiny_bundle: Path, width: int) -> None:
    check_readable(bundle_section(inspect(tiny_bundle)), width)


@pytest.fixture(scope="module")
def profiled() -> Any:
    from refdiff.contracts.bundle import open_bundle
    from refdiff.profiling.profile import ProfileOptions, profile, profile_samples

    samples = profile_samples(
        open_bundle(bundle_path("mini"), verify="size"), image=None, phrase=None, scenes=1
    )
    return profile("mini", samples=samples, measure=ProfileOptions(runs=1, warmup=0, layers=True))


@pytest.mark.slow
@pytest.mark.parametrize("width", [80, 100, 140])
def test_a_profile_s_tables_are_readable(profiled: Any, width: int) -> None:
    check_readable(profiling.profile_page(profiled), width)


@pytest.mark.slow
@pytest.mark.parametrize("width", [80, 100, 140])
def test_a_check_s_tables_are_readable(tiny_bundle: Path, width: int) -> None:
    from refdiff.verification.check import check

    check_readable(verification.check_page(check(tiny_bundle, dataset=None)), width)


WIDE = Table(
    columns=(
        *(Column("phrase", wrap=True), *numeric("score")),
        *(*numeric("first", "second", optional=2), *numeric("third", optional=1), Column()),
    ),
    rows=[(PHRASE, "0.123456", "1234567.8", "1234567.8", "1234567.8", Cell("FAILED", "bad"))],
)


@pytest.mark.parametrize(
    ("width", "names"),
    [
        (140, ()),
        (63, ()),
        (50, ("second",)),
        (42, ("first", "second")),
        (30, ("first", "second", "third")),
    ],
)
def test_the_least_important_columns_are_left_out_first_and_named(width: int, names: tuple[str, ...]) -> None:
    assert WIDE.fit(width)[1] == names
    text = " ".join(shown(WIDE, width).split())
    said = f"hidden: {', '.join(names)}; widen the terminal or use --json"
    assert (said in text) is bool(names)


def test_a_log_has_every_column_and_no_broken_word() -> None:
    console = Console(width=30, force_terminal=False, markup=False, emoji=False, highlight=False)
    path = str(FOLDER)
    table = Table(columns=(Column("path", wrap=True), *numeric("number", optional=1)), rows=[(path, "1")])
    with console.capture() as captured:
        console.print(table.to_rich(), overflow="ignore", crop=False)
    assert re.search(rf"{re.escape(path)} +1", captured.get())


words = st.text(st.characters(categories=["Lu", "Ll", "Nd"]), max_size=40)


@pytest.mark.slow
@given(st.lists(st.tuples(words, st.integers(-(10**9), 10**9).map(str)), min_size=1), st.integers(40, 200))
def test_any_table_fits_and_keeps_its_numbers_whole(rows: list[tuple[str, str]], width: int) -> None:
    table = Table(columns=(Column("a name", wrap=True), *numeric("largest magnitude")), rows=rows)
    check_readable(table, width)


@pytest.mark.parametrize(
    ("environment", "colored"),
    [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
     ({"FORCE_COLOR": "1", "TERM": "dumb"}, False)],
)  # fmt: skip
def test_colors_appear_where_they_are_wanted(
    environment: dict[str, str],
    colored: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from refdiff.cli.terminal import print_answer

    for name in ("FORCE_COLOR", "NO_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    rows = [(Cell("FAILED", "bad"), Cell("warn", "warn"), Cell("ok", "good"))]
    print_answer({}, lambda: Table(columns=(Column("a"), Column("b"), Column("c")), rows=rows), as_json=False)
    text = capsys.readouterr().out
    assert ("\x1b[1;31mFAILED" in text) is colored
    assert ("\x1b[33mwarn" in text) is colored
    assert ("\x1b[32mok" in text) is colored


@pytest.mark.parametrize("text", ["[/]", "[bold]x[/bold]", "[link=http://a]", "photo[1].png", ":smile:"])
def test_markup_in_a_text_is_printed_as_it_is(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from refdiff.cli.terminal import print_answer

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    table = Table(title=text, columns=(Column(text),), rows=[(text,)], footnotes=(text,))
    print_answer({}, lambda: Section(heading=text, lines=(text,), tables=(table,)), as_json=False)
    assert re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).count(text) == 6
