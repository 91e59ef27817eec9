"""The verb `audit`: measure which nodes of a bundle need more than half precision, and propose a recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refdiff.calibration.calibrate import evenly_spread_records, feeds_of
from refdiff.calibration.converted_bundle import check_recipe, check_source
from refdiff.calibration.recipes import half_recipe
from refdiff.contracts.bundle import Bundle
from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.optional import require_export
from refdiff.contracts.progress import Progress, silent
from refdiff.contracts.recipe import Half, Recipe, read_recipe
from refdiff.errors import InputError

if TYPE_CHECKING:
    from refdiff.calibration.feeds import FeedStore
    from refdiff.calibration.graph_audit import GraphAudit

PURPOSE = "the audit"

MOST_RECORDS = 8
"""Records of one graph that it is audited on, evenly spread over all there are."""


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """The findings of all graphs, and the recipe that follows from them."""

    bundle: Path
    model: str
    half: Half
    graphs: tuple[GraphAudit, ...]
    recipe: Recipe
    """The audited recipe with the proposals of all graphs."""
    warnings: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """True if the recipe fixes everything that was found."""
        return not self.complaints

    @property
    def complaints(self) -> tuple[str, ...]:
        """Problems that the recipe does not fix, one line each."""
        return tuple(line for each in self.graphs for line in each.complaints)

    @property
    def failure(self) -> str | None:
        """All problems that the recipe does not fix, in one line; None if there are none."""
        return "; ".join(self.complaints) or None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "bundle": str(self.bundle),
            "model": self.model,
            "half": self.half,
            "passed": self.passed,
            "complaints": list(self.complaints),
            "graphs": [each.to_json() for each in self.graphs],
            "warnings": list(self.warnings),
        }


def audit(
    bundle: Path | str,
    *,
    recipe: Path | str | None = None,
    half: str = "fp16",
    graphs: Sequence[str] = (),
    feeds: Path | str | None = None,
    progress: Progress | None = None,
) -> AuditReport:
    """Measure how near the tensors of a bundle come to the limits of half precision, and propose a recipe.

    NaN or infinity in fp32, ranges that do not fit, and values lost in spite of the proposals are in the
    report's `complaints`; no recipe fixes them.

    Args:
        bundle: an fp32 bundle's folder, or "mini" for the built-in one.
        recipe: the recipe to audit, for half precision, or for eight bits with its ranges; None: the built-in
            rules.
        half: "fp16" or "bf16", where no recipe is given.
        graphs: names of the graphs to audit, all if empty. The others enter the recipe as they are.
        feeds: a recording of `calibrate`; None records scenes of the miniature now.
        progress: receives one line per graph.

    Raises:
        BundleError: the bundle is missing or damaged.
        InputError: it is not in fp32, or an option, the recipe or the feeds cannot be used.
        MissingDependencyError: onnx_ir or ONNX Runtime is not installed.
        EngineError: a graph cannot be run.
    """
    opened, progress = find_bundle(bundle), progress or silent
    check_source(opened)
    before = starting_recipe(opened, recipe, half)
    names = choose_graphs(before, graphs)
    with feeds_of(opened, feeds, progress) as store:
        audited = tuple(_audit_graph(opened, before, name, store, progress) for name in names)
        warnings = _warnings(store)
    after = {**before.graphs, **{each.graph: each.recipe for each in audited}}
    return AuditReport(
        bundle=opened.path,
        model=opened.spec.name,
        half=audited[0].recipe.half,
        graphs=audited,
        recipe=dataclasses.replace(before, graphs=after),
        warnings=warnings,
    )


def starting_recipe(bundle: Bundle, recipe: Path | str | None, half: str) -> Recipe:
    """Return the recipe of a file, or the built-in rules' recipe for this bundle.

    Raises:
        InputError: the file is not a recipe or is for other weights, or an unknown type of half precision.
    """
    if recipe is None:
        return half_recipe(bundle, half)
    read = read_recipe(Path(recipe))
    check_recipe(bundle, read)
    return read


def choose_graphs(recipe: Recipe, wanted: Sequence[str]) -> tuple[str, ...]:
    """Return the wanted graphs, all if none is named, in the recipe's order.

    Raises:
        InputError: a graph that has no entry in recipes.
    """
    for name in wanted:
        if name == "unet_taps":
            raise InputError("unet_taps has no recipe of its own: it is cut out of unet; name unet")
        if name not in recipe.graphs:
            raise InputError(f"unknown graph {name!r}; choose one of: {', '.join(recipe.graphs)}")
    return tuple(name for name in recipe.graphs if not wanted or name in wanted)


def _audit_graph(
    bundle: Bundle, recipe: Recipe, name: str, store: FeedStore, progress: Progress
) -> GraphAudit:
    progress(f"{name}: looking at every tensor")
    with require_export(PURPOSE):
        from refdiff.calibration.graph_audit import audit_graph
    records = evenly_spread_records(store, name, MOST_RECORDS)
    return audit_graph(bundle.graph_path(name), recipe.graphs[name], records)


def _warnings(store: FeedStore) -> tuple[str, ...]:
    if len(store.finished) > 1:
        return ()
    return ("one sample only: tensors may reach further on others; record more (refdiff calibrate)",)
