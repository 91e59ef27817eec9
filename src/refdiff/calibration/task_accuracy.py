"""Measuring recipes on the same samples, over one half-precision bundle.

The measure is the mean IoU over pictures and phrases: with the true masks of the miniature's scenes, or, for
other models, with the answers of the fp32 bundle itself.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from refdiff.accuracy.metrics import iou
from refdiff.calibration.convert import convert
from refdiff.contracts.bundle import Bundle, open_bundle
from refdiff.contracts.graphs import graph_contract
from refdiff.contracts.inspection import MINIATURE_NAME
from refdiff.contracts.optional import require_export
from refdiff.contracts.options import Options, options_for
from refdiff.contracts.progress import Progress
from refdiff.contracts.recipe import GraphRecipe, Recipe
from refdiff.contracts.session import Bool, Session, SessionFactory
from refdiff.data.sample import Sample, true_mask
from refdiff.data.synthetic import SENSITIVITY_FROM, RenderedScenes
from refdiff.engines.factory import open_sessions
from refdiff.errors import InputError
from refdiff.loading import segmenter_of

PURPOSE = "measuring a precision"

BACKEND = "ort-rounded"
"""Half precision is executed, whatever this machine's kernels can do."""


class Trials:
    """Measures recipes on the same samples, over one half-precision bundle.

    Args:
        source: the fp32 bundle.
        folder: scratch, for graphs on trial.
        half: the source in half precision.
        samples: images and phrases.
        options: the variant.
    """

    def __init__(
        self, source: Bundle, folder: Path, half: Bundle, samples: Sequence[Sample], options: Options
    ) -> None:
        self._source = source
        self._folder = folder
        self._half = half
        self._samples = samples
        self._options = options
        self._truths = self._true_masks()
        self.half_miou = self._miou({})

    def miou(self, recipes: Mapping[str, GraphRecipe]) -> float:
        """Mean IoU with these graphs converted by these recipes, all others in half precision."""
        with require_export(PURPOSE):
            from refdiff.passes.convert import convert_graph
            from refdiff.passes.early_exit import cut_taps
        contract = graph_contract(self._source.spec)
        with tempfile.TemporaryDirectory(dir=self._folder) as scratch:
            paths: dict[str, Path] = {}
            for name, recipe in recipes.items():
                paths[name] = Path(scratch) / f"{name}.onnx"
                convert_graph(self._source.graph_path(name), paths[name], recipe)
                if name == "unet":
                    after = self._source.spec.diffusion.cut_after
                    paths["unet_taps"] = cut_taps(paths[name], contract["unet_taps"], cut_after=after)
            return self._miou(paths)

    def _true_masks(self) -> list[Bool]:
        if self._source.spec.name == MINIATURE_NAME:
            return [true_mask(each) for each in self._samples]
        with _segmenting(self._source, "ort-cpu", {}, self._options) as answer:
            return [answer(each) for each in self._samples]

    def _miou(self, paths: Mapping[str, Path]) -> float:
        with _segmenting(self._half, BACKEND, paths, self._options) as answer:
            ious = [iou(answer(each), truth) for each, truth in zip(self._samples, self._truths, strict=True)]
        return float(np.mean(ious))


class _Overlay:
    """Sessions of a bundle, some of them of other files."""

    def __init__(self, inner: SessionFactory, others: Mapping[str, Session]) -> None:
        self._inner = inner
        self._others = others

    def open(self, name: str) -> Session:
        """The session of graph `name`."""
        return self._others[name] if name in self._others else self._inner.open(name)

    def close(self) -> None:
        """Close all of them."""
        for session in self._others.values():
            session.close()
        self._inner.close()


@contextmanager
def _segmenting(
    bundle: Bundle, backend: str, paths: Mapping[str, Path], options: Options
) -> Iterator[Callable[[Sample], Bool]]:
    with require_export(PURPOSE):
        from refdiff.engines.ort import OrtSession
    contract = graph_contract(bundle.spec)
    others = {name: OrtSession(path, contract[name], backend=backend) for name, path in paths.items()}
    sessions = _Overlay(open_sessions(bundle, backend=backend), others)
    with segmenter_of(bundle, sessions, options) as segmenter:
        yield lambda sample: segmenter.segment(segmenter.encode(sample.read()), sample.phrase).mask


@contextmanager
def trials(
    source: Bundle, recipe: Recipe, *, count: int, variant: str, progress: Progress
) -> Iterator[Trials]:
    """Prepare measurements on an fp32 bundle; `recipe` says how its half precision looks.

    Raises:
        InputError: fewer than one scene.
    """
    if count < 1:
        raise InputError(f"got {count} scenes, expected 1 or more")
    half = dataclasses.replace(
        recipe,
        graphs={name: dataclasses.replace(each, quantized=None) for name, each in recipe.graphs.items()},
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        progress("writing the half-precision bundle to compare with")
        convert(source.path, half, precision="fp16", output=folder / "half")
        samples = tuple(RenderedScenes(count=count, seed=SENSITIVITY_FROM))
        options = options_for(source.spec, variant=variant)
        yield Trials(source, folder, open_bundle(folder / "half"), samples, options)
