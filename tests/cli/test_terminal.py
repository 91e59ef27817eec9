"""Progress on a terminal and in a log, and the back-end that `auto` takes for a precision."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from refdiff.cli.terminal import log_lines, progress_bar
from refdiff.contracts.progress import Step
from refdiff.errors import EngineError


def steps(total: int) -> list[Step]:
    return [Step(f"image {n + 1}/{total}", done=n, total=total, unit="images") for n in range(total)]


def test_a_log_has_a_line_of_counted_work_every_ten_seconds_with_the_time_left() -> None:
    lines, now = list[str](), 0.0
    show = log_lines(lines.append, clock=lambda: now)
    show("loading the graphs")
    for each in steps(100):
        show(each)
        now += 1
    assert lines[:2] == ["loading the graphs", "image 1/100"]
    assert lines[2] == "image 11/100 (10 s, about 90 s left)"
    assert len(lines) == 11


def test_another_count_starts_another_clock() -> None:
    lines, now = list[str](), 0.0
    show = log_lines(lines.append, clock=lambda: now)
    for series in ("official", "edge"):
        for n in range(3):
            show(Step(f"{series}: scene {n + 1}/3", done=n, total=3, unit=series))
            now += 1
    assert lines == ["official: scene 1/3", "edge: scene 1/3"]


def test_a_terminal_shows_a_bar_with_elapsed_and_remaining_time_and_text_as_it_is() -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=100, color_system=None)
    with progress_bar(console) as show:
        show(Step("image 5/10: [bold]a[1].png", done=5, total=10, unit="images"))
        show(Step("image 6/10: [/]", done=5, total=10, unit="images"))
    text = shown.getvalue()
    assert "image 6/10: [/]" in text
    assert "━" in text
    assert "left" in text
    assert "0:00:0" in text


@pytest.mark.parametrize(
    ("precision", "backend"),
    [("fp32", "ort-cpu"), ("fp16", "ort-cpu"), ("bf16", "ort-rounded"), ("fp8", "ort-rounded")],
)
def test_auto_takes_a_back_end_that_has_the_bundle_s_operators(precision: str, backend: str) -> None:
    pytest.importorskip("onnxruntime")
    from refdiff.contracts.bundle import Bundle
    from refdiff.contracts.inspection import find_bundle
    from refdiff.engines.factory import has_driver, open_sessions

    if has_driver():
        pytest.skip("auto takes the GPU here")
    mini = find_bundle("mini")
    sessions = open_sessions(Bundle(path=mini.path, manifest=replace(mini.manifest, precision=precision)))
    assert sessions.backend == backend
    assert (precision in sessions.reason) is (backend == "ort-rounded")


def test_a_graph_that_does_not_load_prints_nothing_of_onnx_runtime_s(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ort = pytest.importorskip("refdiff.engines.ort")
    (tmp_path / "a.onnx").write_bytes(b"this is no graph")
    with pytest.raises(EngineError, match="ONNX Runtime cannot load"):
        ort.create_session(tmp_path / "a.onnx", "ort-cpu", ort.session_options(1))
    streams = capfd.readouterr()
    assert (streams.out, streams.err) == ("", "")
