"""The masks a phrase chooses from: SAM's automatic mode with the area filter, or a heatmap's level sets.

METHOD §2, §8, §10.1, §10.2.

Axes: m = point prompts, p = prompts of one decoder call, k = masks, n = candidates, y/x = image rows/columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.graphs import POINT_TOKENS, PROMPT_TOKENS
from refdiff.contracts.options import Options, ProposalOptions
from refdiff.contracts.prompt_vectors import PromptVectors
from refdiff.contracts.results import Candidates, Masks, stack_masks
from refdiff.contracts.session import Bool, Feed, Float, ImageArray, SessionFactory, to_host
from refdiff.contracts.spec import SamSpec
from refdiff.errors import InputError
from refdiff.runtime import masks
from refdiff.runtime.mask_decoder import MASK_THRESHOLD, MaskDecoder
from refdiff.runtime.masks import drop_small_regions
from refdiff.runtime.observer import NullObserver, Observer, observed
from refdiff.runtime.point_prompts import Points, cold_points, grid_points, map_prompts
from refdiff.runtime.prompt import point_tokens
from refdiff.runtime.resize import MaskResize, sam_size

_CHUNK_PX = 1 << 20  # pixels of logits processed together: 4 MiB, which a processor's cache holds

LEVELS = np.arange(5, 100, 5, dtype=np.float32) / 100
"""Levels at which mode `gen` cuts the heatmap: 5, 10, ..., 95 % (METHOD §8)."""


@dataclass(frozen=True, kw_only=True)
class Proposals:
    """The part of the proposals that needs no phrase; any number of phrases use it."""

    size_yx: tuple[int, int]
    """The image's size in px."""
    candidates: Candidates | None = None
    """None where they depend on the phrase's heatmap: in mode `gen`, and at the heatmap's peaks."""
    embedding: Feed | None = None
    """SAM's embedding of the image, None in mode `gen`. On the host where each phrase prompts SAM; else
    wherever it was computed: on a device it is valid until the encoder runs again."""


class MaskProposer:
    """Proposes masks with the graphs `sam_encoder`, `sam_decoder` and `sam_masks`.

    Args:
        sessions: opens the graphs.
        spec: SAM's sizes.
        vectors: of SAM's prompt encoder.
        options: of the segmenter.
        observer: notified of the stage "proposals".

    Raises:
        InputError: SAM is to be prompted at a heatmap's peaks, and the mode has no heatmap; or negative
            points are asked for without them, or too many.
    """

    empty_reason = "no proposal passes the filters"
    """Reason why no candidate can win, where none can."""

    def __init__(
        self,
        sessions: SessionFactory,
        spec: SamSpec,
        vectors: PromptVectors,
        options: Options,
        observer: Observer | None = None,
    ) -> None:
        if options.proposals.peaks and options.mode == "disc+seg":
            raise InputError(
                "mode 'disc+seg' has no heatmap with peaks to prompt SAM at;"
                " take another mode, or set peaks to 0"
            )
        most = PROMPT_TOKENS - POINT_TOKENS
        if options.proposals.negatives and not (
            options.proposals.peaks and 0 < options.proposals.negatives <= most
        ):
            raise InputError(
                f"got {options.proposals.negatives} negative points and {options.proposals.peaks} peaks,"
                f" expected at most {most} and at least one peak; set negatives to 0"
            )
        self._decoder = MaskDecoder(sessions, spec)
        self._spec = spec
        self._vectors = vectors
        self._options = options.proposals
        self._observer = observer or NullObserver()

    @observed("proposals")
    def encode(self, image: ImageArray) -> Proposals:
        """Return everything that depends on the image alone: its candidates, or SAM's embedding of it.

        Args:
            image: [y, x, 3] RGB.

        Raises:
            EngineError: a graph failed or returned values that are not finite.
        """
        size_yx = (image.shape[0], image.shape[1])
        embedding = self._decoder.embed(image)
        if self._options.peaks:
            return Proposals(size_yx=size_yx, embedding=to_host(embedding))  # outlives the encoder's next run
        candidates = self.propose_at(grid_points(self._options.points_per_side), embedding, size_yx)
        return Proposals(size_yx=size_yx, candidates=candidates, embedding=embedding)

    @observed("proposals")
    def candidates(self, proposals: Proposals, heatmap: Float | None) -> Candidates:
        """Return the candidates for a phrase: the image's, or those at its heatmap's peaks (METHOD §10.2).

        Args:
            proposals: from `encode`.
            heatmap: [y, x], 0..1, of the phrase; None in mode `disc+seg`.

        Raises:
            EngineError: a graph failed or returned values that are not finite.
        """
        if proposals.candidates is not None:
            return proposals.candidates
        options, embedding = self._options, proposals.embedding
        if embedding is None:
            raise _not_encoded()
        prompts = map_prompts(
            _required(heatmap), peaks=options.peaks, points_per_side=options.points_per_side
        )
        negatives = cold_points(
            _required(heatmap), options.negatives, points_per_side=options.points_per_side
        )
        return self.propose_at(prompts, embedding, proposals.size_yx, negatives)

    def propose_at(
        self, prompts: Points, embedding: Feed, size_yx: tuple[int, int], negatives: Points | None = None
    ) -> Candidates:
        """Return the candidates at some points, best predicted IoU first.

        Args:
            prompts: [m, 2] of (x, y), shares of the image.
            embedding: SAM's, of the image.
            size_yx: the image's size in px.
            negatives: [k, 2], negative points of every prompt; None: there are none.

        Returns:
            At least one candidate: where SAM finds nothing, the whole image is one.

        Raises:
            EngineError: a graph failed or returned values that are not finite.
        """
        spec, options = self._spec, self._options
        resized_yx = sam_size(size_yx, spec.image_size)
        resize = MaskResize(
            low_res=spec.low_res_size, square=spec.image_size, resized_yx=resized_yx, size_yx=size_yx
        )
        chunk = max(1, _CHUNK_PX // (size_yx[0] * size_yx[1]))
        excluded = None if negatives is None else to_sam_pixels(negatives, resized_yx)
        tokens = point_tokens(self._vectors, to_sam_pixels(prompts, resized_yx), excluded)
        decoded = self._decoder.decode(
            embedding, tokens, above=options.pred_iou_threshold, every=options.decode_all_prompts
        )
        found = [
            _keep_stable(resize, low_res[start : start + chunk], predicted[start : start + chunk], options)
            for low_res, predicted in decoded
            for start in range(0, len(low_res), chunk)
        ]
        unique = _drop_duplicates(found, options.nms_iou)
        if unique is None:
            return _whole_image(size_yx, options)
        drawn = stack_masks(_draw(unique.low_res, resize, size_yx), len(unique.low_res), size_yx)
        if options.min_region_share <= 0:
            return _to_candidates(drawn, unique.predicted_iou, unique.boxes, options)
        least_px = options.min_region_share * size_yx[0] * size_yx[1]
        drawn, best = drop_small_regions(drawn, least_px, max_iou=options.nms_iou)
        return _to_candidates(drawn, unique.predicted_iou[best], masks.boxes(drawn), options)


class LevelSetProposer:
    """Proposes the level sets of the phrase's heatmap: mode `gen`, without SAM (METHOD §8)."""

    empty_reason = "the attention map is flat"

    def encode(self, image: ImageArray) -> Proposals:
        """Return the image's size: all candidates depend on the phrase."""
        return Proposals(size_yx=(image.shape[0], image.shape[1]))

    def candidates(self, proposals: Proposals, heatmap: Float | None) -> Candidates:  # noqa: ARG002 - as SAM's
        """Return the level sets of the phrase's heatmap [y, x], 0..1."""
        return level_sets(_required(heatmap))


def proposer_for(
    sessions: SessionFactory,
    spec: SamSpec,
    vectors: PromptVectors,
    options: Options,
    observer: Observer | None = None,
) -> MaskProposer | LevelSetProposer:
    """Return the proposer of the options' mode."""
    if options.mode == "gen":
        return LevelSetProposer()
    return MaskProposer(sessions, spec, vectors, options, observer)


def level_sets(heatmap: Float) -> Candidates:
    """Return the masks {heatmap >= level}, largest first; a level above all of the heatmap is not kept."""
    size_yx = (heatmap.shape[0], heatmap.shape[1])
    levels = stack_masks((heatmap >= level for level in LEVELS), len(LEVELS), size_yx)
    areas_px = masks.areas(levels)
    return Candidates(
        masks=levels,
        predicted_iou=np.ones(len(levels), dtype=np.float32),
        areas_px=areas_px,
        boxes_xyxy_px=masks.boxes(levels),
        kept=areas_px > 0,
    )


def to_sam_pixels(prompts: Points, resized_yx: tuple[int, int]) -> Float:
    """Scale points [m, 2] from 0..1 to px of SAM's resized image; `point_tokens` adds the half pixel."""
    return np.asarray(prompts * np.array(resized_yx[::-1]), dtype=np.float32)


def keep_by_area(areas_px: NDArray[np.int64], size_yx: tuple[int, int], options: ProposalOptions) -> Bool:
    """Apply the area filter of METHOD §2: among the largest, and above both minimum areas. [n] -> [n]."""
    largest = np.argsort(-areas_px, kind="stable")[: options.keep_largest]
    kept = np.zeros(len(areas_px), dtype=np.bool_)
    kept[largest] = True
    least = max(options.min_area_px, options.min_area_share * size_yx[0] * size_yx[1])
    return kept & (areas_px > least)


@dataclass(frozen=True)
class _Found:
    """Stable masks until duplicates are dropped, in low resolution whatever the image's size."""

    low_res: Float
    """[k, l, l]."""
    predicted_iou: Float
    boxes: NDArray[np.int64]


def _keep_stable(
    resize: MaskResize, low_res: Float, predicted_iou: Float, options: ProposalOptions
) -> _Found:
    """Keep the stable masks of a chunk; SAM's crop-edge filter never applies to a whole image."""
    cuts, rows, columns = np.zeros((2, len(low_res)), np.int64), [], []
    for _, logits in resize.bands(low_res):
        cuts += masks.cut_areas(logits, threshold=MASK_THRESHOLD, offset=options.stability_offset)
        binary = logits > MASK_THRESHOLD
        rows.append(binary.any(axis=2))
        columns.append(binary.any(axis=1))
    boxes = masks.boxes_around(np.concatenate(rows, axis=1), np.logical_or.reduce(columns))
    stable = masks.stability(cuts) >= options.stability_threshold
    return _Found(low_res[stable], predicted_iou[stable], boxes[stable])


def _drop_duplicates(found: list[_Found], max_iou: float) -> _Found | None:
    """Merge the chunks, best predicted IoU first, without duplicates; None when nothing was found."""
    found = [part for part in found if len(part.predicted_iou)]
    if not found:
        return None
    boxes = np.concatenate([part.boxes for part in found])
    predicted = np.concatenate([part.predicted_iou for part in found])
    best = masks.suppress_duplicates(boxes, predicted, max_iou=max_iou)
    return _Found(np.concatenate([part.low_res for part in found])[best], predicted[best], boxes[best])


def _draw(low_res: Float, resize: MaskResize, size_yx: tuple[int, int]) -> Iterator[Bool]:
    """Yield the masks [y, x] of low-resolution logits [k, l, l]."""
    for each in low_res:
        mask = np.empty(size_yx, dtype=np.bool_)
        for rows, logits in resize.bands(each[None]):
            np.greater(logits[0], MASK_THRESHOLD, out=mask[rows])
        yield mask


def _to_candidates(
    found: Masks, predicted_iou: Float, boxes: NDArray[np.int64], options: ProposalOptions
) -> Candidates:
    """Measure and filter the masks."""
    areas_px = masks.areas(found)
    return Candidates(
        masks=found,
        predicted_iou=predicted_iou.astype(np.float32),
        areas_px=areas_px,
        boxes_xyxy_px=boxes,
        kept=keep_by_area(areas_px, (found.shape[1], found.shape[2]), options),
    )


def _whole_image(size_yx: tuple[int, int], options: ProposalOptions) -> Candidates:
    """Return the whole image as the one candidate, as released; `edge` keeps none and answers "no match"."""
    whole = np.ones((1, *size_yx), dtype=np.bool_)
    candidates = _to_candidates(whole, np.zeros(1, dtype=np.float32), masks.boxes(whole), options)
    return replace(candidates, kept=candidates.kept & (not options.drop_filtered))


def _required(heatmap: Float | None) -> Float:
    if heatmap is None:
        raise _not_encoded()
    return heatmap


def _not_encoded() -> InputError:
    return InputError("an image without candidates needs a heatmap; encode it again with this segmenter")
