"""A `CheckReport` as a page to read: the verdict first, then where it comes from, then pictures.

The pictures of one case: the scene, then both answers and both attention maps, as small PNG files.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from refdiff.accuracy.tolerances import Verdict
from refdiff.contracts.manifest import refdiff_version
from refdiff.contracts.parity import Parity
from refdiff.contracts.results import Segmentation
from refdiff.reports import Cell, Figure, Page, Picture, Section, Table, render
from refdiff.runtime.overlay import heat_overlay, overlay
from refdiff.verification.divergence import Fault
from refdiff.verification.ladder import Ladder, Rung
from refdiff.verification.report import CheckReport
from refdiff.verification.task_agreement import ComparedSample


def page_of(report: CheckReport) -> str:
    """The report as one HTML page."""
    sections = [*_faults(report.ladder), _checked(report), _ladder(report.ladder), _task(report)]
    if report.worst:
        sections.append(_pictures(report))
    return render(
        Page(
            title=f"refdiff check: {report.model} in {report.precision}",
            passed=report.passed,
            verdict=_verdict(report),
            sections=tuple(sections),
        )
    )


def _verdict(report: CheckReport) -> str:
    if report.shortfall is not None:
        return f"{report.shortfall}."
    parts = [f"all {len(report.verdicts)} gates."]
    if report.ladder.first_failed is not None:
        parts.append("A more exact bundle it was compared with did not: see below.")
    if report.not_run is not None:
        parts.append("The comparison with the torch reference was not run.")
    return " ".join(parts)


def _checked(report: CheckReport) -> Section:
    lines = [
        f"{report.bundle}: model {report.model}, precision {report.precision}, run on {report.backend}, "
        f"by refdiff {refdiff_version()}."
    ]
    if report.ladder.judged.note is not None:
        lines.append(f"Half precision: {report.ladder.judged.note}.")
    lines += [
        f"Compared with {rung.bundle}: {rung.precision}, run on {rung.backend}."
        for rung in report.ladder.rungs[:-1]
    ]
    return Section(heading="What was checked", lines=tuple(lines))


def _faults(ladder: Ladder) -> list[Section]:
    failed = ladder.first_failed
    if failed is None:
        return []
    rung, step = failed
    lines = [f"First graph outside its tolerance: {step.graph} ({step.output}) of the {rung.precision} rung."]
    if ladder.fault is None:
        lines.append(f"The node was not found: {ladder.fault_not_run}.")
        return [Section(heading="Where it breaks", lines=tuple(lines))]
    lines.append(f"{ladder.fault}.")
    table = _fault_table(ladder.fault)
    return [Section(heading="Where it breaks", lines=tuple(lines), tables=(table,))]


def _fault_table(fault: Fault) -> Table:
    node, difference = fault.result, fault.result.difference
    facts = [
        ("graph", fault.graph),
        ("node", f"{node.node} ({node.operator})"),
        ("tensor", f"{node.tensor} ({node.type})"),
        ("compared with", _compared_with(fault)),
        (
            "error",
            f"{difference.error:.3g} of its size (root mean square), allowed {fault.tolerance.error:g}",
        ),
        ("error of its inputs", f"{node.input_error:.3g}"),
    ]
    if difference.correlation is not None:
        least = fault.tolerance.correlation
        facts.append(("correlation", f"{difference.correlation:.6f}, expected {least:g} or more"))
    facts.append(("worst value", _beside(difference.value, difference.expected)))
    facts.append(("largest magnitude", _beside(difference.largest, difference.largest_expected)))
    facts.append(("NaN, Inf", f"{difference.nan}, {difference.inf} of {difference.size} values"))
    if not difference.is_finite:
        facts = [fact for fact in facts if fact[0] not in ("error", "correlation")]
    rows = tuple((Cell(text=name), Cell(text=value)) for name, value in facts)
    return Table(head=("what", "value"), rows=rows, wraps=True)


def _compared_with(fault: Fault) -> str:
    alone = "looked for NaN and infinity alone"
    if fault.compared_with is None:
        return f"nothing, {alone}"
    known = fault.result.difference.expected is not None
    return fault.compared_with if known else f"nothing, {fault.compared_with} has no such tensor: {alone}"


def _beside(got: float, expected: float | None) -> str:
    return f"{got:.6g}" if expected is None else f"{got:.6g}, expected {expected:.6g}"


def _ladder(ladder: Ladder) -> Section:
    with_feeds = any(step.feeds is not None for rung in ladder.rungs for step in rung.steps)
    lines = [
        "Every rung is fed the bundle's golden tensors. Errors are the largest difference from torch's "
        "recorded answer over that answer's range, and limits are those of each graph's own precision."
    ]
    if with_feeds:
        lines.append("On recorded feeds, errors are from the first rung: torch has not answered them.")
    first = ladder.rungs[0]
    return Section(
        heading="Parity ladder: torch → " + " → ".join(rung.precision for rung in ladder.rungs),
        lines=tuple(lines),
        tables=tuple(
            _rung(rung, first=rung is first, with_feeds=with_feeds and rung is not first)
            for rung in ladder.rungs
        ),
    )


def _rung(rung: Rung, *, first: bool, with_feeds: bool) -> Table:
    head = ["", "graph", "output", "error", "allowed", "correlation", "expected"]
    head += [] if first else ["from the rung before"]
    head += ["on recorded feeds"] if with_feeds else []
    rows = []
    for step in rung.steps:
        kept = "" if step.precision == rung.precision else f" ({step.precision})"
        rows.append(
            (
                _outcome(passed=step.passed),
                Cell(text=f"{step.graph}{kept}"),
                Cell(text=step.output),
                _number(f"{step.torch.error:.2e}"),
                _number(f"≤ {step.tolerance.error:g}"),
                _number(f"{step.torch.correlation:.6f}"),
                _number(f"≥ {step.tolerance.correlation:g}"),
                *(() if first else (_number(_error(step.before)),)),
                *((_number(_error(step.feeds)),) if with_feeds else ()),
            )
        )
    return Table(head=tuple(head), rows=tuple(rows), title=f"{rung.precision}, run on {rung.backend}")


def _task(report: CheckReport) -> Section:
    heading = "Torch reference, on the task"
    if report.not_run is not None:
        line = f"Not run: {report.not_run}. Noise floor and worst cases come from this comparison."
        return Section(heading=heading, lines=(line,))
    if report.unanswered is not None:
        return Section(heading=heading, lines=(f"The bundle does not answer {report.unanswered}.",))
    line = (
        f"{report.count} held-out scenes per variant, asked of the torch reference and of this bundle. The "
        "noise floor is how well the reference agrees with itself when the seed of its posterior draw and "
        "noise is another; it is no gate."
    )
    tables = tuple(
        Table(
            title=variant,
            head=("", "agreement", "value", "expected", "noise floor"),
            rows=tuple(
                _task_row(verdict, report.noise_floor.get(variant, {}).get(verdict.name))
                for verdict in verdicts
            ),
        )
        for variant, verdicts in report.reference.items()
    )
    return Section(heading=heading, lines=(line,), tables=tables)


def _task_row(verdict: Verdict, floor: float | None) -> tuple[Cell, ...]:
    return (
        _outcome(passed=verdict.passed),
        Cell(text=verdict.name.replace("_", " ").replace("iou", "IoU")),
        _number(f"{verdict.value:.4f}"),
        _number(f"{'≥' if verdict.bound == 'at_least' else '≤'} {verdict.limit:g}"),
        _number("–" if floor is None else f"{floor:.4f}"),
    )


def _pictures(report: CheckReport) -> Section:
    return Section(
        heading="Worst cases",
        lines=(_differing(report),),
        figures=tuple(figure_of(case, report.precision) for case in report.worst),
    )


def _differing(report: CheckReport) -> str:
    if all(case.agreement.mask_iou == 1 for case in report.worst):
        return "Reference and bundle give the same mask on every scene; below, where attention differs most."
    return "Least mask IoU first; where masks are the same, the largest difference in attention."


def _error(parity: Parity | None) -> str:
    return "–" if parity is None else f"{parity.error:.2e}"


def _number(text: str) -> Cell:
    return Cell(text=text, numeric=True)


def _outcome(*, passed: bool) -> Cell:
    return Cell(text="ok" if passed else "FAILED", tone="good" if passed else "bad")


LONGEST_PX = 360
"""Of a picture's sides: four cases stay within a megabyte or two."""

_COLOURS = 256


def figure_of(case: ComparedSample, precision: str) -> Figure:
    """The case, its answers side by side.

    Args:
        case: what was asked and answered.
        precision: of the bundle, for the captions.
    """
    ours, image = f"{precision} bundle", case.sample.read()
    pictures = [Picture(png=_png(image), caption="scene")]
    for who, result in (("reference", case.reference), (ours, case.runtime)):
        pictures.append(Picture(png=_png(_answer(image, result)), caption=f"{who}: {_said(result)}"))
    for who, result in (("reference", case.reference), (ours, case.runtime)):
        if result.heat is not None:
            picture = heat_overlay(image, result.heat)
            pictures.append(Picture(png=_png(picture), caption=f"{who}: attention"))
    return Figure(title=f"“{case.reference.phrase}”", line=_numbers(case), pictures=tuple(pictures))


def _numbers(case: ComparedSample) -> str:
    agreement = case.agreement
    facts = [
        f"{case.variant}, {case.sample.id}",
        f"mask IoU {agreement.mask_iou:.3f}",
        f"candidates found {agreement.candidate_recall:.0%}",
    ]
    if agreement.heat_correlation is not None:
        facts.append(f"attention correlates {agreement.heat_correlation:.5f}")
    if case.heat_difference is not None:
        facts.append(f"attention differs by {case.heat_difference:.3f} of 1 at most")
    return " · ".join(facts)


def _said(result: Segmentation) -> str:
    return "no match" if result.index is None else f"score {result.score:.4f}"


def _answer(image: NDArray[np.uint8], result: Segmentation) -> NDArray[np.uint8]:
    """The overlay without the strip below it: the caption says what is on it."""
    painted = overlay(image, result)
    return painted[: round(image.shape[0] * painted.shape[1] / image.shape[1])]


def _png(picture: NDArray[np.uint8]) -> bytes:
    image = Image.fromarray(picture)
    image.thumbnail((LONGEST_PX, LONGEST_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.quantize(_COLOURS).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
