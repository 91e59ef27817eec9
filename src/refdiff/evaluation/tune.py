"""Search the weights of the score and the reading of the map on labelled samples (`refdiff tune`).

The graphs run once. A trial is then a few sums over cached arrays, and scipy's differential evolution makes
thousands of them. A part of the images is held out: only its figures say what the options are worth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.accuracy.metrics import bootstrap_interval
from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.options import (
    DEFAULT_BACKEND,
    DEFAULT_RUN,
    AttentionOptions,
    BackendOptions,
    FusionOptions,
    RunOptions,
)
from refdiff.contracts.progress import Progress
from refdiff.contracts.session import Bool
from refdiff.contracts.spec import DiffusionSpec
from refdiff.contracts.tuned_options import TunedOptions
from refdiff.data.sample import Dataset
from refdiff.data.truth import require_eval
from refdiff.errors import InputError
from refdiff.evaluation.cached_scores import CachedScores, cache_scores
from refdiff.reports.page import Section
from refdiff.reports.table import Column, Table, facts_table, numeric

HELD_OUT = 0.4
"""Share of the images that no trial sees."""

_LEAST_IMAGES = 20
_POPULATION, _GENERATIONS = 12, 30
_BOUNDS = ((0.0, 1.0), (0.0, 1.0), (0.0, 1.0), (0.0, 2.0))
"""Of soft's share of the two CLIP scores, generative, place, and contrast balance; only ratios matter."""
_NEAR = 1e-3
"""Points of mIoU that the far end of a range costs: of equal options, those near the variant's win."""


@dataclass(frozen=True, kw_only=True)
class TuningReport:
    """The options found, and mIoU with those of the variant and with them."""

    options: TunedOptions
    trials: int
    images: int
    held_out_images: int
    samples: int
    searched: tuple[float, float]
    """mIoU before and after on the samples that were searched on: too good by construction."""
    held_out: tuple[float, float]
    """mIoU before and after on those that were not."""
    gain_interval: tuple[float, float]
    """95 % interval of the gain on held-out samples, by bootstrap over images."""
    before: dict[str, float]
    """Weights of the variant."""

    @property
    def is_gain(self) -> bool:
        """The held-out samples show a gain."""
        return self.gain_interval[0] > 0

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; as a file, `RunOptions.tuned` takes it."""
        return {
            **self.options.to_json(),
            "measured": {
                "trials": self.trials,
                "images": self.images,
                "held_out_images": self.held_out_images,
                "samples": self.samples,
                "miou_searched": list(self.searched),
                "miou_held_out": list(self.held_out),
                "gain_interval_95": list(self.gain_interval),
                "is_gain": self.is_gain,
            },
        }

    def to_section(self) -> Section:
        """Build the tables of options and of accuracy, before and after."""
        found = self.options
        rows = [(name, f"{value:.3f}", f"{getattr(found, name):.3f}") for name, value in self.before.items()]
        rows += [
            (f"mIoU, {name}", f"{values[0]:.4f}", f"{values[1]:.4f}")
            for name, values in (("searched on", self.searched), ("held out", self.held_out))
        ]
        verdict = (
            "the held-out images show a gain"
            if self.is_gain
            else "the held-out images show no gain: keep the variant's options, or label more images"
        )
        low, high = self.gain_interval
        facts = [
            ("map", f"rescaled: {found.rescale}, end token {found.end_token}, layers {found.layer_weights}"),
            ("", f"coarsest level {found.coarse}, propagated {found.propagate} times"),
            ("images", f"{self.images} in all, {self.held_out_images} held out; {self.samples} samples"),
            ("gain, held out", f"{low:+.4f} to {high:+.4f} (95 %): {verdict}"),
        ]
        columns = (Column("option"), *numeric("before", "after"))
        return Section(tables=[Table(columns=columns, rows=rows), facts_table(facts)])


def tune(
    bundle: Path | str,
    dataset: Dataset,
    *,
    options: RunOptions = DEFAULT_RUN,
    backend: BackendOptions = DEFAULT_BACKEND,
    seed: int = 0,
    progress: Progress | None = None,
) -> TuningReport:
    """Search better options for the user's own samples.

    Args:
        bundle: its folder, or "mini".
        dataset: samples with true masks on 20 images or more.
        options: the variant that is tuned.
        backend: where and how the graphs run.
        seed: of the split into images, and of the search.
        progress: called with the number of samples done.

    Raises:
        InputError: too few images, another mode than full, or options that are tuned already.
        MissingDependencyError: scipy is not installed.
        BundleError: the bundle is missing, damaged or newer.
        EngineError: a graph failed.
    """
    with require_eval("tuning"):
        from scipy.optimize import differential_evolution  # noqa: F401 - before the graphs run
    if options.tuned is not None:
        raise InputError("got options that are tuned already, expected those of a variant; leave them out")
    # Too few images are refused before the graphs run; those without a target are dropped afterwards.
    split(tuple(sample.picture or sample.id for sample in dataset), seed)
    spec = find_bundle(bundle).spec
    plain = options.pipeline_options(spec)
    readings = readings_of(plain.attention, spec.diffusion)
    cached = cache_scores(bundle, dataset, readings, options=options, backend=backend, progress=progress)
    held_out = split(cached.pictures, seed)
    fusion, reading, trials = search(cached, ~held_out, seed)
    before, after = (
        cached.ious(cached.choose(weights, at)) for weights, at in ((plain.fusion, 0), (fusion, reading))
    )
    read = readings[reading]
    return TuningReport(
        options=TunedOptions(
            model=spec.name,
            variant=plain.variant,
            mode=plain.mode,
            **weights_of(fusion),
            rescale=read.rescale,
            end_token=read.end_token,
            layer_weights=read.layer_weights,
            coarse=read.coarse,
            propagate=read.propagate,
        ),
        trials=trials,
        images=len(set(cached.pictures)),
        held_out_images=len({name for name, out in zip(cached.pictures, held_out, strict=True) if out}),
        samples=len(before),
        searched=(float(before[~held_out].mean()), float(after[~held_out].mean())),
        held_out=(float(before[held_out].mean()), float(after[held_out].mean())),
        gain_interval=_gain_interval(cached.pictures, held_out, after - before),
        before=weights_of(plain.fusion),
    )


def readings_of(base: AttentionOptions, spec: DiffusionSpec) -> tuple[AttentionOptions, ...]:
    """Return the readings that are searched, the variant's own first; those that the graphs can give."""
    layers = len(spec.tapped_layers)
    coarse = (0.0, 1.0, 2.0) if "coarse" in spec.maps else (0.0,)
    steps = (0, 1, 2) if "self" in spec.maps else (0,)
    alone = (tuple(float(at == each) for each in range(layers)) for at in range(layers))
    return (
        base,
        *(
            replace(base, rescale=rescale, end_token=end)
            for rescale in (False, True)
            for end in (0.0, 0.5, 1.0)
            if rescale or end
        ),
        *(replace(base, layer_weights=weights) for weights in alone if layers > 1),
        *(
            replace(base, coarse=weight, propagate=times)
            for weight in coarse
            for times in steps
            if weight or times
        ),
    )


def weights_of(fusion: FusionOptions) -> dict[str, float]:
    """Return the weights that are searched."""
    return {
        name: float(getattr(fusion, name))
        for name in ("hard", "soft", "generative", "place", "contrast_balance")
    }


def split(pictures: tuple[str, ...], seed: int) -> Bool:
    """Draw the images that are held out: [s], True for their samples.

    Raises:
        InputError: too few images.
    """
    names = sorted(set(pictures))
    if len(names) < _LEAST_IMAGES:
        raise InputError(
            f"got {len(names)} images with a target, expected {_LEAST_IMAGES} or more; label more images"
        )
    drawn = np.random.default_rng(seed).permutation(len(names))[: round(HELD_OUT * len(names))]
    chosen = {names[at] for at in drawn}
    return np.array([name in chosen for name in pictures], dtype=np.bool_)


def search(cached: CachedScores, inside: Bool, seed: int) -> tuple[FusionOptions, int, int]:
    """Return the weights and the reading of the highest mIoU over some samples, and the trials made.

    Args:
        cached: what the trials are computed from; its first reading is the variant's.
        inside: [s], the samples that count.
        seed: of the search.
    """
    from scipy.optimize import differential_evolution

    base = cached.options.fusion
    clip = base.hard + base.soft
    shares = [each / clip for each in (base.soft, base.generative, base.place)]
    start = np.array([*shares, base.contrast_balance, 0.0])
    bounds = (*_BOUNDS, (0, len(cached.readings) - 1))
    widths = np.array([high - low or 1.0 for low, high in bounds])

    def options(x: NDArray[np.float64]) -> tuple[FusionOptions, int]:
        soft, generative, place, balance, reading = (float(each) for each in x)
        changed = replace(
            base,
            hard=clip * (1 - soft),
            soft=clip * soft,
            generative=clip * generative,
            place=clip * place,
            contrast_balance=balance,
        )
        return changed, round(reading)

    def loss(x: NDArray[np.float64]) -> float:
        far = np.abs(x - start) / widths
        far[-1] = round(x[-1]) != 0
        return float(_NEAR * far.mean() - cached.ious(cached.choose(*options(x)))[inside].mean())

    optimize: Callable[..., Any] = differential_evolution
    found = optimize(
        loss,
        bounds,
        integrality=[False] * len(_BOUNDS) + [True],
        x0=np.clip(start, [low for low, _ in bounds], [high for _, high in bounds]),
        popsize=_POPULATION,
        maxiter=_GENERATIONS,
        tol=0,
        polish=False,
        seed=seed,
    )
    if loss(start) <= found.fun:  # the variant's own options, without rounding
        return base, 0, int(found.nfev)
    return *options(found.x), int(found.nfev)


def _gain_interval(
    pictures: tuple[str, ...], held_out: Bool, gains: NDArray[np.float64]
) -> tuple[float, float]:
    names = sorted({name for name, out in zip(pictures, held_out, strict=True) if out})
    rows = {name: at for at, name in enumerate(names)}
    groups = np.zeros((len(names), 2))  # sum of gains, samples
    for name, out, gain in zip(pictures, held_out, gains, strict=True):
        if out:
            groups[rows[name]] += (gain, 1)
    return bootstrap_interval(groups, lambda sums: sums[:, 0] / sums[:, 1])
