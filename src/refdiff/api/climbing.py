"""Running the parity ladder: every graph of every rung on the same recorded tensors, one graph at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING

from refdiff.accuracy.faults import Fault
from refdiff.accuracy.gates import graph_tolerance
from refdiff.accuracy.ladder import Ladder, Rung, Step
from refdiff.api.calibrating import thinned_records
from refdiff.api.fault_search import find_fault
from refdiff.api.progress import Progress
from refdiff.api.rungs import Execution
from refdiff.contracts.closeness import Parity, parity, recorded_part
from refdiff.contracts.graphs import GRAPHS, graph_contract
from refdiff.contracts.session import Array
from refdiff.engines.factory import open_sessions
from refdiff.errors import BundleError, MissingDependencyError

if TYPE_CHECKING:
    from refdiff.calibration.feeds import FeedStore
    from refdiff.contracts.bundle import GoldenTensors

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
        kept = {key: recorded_part(results[key], record) for key, record in expected.items()}
        precision = rung.bundle.manifest.graphs[name].precision
        first = first or on_records
        apart = [] if before is None else _apart(on_records, first)
        steps = tuple(
            Step(
                graph=name,
                output=key,
                precision=precision,
                torch=parity(kept[key], record),
                before=None if before is None else parity(kept[key], before[key]),
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
        {key: parity(values, other[key]) for key, values in one.items()}
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
