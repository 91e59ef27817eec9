"""`bisect`: the smallest set of nodes that a broken graph needs in more bits, found by trying.

To be kept exact means fp32 in a recipe of half precision, and half precision in one of eight bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refdiff.accuracy.tolerances import graph_tolerance
from refdiff.calibration.audit import base_recipe, chosen_graphs
from refdiff.calibration.bisection import Trials, smallest
from refdiff.calibration.calibrate import open_feeds, thinned_records
from refdiff.calibration.convert import check_source
from refdiff.contracts.atomic_io import check_targets, write_files
from refdiff.contracts.bundle import Bundle
from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.optional import require_export
from refdiff.contracts.progress import Progress, silent
from refdiff.contracts.recipe import GraphRecipe, Recipe
from refdiff.contracts.session import Array
from refdiff.errors import BundleError, GateError, InputError

if TYPE_CHECKING:
    from refdiff.calibration.output_tolerance import Outcome, OutputTrials
    from refdiff.calibration.simulation import Deviation

PURPOSE = "the bisection"

MOST_TRIALS = 400
"""About twenty needed nodes among the thousand of a UNet."""

MOST_RECORDS = 8
"""Recorded feeds that trials are run on beside the golden ones, evenly spread over all there are."""


@dataclass(frozen=True, kw_only=True)
class BisectReport:
    """What was found."""

    bundle: Path
    model: str
    graph: str
    precision: str
    """Of the recipe that was searched."""
    runs: int
    """Feeds each trial was run on."""
    error_at_most: float
    """The tolerance: of an output's range, from the fp32 graph."""
    correlation_at_least: float
    broken: Outcome | None
    """The worst output with the recipe as it was; None where it was inside the tolerance: nothing to find."""
    first: Deviation | None
    """The first tensor that goes wrong; None where none does by itself."""
    nodes: tuple[str, ...]
    """They have to be kept exact, in the graph's order; none where nothing was broken."""
    kept_in: str
    """What they are kept in."""
    minimal: bool
    """No single node can be left out; False where the trials ran out before that was known."""
    trials: int
    mended: Outcome | None
    """The worst output with them kept exact."""
    recipe: Recipe
    """The searched one, these nodes named in it."""

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
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
            "mended": None if self.mended is None else self.mended.to_json(),
        }


def bisect(
    bundle: Path | str,
    *,
    graph: str,
    output: Path | str | None = None,
    recipe: Path | str | None = None,
    half: str = "fp16",
    feeds: Path | str | None = None,
    most_trials: int = MOST_TRIALS,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> BisectReport:
    """Find a smallest set of nodes with which one graph is inside its tolerance, converted as a recipe says.

    Args:
        bundle: an fp32 bundle's folder, or "mini" for the built-in one.
        graph: its name.
        output: where the recipe will be that keeps these nodes exact; None writes none. Nothing is written
            where nothing is broken.
        recipe: the recipe that breaks the graph, in a converted bundle `recipe.json`; None: the built-in
            rules.
        half: "fp16" or "bf16", where no recipe is named.
        feeds: what `calibrate` recorded; None leaves the graph's golden record alone.
        most_trials: conversions that are tried at the most.
        overwrite: replace a recipe that is there.
        progress: told one line for each trial.

    Raises:
        BundleError: the bundle is missing or damaged.
        InputError: it is not in fp32, an option, the recipe or the feeds cannot be used, or the output cannot
            be written.
        GateError: the graph is outside its tolerance whatever is kept exact: it is broken in fp32.
        MissingDependencyError: onnx_ir or ONNX Runtime is not installed.
        EngineError: the graph cannot be run.
    """
    opened, tell = find_bundle(bundle), progress or silent
    check_source(opened)
    if most_trials < 1:
        raise InputError(f"got at most {most_trials} trials, expected 1 or more")
    target = None if output is None else Path(output)
    if target is not None:
        check_targets([target], overwrite=overwrite)
    before = base_recipe(opened, recipe, half)
    (name,) = chosen_graphs(before, (graph,))
    tell(f"{name}: running it in fp32")
    runs = _runs(opened, name, feeds)
    trials = _trials(opened, name, before.graphs[name], runs)
    report = _search(opened, name, before, trials, len(runs), most_trials, tell)
    if target is not None and report.nodes:
        write_files({target: report.recipe.to_text().encode()}, overwrite=overwrite)
    return report


def _runs(bundle: Bundle, name: str, feeds: Path | str | None) -> list[Mapping[str, Array]]:
    golden = bundle.golden()
    if name not in golden:
        raise BundleError(f"{bundle.path}: graph {name} has no golden record; export the bundle again")
    recorded = [] if feeds is None else thinned_records(open_feeds(feeds, bundle), name, MOST_RECORDS)
    return [golden[name][0], *recorded]


def _trials(bundle: Bundle, name: str, recipe: GraphRecipe, runs: list[Mapping[str, Array]]) -> OutputTrials:
    with require_export(PURPOSE):
        from refdiff.calibration.output_tolerance import OutputTrials, Tolerance
        from refdiff.engines.intermediate_tensors import probe
    limit = graph_tolerance(recipe.precision, name)
    tolerance = Tolerance(error=limit.error, correlation=limit.correlation)
    return OutputTrials(probe, bundle.graph_path(name), recipe, runs, tolerance)


def _search(
    bundle: Bundle,
    name: str,
    before: Recipe,
    trials: OutputTrials,
    runs: int,
    most_trials: int,
    tell: Progress,
) -> BisectReport:
    recipe = before.graphs[name]
    limit = graph_tolerance(recipe.precision, name)
    worst = trials.worst(())
    result = BisectReport(
        bundle=bundle.path,
        model=bundle.spec.name,
        graph=name,
        precision=recipe.precision,
        runs=runs,
        error_at_most=limit.error,
        correlation_at_least=limit.correlation,
        broken=None if worst.inside else worst,
        first=None,
        nodes=(),
        kept_in="fp32" if recipe.quantized is None else recipe.half,
        minimal=True,
        trials=1,
        mended=None,
        recipe=before,
    )
    if worst.inside:
        return result
    if not trials.inside(trials.candidates):
        raise GateError(_hopeless(bundle, name, recipe, trials))
    tell(f"{name}: {worst.output} is {worst.error:.2g} of its range off; looking for the first tensor")
    guess, first = trials.guess()
    search = Trials(_told(trials, tell), most=most_trials)
    found = smallest(trials.candidates, search, guess=guess)
    mended = trials.worst(found.nodes)
    because = f"without them {worst.output} is {worst.error:.2g} of its range off in {recipe.precision}"
    after = {**before.graphs, name: trials.recipe(found.nodes, because=because)}
    return dataclasses.replace(
        result,
        first=first,
        nodes=found.nodes,
        minimal=found.minimal,
        trials=found.trials,
        mended=mended,
        recipe=dataclasses.replace(before, graphs=after),
    )


def _told(trials: OutputTrials, tell: Progress) -> Callable[[frozenset[str]], bool]:
    """The trials' question, each told."""
    count = 0

    def inside(nodes: frozenset[str]) -> bool:
        nonlocal count
        count += 1
        answer = trials.inside(nodes)
        tell(f"trial {count}: {len(nodes)} nodes kept exact: {'inside' if answer else 'outside'}")
        return answer

    return inside


def _hopeless(bundle: Bundle, name: str, recipe: GraphRecipe, trials: OutputTrials) -> str:
    """Why no set of nodes helps."""
    sick = trials.broken()
    if sick:
        return f"{name} is broken in fp32, no precision mends it: {'; '.join(str(each) for each in sick)}"
    if recipe.quantized is None:
        return f"{name} is outside its tolerance with every node in fp32; export {bundle.path} again"
    return (
        f"{name} is outside its tolerance in {recipe.half} already, with nothing in {recipe.quantized.type}; "
        f"find those nodes first: refdiff bisect {bundle.path} --graph {name} --half {recipe.half}"
    )
