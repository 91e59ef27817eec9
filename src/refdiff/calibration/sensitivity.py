"""The verb `sensitivity`: measure what each block costs in task accuracy when it alone is in eight bits.

A block is a module path up to its first index, `unet.down_blocks.1` or `image_encoder.blocks.3`; nodes
outside any indexed module form one block named after their first module. Everything that is not tried stays
in half precision (see `task_accuracy`). `within_budget` chooses the blocks that a budget allows.
"""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from refdiff.calibration.converted_bundle import check_source
from refdiff.calibration.feeds import require_recording
from refdiff.calibration.recipes import METHODS, SMOOTHING, eight_bit_recipe, read_recipe_for
from refdiff.calibration.task_accuracy import TaskAccuracy, open_task_accuracy
from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.progress import Progress, silent
from refdiff.contracts.recipe import QUANTIZED, GraphRecipe, Recipe, Rule
from refdiff.errors import InputError

COSTED = 32
"""Default number of scenes that costs are measured on."""

_BUDGET = re.compile(r"\s*mIoU\s*-\s*(\d+(?:\.\d+)?)\s*", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class BlockCost:
    """The cost of one block in eight bits."""

    graph: str
    block: str
    nodes: tuple[str, ...]
    miou: float
    cost_points: float
    """Percentage points of mean IoU lost compared with half precision; negative for a gain."""


@dataclass(frozen=True, kw_only=True)
class SensitivityReport:
    """The costs of all blocks, highest first."""

    type: str
    variant: str
    count: int
    truth: str
    """Description of the reference that the masks were compared with."""
    half_miou: float
    """Mean IoU with every graph in half precision."""
    costs: tuple[BlockCost, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return dataclasses.asdict(self)


def sensitivity(
    bundle: Path | str,
    *,
    precision: str = "int8",
    recipe: Path | None = None,
    feeds: Path | None = None,
    ranges: str = "percentile",
    count: int = COSTED,
    variant: str = "edge",
    progress: Progress | None = None,
) -> SensitivityReport:
    """Measure what each block costs in task accuracy when it alone is in eight bits.

    Args:
        bundle: an fp32 bundle's folder, or "mini" for the built-in one.
        precision: "int8" or "fp8".
        recipe: an eight-bit recipe, whose blocks are measured; None builds one by the built-in rules.
        feeds: a recording of `calibrate`; None records scenes now.
        ranges: how ranges are taken, one of `refdiff.calibration.recipes.METHODS`.
        count: number of scenes, one phrase each.
        variant: variant of the pipeline.
        progress: receives one line at each step.

    Raises:
        BundleError: the bundle is missing or damaged.
        InputError: it is not in fp32, or an option, the recipe or the feeds cannot be used.
        MissingDependencyError: onnx_ir or ONNX Runtime is not installed.
    """
    if precision not in QUANTIZED:
        raise InputError(f"unknown precision {precision!r}; choose one of: {', '.join(QUANTIZED)}")
    opened, progress = find_bundle(bundle), progress or silent
    check_source(opened)
    if feeds is not None:
        require_recording(feeds)
    if ranges not in METHODS:
        raise InputError(f"unknown method {ranges!r} for ranges; choose one of: {', '.join(METHODS)}")
    if recipe is not None and feeds is not None:
        raise InputError("got --feeds and --recipe, which holds ranges already; leave out one of them")
    tried = (
        read_recipe_for(recipe, precision)
        if recipe is not None
        else eight_bit_recipe(
            opened,
            type="int8" if precision == "int8" else "fp8",
            feeds=feeds,
            method=ranges,
            smoothing=SMOOTHING,
            progress=progress,
        )
    )
    with open_task_accuracy(opened, tried, count=count, variant=variant, progress=progress) as accuracy:
        return measure_costs(accuracy, tried, progress)


def measure_costs(accuracy: TaskAccuracy, recipe: Recipe, progress: Progress) -> SensitivityReport:
    """Try every block of every quantized graph by itself.

    Args:
        accuracy: measures recipes on the fp32 bundle.
        recipe: the bundle's eight-bit recipe.
        progress: receives one line per block.
    """
    costs = list(_measure_blocks(accuracy, recipe, progress))
    types = {each.quantized.type for each in recipe.graphs.values() if each.quantized is not None}
    return SensitivityReport(
        type=", ".join(sorted(types)),
        variant=accuracy.variant,
        count=accuracy.count,
        truth=accuracy.truth,
        half_miou=accuracy.half_miou,
        costs=tuple(sorted(costs, key=lambda cost: -cost.cost_points)),
    )


def _measure_blocks(accuracy: TaskAccuracy, recipe: Recipe, progress: Progress) -> Iterator[BlockCost]:
    for graph, whole in recipe.graphs.items():
        if whole.quantized is None:
            continue
        for block, nodes in group_by_block(whole.quantized.nodes).items():
            miou = accuracy.miou({graph: quantize_only(whole, nodes)})
            cost = 100 * (accuracy.half_miou - miou)
            progress(f"{graph}: {block} alone costs {cost:+.2f} points of mIoU")
            yield BlockCost(graph=graph, block=block, nodes=nodes, miou=miou, cost_points=cost)


def group_by_block(nodes: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return block -> its nodes, both in the order given."""
    found: dict[str, list[str]] = {}
    for node in nodes:
        found.setdefault(block_of(node), []).append(node)
    return {name: tuple(members) for name, members in found.items()}


def block_of(node: str) -> str:
    """Return the block that a node belongs to, by its name."""
    parts = node.rpartition("/")[0].split(".")
    for index, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: index + 1])
    return parts[0] or "graph"


def quantize_only(whole: GraphRecipe, nodes: Sequence[str]) -> GraphRecipe:
    """Return the recipe with only these nodes quantized; with none it is in half precision."""
    if whole.quantized is None or not nodes:
        return dataclasses.replace(whole, quantized=None)
    return dataclasses.replace(whole, quantized=dataclasses.replace(whole.quantized, nodes=tuple(nodes)))


def budget_points(text: str) -> float:
    """Return the percentage points of mean IoU that a budget allows to lose: 0.5 for "mIoU -0.5".

    Raises:
        InputError: the text is not a budget.
    """
    match = _BUDGET.fullmatch(text)
    if match is None:
        raise InputError(f'got budget {text!r}, expected for instance "mIoU -0.5": percentage points lost')
    return float(match[1])


def within_budget(
    accuracy: TaskAccuracy, recipe: Recipe, report: SensitivityReport, points: float, progress: Progress
) -> Recipe:
    """Return the recipe with as many blocks in eight bits as the budget allows, measured together.

    The costliest blocks are dropped first. A bisection finds how many, and measures each set as a whole,
    because costs do not simply add up.

    Args:
        accuracy: measures recipes on the fp32 bundle.
        recipe: the bundle's eight-bit recipe.
        report: the blocks' costs.
        points: percentage points of mean IoU that may be lost.
        progress: receives one line per set.
    """
    fewest, most = 0, len(report.costs)
    while fewest < most:
        dropped = (fewest + most) // 2
        miou = accuracy.miou(_drop_blocks(recipe, report.costs[:dropped]).graphs)
        cost = 100 * (accuracy.half_miou - miou)
        progress(f"{len(report.costs) - dropped} blocks in {report.type} cost {cost:+.2f} points of mIoU")
        if cost <= points:
            most = dropped
        else:
            fewest = dropped + 1
    return _drop_blocks(recipe, report.costs[:most])


def _drop_blocks(recipe: Recipe, dropped: Sequence[BlockCost]) -> Recipe:
    """Return the recipe with these blocks in half precision, and rules that give their costs."""
    graphs = dict(recipe.graphs)
    for cost in dropped:
        whole = graphs[cost.graph]
        if whole.quantized is None:
            continue
        kept = [node for node in whole.quantized.nodes if node not in set(cost.nodes)]
        because = f"{cost.block} alone costs {cost.cost_points:.2f} points of mIoU"
        rule = Rule(nodes=cost.nodes, because=because, origin="sensitivity")
        graphs[cost.graph] = dataclasses.replace(quantize_only(whole, kept), excluded=(*whole.excluded, rule))
    return dataclasses.replace(recipe, graphs=graphs)


_ROW, _MARGIN, _LABEL, _BAR, _VALUE = 22, 24, 330, 420, 70  # px
_PAGE, _INK, _PALE = (250, 250, 251), (28, 29, 34), (150, 154, 166)
_LOSS, _GAIN = (190, 70, 60), (70, 130, 90)


def draw_costs(report: SensitivityReport) -> bytes:
    """Draw the costs as a PNG bar chart: losses to the right of the line, gains to the left."""
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
