"""`audit`: which nodes of a bundle need more than half precision, measured, and a recipe that says so."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refdiff.calibration.calibrate import feeds_of, thinned_records
from refdiff.calibration.convert import check_recipe, check_source
from refdiff.contracts.atomic_io import check_targets, write_files
from refdiff.contracts.bundle import Bundle
from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.optional import require_export
from refdiff.contracts.progress import Progress, silent
from refdiff.contracts.recipe import HALVES, Half, Recipe, read_recipe
from refdiff.errors import InputError

if TYPE_CHECKING:
    from refdiff.calibration.feeds import FeedStore
    from refdiff.calibration.graph_audit import GraphAudit

PURPOSE = "the audit"

MOST_RECORDS = 8
"""Records of one graph it is audited on, evenly spread over all there are."""


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """What was found, graph by graph, and the recipe that follows."""

    bundle: Path
    model: str
    half: Half
    graphs: tuple[GraphAudit, ...]
    recipe: Recipe
    """The audited one, with the proposals of all graphs."""
    warnings: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """The recipe mends everything that was found."""
        return not self.complaints

    @property
    def complaints(self) -> tuple[str, ...]:
        """What it does not mend, one line each."""
        return tuple(line for each in self.graphs for line in each.complaints)

    @property
    def failure(self) -> str | None:
        """One line that names everything no recipe mends; None when there is nothing."""
        return "; ".join(self.complaints) or None

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
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
    output: Path | str | None = None,
    recipe: Path | str | None = None,
    half: str = "fp16",
    graphs: Sequence[str] = (),
    feeds: Path | str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> AuditReport:
    """Measure how near the tensors of a bundle come to the ends of half precision, and propose a recipe.

    A graph that makes NaN or infinity in fp32, a range that does not fit, and values that are lost in spite
    of the proposals are told in the report's `complaints`; then no recipe is written.

    Args:
        bundle: an fp32 bundle's folder, or "mini" for the built-in one.
        output: where the recipe will be; None writes none.
        recipe: the recipe to audit, of half precision or of eight bits with its ranges; None: the built-in
            rules.
        half: "fp16" or "bf16", where no recipe is named.
        graphs: which; all if empty. A recipe is about all graphs: the others enter it as they are.
        feeds: what `calibrate` recorded; None records some scenes of the miniature now.
        overwrite: replace a recipe that is there.
        progress: told one line for each graph.

    Raises:
        BundleError: the bundle is missing or damaged.
        InputError: it is not in fp32, an option, the recipe or the feeds cannot be used, or the output cannot
            be written.
        MissingDependencyError: onnx_ir or ONNX Runtime is not installed.
        EngineError: a graph cannot be run.
    """
    opened, tell = find_bundle(bundle), progress or silent
    check_source(opened)
    target = None if output is None else Path(output)
    if target is not None:
        check_targets([target], overwrite=overwrite)
    before = base_recipe(opened, recipe, half)
    names = chosen_graphs(before, graphs)
    with feeds_of(opened, feeds, tell) as store:
        audited = tuple(_audit(opened, before, name, store, tell) for name in names)
        warnings = tuple(_warnings(store))
    after = {**before.graphs, **{each.graph: each.recipe for each in audited}}
    report = AuditReport(
        bundle=opened.path,
        model=opened.spec.name,
        half=audited[0].recipe.half,
        graphs=audited,
        recipe=dataclasses.replace(before, graphs=after),
        warnings=warnings,
    )
    if target is not None and report.passed:
        write_files({target: report.recipe.to_text().encode()}, overwrite=overwrite)
    return report


def base_recipe(bundle: Bundle, recipe: Path | str | None, half: str) -> Recipe:
    """The recipe of a file, or the built-in rules' for this bundle.

    Raises:
        InputError: the file is no recipe, or one of other weights; an unknown type of half precision.
    """
    if recipe is not None:
        read = read_recipe(Path(recipe))
        check_recipe(bundle, read)
        return read
    if half not in HALVES:
        raise InputError(f"unknown half precision {half!r}; choose one of: {', '.join(HALVES)}")
    with require_export(PURPOSE):
        from refdiff.calibration.precision import half_recipe
    return half_recipe(bundle.path, model=bundle.spec.name, sources=bundle.manifest.sources, half=half)


def chosen_graphs(recipe: Recipe, wanted: Sequence[str]) -> tuple[str, ...]:
    """The graphs to look at, in the recipe's order.

    Raises:
        InputError: one that has no entry in recipes.
    """
    for name in wanted:
        if name == "unet_taps":
            raise InputError("unet_taps has no recipe of its own: it is cut out of unet; name unet")
        if name not in recipe.graphs:
            raise InputError(f"unknown graph {name!r}; choose one of: {', '.join(recipe.graphs)}")
    return tuple(name for name in recipe.graphs if not wanted or name in wanted)


def _audit(bundle: Bundle, recipe: Recipe, name: str, store: FeedStore, tell: Progress) -> GraphAudit:
    tell(f"{name}: looking at every tensor")
    with require_export(PURPOSE):
        from refdiff.calibration.graph_audit import audit_graph
        from refdiff.engines.intermediate_tensors import probe
    records = thinned_records(store, name, MOST_RECORDS)
    return audit_graph(probe, bundle.graph_path(name), recipe.graphs[name], records)


def _warnings(store: FeedStore) -> list[str]:
    if len(store.finished) > 1:
        return []
    return ["one question only: tensors may reach further on others; record more (refdiff calibrate)"]
