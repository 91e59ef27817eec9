"""A profile drawn as HTML: a bar of its stages, and a timeline that one can zoom.

In: rows and spans. Out: HTML whose every text is escaped here, and the style and script it needs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import Any

from refdiff.profiling.rows import StageRow
from refdiff.profiling.samples import BETWEEN, HOST, LOADING, part_of
from refdiff.profiling.spans import Span
from refdiff.runtime.observer import STAGES

_LABELLED = 0.07
"""Share from which on a piece of the bar is wide enough for its name."""


def style() -> str:
    """Of both drawings."""
    return _file("drawing.css")


def script() -> str:
    """Of the timeline."""
    return _file("timeline.js")


def stage_bar(rows: Sequence[StageRow]) -> str:
    """Two bars one above the other: stages, and their parts; the host's work is hatched."""
    stages: dict[str, float] = {}
    for row in rows:
        stages[row.part.stage] = stages.get(row.part.stage, 0.0) + row.share
    upper = "".join(_piece(name, name, share, hatched=False) for name, share in stages.items())
    lower = "".join(
        _piece(row.part.stage, row.part.what, row.share, hatched=row.part.what == HOST) for row in rows
    )
    key = "".join(
        f'<li><i style="background: var(--{colour(name)})"></i>{escape(name)} {share:.1%}</li>'
        for name, share in stages.items()
    )
    return (
        f'<div class="bar" role="img" aria-label="shares of the stages">{upper}</div>\n'
        f'<div class="bar parts" role="img" aria-label="shares of their parts">{lower}</div>\n'
        f'<ul class="key">{key}</ul>'
    )


def timeline(groups: Sequence[tuple[str, Sequence[Span]]]) -> str:
    """Groups of spans to choose from, one shown at a time.

    Args:
        groups: a title, such as "cold start", and its spans.
    """
    data = [{"title": title, "spans": _boxes(spans)} for title, spans in groups if spans]
    embedded = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    buttons = "".join(
        f'<button type="button" value="{value}" title="{title}">{sign}</button>'
        for value, sign, title in (
            ("in", "+", "zoom in (+)"),
            ("out", "−", "zoom out (-)"),
            ("left", "←", "earlier"),
            ("right", "→", "later"),
            ("all", "all", "all of it (0)"),
        )
    )
    return (
        f'<div class="timeline"><script type="application/json">{embedded}</script>\n'
        f'<div class="tools"><select aria-label="what is shown"></select>{buttons}</div>\n'
        '<svg tabindex="0" role="img" aria-label="timeline"></svg>\n<p class="told"></p></div>'
    )


def colour(stage: str) -> str:
    """The style's name of a stage's colour."""
    return stage if stage in STAGES or stage == LOADING else "other"


def _piece(stage: str, name: str, share: float, *, hatched: bool) -> str:
    label = escape(name) if share >= _LABELLED else ""
    classes = " ".join(word for word, on in (("work", hatched), ("slim", not label)) if on)
    return (
        f'<span class="{classes}" title="{escape(name)} {share:.1%}" '
        f'style="width: {share:.3%}; background-color: var(--{colour(stage)})">{label}</span>'
    )


def _boxes(spans: Sequence[Span]) -> list[dict[str, Any]]:
    begin = min(span.start_ns for span in spans)
    depths: list[int] = []
    boxes = []
    for index, span in enumerate(spans):
        depths.append(0 if span.parent is None else depths[span.parent] + 1)
        stage = part_of(spans, index).stage
        boxes.append(
            {
                "name": span.name,
                "kind": span.kind,
                "stage": "other" if stage == BETWEEN else colour(stage),
                "depth": depths[index],
                "start": (span.start_ns - begin) / 1e6,
                "length": span.ms,
                "told": _told(span),
            }
        )
    return boxes


def _told(span: Span) -> str:
    call = span.call
    if call is None:
        return ""
    shapes = ", ".join(f"{name} {'×'.join(map(str, shape))}" for name, shape in call.shapes.items())
    device = "" if call.device_ms is None else f"; device {call.device_ms:.3f} ms"
    return (
        f"Fed {shapes}, {call.fed_bytes / 1e3:.1f} kB; returned {call.returned_bytes / 1e3:.1f} kB{device}."
    )


def _file(name: str) -> str:
    return resources.files("refdiff.profiling").joinpath(name).read_text(encoding="utf-8")
