"""`sensitivity`: what each block costs in task accuracy when it alone is held in eight bits, measured.

Everything that is not tried stays in half precision; see `trials` for the measure.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from refdiff.api.models import MINIATURE
from refdiff.api.progress import Progress
from refdiff.api.trials import Trials, trials
from refdiff.calibration.blocks import blocks
from refdiff.contracts.bundle import Bundle
from refdiff.contracts.recipe import GraphRecipe, Recipe, Rule
from refdiff.errors import InputError

COSTED = 32
"""Scenes that costs are measured on."""

_BUDGET = re.compile(r"\s*mIoU\s*-\s*(\d+(?:\.\d+)?)\s*", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class BlockCost:
    """One block, tried alone."""

    graph: str
    block: str
    nodes: tuple[str, ...]
    miou: float
    cost_points: float
    """Percentage points of mean IoU lost to half precision; negative where it happened to gain."""


@dataclass(frozen=True, kw_only=True)
class SensitivityReport:
    """All blocks, costliest first."""

    type: str
    profile: str
    count: int
    truth: str
    """What the masks were compared with."""
    half_miou: float
    """With every graph in half precision."""
    costs: tuple[BlockCost, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return dataclasses.asdict(self)


def measure_costs(
    source: Bundle, recipe: Recipe, *, count: int = COSTED, profile: str = "edge", progress: Progress
) -> SensitivityReport:
    """Try every block of every quantised graph by itself.

    Args:
        source: the fp32 bundle.
        recipe: its eight-bit recipe.
        count: scenes, one phrase each.
        profile: of the pipeline.
        progress: told one line for each block.
    """
    with trials(source, recipe, count=count, profile=profile, progress=progress) as measured:
        costs = list(_costs(measured, recipe, progress))
        types = {each.quantised.type for each in recipe.graphs.values() if each.quantised is not None}
        return SensitivityReport(
            type=", ".join(sorted(types)),
            profile=profile,
            count=count,
            truth=(
                "the scenes' true masks" if source.spec.name == MINIATURE else "the fp32 bundle's answers"
            ),
            half_miou=measured.half_miou,
            costs=tuple(sorted(costs, key=lambda cost: -cost.cost_points)),
        )


def _costs(measured: Trials, recipe: Recipe, tell: Progress) -> Iterator[BlockCost]:
    for graph, whole in recipe.graphs.items():
        if whole.quantised is None:
            continue
        for block, nodes in blocks(whole.quantised.nodes).items():
            miou = measured.miou({graph: only(whole, nodes)})
            cost = 100 * (measured.half_miou - miou)
            tell(f"{graph}: {block} alone costs {cost:+.2f} points of mIoU")
            yield BlockCost(graph=graph, block=block, nodes=nodes, miou=miou, cost_points=cost)


def only(whole: GraphRecipe, nodes: Sequence[str]) -> GraphRecipe:
    """The recipe with these of its quantised nodes alone; none leaves half precision."""
    if whole.quantised is None or not nodes:
        return dataclasses.replace(whole, quantised=None)
    return dataclasses.replace(whole, quantised=dataclasses.replace(whole.quantised, nodes=tuple(nodes)))


def budget_points(text: str) -> float:
    """Read a budget: "mIoU -0.5" allows half a percentage point of mean IoU.

    Raises:
        InputError: it says something else.
    """
    match = _BUDGET.fullmatch(text)
    if match is None:
        raise InputError(f'got budget {text!r}, expected for instance "mIoU -0.5": percentage points lost')
    return float(match[1])


def within_budget(
    source: Bundle, recipe: Recipe, report: SensitivityReport, points: float, *, progress: Progress
) -> Recipe:
    """The recipe with as many blocks in eight bits as the budget allows, measured together.

    Blocks leave costliest first; how many have to is searched by halves, each set measured as a whole,
    because costs do not simply add up.

    Args:
        source: the fp32 bundle.
        recipe: its eight-bit recipe.
        report: the blocks' costs.
        points: percentage points of mean IoU that may be lost.
        progress: told one line for each set.
    """
    with trials(source, recipe, count=report.count, profile=report.profile, progress=progress) as measured:
        fewest, most = 0, len(report.costs)
        while fewest < most:
            dropped = (fewest + most) // 2
            miou = measured.miou(_without(recipe, report.costs[:dropped]).graphs)
            cost = 100 * (measured.half_miou - miou)
            progress(f"{len(report.costs) - dropped} blocks in {report.type} cost {cost:+.2f} points of mIoU")
            if cost <= points:
                most = dropped
            else:
                fewest = dropped + 1
    return _without(recipe, report.costs[:most])


def _without(recipe: Recipe, dropped: Sequence[BlockCost]) -> Recipe:
    """These blocks stay in half precision, and the recipe says what they would have cost."""
    graphs = dict(recipe.graphs)
    for cost in dropped:
        whole = graphs[cost.graph]
        if whole.quantised is None:
            continue
        kept = [node for node in whole.quantised.nodes if node not in set(cost.nodes)]
        because = f"{cost.block} alone costs {cost.cost_points:.2f} points of mIoU"
        rule = Rule(nodes=cost.nodes, because=because, origin="sensitivity")
        graphs[cost.graph] = dataclasses.replace(only(whole, kept), left=(*whole.left, rule))
    return dataclasses.replace(recipe, graphs=graphs)
