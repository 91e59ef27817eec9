"""Which bundles make a ladder, and how each is executed.

Running the parity ladder: every graph of every rung on the same recorded tensors, one graph at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from refdiff.accuracy.tolerances import exactness, graph_tolerance
from refdiff.calibration.calibrate import thinned_records
from refdiff.contracts.bundle import Bundle
from refdiff.contracts.graphs import GRAPHS, graph_contract
from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.parity import Parity, measure_parity, select_recorded
from refdiff.contracts.progress import Progress
from refdiff.contracts.session import Array
from refdiff.engines.factory import open_sessions
from refdiff.errors import BundleError, InputError, MissingDependencyError
from refdiff.models.choice import MINIATURE
from refdiff.verification.divergence import Fault
from refdiff.verification.ladder import Ladder, Rung, Step
from refdiff.verification.localize import find_fault

if TYPE_CHECKING:
    from refdiff.calibration.feeds import FeedStore
    from refdiff.contracts.bundle import GoldenTensors

EXACT = "fp32"

ROUNDED = "ort-rounded"


@dataclass(frozen=True, kw_only=True)
class Execution:
    """A bundle and the back-end that runs it."""

    bundle: Bundle
    backend: str
    reason: str
    """Why this back-end."""
    note: str | None
    """How half precision is executed; None where there is none."""

    @property
    def precision(self) -> str:
        """The bundle's."""
        return self.bundle.manifest.precision


def executions(bundle: Bundle, against: Sequence[Path | str], backend: str) -> tuple[Execution, ...]:
    """The bundles of a ladder, the most exact first, the judged one last.

    Args:
        bundle: the one that is judged.
        against: more exact bundles of the same model. For a bundle of the miniature the built-in one in fp32
            need not be named.
        backend: one of `refdiff.engines.factory.BACKENDS`; "auto" without a GPU executes half precision with
            every result rounded, where that can be done.

    Raises:
        BundleError: a bundle is missing or damaged.
        InputError: a bundle of another model, one that is not more exact, two of one precision, or an unknown
            back-end.
        MissingDependencyError: the back-end's package is not installed.
    """
    siblings = [find_bundle(each) for each in against]
    for each in siblings:
        _check_sibling(each, bundle)
    siblings.sort(key=_exactness)
    for one, other in pairwise(siblings):
        if one.manifest.precision == other.manifest.precision:
            raise InputError(
                f"{one.path} and {other.path} are both in {one.manifest.precision}, expected one bundle for "
                "each precision; leave one out"
            )
    if all(each.manifest.precision != EXACT for each in (bundle, *siblings)):
        siblings = [*_built_in(bundle), *siblings]
    return tuple(execution(each, backend) for each in (*siblings, bundle))


def execution(bundle: Bundle, backend: str) -> Execution:
    """How a bundle is run when this back-end was asked for; no graph is loaded."""
    sessions = open_sessions(bundle, backend=backend)
    chosen, reason = sessions.backend, sessions.reason
    halves = any(graph.precision != EXACT for graph in bundle.manifest.graphs.values())
    note: str | None = None
    if halves and backend == "auto" and chosen == "ort-cpu":
        try:
            chosen = open_sessions(bundle, backend=ROUNDED).backend
            reason = f"{reason}; the bundle holds half precision, which only {ROUNDED} executes on a CPU"
        except MissingDependencyError as error:
            note = f"computed in float32, not as a device will: {error}"
    if halves and chosen == ROUNDED:
        note = "every half-precision result rounded, as a device does; this CPU's kernels would not"
    elif halves and chosen == "ort-cpu" and note is None:
        note = f"this CPU's kernels compute half precision in float32; --backend {ROUNDED} executes it"
    return Execution(bundle=bundle, backend=chosen, reason=reason, note=note)


def _check_sibling(sibling: Bundle, bundle: Bundle) -> None:
    if not _same_model(sibling, bundle):
        theirs, ours = sibling.spec.name, bundle.spec.name
        raise InputError(
            f"{sibling.path} is of {theirs}, {bundle.path} of "
            f"{ours if theirs != ours else f'{ours} with other weights or sizes'}; "
            "--against takes bundles that were exported from the same weights"
        )
    if _exactness(sibling) >= _exactness(bundle):
        raise InputError(
            f"{sibling.path} is in {sibling.manifest.precision}, {bundle.path} in "
            f"{bundle.manifest.precision}; --against takes more exact bundles than the one that is checked"
        )


def _same_model(one: Bundle, other: Bundle) -> bool:
    return dict(one.manifest.sources) == dict(other.manifest.sources) and one.spec == other.spec


def _exactness(bundle: Bundle) -> int:
    return exactness(bundle.manifest.precision)


def _built_in(bundle: Bundle) -> list[Bundle]:
    """The built-in bundle, if it is the same model and is installed."""
    if bundle.spec.name != MINIATURE:
        return []
    try:
        built_in = find_bundle("mini")
    except BundleError:
        return []
    return [built_in] if _same_model(built_in, bundle) else []


MOST_RECORDS = 16
"""Recorded feeds of one graph that are replayed, evenly spread over all there are."""

Tensors = Mapping[str, Array]


@dataclass(frozen=True, kw_only=True)
class _Climbed:
    """One graph on one rung."""

    steps: tuple[Step, ...]
    worst_record: Tensors | None
    """The recorded feeds on which it is furthest from the first rung."""


def climb(
    rungs: Sequence[Execution], feeds: FeedStore | None, *, threads: int | None, progress: Progress
) -> Ladder:
    """Measure every graph of every rung, and look for the node at which the first failing one breaks.

    Args:
        rungs: the most exact first; the golden tensors are the last one's.
        feeds: a recording of the same model, replayed beside the golden feeds; None leaves that out.
        threads: as in `load`.
        progress: told one line at each step.

    Raises:
        BundleError: a graph or its golden record is missing.
        InputError: a recorded array is damaged, or a precision without gates.
        EngineError: a graph failed to load or run.
    """
    golden = rungs[-1].bundle.golden()
    _check_complete(rungs, golden)
    climbed: dict[str, list[_Climbed]] = {}
    for name in GRAPHS:
        progress(f"replaying {name}")
        records = [] if feeds is None else thinned_records(feeds, name, MOST_RECORDS)
        climbed[name] = _climb_graph(rungs, name, golden, records, threads)
    ladder = Ladder(
        rungs=tuple(
            Rung(
                bundle=str(rung.bundle.path),
                precision=rung.precision,
                backend=rung.backend,
                note=rung.note,
                steps=tuple(step for each in climbed.values() for step in each[number].steps),
            )
            for number, rung in enumerate(rungs)
        )
    )
    return _explained(ladder, rungs, golden, climbed, progress)


def _check_complete(rungs: Sequence[Execution], golden: GoldenTensors) -> None:
    judged = rungs[-1].bundle
    for name, graph in graph_contract(judged.spec).items():
        for rung in rungs:
            rung.bundle.graph_path(name)
        feeds, outputs = golden.get(name, ({}, {}))
        if set(feeds) != set(graph.input_names) or set(outputs) != set(graph.output_names):
            raise BundleError(f"{judged.path}: the golden record of graph {name} is missing; export again")


def _climb_graph(
    rungs: Sequence[Execution],
    name: str,
    golden: GoldenTensors,
    records: Sequence[Tensors],
    threads: int | None,
) -> list[_Climbed]:
    feeds, expected = golden[name]
    climbed: list[_Climbed] = []
    before: Tensors | None = None
    first: Sequence[Tensors] = ()
    for rung in rungs:
        results, *on_records = _run(rung, name, [feeds, *records], threads)
        kept = {key: select_recorded(results[key], record) for key, record in expected.items()}
        precision = rung.bundle.manifest.graphs[name].precision
        first = first or on_records
        apart = [] if before is None else _apart(on_records, first)
        steps = tuple(
            Step(
                graph=name,
                output=key,
                precision=precision,
                torch=measure_parity(kept[key], record),
                before=None if before is None else measure_parity(kept[key], before[key]),
                feeds=_worst([each[key] for each in apart]),
                tolerance=graph_tolerance(precision, name),
            )
            for key, record in expected.items()
        )
        climbed.append(_Climbed(steps=steps, worst_record=_worst_record(apart, records)))
        before = kept
    return climbed


def _run(rung: Execution, name: str, runs: Sequence[Tensors], threads: int | None) -> list[dict[str, Array]]:
    """The graph's outputs, run by run; it is loaded for this alone."""
    sessions = open_sessions(rung.bundle, backend=rung.backend, threads=threads)
    try:
        session = sessions.open(name)
        return [session.run(feeds) for feeds in runs]
    finally:
        sessions.close()


def _apart(got: Sequence[Tensors], exact: Sequence[Tensors]) -> list[dict[str, Parity]]:
    """Record by record, how far each output is from the first rung's."""
    return [
        {key: measure_parity(values, other[key]) for key, values in one.items()}
        for one, other in zip(got, exact, strict=True)
    ]


def _worst(measured: Sequence[Parity]) -> Parity | None:
    return reduce(Parity.worse, measured) if measured else None


def _worst_record(apart: Sequence[Mapping[str, Parity]], records: Sequence[Tensors]) -> Tensors | None:
    errors = [max(each.error for each in outputs.values()) for outputs in apart]
    return records[errors.index(max(errors))] if errors else None


def _explained(
    ladder: Ladder,
    rungs: Sequence[Execution],
    golden: GoldenTensors,
    climbed: Mapping[str, Sequence[_Climbed]],
    progress: Progress,
) -> Ladder:
    """The ladder, with the node at which the first failing graph breaks."""
    failed = ladder.first_failed
    if failed is None:
        return ladder
    rung, step = failed
    number = ladder.rungs.index(rung)
    progress(f"{rung.precision} {step.graph} is outside its tolerance: looking for the node")
    record = climbed[step.graph][number].worst_record
    feeds = record if step.golden_passed and record is not None else golden[step.graph][0]
    exact = rungs[0] if number else None
    try:
        found = find_fault(
            rungs[number].bundle.graph_path(step.graph),
            None if exact is None else exact.bundle.graph_path(step.graph),
            feeds,
            step.tolerance,
        )
    except MissingDependencyError as error:
        return replace(ladder, fault_not_run=str(error))
    if found is None:
        return replace(ladder, fault_not_run=_nothing_found(exact))
    cause, result = found
    fault = Fault(
        precision=rung.precision,
        graph=step.graph,
        compared_with=None if exact is None else exact.precision,
        cause=cause,
        result=result,
        tolerance=step.tolerance,
    )
    return replace(ladder, fault=fault)


def _nothing_found(exact: Execution | None) -> str:
    if exact is None:
        return (
            "all its tensors are finite, and there is no more exact bundle to compare them with (--against)"
        )
    return f"its inner tensors are those of the {exact.precision} bundle when they are run on this CPU"
