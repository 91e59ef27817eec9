"""Blocks of a graph: the unit in which precision is tried and chosen.

A block is a module path up to its first index: `unet.down_blocks.1`, `image_encoder.blocks.3`. Nodes outside
any indexed module form one block named after their first module.

`sensitivity`: what each block costs in task accuracy when it alone is held in eight bits, measured.

Everything that is not tried stays in half precision; see `trials` for the measure.

The costs of a sensitivity report as a picture: one bar per block, costliest on top.
"""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from refdiff.calibration.task_accuracy import Trials, trials
from refdiff.contracts.bundle import Bundle
from refdiff.contracts.inspection import MINIATURE_NAME
from refdiff.contracts.progress import Progress
from refdiff.contracts.recipe import GraphRecipe, Recipe, Rule
from refdiff.errors import InputError


def block_of(node: str) -> str:
    """The block a node belongs to, by its name."""
    parts = node.rpartition("/")[0].split(".")
    for index, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: index + 1])
    return parts[0] or "graph"


def blocks(nodes: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Block -> its nodes, both in the order given."""
    found: dict[str, list[str]] = {}
    for node in nodes:
        found.setdefault(block_of(node), []).append(node)
    return {name: tuple(members) for name, members in found.items()}


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
    variant: str
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
    source: Bundle, recipe: Recipe, *, count: int = COSTED, variant: str = "edge", progress: Progress
) -> SensitivityReport:
    """Try every block of every quantised graph by itself.

    Args:
        source: the fp32 bundle.
        recipe: its eight-bit recipe.
        count: scenes, one phrase each.
        variant: of the pipeline.
        progress: told one line for each block.
    """
    with trials(source, recipe, count=count, variant=variant, progress=progress) as measured:
        costs = list(_costs(measured, recipe, progress))
        types = {each.quantized.type for each in recipe.graphs.values() if each.quantized is not None}
        return SensitivityReport(
            type=", ".join(sorted(types)),
            variant=variant,
            count=count,
            truth=(
                "the scenes' true masks"
                if source.spec.name == MINIATURE_NAME
                else "the fp32 bundle's answers"
            ),
            half_miou=measured.half_miou,
            costs=tuple(sorted(costs, key=lambda cost: -cost.cost_points)),
        )


def _costs(measured: Trials, recipe: Recipe, tell: Progress) -> Iterator[BlockCost]:
    for graph, whole in recipe.graphs.items():
        if whole.quantized is None:
            continue
        for block, nodes in blocks(whole.quantized.nodes).items():
            miou = measured.miou({graph: only(whole, nodes)})
            cost = 100 * (measured.half_miou - miou)
            tell(f"{graph}: {block} alone costs {cost:+.2f} points of mIoU")
            yield BlockCost(graph=graph, block=block, nodes=nodes, miou=miou, cost_points=cost)


def only(whole: GraphRecipe, nodes: Sequence[str]) -> GraphRecipe:
    """The recipe with these of its quantised nodes alone; none leaves half precision."""
    if whole.quantized is None or not nodes:
        return dataclasses.replace(whole, quantized=None)
    return dataclasses.replace(whole, quantized=dataclasses.replace(whole.quantized, nodes=tuple(nodes)))


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
    with trials(source, recipe, count=report.count, variant=report.variant, progress=progress) as measured:
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
        if whole.quantized is None:
            continue
        kept = [node for node in whole.quantized.nodes if node not in set(cost.nodes)]
        because = f"{cost.block} alone costs {cost.cost_points:.2f} points of mIoU"
        rule = Rule(nodes=cost.nodes, because=because, origin="sensitivity")
        graphs[cost.graph] = dataclasses.replace(only(whole, kept), excluded=(*whole.excluded, rule))
    return dataclasses.replace(recipe, graphs=graphs)


_ROW, _MARGIN, _LABEL, _BAR, _VALUE = 22, 24, 330, 420, 70  # px
_PAGE, _INK, _PALE = (250, 250, 251), (28, 29, 34), (150, 154, 166)
_LOSS, _GAIN = (190, 70, 60), (70, 130, 90)


def draw_costs(report: SensitivityReport) -> bytes:
    """A PNG: to the right of the line what is lost, to the left what happened to be gained."""
    width = 2 * _MARGIN + _LABEL + _BAR + _VALUE
    height = 2 * _MARGIN + _ROW * (len(report.costs) + 2)
    page = Image.new("RGB", (width, height), _PAGE)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    title = (
        f"{report.type}: points of mIoU lost by each block alone "
        f"({report.count} scenes, {report.variant}; half precision: {report.half_miou:.3f})"
    )
    draw.text((_MARGIN, _MARGIN), title, fill=_INK, font=font)
    losses = [max(cost.cost_points, 0.0) for cost in report.costs]
    gains = [max(-cost.cost_points, 0.0) for cost in report.costs]
    span = (max(losses, default=0.0) + max(gains, default=0.0)) or 1.0
    zero = _MARGIN + _LABEL + _BAR * max(gains, default=0.0) / span
    top = _MARGIN + 2 * _ROW
    draw.line([(zero, top - 4), (zero, top + _ROW * len(report.costs))], fill=_PALE)
    for number, cost in enumerate(report.costs):
        y = top + number * _ROW
        end = zero + _BAR * cost.cost_points / span
        box = [min(zero, end), y + 4, max(zero, end), y + _ROW - 5]
        draw.rectangle(box, fill=_LOSS if cost.cost_points > 0 else _GAIN)
        draw.text((_MARGIN, y + 2), f"{cost.graph}   {cost.block}", fill=_INK, font=font)
        place = (_MARGIN + _LABEL + _BAR + 10, y + 2)
        draw.text(place, f"{cost.cost_points:+.2f}", fill=_INK, font=font)
    buffer = io.BytesIO()
    page.save(buffer, format="PNG")
    return buffer.getvalue()
