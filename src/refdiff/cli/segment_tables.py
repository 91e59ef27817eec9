"""What people read of one answer, and of many; see `tables`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from refdiff.cli.tables import _group, _number, _table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from refdiff.api import Answer, Survey


def of_answer(answer: Answer, files: Mapping[str, Path]) -> RenderableType:
    """One fact per row."""
    document = answer.to_json()
    table = _table("", "", header=False)
    width, height = document["size"]["width"], document["size"]["height"]
    facts: list[tuple[str, str]] = [
        ("phrase", f"{document['phrase']}   (head word: {document['root']})"),
        ("answer", "found" if answer.matched else f"no match: {document['reason']}"),
        ("picture", f"{width}x{height} px"),
        ("candidates", f"{document['candidates']}, {document['kept']} of them kept"),
    ]
    if answer.matched:
        parts = "   ".join(f"{name} {value:.3f}" for name, value in document["scores"].items())
        share = document["area_px"] / (width * height)
        facts += [
            ("score", f"{document['score']:.3f}   ({parts})"),
            ("box", "x {} .. {}   y {} .. {}".format(*(document["box_xyxy_px"][i] for i in (0, 2, 1, 3)))),
            ("area", f"{document['area_px']} px, {share:.1%} of the picture"),
        ]
    facts += [
        ("computed by", "   ".join(document[name] for name in ("model", "profile", "mode", "backend"))),
        ("time", f"encode {document['encode_ms']:.0f} ms   segment {document['segment_ms']:.0f} ms"),
        *((kind, str(path)) for kind, path in files.items()),
    ]
    for fact in facts:
        table.add_row(*fact)
    return table


def of_survey(survey: Survey) -> RenderableType:
    """One row per answer, or where they were written; and under it what was asked."""
    earlier = f", {survey.resumed} of them answered earlier" if survey.resumed else ""
    summary = (
        f"{survey.new + survey.resumed} answers on {survey.pictures} pictures{earlier}, "
        f"{survey.matched} found   {survey.model} on {survey.backend}, {survey.seconds:.1f} s"
    )
    if survey.output is None:
        return _group(_of_answers(survey), summary)
    failed = [f"cannot be used: {fault}" for fault in survey.failures.values()]
    return _group(summary, f"{survey.output}", *failed)


def _of_answers(survey: Survey) -> RenderableType:
    table = _table("=phrase", ">score", ">area", "box", ">ms")
    for answer in survey.answers:
        row = answer.to_json()
        width, height = row["size"]["width"], row["size"]["height"]
        place = (
            "x {} .. {}   y {} .. {}".format(*(row["box_xyxy_px"][i] for i in (0, 2, 1, 3)))
            if (answer.matched)
            else f"no match: {row['reason']}"
        )
        share = f"{row['area_px'] / (width * height):.1%}"
        table.add_row(row["phrase"], _number(row["score"]), share, place, f"{row['segment_ms']:.0f}")
    return table
