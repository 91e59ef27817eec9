"""The parity ladder: a bundle and its more exact siblings run on the same recorded tensors, graph by graph.

In: the bundles of one model and a back-end. Out: a `Ladder` that says how close each output of each bundle
comes to torch, and at which node the first failing graph diverges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from refdiff.accuracy.tolerances import GraphTolerance, exactness, graph_tolerance
from refdiff.calibration.calibrate import evenly_spread_records
from refdiff.contracts.bundle import Bundle
from refdiff.contracts.graphs import GRAPHS, graph_contract
from refdiff.contracts.inspection import MINIATURES, find_bundle
from refdiff.contracts.parity import Parity, measure_parity, select_recorded
from refdiff.contracts.progress import Progress
from refdiff.contracts.session import Array
from refdiff.engines.factory import BackendSessions, open_sessions
from refdiff.errors import BundleError, InputError, MissingDependencyError
from refdiff.verification.divergence import Cause, Divergence, NodeResult
from refdiff.verification.localize import find_first_divergence
from refdiff.verification.report import Ladder, OutputParity, PrecisionResult

if TYPE_CHECKING:
    from refdiff.calibration.feeds import FeedStore
    from refdiff.contracts.bundle import GoldenTensors

EXACT = "fp32"

ROUNDED = "ort-rounded"

MOST_RECORDS = 16
"""Recorded feeds of one graph that are replayed, evenly spread over all there are."""

Tensors = Mapping[str, Array]

Search = Callable[[Path, "Path | None", Tensors, GraphTolerance], "tuple[Cause, NodeResult] | None"]
"""As `find_first_divergence`."""


@dataclass(frozen=True, kw_only=True)
class BackendRun:
    """A bundle and the back-end that runs it."""

    bundle: Bundle
    backend: str
    reason: str
    """Reason why this back-end was chosen."""
    note: str | None
    """Way in which half precision is executed; None where there is none."""

    @property
    def precision(self) -> str:
        """The bundle's precision."""
        return self.bundle.manifest.precision


def plan_runs(
    bundle: Bundle,
    against: Sequence[Path | str],
    backend: str,
    *,
    find_built_in: Callable[[str], Bundle] = find_bundle,
) -> tuple[BackendRun, ...]:
    """Choose the bundles of a ladder and their back-ends, the most exact first, the judged one last.

    Args:
        bundle: the one that is judged.
        against: more exact bundles of the same model. For a bundle of the miniature, the built-in one in fp32
            is added.
        backend: one of `refdiff.engines.factory.BACKENDS`; "auto" without a GPU executes half precision with
            every result rounded, where that can be done.
        find_built_in: opens the built-in bundle of this name.

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
        siblings = [*_built_in(bundle, find_built_in), *siblings]
    return tuple(plan_run(each, backend) for each in (*siblings, bundle))


def plan_run(
    bundle: Bundle, backend: str, *, open_sessions: Callable[..., BackendSessions] = open_sessions
) -> BackendRun:
    """Choose how a bundle is run if this back-end was requested; no graph is loaded."""
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
    return BackendRun(bundle=bundle, backend=chosen, reason=reason, note=note)


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


def _built_in(bundle: Bundle, find_built_in: Callable[[str], Bundle]) -> list[Bundle]:
    """Return the built-in bundle of the same model, if there is one and it is installed."""
    if bundle.spec.name not in MINIATURES:
        return []
    try:
        built_in = find_built_in(bundle.spec.name)
    except BundleError:
        return []
    return [built_in] if _same_model(built_in, bundle) else []


@dataclass(frozen=True, kw_only=True)
class _GraphResult:
    """One graph of one bundle."""

    outputs: tuple[OutputParity, ...]
    worst_record: Tensors | None
    """The recorded feeds on which it is furthest from the first bundle; None without recorded feeds."""


def compare_precisions(
    runs: Sequence[BackendRun],
    feeds: FeedStore | None,
    *,
    threads: int | None,
    progress: Progress,
    search: Search = find_first_divergence,
) -> Ladder:
    """Measure every graph of every bundle, and find the node at which the first failing graph diverges.

    Args:
        runs: the most exact first; the golden tensors are the last one's.
        feeds: a recording of the same model, replayed as well as the golden feeds; None leaves that out.
        threads: as in `load`.
        progress: called with one line at each step.
        search: finds the node at which a graph diverges.

    Raises:
        BundleError: a graph or its golden record is missing.
        InputError: a recorded array is damaged, or a precision without gates.
        EngineError: a graph failed to load or run.
    """
    golden = runs[-1].bundle.golden()
    _check_complete(runs, golden)
    compared: dict[str, list[_GraphResult]] = {}
    for name in GRAPHS:
        progress(f"replaying {name}")
        records = [] if feeds is None else evenly_spread_records(feeds, name, MOST_RECORDS)
        compared[name] = _compare_graph(runs, name, golden, records, threads)
    results = tuple(
        PrecisionResult(
            bundle=str(run.bundle.path),
            precision=run.precision,
            backend=run.backend,
            note=run.note,
            outputs=tuple(output for each in compared.values() for output in each[number].outputs),
        )
        for number, run in enumerate(runs)
    )
    return _with_divergence(Ladder(results=results), runs, golden, compared, progress, search)


def _check_complete(runs: Sequence[BackendRun], golden: GoldenTensors) -> None:
    judged = runs[-1].bundle
    for name, graph in graph_contract(judged.spec).items():
        for run in runs:
            run.bundle.graph_path(name)
        feeds, outputs = golden.get(name, ({}, {}))
        if set(feeds) != set(graph.input_names) or set(outputs) != set(graph.output_names):
            raise BundleError(f"{judged.path}: the golden record of graph {name} is missing; export again")


def _compare_graph(
    runs: Sequence[BackendRun],
    name: str,
    golden: GoldenTensors,
    records: Sequence[Tensors],
    threads: int | None,
) -> list[_GraphResult]:
    feeds, expected = golden[name]
    compared: list[_GraphResult] = []
    before: Tensors | None = None
    first: Sequence[Tensors] = ()
    for run in runs:
        results, *on_records = _run_graph(run, name, [feeds, *records], threads)
        kept = {key: select_recorded(results[key], record) for key, record in expected.items()}
        precision = run.bundle.manifest.graphs[name].precision
        first = first or on_records
        parities = [] if before is None else _parities(on_records, first)
        outputs = tuple(
            OutputParity(
                graph=name,
                output=key,
                precision=precision,
                torch=measure_parity(kept[key], record),
                before=None if before is None else measure_parity(kept[key], before[key]),
                feeds=reduce(Parity.worse, (each[key] for each in parities)) if parities else None,
                tolerance=graph_tolerance(precision, name),
            )
            for key, record in expected.items()
        )
        compared.append(_GraphResult(outputs=outputs, worst_record=_worst_record(parities, records)))
        before = kept
    return compared


def _run_graph(
    run: BackendRun, name: str, feeds: Sequence[Tensors], threads: int | None
) -> list[dict[str, Array]]:
    """Return the graph's outputs for each feed; it is loaded for this alone."""
    sessions = open_sessions(run.bundle, backend=run.backend, threads=threads)
    try:
        session = sessions.open(name)
        return [session.run(each) for each in feeds]
    finally:
        sessions.close()


def _parities(got: Sequence[Tensors], exact: Sequence[Tensors]) -> list[dict[str, Parity]]:
    """Return, record by record, how far each output is from the first bundle's."""
    return [
        {key: measure_parity(values, other[key]) for key, values in one.items()}
        for one, other in zip(got, exact, strict=True)
    ]


def _worst_record(parities: Sequence[Mapping[str, Parity]], records: Sequence[Tensors]) -> Tensors | None:
    errors = [max(each.error for each in outputs.values()) for outputs in parities]
    return records[errors.index(max(errors))] if errors else None


def _with_divergence(
    ladder: Ladder,
    runs: Sequence[BackendRun],
    golden: GoldenTensors,
    compared: Mapping[str, Sequence[_GraphResult]],
    progress: Progress,
    search: Search,
) -> Ladder:
    """Add the node at which the first failing graph diverges."""
    failed = ladder.first_failed
    if failed is None:
        return ladder
    result, output = failed
    number = ladder.results.index(result)
    progress(f"{result.precision} {output.graph} is outside its tolerance: looking for the node")
    record = compared[output.graph][number].worst_record
    feeds = record if output.golden_passed and record is not None else golden[output.graph][0]
    exact = runs[0] if number else None
    try:
        found = search(
            runs[number].bundle.graph_path(output.graph),
            None if exact is None else exact.bundle.graph_path(output.graph),
            feeds,
            output.tolerance,
        )
    except MissingDependencyError as error:
        return replace(ladder, divergence_not_found=str(error))
    if found is None:
        return replace(ladder, divergence_not_found=_nothing_found(exact))
    cause, node = found
    divergence = Divergence(
        precision=result.precision,
        graph=output.graph,
        compared_with=None if exact is None else exact.precision,
        cause=cause,
        result=node,
        tolerance=output.tolerance,
    )
    return replace(ladder, divergence=divergence)


def _nothing_found(exact: BackendRun | None) -> str:
    if exact is None:
        return (
            "all its tensors are finite, and there is no more exact bundle to compare them with (--against)"
        )
    return f"its inner tensors are those of the {exact.precision} bundle when they are run on this CPU"
