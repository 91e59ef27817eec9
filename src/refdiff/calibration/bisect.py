"""The verb `bisect`: find the smallest set of nodes that a broken graph needs in more bits, by trying.

Nodes that are kept exact are in fp32 in a half-precision recipe, and in half precision in an eight-bit one.

The shortest prefix of the graph's nodes that suffices ends in a node that is needed; what comes after it is
dropped, and the search goes on before it. That takes about needed x log2(nodes) trials. It holds for any
graph, since nothing is dropped untried. Whole modules are searched first, then the nodes of those that are
needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refdiff.accuracy.tolerances import graph_tolerance
from refdiff.calibration.audit import choose_graphs, starting_recipe
from refdiff.calibration.calibrate import evenly_spread_records, open_feeds
from refdiff.calibration.converted_bundle import check_source
from refdiff.contracts.bundle import Bundle
from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.optional import require_export
from refdiff.contracts.progress import Progress, silent
from refdiff.contracts.recipe import GraphRecipe, Recipe
from refdiff.contracts.session import Array
from refdiff.errors import BundleError, GateError, InputError

if TYPE_CHECKING:
    from refdiff.calibration.output_tolerance import Outcome, OutputTolerance
    from refdiff.calibration.simulation import Deviation


Inside = Callable[[frozenset[str]], bool]
"""Returns whether the graph is inside its tolerance with these nodes kept exact."""

Group = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SmallestSet:
    """The result of a search."""

    nodes: tuple[str, ...]
    """In the graph's order; with them the graph is inside."""
    minimal: bool
    """True if leaving out each node was tried; False if the budget ran out before."""
    trials: int


class SearchBudget:
    """Counts trials up to a limit, and never tries the same set twice.

    Args:
        inside: runs one trial.
        most: number of trials allowed.
    """

    def __init__(self, inside: Inside, *, most: int) -> None:
        self._inside = inside
        self._most = most
        self._known: dict[frozenset[str], bool] = {}

    @property
    def count(self) -> int:
        """Number of trials so far."""
        return len(self._known)

    def __call__(self, nodes: Iterable[str]) -> bool:
        """Return whether the graph is inside with these nodes kept exact.

        Raises:
            BudgetExhausted: no more trials are allowed.
        """
        kept = frozenset(nodes)
        if kept not in self._known:
            if self.count >= self._most:
                raise BudgetExhausted
            self._known[kept] = self._inside(kept)
        return self._known[kept]

    def smallest_inside(self, nodes: Sequence[str]) -> tuple[str, ...]:
        """Return a smallest of the sets that were inside, in the order of `nodes`; all nodes if none was."""
        sets = [kept for kept, inside in self._known.items() if inside]
        best = min(sets, key=len, default=frozenset(nodes))
        return tuple(node for node in nodes if node in best)


class BudgetExhausted(Exception):  # noqa: N818 - a signal inside this module, not an error
    """No more trials are allowed."""


def find_smallest(nodes: Sequence[str], budget: SearchBudget, *, guess: Sequence[str] = ()) -> SmallestSet:
    """Find a smallest set of nodes that must be kept exact.

    Args:
        nodes: all candidates, in the graph's order; keeping all exact is inside, keeping none is not.
        budget: runs the trials.
        guess: nodes that may suffice; if they do, only they are searched.

    Returns:
        The set. If the budget runs out, the smallest set that was inside.
    """
    try:
        found = _search_nodes(nodes, budget, guess)
        return SmallestSet(nodes=_prune(found, budget), minimal=True, trials=budget.count)
    except BudgetExhausted:
        return SmallestSet(nodes=budget.smallest_inside(nodes), minimal=False, trials=budget.count)


def _search_nodes(nodes: Sequence[str], budget: SearchBudget, guess: Sequence[str]) -> tuple[str, ...]:
    guessed = frozenset(guess)
    candidates = [node for node in nodes if node in guessed]
    if not (candidates and budget(candidates)):
        modules = _find_needed(_group_by_module(nodes), budget)
        kept = {node for module in modules for node in module}
        candidates = [node for node in nodes if node in kept]
    found = {node for (node,) in _find_needed([(node,) for node in candidates], budget)}
    return tuple(node for node in nodes if node in found)


def _find_needed(groups: Sequence[Group], budget: SearchBudget) -> list[Group]:
    """Return the groups that are needed; all groups together are inside."""
    needed, rest = list[Group](), list(groups)
    while rest and not budget(_flatten(needed)):
        end = _shortest_prefix(needed, rest, budget)
        needed.append(rest[end - 1])
        rest = rest[: end - 1]
    return needed


def _shortest_prefix(needed: Sequence[Group], rest: Sequence[Group], budget: SearchBudget) -> int:
    """Return the length of the shortest prefix of `rest` that suffices together with `needed`."""
    low, high = 1, len(rest)
    while low < high:
        middle = (low + high) // 2
        if budget(_flatten([*needed, *rest[:middle]])):
            high = middle
        else:
            low = middle + 1
    return high


def _prune(nodes: Sequence[str], budget: SearchBudget) -> tuple[str, ...]:
    """Leave out nodes one at a time while the graph stays inside: more nodes are not always better."""
    kept = list(nodes)
    while True:
        idle = next((node for node in kept if budget(set(kept) - {node})), None)
        if idle is None:
            return tuple(kept)
        kept.remove(idle)


def _group_by_module(nodes: Sequence[str]) -> list[Group]:
    """Group nodes by the module in their names, in the order of each module's first node."""
    groups = dict[str, list[str]]()
    for node in nodes:
        groups.setdefault(node.rpartition("/")[0] or node, []).append(node)
    return [tuple(group) for group in groups.values()]


def _flatten(groups: Iterable[Group]) -> Iterator[str]:
    return (node for group in groups for node in group)


PURPOSE = "the bisection"

MOST_TRIALS = 400
"""Enough for about twenty needed nodes among the thousand of a UNet."""

MOST_RECORDS = 8
"""Recorded feeds of each trial, in addition to the golden ones, evenly spread over all there are."""


@dataclass(frozen=True, kw_only=True)
class BisectReport:
    """The result of a bisection."""

    bundle: Path
    model: str
    graph: str
    precision: str
    """Precision of the recipe that was searched."""
    runs: int
    """Feeds of each trial."""
    error_at_most: float
    """The tolerance: error as a share of an output's range, compared with the fp32 graph."""
    correlation_at_least: float
    recipe: Recipe
    """The searched recipe, with a rule for the nodes that were found."""
    kept_in: str
    """The type that nodes are kept exact in."""
    broken: Outcome | None = None
    """The worst output with the recipe as it was; None if it was inside the tolerance: nothing to find."""
    first: Deviation | None = None
    """The first tensor that goes wrong; None if none does by itself."""
    nodes: tuple[str, ...] = ()
    """The nodes that have to be kept exact, in the graph's order; none if nothing was broken."""
    minimal: bool = True
    """True if no single node can be left out; False if the trials ran out before that was known."""
    trials: int = 1
    fixed: Outcome | None = None
    """The worst output with the nodes kept exact."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "bundle": str(self.bundle),
            "model": self.model,
            "graph": self.graph,
            "precision": self.precision,
            "runs": self.runs,
            "error_at_most": self.error_at_most,
            "correlation_at_least": self.correlation_at_least,
            "broken": None if self.broken is None else self.broken.to_json(),
            "first": None if self.first is None else self.first.to_json(),
            "nodes": list(self.nodes),
            "kept_in": self.kept_in,
            "minimal": self.minimal,
            "trials": self.trials,
            "fixed": None if self.fixed is None else self.fixed.to_json(),
        }


def bisect(
    bundle: Path | str,
    *,
    graph: str,
    recipe: Path | str | None = None,
    half: str = "fp16",
    feeds: Path | str | None = None,
    most_trials: int = MOST_TRIALS,
    progress: Progress | None = None,
) -> BisectReport:
    """Find a smallest set of nodes with which one graph is inside its tolerance, converted as a recipe says.

    Args:
        bundle: an fp32 bundle's folder, or "mini" for the built-in one.
        graph: the graph's name.
        recipe: the recipe that breaks the graph, `recipe.json` in a converted bundle; None: the built-in
            rules.
        half: "fp16" or "bf16", where no recipe is given.
        feeds: a recording of `calibrate`; None uses only the graph's golden record.
        most_trials: largest number of conversions to try.
        progress: receives one line per trial.

    Raises:
        BundleError: the bundle is missing or damaged.
        InputError: it is not in fp32, or an option, the recipe or the feeds cannot be used.
        GateError: the graph is outside its tolerance whatever is kept exact: it is broken in fp32.
        MissingDependencyError: onnx_ir or ONNX Runtime is not installed.
        EngineError: the graph cannot be run.
    """
    opened, progress = find_bundle(bundle), progress or silent
    check_source(opened)
    if most_trials < 1:
        raise InputError(f"got at most {most_trials} trials, expected 1 or more")
    before = starting_recipe(opened, recipe, half)
    (name,) = choose_graphs(before, (graph,))
    progress(f"{name}: running it in fp32")
    runs = _read_runs(opened, name, feeds)
    searched = before.graphs[name]
    tolerance = graph_tolerance(searched.precision, name)
    report = BisectReport(
        bundle=opened.path,
        model=opened.spec.name,
        graph=name,
        precision=searched.precision,
        runs=len(runs),
        error_at_most=tolerance.error,
        correlation_at_least=tolerance.correlation,
        recipe=before,
        kept_in="fp32" if searched.quantized is None else searched.half,
    )
    with require_export(PURPOSE):
        from refdiff.calibration.output_tolerance import OutputTolerance
    outputs = OutputTolerance(opened.graph_path(name), searched, runs, tolerance)
    worst = outputs.worst(())
    if worst.inside:
        return report
    if not outputs.inside(outputs.candidates):
        raise GateError(_unfixable_message(opened, name, searched, outputs))
    return _search(dataclasses.replace(report, broken=worst), outputs, worst, most_trials, progress)


def _read_runs(bundle: Bundle, name: str, feeds: Path | str | None) -> list[Mapping[str, Array]]:
    golden = bundle.golden()
    if name not in golden:
        raise BundleError(f"{bundle.path}: graph {name} has no golden record; export the bundle again")
    recorded = [] if feeds is None else evenly_spread_records(open_feeds(feeds, bundle), name, MOST_RECORDS)
    return [golden[name][0], *recorded]


def _search(
    report: BisectReport, outputs: OutputTolerance, worst: Outcome, most_trials: int, progress: Progress
) -> BisectReport:
    """Search a broken graph, and complete the report."""
    name, off = report.graph, f"{worst.output} is {worst.error:.2g} of its range off"
    progress(f"{name}: {off}; looking for the first tensor")
    guess, first = outputs.guess()
    budget = SearchBudget(_with_progress(outputs, progress), most=most_trials)
    found = find_smallest(outputs.candidates, budget, guess=guess)
    fixed = outputs.worst(found.nodes)
    because = f"without them {off} in {report.precision}"
    after = {**report.recipe.graphs, name: outputs.recipe(found.nodes, because=because)}
    return dataclasses.replace(
        report,
        first=first,
        nodes=found.nodes,
        minimal=found.minimal,
        trials=found.trials,
        fixed=fixed,
        recipe=dataclasses.replace(report.recipe, graphs=after),
    )


def _with_progress(outputs: OutputTolerance, progress: Progress) -> Callable[[frozenset[str]], bool]:
    """Return `outputs.inside` with a progress line per trial."""
    count = 0

    def inside(nodes: frozenset[str]) -> bool:
        nonlocal count
        count += 1
        answer = outputs.inside(nodes)
        progress(f"trial {count}: {len(nodes)} nodes kept exact: {'inside' if answer else 'outside'}")
        return answer

    return inside


def _unfixable_message(bundle: Bundle, name: str, recipe: GraphRecipe, outputs: OutputTolerance) -> str:
    """Return why no set of nodes helps."""
    non_finite = outputs.find_non_finite()
    if non_finite:
        return f"{name} is broken in fp32, no precision fixes it: {'; '.join(map(str, non_finite))}"
    if recipe.quantized is None:
        return f"{name} is outside its tolerance with every node in fp32; export {bundle.path} again"
    return (
        f"{name} is outside its tolerance in {recipe.half} already, with nothing in {recipe.quantized.type}; "
        f"find those nodes first: refdiff bisect {bundle.path} --graph {name} --half {recipe.half}"
    )
