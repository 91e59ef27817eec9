"""A `CheckReport` laid out: what failed and where, the parity ladder, the golden answer and the task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from refdiff.accuracy.tolerances import MOST_SAMPLES, Verdict
from refdiff.contracts.manifest import refdiff_version
from refdiff.contracts.parity import Parity
from refdiff.reports.page import Page, Section
from refdiff.reports.table import Column, Row, Table, facts_table, numeric, outcome
from refdiff.verification.divergence import Divergence
from refdiff.verification.report import CheckReport, Ladder, PrecisionResult
from refdiff.verification.worst_cases import worst_cases_section


def check_page(report: CheckReport) -> Page:
    """Lay out a whole check."""
    failures = [*_failed_gates(report), *_divergence(report.ladder)]
    failures += _undecided_gates(report)
    sections = [*failures, _checked(report), _ladder(report.ladder), _golden_answer(report), _task(report)]
    if report.task.worst:
        sections.append(worst_cases_section(report.task.worst, report.precision))
    return Page(
        title=f"refdiff check: {report.model} in {report.precision}",
        passed=report.passed,
        verdict=_verdict(report),
        sections=sections,
        undecided=report.outcome == "undecided",
    )


def _verdict(report: CheckReport) -> str:
    every = len(report.verdicts)
    failed, few = (len(report.with_outcome(each)) for each in ("failed", "undecided"))
    parts = []
    if failed or not few:
        parts.append(f"{failed} of {every} gates." if failed else f"all {every} gates.")
    if few:
        parts.append(f"{few} of {every} gates have too few samples to judge.")
    if report.task.unanswered is not None:
        parts = [*parts[:failed], f"The bundle does not answer {report.task.unanswered}."]
    if report.outcome == "failed":
        return " ".join(parts)
    if report.ladder.first_failed is not None:
        parts.append("A more exact bundle it was compared with did not.")
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
        f"Compared with {result.bundle}: {result.precision}, run on {result.backend}."
        for result in report.ladder.results[:-1]
    ]
    # what a caution asks for by naming this command is on the rest of the page
    lines += [f"Caution: {caution}." for caution in report.cautions if "refdiff check" not in caution]
    return Section(heading="What was checked", lines=lines)


def _undecided_gates(report: CheckReport) -> list[Section]:
    if report.undecided is None:
        return []
    line = f"{report.undecided[:1].upper()}{report.undecided[1:]}."
    return [Section(heading="Too few samples to judge", lines=(line,))]


def _failed_gates(report: CheckReport) -> list[Section]:
    failed = report.with_outcome("failed")
    if not failed:
        return []
    rows = [(each.name, f"{each.value:.4g}", _limit(each)) for each in failed]
    table = Table(columns=(Column("gate", wrap=True), *numeric("value", "limit")), rows=rows)
    return [Section(heading="Failed gates", tables=(table,))]


def _divergence(ladder: Ladder) -> list[Section]:
    failed = ladder.first_failed
    if failed is None:
        return []
    result, output = failed
    lines = [f"First graph outside its tolerance: {output.graph} ({output.output}) in {result.bundle}"]
    if ladder.divergence is None:
        lines.append(f"NOT RUN: naming the node: {ladder.divergence_not_found}")
        return [Section(heading="Where it breaks", lines=lines)]
    lines.append(f"First divergence: {ladder.divergence}")
    table = _divergence_table(ladder.divergence)
    return [Section(heading="Where it breaks", lines=lines, tables=(table,))]


def _divergence_table(divergence: Divergence) -> Table:
    node, difference = divergence.result, divergence.result.difference
    facts = [
        ("graph", divergence.graph),
        ("node", f"{node.node} ({node.operator})"),
        ("tensor", f"{node.tensor} ({node.type})"),
        ("compared with", _compared_with(divergence)),
        ("error of its inputs", f"{node.input_error:.3g}"),
        ("worst value", _with_expected(difference.value, difference.expected)),
        ("largest magnitude", _with_expected(difference.largest, difference.largest_expected)),
        ("NaN, Inf", f"{difference.nan}, {difference.inf} of {difference.size} values"),
    ]
    if difference.is_finite:
        limit = f"allowed {divergence.tolerance.error:g}"
        facts.append(("error", f"{difference.error:.3g} of its size (root mean square), {limit}"))
    if difference.is_finite and difference.correlation is not None:
        least = divergence.tolerance.correlation
        facts.append(("correlation", f"{difference.correlation:.6f}, expected {least:g} or more"))
    return facts_table(facts)


def _compared_with(divergence: Divergence) -> str:
    alone = "looked for NaN and infinity alone"
    if divergence.compared_with is None:
        return f"nothing, {alone}"
    known = divergence.result.difference.expected is not None
    return (
        divergence.compared_with
        if known
        else f"nothing, {divergence.compared_with} has no such tensor: {alone}"
    )


def _with_expected(got: float, expected: float | None) -> str:
    return f"{got:.6g}" if expected is None else f"{got:.6g}, expected {expected:.6g}"


def _ladder(ladder: Ladder) -> Section:
    with_feeds = any(output.feeds is not None for result in ladder.results for output in result.outputs)
    explanation = (
        "Every bundle is fed the judged bundle's golden tensors. Errors are the largest difference from "
        "torch's recorded answer over that answer's range; limits are those of each graph's own precision."
    )
    if with_feeds:
        explanation += " On recorded feeds, errors are from the first bundle: torch has not answered them."
    first = ladder.results[0]
    return Section(
        heading="Parity ladder: torch → " + " → ".join(result.precision for result in ladder.results),
        explanation=explanation,
        tables=[
            _precision_table(result, first=result is first, with_feeds=with_feeds and result is not first)
            for result in ladder.results
        ],
    )


def _precision_table(result: PrecisionResult, *, first: bool, with_feeds: bool) -> Table:
    columns = (
        *(Column("graph", grouped=True), Column("output")),
        *(*numeric("error", "limit"), *numeric("correlation", "limit", optional=1)),
        *(() if first else numeric("from the one before", optional=2)),
        *(numeric("on feeds", optional=3) if with_feeds else ()),
        Column(),
    )
    rows: list[Row] = []
    for output in result.outputs:
        kept = "" if output.precision == result.precision else f" ({output.precision})"
        rows.append(
            (
                f"{output.graph}{kept}",
                output.output,
                f"{output.torch.error:.3g}",
                f"≤ {output.tolerance.error:g}",
                f"{output.torch.correlation:.6f}",
                f"≥ {output.tolerance.correlation:g}",
                *(() if first else (_error(output.before),)),
                *((_error(output.feeds),) if with_feeds else ()),
                outcome(passed=output.passed),
            )
        )
    return Table(columns=columns, rows=rows, title=f"{result.precision}, run on {result.backend}")


def _golden_answer(report: CheckReport) -> Section:
    explanation = (
        "The image and the phrase recorded in the bundle, answered again: the code between the graphs, "
        "which is tokenizer, resizing, crops and scores."
    )
    rows = [
        (_term(each), f"{each.value:.4g}", _limit(each), outcome(passed=each.passed))
        for each in report.answer
    ]
    table = Table(columns=(Column("gate"), *numeric("value", "limit"), Column()), rows=rows)
    return Section(heading="Golden answer", explanation=explanation, tables=(table,))


def _task(report: CheckReport) -> Section:
    heading = "Torch reference, on the task"
    if report.not_run is not None:
        line = f"NOT RUN: {report.not_run}. Noise floor and worst cases come from this comparison."
        return Section(heading=heading, lines=(line,))
    if report.task.unanswered is not None:
        return Section(heading=heading, lines=(f"The bundle does not answer {report.task.unanswered}.",))
    explanation = (
        f"{report.task.count} held-out scenes per variant, segmented by the torch reference and by this "
        "bundle. A value is the mean over the scenes; the interval holds the mean over all possible scenes "
        "with 95 % confidence. A value that misses its limit has failed if the whole interval misses it. "
        "Otherwise there are too few scenes to judge, and “to decide” says how many would do if more of them "
        "are like these. The seed is that of the posterior draw and of the noise."
    )
    tables = [
        _agreement(
            f"{variant}, {report.task.count} scenes", verdicts, report.task.noise_floor.get(variant, {})
        )
        for variant, verdicts in report.task.verdicts.items()
    ]
    line = "Noise floor: the reference's agreement with itself under another seed; it is not a gate."
    return Section(heading=heading, lines=(line,), explanation=explanation, tables=tables)


def _agreement(title: str, verdicts: Sequence[Verdict], floor: Mapping[str, float]) -> Table:
    rows = [
        (
            _term(verdict),
            f"{verdict.value:.4f}",
            _limit(verdict),
            *_sampling(verdict),
            f"{floor[verdict.name]:.4f}" if verdict.name in floor else "–",
            outcome(passed=None if verdict.outcome == "undecided" else verdict.passed),
        )
        for verdict in verdicts
    ]
    columns = (
        Column("agreement"),
        *numeric("value", "limit"),
        *numeric("95 % interval", optional=1),
        *numeric("samples", optional=3),
        *numeric("to decide", optional=2),
        *numeric("noise floor", optional=4),
        Column(),
    )
    return Table(columns=columns, rows=rows, title=title)


def _sampling(verdict: Verdict) -> tuple[str, str, str]:
    """Return interval, samples, and the samples that would decide."""
    sampling = verdict.sampling
    if sampling is None:
        return "–", "–", "–"
    low, high = sampling.interval
    needed = f"> {MOST_SAMPLES}" if sampling.needed is None else str(sampling.needed)
    return (
        f"{low:.3f}-{high:.3f}",
        str(len(sampling.values)),
        needed if verdict.outcome == "undecided" else "–",
    )


def _term(verdict: Verdict) -> str:
    """Return the name of the gate as docs/output.md has it."""
    return verdict.name.removeprefix("golden answer ").replace("_", " ").replace("iou", "IoU")


def _limit(verdict: Verdict) -> str:
    return f"{'≥' if verdict.bound == 'at_least' else '≤'} {verdict.limit:g}"


def _error(parity: Parity | None) -> str:
    return "–" if parity is None else f"{parity.error:.3g}"
