"""The tables of one prediction, of a folder's predictions, and of the demo."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refdiff.batch.result_store import INDEX_NAME
from refdiff.contracts.inspection import MINIATURE_NAME, MINIATURES
from refdiff.data.folder import describe_skipped
from refdiff.reports.page import Section
from refdiff.reports.table import Cell, Column, Table, facts_table, numeric

if TYPE_CHECKING:
    from refdiff.batch.demo import DemoReport
    from refdiff.batch.folder import BatchResult
    from refdiff.batch.prediction import Prediction
    from refdiff.batch.training_set import ExportCounts


WRONG_BELOW = 0.5
"""IoU below which the demo calls a mask wrong; the usual threshold of a hit."""


def prediction_table(prediction: Prediction, files: Mapping[str, Path]) -> Table:
    """Lay out one prediction, one fact per row.

    Args:
        prediction: what was found.
        files: kind -> path of what was written.
    """
    document = prediction.to_json()
    width, height = document["size"]["width"], document["size"]["height"]
    facts = [
        ("phrase", f"{document['phrase']}   (head word: {document['root']})"),
        ("answer", "best candidate" if prediction.matched else f"none: {document['reason']}"),
        ("image", f"{width}x{height} px"),
        ("candidates", f"{document['candidates']}, {document['kept']} of them kept"),
    ]
    if prediction.matched:
        parts = "   ".join(f"{name} {value:.3f}" for name, value in document["scores"].items())
        share = document["area_px"] / (width * height)
        facts += [
            ("score", f"{document['score']:.3f}   ({parts})"),
            *([] if document["confidence"] is None else [("confidence", f"{document['confidence']:.2f}")]),
            ("box", _box(document)),
            ("area", f"{document['area_px']} px, {share:.1%} of the image"),
        ]
    facts += [
        ("computed by", "   ".join(document[name] for name in ("model", "variant", "mode", "backend"))),
        ("time", f"encode {document['encode_ms']:.0f} ms   segment {document['segment_ms']:.0f} ms"),
        *((kind, str(path)) for kind, path in files.items()),
        *(("caution", caution) for caution in document["cautions"]),
    ]
    return facts_table(facts)


def batch_section(result: BatchResult) -> Section:
    """Lay out one row per prediction, or where they were written, and a line of totals."""
    counts = [f"{result.answered} answered"]
    counts += [f"{result.resumed} resumed from an earlier run"] if result.resumed else []
    counts += [f"{result.failed} failed"] if result.failed else []
    summary = (
        f"{_count(result.answered + result.resumed + result.failed, 'phrase')} on "
        f"{_count(result.images, 'image')}: {', '.join(counts)}; {result.matched} with a mask   "
        f"{result.model} on {result.backend}, {result.seconds:.1f} s"
    )
    cautions = [f"caution: {caution}" for caution in result.cautions]
    if result.output is None:
        return Section(tables=(_predictions(result, (summary, *cautions)),))
    failed = [f"failed: {reason}" for reason in result.failures.values()]
    skipped = describe_skipped(result.skipped)
    exports = [_export(kind, counts) for kind, counts in result.exports.items()]
    page = f"page: {result.output / INDEX_NAME}"
    return Section(lines=(summary, *failed, *skipped, *cautions, *exports, page))


def _export(kind: str, counts: ExportCounts) -> str:
    left_out = f", {_count(counts.left_out, 'image')} with failures left out" if counts.left_out else ""
    return (
        f"{kind}: {_count(counts.images, 'image')}, {_count(counts.annotations, 'annotation')}, "
        f"{_count(counts.without_mask, 'phrase')} without a mask{left_out}   {counts.folder}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _predictions(result: BatchResult, footnotes: tuple[str, ...]) -> Table:
    rows = []
    for prediction in result.predictions:
        row = prediction.to_json()
        share = f"{row['area_px'] / (row['size']['width'] * row['size']['height']):.1%}"
        place = _box(row) if prediction.matched else f"none: {row['reason']}"
        sure = "" if row["confidence"] is None else f"{row['confidence']:.2f}"
        rows.append((row["phrase"], _score(row["score"]), sure, share, place, f"{row['segment_ms']:.0f}"))
    columns = (
        Column("phrase", wrap=True),
        *numeric("score", "confidence", "area"),
        Column("box", wrap=True),
        *numeric("ms", optional=1),
    )
    return Table(columns=columns, rows=rows, footnotes=footnotes)


def demo_table(report: DemoReport) -> Table:
    """Lay out one row per sample scene."""
    rows = []
    for shown in report.scenes:
        row = shown.to_json()
        parts = row["scores"] or {}
        rows.append(
            (
                row["phrase"],
                Cell(f"{row['iou']:.3f}", "plain" if row["iou"] >= WRONG_BELOW else "bad"),
                _score(row["score"]),
                *(_score(parts.get(name)) for name in ("hard", "soft", "generative", "place")),
                f"{row['encode_ms'] + row['segment_ms']:.0f}",
            )
        )
    columns = (
        *(Column("phrase", wrap=True), *numeric("IoU", "score")),
        *(*numeric("hard", "soft", "gen", "place", optional=2), *numeric("ms", optional=1)),
    )
    first = report.scenes[0].to_json()
    wrong = sum(each.iou < WRONG_BELOW for each in report.scenes)
    model = first["model"] if first["model"] in MINIATURES else MINIATURE_NAME
    found = f"mean IoU {report.miou:.3f}; {wrong} of {len(rows)} wrong (IoU below {WRONG_BELOW:g})"
    notes = [
        f"{first['model']}: {found}",
        f"sheet of all scenes: {report.sheet}",
        "next:",
        f'  refdiff segment {model} {first["image"]} "{first["phrase"]}" -o mask.png',
        f'  refdiff segment {model} {Path(first["image"]).parent} "the mug" "the ball" -o answers',
    ]
    return Table(columns=columns, rows=rows, footnotes=notes)


def _box(document: Mapping[str, Any]) -> str:
    left, top, right, bottom = document["box_xyxy_px"]
    return f"x {left} .. {right}   y {top} .. {bottom}"


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
