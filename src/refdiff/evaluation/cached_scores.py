"""Parts of the score of every candidate, kept so that options can be compared without running a graph again.

Each image goes through the graphs once, for each distinct setting of the UNet's passes. Weights of the parts,
and ways to read the map from the logits (METHOD §10.6, §10.8 to §10.12), are then compared with numpy alone.

Axes: s = samples, v = readings of the map, n = candidates, padded to the most of any sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.inspection import check_trained, find_bundle
from refdiff.contracts.options import (
    DEFAULT_BACKEND,
    DEFAULT_RUN,
    AttentionOptions,
    BackendOptions,
    FusionOptions,
    Options,
    RunOptions,
)
from refdiff.contracts.progress import Progress, Step, silent
from refdiff.contracts.session import Bool, Float, ImageArray
from refdiff.data.sample import Dataset, Sample, Truth, read_truth
from refdiff.errors import InputError
from refdiff.loading import open_backend, segmenter_of
from refdiff.runtime import masks
from refdiff.runtime.attention_branch import AttentionBranch
from refdiff.runtime.map_reader import AttentionLogits, MapReader
from refdiff.runtime.phrase import Phrase
from refdiff.runtime.query import QueryParser
from refdiff.runtime.scoring import balanced_contrast, mean_heat
from refdiff.runtime.segmentation import Segmentation
from refdiff.runtime.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True, eq=False)
class CachedScores:
    """The parts of the score, and how well each candidate fits the truth."""

    options: Options
    """What the parts were computed with, apart from the readings."""
    readings: tuple[AttentionOptions, ...]
    pictures: tuple[str, ...]
    """[s], name of each sample's image."""
    hard: Float
    """[s, n]."""
    soft: Float
    """[s, n]."""
    place: Float
    """[s, n]."""
    inside: Float
    """[v, s, n], mean heat inside the candidate."""
    outside: Float
    """[v, s, n]."""
    kept: Bool
    """[s, n], candidates that the area filter left."""
    present: Bool
    """[s, n], False in the padding."""
    intersection_px: NDArray[np.int64]
    """[s, n], with the truth."""
    union_px: NDArray[np.int64]
    """[s, n]."""
    truth_px: NDArray[np.int64]
    """[s]."""
    truth_contrast: Float
    """[v, s], mean heat inside the true mask minus mean heat outside."""

    def choose(self, fusion: FusionOptions, reading: int, *, heat_alone: bool = False) -> NDArray[np.int64]:
        """Return each sample's best candidate, as `scoring` chooses it: [s], -1 where none can win.

        Args:
            fusion: weights of the parts.
            reading: index of the reading.
            heat_alone: choose as mode `gen+seg`.
        """
        heat = balanced_contrast(self.inside[reading], self.outside[reading], fusion.contrast_balance)
        total: NDArray[Any] = heat
        if not heat_alone:
            weights = (fusion.hard, fusion.soft, fusion.generative, fusion.place)
            parts = (self.hard, self.soft, heat, self.place)
            total = np.sum(
                [each * part.astype(np.float64) for each, part in zip(weights, parts, strict=True)], axis=0
            )
        filtered = -np.inf if self.options.proposals.drop_filtered else 0.0
        total = np.where(self.present, np.where(self.kept, total, filtered), -np.inf).astype(np.float32)
        best = total.argmax(axis=1)
        return np.where(np.isfinite(total).any(axis=1), best, -1)

    def ious(self, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the IoU of each sample's chosen candidate: [s]."""
        intersection, union = self.overlaps(chosen)
        return intersection / union

    def overlaps(self, chosen: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return each sample's intersection and union with the truth in px: [s] each."""
        rows = np.arange(len(chosen))
        nothing = chosen < 0
        intersection = np.where(nothing, 0, self.intersection_px[rows, chosen])
        return intersection, np.where(nothing, self.truth_px, self.union_px[rows, chosen])


@dataclass(frozen=True, kw_only=True, eq=False)
class _Row:
    """One sample, before padding."""

    picture: str
    hard: Float
    soft: Float
    place: Float
    inside: Float  # [v, n]
    outside: Float  # [v, n]
    kept: Bool
    intersection_px: NDArray[np.int64]
    union_px: NDArray[np.int64]
    truth_px: int
    truth_contrast: Float  # [v]


def cache_scores(
    bundle: Path | str,
    dataset: Dataset,
    readings: Sequence[AttentionOptions] = (),
    *,
    options: RunOptions = DEFAULT_RUN,
    backend: BackendOptions = DEFAULT_BACKEND,
    progress: Progress | None = None,
) -> CachedScores:
    """Run the graphs once, and keep what the options decide about.

    Args:
        bundle: its folder, or "mini".
        dataset: samples with true masks; those without a target are left out: no option finds nothing.
        readings: options of the map; none: those of the variant.
        options: variant; the mode has to be full.
        backend: where and how the graphs run.
        progress: called with the number of samples done.

    Raises:
        InputError: another mode, no sample with a target, or one without a true mask or with a wrong one.
        BundleError: the bundle is missing, damaged or newer.
        EngineError: a graph failed.
    """
    opened = find_bundle(bundle, expect=options.expect)
    check_trained(opened, allow_random_weights=options.allow_random_weights)
    pipeline = replace(options.pipeline_options(opened.spec), min_confidence=None)
    if pipeline.mode != "full":
        raise InputError(f"got mode {pipeline.mode}, expected full, whose parts are compared; leave it out")
    readings = tuple(readings) or (pipeline.attention,)
    tokenizer = Tokenizer(opened.tokenizer_json(), opened.spec.context_length)
    parser, rows, report, done = QueryParser(pipeline, tokenizer), [], progress or silent, 0
    scored = replace(pipeline, mode="disc+seg", fusion=replace(pipeline.fusion, place=1.0))
    with ExitStack() as stack:
        sessions = open_backend(opened, backend)
        segmenter = stack.enter_context(segmenter_of(opened, sessions, scored))
        diffusion, passes = opened.spec.diffusion, dict.fromkeys(passes_of(each) for each in readings)
        branches = {
            each: AttentionBranch(sessions, diffusion, replace(pipeline, attention=each), tokenizer)
            for each in passes
        }
        readers = [MapReader(replace(pipeline, attention=each), diffusion, tokenizer) for each in readings]
        for picture, group in groupby(dataset, key=lambda sample: sample.picture or sample.id):
            every = tuple(group)
            aimed = [(sample, truth) for sample in every if (truth := read_truth(sample)).mask.any()]
            if aimed:
                image = aimed[0][0].read()
                phrases = parser.parse_all([sample.phrase for sample, _ in aimed])
                answers = segmenter.segment_each(image, [sample.phrase for sample, _ in aimed])
                heats = _heatmaps(branches, readers, readings, image, phrases)
                rows += [
                    _row(picture, sample, truth, answer, heat)
                    for (sample, truth), answer, heat in zip(aimed, answers, heats, strict=True)
                ]
            done += len(every)
            report(Step(f"{done} of {len(dataset)} samples", done=done, total=len(dataset), unit="samples"))
    if not rows:
        raise InputError("got no sample with a target, expected some; use a data set with true masks")
    return _padded(rows, pipeline, readings)


def passes_of(reading: AttentionOptions) -> AttentionOptions:
    """Return the options that decide what the graphs compute, the same for all ways to read it."""
    plain = AttentionOptions()
    return replace(
        reading,
        focus=plain.focus,
        rescale=plain.rescale,
        end_token=plain.end_token,
        layer_weights=plain.layer_weights,
        coarse=plain.coarse,
        propagate=plain.propagate,
        uint8_lanczos=plain.uint8_lanczos,
    )


def _heatmaps(
    branches: Mapping[AttentionOptions, AttentionBranch],
    readers: Sequence[MapReader],
    readings: Sequence[AttentionOptions],
    image: ImageArray,
    phrases: Sequence[Phrase],
) -> list[Float]:
    """Return the heatmaps of each phrase under every reading: a list of [v, y, x]."""
    logits: dict[AttentionOptions, list[AttentionLogits]] = {}
    for passes, branch in branches.items():
        latent = branch.encode(image)
        if latent is None:
            raise InputError("got a mode without a heatmap, expected full")
        logits[passes] = list(branch.logits(latent, phrases))
    size_yx = (image.shape[0], image.shape[1])
    return [
        np.stack(
            [
                reader.heatmap(logits[passes_of(reading)][at], size_yx, phrase)
                for reader, reading in zip(readers, readings, strict=True)
            ]
        )
        for at, phrase in enumerate(phrases)
    ]


def _row(picture: str, sample: Sample, truth: Truth, answer: Segmentation, heat: Float) -> _Row:
    """Compare one sample's candidates with its truth and with its heatmaps [v, y, x]."""
    candidates = answer.candidates
    if truth.mask.shape != heat.shape[1:]:
        raise InputError(
            f"{sample.id}: the true mask is {truth.mask.shape} px (height, width), the image "
            f"{heat.shape[1:]}; correct the data set"
        )
    judged = candidates.masks if truth.ignored is None else candidates.masks & ~truth.ignored
    intersection = masks.areas(judged & truth.mask)
    truth_px = int(np.count_nonzero(truth.mask))
    means = [mean_heat(each, candidates.masks) for each in heat]
    of_truth = [mean_heat(each, truth.mask[None]) for each in heat]
    return _Row(
        picture=picture,
        hard=answer.scores.hard,
        soft=answer.scores.soft,
        place=answer.scores.place,
        inside=np.stack([inside for inside, _ in means]),
        outside=np.stack([outside for _, outside in means]),
        kept=candidates.kept,
        intersection_px=intersection,
        union_px=masks.areas(judged) + truth_px - intersection,
        truth_px=truth_px,
        truth_contrast=np.array([inside[0] - outside[0] for inside, outside in of_truth], np.float32),
    )


def _padded(rows: Sequence[_Row], options: Options, readings: tuple[AttentionOptions, ...]) -> CachedScores:
    most = max(1, *(len(row.kept) for row in rows))

    def stacked(name: str) -> Any:
        values = [getattr(row, name) for row in rows]
        wide = [np.pad(each, [*[(0, 0)] * (each.ndim - 1), (0, most - each.shape[-1])]) for each in values]
        return np.stack(wide, axis=values[0].ndim - 1)

    names = ("hard", "soft", "place", "inside", "outside", "kept", "intersection_px", "union_px")
    return CachedScores(
        options=options,
        readings=readings,
        pictures=tuple(row.picture for row in rows),
        present=np.stack([np.arange(most) < len(row.kept) for row in rows]),
        truth_px=np.array([row.truth_px for row in rows]),
        truth_contrast=np.stack([row.truth_contrast for row in rows], axis=1),
        **{name: stacked(name) for name in names},
    )
