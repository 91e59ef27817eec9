"""The verb `convert`: write an fp32 bundle in fewer bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from refdiff.calibration.converted_bundle import check_source, write_converted_bundle
from refdiff.calibration.feeds import require_recording
from refdiff.calibration.recipes import METHODS, SMOOTHING, eight_bit_recipe, half_recipe, read_recipe_for
from refdiff.calibration.sensitivity import COSTED, budget_points, measure_costs, within_budget
from refdiff.calibration.task_accuracy import open_task_accuracy
from refdiff.contracts.bundle import Bundle
from refdiff.contracts.bundle_writer import check_bundle_target
from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.progress import Progress, silent
from refdiff.contracts.recipe import HALVES, QUANTIZED, Recipe
from refdiff.engines.trt.latency_race import LatencyRace, find_latency_race
from refdiff.errors import InputError

if TYPE_CHECKING:
    from refdiff.contracts.manifest import Manifest

PRECISIONS = ("fp32", *HALVES, *QUANTIZED)

FindRace = Callable[[Progress], tuple[LatencyRace | None, str]]
"""As `find_latency_race`."""

RANGES = "percentile"
"""The default way to take ranges."""


@dataclass(frozen=True, kw_only=True)
class PrecisionOptions:
    """A precision, and where its recipe or its ranges come from."""

    precision: str
    """One of `PRECISIONS`."""
    recipe: Path | None = None
    """A recipe to follow; None builds one by the built-in rules."""
    feeds: Path | None = None
    """A recording of `calibrate`, for the ranges of eight-bit tensors; None records scenes now."""
    ranges: str = RANGES
    """Method by which ranges are taken from the feeds; one of `refdiff.calibration.recipes.METHODS`."""
    smoothing: float | None = SMOOTHING
    """Strength of SmoothQuant, 0..1; None leaves it out."""
    budget: str | None = None
    """Accuracy that eight bits may cost, such as "mIoU -0.5"; costlier blocks stay in half precision."""
    timed: bool = True
    """True: keep eight bits only where this machine's GPU, if it has one that TensorRT runs on, is
    faster with them than in half precision."""

    def check(self) -> None:
        """Refuse options that do not go together, before any work.

        Raises:
            InputError: an unknown precision, or an option that it does not take.
        """
        if self.precision not in PRECISIONS:
            raise InputError(f"unknown precision {self.precision!r}; choose one of: {', '.join(PRECISIONS)}")
        if self.recipe is not None and self.precision != "fp32":
            read_recipe_for(self.recipe, self.precision)
        if self.feeds is not None and self.precision in QUANTIZED:
            require_recording(self.feeds)
        if self.precision == "fp32" and (self.recipe or self.feeds):
            raise InputError(
                f"fp32 takes no {'--recipe' if self.recipe else '--feeds'}: nothing is converted; "
                f"name a precision: {', '.join(PRECISIONS[1:])}"
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


def convert(
    bundle: Path | str,
    precision: PrecisionOptions | str,
    *,
    output: Path | str,
    overwrite: bool = False,
    progress: Progress | None = None,
    find_race: FindRace = find_latency_race,
) -> Manifest:
    """Convert an fp32 bundle; torch is not needed.

    Args:
        bundle: an fp32 bundle's folder, or "mini" for the built-in one.
        precision: one of `PRECISIONS` but fp32, or more options with it.
        output: the new bundle's folder; it appears whole or not at all.
        overwrite: replace an existing bundle.
        progress: receives one line at each step.
        find_race: prepares what times eight bits against half precision, or says why it cannot.

    Returns:
        The new bundle's manifest. A graph that eight bits do not suit is in half precision, and the bundle's
        recipe says why.

    Raises:
        BundleError: the bundle is missing or damaged.
        InputError: it is not in fp32, options do not go together, a recipe or feeds cannot be used, or the
            output cannot be written.
        GateError: a half-precision graph is outside its tolerance.
        MissingDependencyError: onnx_ir or ONNX Runtime is not installed.
    """
    options = PrecisionOptions(precision=precision) if isinstance(precision, str) else precision
    progress = progress or silent
    options.check()
    if options.precision == "fp32":
        raise InputError(f"{bundle} is in fp32 already; name a precision: {', '.join(PRECISIONS[1:])}")
    check_bundle_target(Path(output), overwrite=overwrite)
    source = find_bundle(bundle)
    check_source(source)
    race = _find_race(options, find_race, progress)
    return write_converted_bundle(
        source,
        _make_recipe(source, options, progress),
        precision=options.precision,
        output=Path(output),
        overwrite=overwrite,
        race=race,
        progress=progress,
    )


def _find_race(options: PrecisionOptions, find_race: FindRace, progress: Progress) -> LatencyRace | None:
    if not options.timed or options.precision not in QUANTIZED:
        return None
    race, where = find_race(progress)
    progress(
        f"eight bits have to be faster on {where}"
        if race
        else f"eight bits are judged by accuracy alone, there is nothing to time them on: {where}"
    )
    return race


def _make_recipe(bundle: Bundle, options: PrecisionOptions, progress: Progress) -> Recipe:
    if options.recipe is not None:
        return read_recipe_for(options.recipe, options.precision)
    if options.precision in HALVES:
        return half_recipe(bundle, options.precision)
    recipe = eight_bit_recipe(
        bundle,
        type="int8" if options.precision == "int8" else "fp8",
        feeds=options.feeds,
        method=options.ranges,
        smoothing=options.smoothing,
        progress=progress,
    )
    if options.budget is None:
        return recipe
    with open_task_accuracy(bundle, recipe, count=COSTED, variant="edge", progress=progress) as accuracy:
        report = measure_costs(accuracy, recipe, progress)
        return within_budget(accuracy, recipe, report, budget_points(options.budget), progress)
