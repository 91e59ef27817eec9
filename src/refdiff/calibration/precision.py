"""The toolkit's own recipes: what the built-in rules say of each graph.

What precision was asked for, and the recipe that leads there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from refdiff.calibration.block_costs import (
    COSTED,
    SensitivityReport,
    budget_points,
    measure_costs,
    within_budget,
)
from refdiff.calibration.convert import check_source, convert
from refdiff.calibration.feeds import require_recording
from refdiff.calibration.int8_recipe import METHODS, SMOOTHING, eight_bit_recipe
from refdiff.contracts.bundle import Bundle, open_bundle
from refdiff.contracts.graphs import GRAPHS
from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.optional import require_export
from refdiff.contracts.progress import Progress, silent
from refdiff.contracts.recipe import HALVES, QUANTIZED, GraphRecipe, Half, Recipe, read_recipe
from refdiff.engines.trt.latency_race import find_latency_race
from refdiff.errors import InputError

if TYPE_CHECKING:
    from refdiff.contracts.manifest import Manifest

CONVERTED = tuple(name for name in GRAPHS if name != "unet_taps")
"""Graphs that have a recipe; `unet_taps` is cut out of `unet` afterwards."""


def half_recipe(
    folder: Path,
    *,
    model: str,
    sources: Mapping[str, str],
    half: str = "fp16",
    graphs: Iterable[str] = CONVERTED,
) -> Recipe:
    """Half precision everywhere but for the islands by rule.

    Args:
        folder: of the fp32 bundle.
        model: its name.
        sources: its weights.
        half: "fp16" or "bf16".
        graphs: which to convert.
    """
    with require_export(PURPOSE):
        import onnx_ir as ir

        from refdiff.passes.keep_fp32 import default_half_weights, default_islands
    of_type: Half = "bf16" if half == "bf16" else "fp16"
    loaded = {name: ir.load(folder / f"{name}.onnx").graph for name in graphs}
    return Recipe(
        model=model,
        sources=dict(sources),
        graphs={
            name: GraphRecipe(
                half=of_type,
                fp32=default_islands(graph, of_type),
                half_weights=default_half_weights(name),
            )
            for name, graph in loaded.items()
        },
    )


PRECISIONS = ("fp32", *HALVES, *QUANTIZED)

RANGES = "percentile"
"""How ranges are taken where nothing is said."""

PURPOSE = "changing the precision"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A precision, and where its recipe or its ranges come from."""

    precision: str
    recipe: Path | None = None
    feeds: Path | None = None
    """What `calibrate` recorded."""
    ranges: str = RANGES
    """How the reach of eight-bit tensors is taken from the feeds."""
    smoothing: float | None = SMOOTHING
    """Strength of SmoothQuant, 0..1; None leaves it out."""
    budget: str | None = None
    """What eight bits may cost, "mIoU -0.5" for instance."""
    timed: bool = True
    """Keep eight bits only where this machine's GPU, if it has one to time, is faster with them."""

    def check(self, *, bundle: Path | None) -> None:
        """Refuse what does not go together, before any work.

        Args:
            bundle: the fp32 bundle to convert, None for a model.

        Raises:
            InputError: an unknown precision, or an option that it does not take.
        """
        if self.precision not in PRECISIONS:
            raise InputError(f"unknown precision {self.precision!r}; choose one of: {', '.join(PRECISIONS)}")
        if self.recipe is not None and self.precision != "fp32":
            _read(self.recipe, self.precision)
        if self.feeds is not None and self.precision in QUANTIZED:
            require_recording(self.feeds)
        if self.precision == "fp32" and (self.recipe or self.feeds):
            raise InputError(
                f"fp32 takes no {'--recipe' if self.recipe else '--feeds'}: nothing is converted; "
                f"name a precision: {', '.join(PRECISIONS[1:])}"
            )
        if self.precision == "fp32" and bundle is not None:
            raise InputError(
                f"{bundle} is a bundle: it is in fp32 already; name a precision: {', '.join(PRECISIONS[1:])}"
            )
        self._check_eight_bits()

    def _check_eight_bits(self) -> None:
        if not self.timed and self.precision not in QUANTIZED:
            raise InputError("--untimed is for int8 and fp8; leave it out")
        needs_ranges = self.precision in QUANTIZED and self.recipe is None
        for option, value in (
            ("--feeds", self.feeds),
            ("--ranges", None if self.ranges == RANGES else self.ranges),
            ("--smooth", None if self.smoothing == SMOOTHING else self.smoothing or 0.0),
            ("--budget", self.budget),
        ):
            if value is not None and not needs_ranges:
                raise InputError(f"{option} is for int8 and fp8 without a --recipe; leave it out")
        if self.ranges not in METHODS:
            raise InputError(
                f"unknown method {self.ranges!r} for ranges; choose one of: {', '.join(METHODS)}"
            )
        if self.budget is not None:
            budget_points(self.budget)


def convert_bundle(
    source: Path, wanted: Wanted, *, output: Path, overwrite: bool, progress: Progress
) -> Manifest:
    """Convert an fp32 bundle as asked; see `convert`.

    Raises:
        InputError: also where the recipe is of another precision than the one asked for.
    """
    bundle = open_bundle(source)
    check_source(bundle)
    clock = None
    if wanted.timed and wanted.precision in QUANTIZED:
        clock, said = find_latency_race(progress)
        progress(
            f"eight bits have to be faster on {said}"
            if clock
            else f"eight bits are judged by accuracy alone, there is nothing to time them on: {said}"
        )
    recipe = _recipe(bundle, wanted, progress)
    return convert(
        source,
        recipe,
        precision=wanted.precision,
        output=output,
        overwrite=overwrite,
        clock=clock,
        progress=progress,
    )


def sensitivity(
    bundle: Path | str,
    *,
    type: str = "int8",
    feeds: Path | None = None,
    count: int = COSTED,
    variant: str = "edge",
    method: str = "percentile",
    progress: Progress | None = None,
) -> SensitivityReport:
    """Measure what each block costs in task accuracy when it alone is held in eight bits.

    Args:
        bundle: an fp32 bundle's folder, or "mini" for the built-in one.
        type: "int8" or "fp8".
        feeds: what `calibrate` recorded; None records some scenes now.
        count: scenes, one phrase each.
        variant: of the pipeline.
        method: how ranges are taken.
        progress: told one line for each step.

    Raises:
        BundleError: the bundle is missing or damaged.
        InputError: it is not in fp32, or an option or the feeds cannot be used.
    """
    if type not in QUANTIZED:
        raise InputError(f"unknown type {type!r}; choose one of: {', '.join(QUANTIZED)}")
    opened, tell = find_bundle(bundle), progress or silent
    check_source(opened)
    wanted = Wanted(precision=type, feeds=feeds, ranges=method)
    wanted.check(bundle=opened.path)
    recipe = _recipe(opened, wanted, tell)
    return measure_costs(opened, recipe, count=count, variant=variant, progress=tell)


def _recipe(bundle: Bundle, wanted: Wanted, tell: Progress) -> Recipe:
    if wanted.recipe is not None:
        return _read(wanted.recipe, wanted.precision)
    half = half_recipe(
        bundle.path,
        model=bundle.spec.name,
        sources=bundle.manifest.sources,
        half=wanted.precision if wanted.precision in HALVES else "fp16",
    )
    if wanted.precision in HALVES:
        return half
    recipe = eight_bit_recipe(
        bundle,
        half,
        type="int8" if wanted.precision == "int8" else "fp8",
        feeds=wanted.feeds,
        method=wanted.ranges,
        smoothing=wanted.smoothing,
        progress=tell,
    )
    if wanted.budget is None:
        return recipe
    report = measure_costs(bundle, recipe, progress=tell)
    return within_budget(bundle, recipe, report, budget_points(wanted.budget), progress=tell)


def _read(path: Path, precision: str) -> Recipe:
    recipe = read_recipe(path)
    found = {graph.precision for graph in recipe.graphs.values()}
    found = found & set(QUANTIZED) or found  # beside eight bits some graphs stay in half precision by rule
    if precision not in found:
        names = " or ".join(sorted(found)) or "nothing"
        raise InputError(
            f"{path} is a recipe for {names}, got --precision {precision}; use --precision {names}"
        )
    return recipe
