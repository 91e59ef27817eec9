"""Measure the task accuracy of recipes on the same samples, against one half-precision bundle.

The measure is the mean IoU over samples: with the true masks of the miniature's scenes or, for other models,
with the masks of the fp32 bundle.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from refdiff.accuracy.metrics import iou
from refdiff.calibration.converted_bundle import write_converted_bundle
from refdiff.contracts.bundle import Bundle, open_bundle
from refdiff.contracts.graphs import graph_contract
from refdiff.contracts.inspection import MINIATURES
from refdiff.contracts.optional import require_export
from refdiff.contracts.options import Options, options_for
from refdiff.contracts.progress import Progress, silent
from refdiff.contracts.recipe import GraphRecipe, Recipe
from refdiff.contracts.session import Bool, Session, SessionFactory
from refdiff.data.sample import Sample, true_mask
from refdiff.data.synthetic import SENSITIVITY_FROM, RenderedScenes
from refdiff.engines.factory import open_sessions
from refdiff.errors import InputError
from refdiff.loading import segmenter_of

PURPOSE = "measuring a precision"

BACKEND = "ort-rounded"
"""Rounds half precision, whatever this machine's kernels support."""


class TaskAccuracy:
    """Measures recipes on the same samples; graphs that a recipe does not name are in half precision.

    Args:
        source: the fp32 bundle.
        half: the same bundle in half precision.
        samples: images and phrases.
        options: options of the pipeline.
        folder: scratch folder for converted graphs.
    """

    def __init__(
        self, source: Bundle, half: Bundle, samples: Sequence[Sample], options: Options, folder: Path
    ) -> None:
        self._source = source
        self._half = half
        self._samples = samples
        self._options = options
        self._folder = folder
        self._truths = self._true_masks()
        self.half_miou = self._measure({})
        """Mean IoU with every graph in half precision, 0..1."""

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(self._samples)

    @property
    def variant(self) -> str:
        """Variant of the pipeline."""
        return self._options.variant

    @property
    def truth(self) -> str:
        """Description of the reference that the masks are compared with."""
        return "the scenes' true masks" if self._has_true_masks else "the fp32 bundle's answers"

    def miou(self, recipes: Mapping[str, GraphRecipe]) -> float:
        """Return the mean IoU, 0..1, with these graphs converted by these recipes."""
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
            return self._measure(paths)

    @property
    def _has_true_masks(self) -> bool:
        return self._source.spec.name in MINIATURES

    def _true_masks(self) -> list[Bool]:
        if self._has_true_masks:
            return [true_mask(each) for each in self._samples]
        with _open_segmenter(self._source, "ort-cpu", {}, self._options) as segment:
            return [segment(each) for each in self._samples]

    def _measure(self, paths: Mapping[str, Path]) -> float:
        with _open_segmenter(self._half, BACKEND, paths, self._options) as segment:
            ious = [
                iou(segment(each), truth) for each, truth in zip(self._samples, self._truths, strict=True)
            ]
        return float(np.mean(ious))


@contextmanager
def open_task_accuracy(
    source: Bundle, recipe: Recipe, *, count: int, variant: str, progress: Progress
) -> Iterator[TaskAccuracy]:
    """Prepare measurements on an fp32 bundle.

    Args:
        source: the fp32 bundle.
        recipe: its recipe, which is followed without the eight bits for the half-precision bundle.
        count: number of scenes, one sample each.
        variant: variant of the pipeline.
        progress: receives one line at each step.

    Raises:
        InputError: fewer than one scene.
    """
    if count < 1:
        raise InputError(f"got {count} scenes, expected 1 or more")
    graphs = {name: dataclasses.replace(each, quantized=None) for name, each in recipe.graphs.items()}
    half = dataclasses.replace(recipe, graphs=graphs)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        progress("writing the half-precision bundle to compare with")
        write_converted_bundle(source, half, precision="fp16", output=folder / "half", progress=silent)
        samples = tuple(RenderedScenes(count=count, seed=SENSITIVITY_FROM))
        options = options_for(source.spec, variant=variant)
        yield TaskAccuracy(source, open_bundle(folder / "half"), samples, options, folder)


@contextmanager
def _open_segmenter(
    bundle: Bundle, backend: str, paths: Mapping[str, Path], options: Options
) -> Iterator[Callable[[Sample], Bool]]:
    """Open a bundle with some graphs replaced by other files; yield a function from sample to mask."""
    with require_export(PURPOSE):
        from refdiff.engines.ort import OrtSession
    contract = graph_contract(bundle.spec)
    replaced = {name: OrtSession(path, contract[name], backend=backend) for name, path in paths.items()}
    sessions = _ReplacedSessions(open_sessions(bundle, backend=backend), replaced)
    with segmenter_of(bundle, sessions, options) as segmenter:
        yield lambda sample: segmenter.segment(segmenter.encode(sample.read()), sample.phrase).mask


class _ReplacedSessions:
    """The sessions of a bundle, some of them replaced."""

    def __init__(self, inner: SessionFactory, replaced: Mapping[str, Session]) -> None:
        self._inner = inner
        self._replaced = replaced

    def open(self, name: str) -> Session:
        """Return the session of graph `name`."""
        return self._replaced[name] if name in self._replaced else self._inner.open(name)

    def close(self) -> None:
        """Close all sessions."""
        for session in self._replaced.values():
            session.close()
        self._inner.close()
