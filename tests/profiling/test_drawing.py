"""A profile drawn: texts escaped, widths that are shares, boxes that lie in each other."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.profiling.drawing import script, stage_bar, style, timeline
from refdiff.profiling.rows import StageRow
from refdiff.profiling.samples import Part, Percentiles
from refdiff.profiling.spans import Span
from refdiff.reports import Drawing, Page, Section, render
from refdiff.runtime.observer import STAGES
from tests.reports.test_report_page import Reading


def row(stage: str, what: str, share: float) -> StageRow:
    return StageRow(part=Part(stage, what), calls=1.0, ms=Percentiles.of([1.0]), share=share)


def test_both_bars_are_as_wide_as_everything() -> None:
    rows = [row("proposals", "sam_decoder", 0.5), row("proposals", "host", 0.2), row("crops", "host", 0.3)]
    widths = [float(width) for width in re.findall(r"width: ([\d.]+)%", stage_bar(rows))]
    assert widths == pytest.approx([70, 30, 50, 20, 30])


@given(st.text(max_size=40))
def test_every_text_is_escaped(text: str) -> None:
    drawn = stage_bar([row(text, text, 1.0)])
    span = Span(name=text, kind="stage", parent=None, start_ns=0, end_ns=5)
    page = render(
        Page(
            title="t",
            passed=None,
            verdict="v",
            sections=(
                Section(
                    heading="h", drawings=(Drawing(html=drawn), Drawing(html=timeline([(text, [span])])))
                ),
            ),
        )
    )
    assert set(Reading(page).tags) <= {
        *(
            "html",
            "head",
            "meta",
            "title",
            "style",
            "body",
            "main",
            "h1",
            "h2",
            "p",
            "section",
            "div",
            "span",
        ),
        *("ul", "li", "i", "script", "select", "button", "svg"),
    }


def test_what_a_page_embeds_cannot_end_its_script() -> None:
    drawn = timeline(
        [("</script><b>", [Span(name="</script>", kind="stage", parent=None, start_ns=0, end_ns=1)])]
    )
    assert drawn.count("</script>") == 1
    (data,) = re.findall(r'<script type="application/json">(.*?)</script>', drawn)
    assert json.loads(data)[0]["title"] == "</script><b>"


def test_boxes_are_as_deep_as_their_spans() -> None:
    spans = [
        Span(name="segment", kind="verb", parent=None, start_ns=5_000_000, end_ns=9_000_000),
        Span(name="crops", kind="stage", parent=0, start_ns=6_000_000, end_ns=8_000_000),
        Span(name="clip_image", kind="graph", parent=1, start_ns=7_000_000, end_ns=8_000_000),
    ]
    (data,) = re.findall(r"json\">(.*?)</script>", timeline([("question", spans)]))
    boxes = json.loads(data)[0]["spans"]
    assert [(box["depth"], box["stage"], box["start"]) for box in boxes] == [
        (0, "other", 0.0),
        (1, "crops", 1.0),
        (2, "crops", 2.0),
    ]


def test_every_stage_has_a_colour_by_day_and_by_night() -> None:
    for stage in (*STAGES, "loading", "other"):
        assert style().count(f"--{stage}:") == 2, stage


def test_style_and_script_of_two_drawings_are_there_once() -> None:
    drawing = Drawing(html="<p></p>", style=style(), script=script())
    page = render(
        Page(
            title="t", passed=None, verdict="v", sections=(Section(heading="h", drawings=(drawing, drawing)),)
        )
    )
    assert page.count("--proposals:") == 2
    assert page.count('"use strict"') == 1
    assert "passed" not in page
