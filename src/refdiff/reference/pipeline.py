"""Ref-Diff from a picture and a phrase to a mask, in the order of METHOD.md.

In: a picture [y, x, 3] uint8 RGB and an English phrase. Out: a `Segmentation`, as the runtime hands it over.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.options import Options
from refdiff.contracts.results import Candidates, Scores, Segmentation
from refdiff.contracts.session import Float
from refdiff.contracts.stack import ModelStack
from refdiff.errors import InputError
from refdiff.reference.clip import hard_vectors, soft_vectors, text_vectors
from refdiff.reference.crops import named_side, position_ramp
from refdiff.reference.diffusion import generative_map
from refdiff.reference.proposals import propose
from refdiff.reference.scoring import choose, contrast, fuse, level_sets, score_levels
from refdiff.runtime.phrase import Phrase, parse_phrase
from refdiff.runtime.point_prompts import map_prompts
from refdiff.runtime.spatial import heat_ramp, place_scores
from refdiff.runtime.tokenizer import Tokenizer

Parts = dict[str, NDArray[np.floating]]


@dataclass(frozen=True, kw_only=True)
class ReferenceScene:
    """A picture and what SAM found in it: all that phrases share, the rest is computed anew for each."""

    image: NDArray[np.uint8]
    """[y, x, 3] RGB."""
    candidates: Candidates | None
    """None in mode `gen`, which has no proposals, and where they follow each phrase's map."""


class Reference:
    """The yardstick: the original modules, one candidate and one step after the other."""

    def __init__(self, *, stack: ModelStack, options: Options) -> None:
        self._stack = stack
        self._options = options
        self._tokenizer = Tokenizer(stack.tokenizer_json, stack.spec.context_length)

    def segment(self, image: NDArray[np.uint8], phrase: str, *, focus: str | None = None) -> Segmentation:
        """The mask of what `phrase` names; `focus` is its head word, for a caller who knows better.

        Raises:
            InputError: the picture or the phrase cannot be used.
        """
        return self.segment_scene(self.encode(image), phrase, focus=focus)

    def encode(self, image: NDArray[np.uint8]) -> ReferenceScene:
        """Look for candidates, without a phrase (METHOD §2).

        Raises:
            InputError: not a [y, x, 3] uint8 picture.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise InputError(
                f"got a picture of shape {image.shape} and type {image.dtype}, expected [y, x, 3] uint8 RGB"
            )
        if self._options.mode == "gen" or self._options.proposals.peaks:
            return ReferenceScene(image=image, candidates=None)
        return ReferenceScene(image=image, candidates=propose(self._stack, self._options.proposals, image))

    def segment_scene(self, scene: ReferenceScene, phrase: str, *, focus: str | None = None) -> Segmentation:
        """As `segment`, on candidates found before."""
        query = self._read(phrase, focus)
        heat = self._attend(scene, query)
        if self._options.mode == "gen":
            return self._level_set(query, _required(heat))
        candidates = scene.candidates or self._propose_at_peaks(scene.image, _required(heat))
        parts = self._parts(scene.image, candidates, query, heat)
        scores = fuse(self._options, parts, candidates.kept)
        nothing = "no proposal passes the filters"
        return _segmentation(query, candidates, scores, heat, nothing=nothing)

    def _read(self, phrase: str, focus: str | None) -> Phrase:
        options = self._options
        query = parse_phrase(
            phrase, focus=focus, word_boundaries=options.crops.word_boundaries, reader=options.reader
        )
        self._tokenizer.check_length(query.text)
        return query

    def _attend(self, scene: ReferenceScene, query: Phrase) -> Float | None:
        """The generative map, under the position ramp where the options say so (METHOD §4, §10.4)."""
        if self._options.mode == "disc+seg":
            return None
        heat = generative_map(self._stack, self._options, self._tokenizer, scene.image, query).heat
        if not self._options.fusion.ramp_on_heat:
            return heat
        return (heat * heat_ramp(query, heat.shape)).astype(np.float32)

    def _propose_at_peaks(self, image: NDArray[np.uint8], heat: Float) -> Candidates:
        """What SAM finds where the phrase's map is high (METHOD §10.2)."""
        options = self._options.proposals
        prompts = map_prompts(heat, peaks=options.peaks, points_per_side=options.points_per_side)
        return propose(self._stack, options, image, prompts)

    def _level_set(self, query: Phrase, heat: Float) -> Segmentation:
        """Mode `gen`: the map proposes and chooses (METHOD §8)."""
        levels = level_sets(heat)
        scores = score_levels(self._options.fusion, heat, levels)
        return _segmentation(query, levels, scores, heat, nothing="the attention map is flat")

    def _parts(
        self, image: NDArray[np.uint8], candidates: Candidates, query: Phrase, heat: Float | None
    ) -> Parts:
        """Every cue of the mode, [n] each (METHOD §5-7)."""
        parts: Parts = {}
        if heat is not None:
            parts["generative"] = contrast(heat, candidates.masks, self._options.fusion.contrast_balance)
        if self._options.mode in ("disc+seg", "full"):
            parts |= self._discriminative_parts(image, candidates, query)
        return parts

    def _discriminative_parts(self, image: NDArray[np.uint8], candidates: Candidates, query: Phrase) -> Parts:
        """CLIP's view (METHOD §5, §6), and the places of `edge` (METHOD §10.4, §10.5)."""
        stack, crops, kept = self._stack, self._options.crops, candidates.kept
        if not kept.any():
            return {}
        masks, boxes, size_yx = candidates.masks[kept], candidates.boxes_xyxy_px[kept], image.shape[:2]
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
        parts: Parts = {"hard": _spread(hard @ hard_text, kept), "soft": _spread(soft @ soft_text, kept)}
        if self._options.fusion.place and len(masks):
            similarity = self._other_similarity(query, hard)
            place = place_scores(query, boxes, candidates.areas_px[kept], size_yx, similarity)
            parts["place"] = _spread(place, kept)
        return parts

    def _unlike(self, query: Phrase) -> Float:
        """What is taken off the text vectors: the phrase's other nouns (METHOD §10.7)."""
        negative = self._options.crops.negative
        if not negative or not query.others:
            return np.zeros(self._stack.spec.clip.embed_dim, dtype=np.float32)
        others = text_vectors(self._stack, self._tokenizer, query.others)
        return np.asarray(negative * others.mean(axis=0), dtype=np.float32)

    def _other_similarity(self, query: Phrase, hard: Float) -> Float | None:
        """How much each kept candidate looks like the thing the phrase relates to: [n]."""
        if query.relation is None:
            return None
        similarity: Float = hard @ text_vectors(self._stack, self._tokenizer, (query.relation.other,))[0]
        return similarity


def _spread(values: Float, kept: NDArray[np.bool_]) -> Float:
    """Values of the kept candidates at their places among all, zero elsewhere: [n]."""
    spread = np.zeros(len(kept), dtype=np.float32)
    spread[kept] = values
    return spread


def _segmentation(
    query: Phrase, candidates: Candidates, scores: Scores, heat: Float | None, *, nothing: str
) -> Segmentation:
    """The winner's mask, or an empty one for the reason `nothing`."""
    index = choose(scores)
    empty = np.zeros(candidates.masks.shape[1:], dtype=np.bool_)
    return Segmentation(
        phrase=query.text,
        root=query.root,
        mask=empty if index is None else candidates.masks[index],
        index=index,
        score=float("-inf") if index is None else float(scores.total[index]),
        scores=scores,
        heat=heat,
        candidates=candidates,
        reason=nothing if index is None else None,
    )


def _required(heat: Float | None) -> Float:
    if heat is None:
        raise InputError("mode 'disc+seg' needs candidates; encode the picture with the same options")
    return heat
