"""Ref-Diff from an image and a phrase to a mask, in the order of docs/method.md.

In: an image [y, x, 3] uint8 RGB and an English phrase. Out: a `Segmentation`, as the runtime returns it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.options import Options
from refdiff.contracts.results import Candidates, Scores
from refdiff.contracts.session import Float, ImageArray
from refdiff.contracts.stack import ModelStack
from refdiff.errors import InputError
from refdiff.reference.candidates import choose, contrast, fuse, level_sets, propose, score_levels
from refdiff.reference.clip import hard_vectors, named_side, position_ramp, soft_vectors, text_vectors
from refdiff.reference.diffusion import generative_map
from refdiff.runtime.phrase import Phrase, parse_phrase
from refdiff.runtime.point_prompts import map_prompts
from refdiff.runtime.segmentation import Segmentation
from refdiff.runtime.spatial import heat_ramp, place_scores
from refdiff.runtime.tokenizer import Tokenizer

Parts = dict[str, NDArray[np.floating]]


@dataclass(frozen=True, kw_only=True)
class EncodedReference:
    """An image and its candidates: all that phrases share, everything else is computed for each of them."""

    image: ImageArray
    """[y, x, 3] RGB."""
    candidates: Candidates | None
    """None in mode `gen`, which has no proposals, and where they depend on each phrase's heatmap."""


class Reference:
    """The original modules, one candidate and one step after the other.

    Args:
        stack: the models.
        options: any variant, `paper` too.
    """

    def __init__(self, *, stack: ModelStack, options: Options) -> None:
        self._stack = stack
        self._options = options
        self._tokenizer = Tokenizer(stack.tokenizer_json, stack.spec.context_length)

    def segment(self, image: ImageArray, phrase: str, *, focus: str | None = None) -> Segmentation:
        """Choose the candidate that `phrase` names; `focus` is its head word, where the caller knows it.

        Raises:
            InputError: the image or the phrase cannot be used.
        """
        return self.segment_encoded(self.encode(image), phrase, focus=focus)

    def encode(self, image: ImageArray) -> EncodedReference:
        """Propose candidates, without a phrase (METHOD §2).

        Raises:
            InputError: not a [y, x, 3] uint8 image.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise InputError(
                f"got an image of shape {image.shape} and type {image.dtype}, expected [y, x, 3] uint8 RGB"
            )
        if self._options.mode == "gen" or self._options.proposals.peaks:
            return EncodedReference(image=image, candidates=None)
        return EncodedReference(image=image, candidates=propose(self._stack, self._options.proposals, image))

    def segment_encoded(
        self, encoded: EncodedReference, phrase: str, *, focus: str | None = None
    ) -> Segmentation:
        """Do the same as `segment`, with the candidates of `encode`."""
        query = self._parse(phrase, focus)  # METHOD §3
        heatmap = self._attend(encoded.image, query)  # METHOD §4
        if self._options.mode == "gen":
            return self._choose_level_set(query, _required(heatmap))  # METHOD §8
        candidates = encoded.candidates or self._propose_at_peaks(encoded.image, _required(heatmap))
        parts = self._parts(encoded.image, candidates, query, heatmap)  # METHOD §5, §6
        scores = fuse(self._options, parts, candidates.kept)  # METHOD §7
        return _select(candidates, scores, query, heatmap, empty_reason="no proposal passes the filters")

    def _parse(self, phrase: str, focus: str | None) -> Phrase:
        boundaries, reader = self._options.crops.word_boundaries, self._options.reader
        query = parse_phrase(phrase, focus=focus, word_boundaries=boundaries, reader=reader)
        self._tokenizer.check_length(query.text)
        return query

    def _attend(self, image: ImageArray, query: Phrase) -> Float | None:
        """Return the heatmap, under the position ramp where the options say so (METHOD §4, §10.4)."""
        if self._options.mode == "disc+seg":
            return None
        heatmap = generative_map(self._stack, self._options, self._tokenizer, image, query).heatmap
        if not self._options.fusion.ramp_on_heat:
            return heatmap
        return (heatmap * heat_ramp(query, heatmap.shape)).astype(np.float32)

    def _propose_at_peaks(self, image: ImageArray, heatmap: Float) -> Candidates:
        """Prompt SAM where the phrase's heatmap is high (METHOD §10.2)."""
        options = self._options.proposals
        if options.negatives:
            raise InputError("the torch reference has no negative points; set negatives to 0")
        prompts = map_prompts(heatmap, peaks=options.peaks, points_per_side=options.points_per_side)
        return propose(self._stack, options, image, prompts)

    def _choose_level_set(self, query: Phrase, heatmap: Float) -> Segmentation:
        """Choose among the heatmap's level sets by the heatmap itself: mode `gen` (METHOD §8)."""
        levels = level_sets(heatmap)
        scores = score_levels(self._options.fusion, heatmap, levels)
        return _select(levels, scores, query, heatmap, empty_reason="the attention map is flat")

    def _parts(
        self, image: ImageArray, candidates: Candidates, query: Phrase, heatmap: Float | None
    ) -> Parts:
        """Return every part of the mode's score, [n] each (METHOD §5 to §7)."""
        parts: Parts = {}
        if heatmap is not None:
            parts["generative"] = contrast(
                heatmap, np.asarray(candidates.masks), self._options.fusion.contrast_balance
            )
        if self._options.mode in ("disc+seg", "full"):
            parts |= self._clip_parts(image, candidates, query)
        return parts

    def _clip_parts(self, image: ImageArray, candidates: Candidates, query: Phrase) -> Parts:
        """Return CLIP's parts (METHOD §5, §6), and the places of `edge` (METHOD §10.4, §10.5)."""
        stack, crops, kept = self._stack, self._options.crops, candidates.kept
        if not kept.any():
            return {}
        masks, boxes, size_yx = (
            np.asarray(candidates.masks[kept]),
            candidates.boxes_xyxy_px[kept],
            image.shape[:2],
        )
        side = named_side(query.text, crops)
        ramp, flat = position_ramp(side, size_yx), position_ramp(None, size_yx)
        hard_ramp, soft_ramp = (flat, ramp) if crops.ramp_on_soft else (ramp, flat)

        sentence, root = text_vectors(stack, self._tokenizer, (query.text, query.root))
        unlike = self._unlike(query)
        hard_text, soft_text = (
            (1 - share) * sentence + share * root - unlike
            for share in (crops.hard_root_weight, crops.soft_root_weight)
        )
        hard = hard_vectors(stack, crops, image, masks, boxes, hard_ramp)
        soft = soft_vectors(stack, crops, image, masks, soft_ramp)
        parts: Parts = {"hard": _scatter(hard @ hard_text, kept), "soft": _scatter(soft @ soft_text, kept)}
        if self._options.fusion.place and len(masks):
            similarity = self._other_similarity(query, hard)
            place = place_scores(query, boxes, candidates.areas_px[kept], size_yx, similarity)
            parts["place"] = _scatter(place, kept)
        return parts

    def _unlike(self, query: Phrase) -> Float:
        """Return what is subtracted from the text vectors: the phrase's other nouns (METHOD §10.7)."""
        negative = self._options.crops.negative
        if not negative or not query.others:
            return np.zeros(self._stack.spec.clip.embed_dim, dtype=np.float32)
        others = text_vectors(self._stack, self._tokenizer, query.others)
        return np.asarray(negative * others.mean(axis=0), dtype=np.float32)

    def _other_similarity(self, query: Phrase, hard: Float) -> Float | None:
        """Return how similar each kept candidate is to the thing the phrase relates to: [n]."""
        if query.relation is None:
            return None
        similarity: Float = hard @ text_vectors(self._stack, self._tokenizer, (query.relation.other,))[0]
        return similarity


def _scatter(values: Float, kept: NDArray[np.bool_]) -> Float:
    """Put the kept candidates' values at their places among all candidates, zero elsewhere: [n]."""
    scattered = np.zeros(len(kept), dtype=np.float32)
    scattered[kept] = values
    return scattered


def _select(
    candidates: Candidates, scores: Scores, query: Phrase, heatmap: Float | None, *, empty_reason: str
) -> Segmentation:
    """Return the best candidate as the answer, or an empty mask with `empty_reason`."""
    index = choose(scores)
    empty = np.zeros(candidates.masks.shape[1:], dtype=np.bool_)
    return Segmentation(
        phrase=query.text,
        root=query.root,
        mask=empty if index is None else candidates.masks[index],
        index=index,
        score=float("-inf") if index is None else float(scores.total[index]),
        scores=scores,
        heat=heatmap,
        candidates=candidates,
        reason=empty_reason if index is None else None,
    )


def _required(heatmap: Float | None) -> Float:
    if heatmap is None:
        raise InputError("mode 'disc+seg' needs candidates; encode the image with the same options")
    return heatmap
