"""CLIP's view of the candidates: text vectors, crops, soft masked attention (METHOD §3, §5, §6, §10.4).

All vectors have unit length. A candidate that the area filter took out is not computed, which is exact,
because no candidate's vector depends on another's (METHOD §2); its vector is zero. Images reach the graph
padded to a few sizes (see `clip_tower`), which is exact too.

Axes: n = candidates, e = CLIP embedding, p = patches, b = batch, c = class tokens, g = CLIP's training grid,
w = its token width, y/x = image rows/columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.options import Options
from refdiff.contracts.results import Candidates
from refdiff.contracts.session import Float, ImageArray, SessionFactory
from refdiff.contracts.spec import ClipSpec
from refdiff.errors import InputError
from refdiff.runtime.batching import TEXT_ROWS, batch_size, run_batched
from refdiff.runtime.clip_inputs import (
    letterbox,
    longer_side,
    masked_crop,
    patch_grid,
    resize,
    resize_shorter_side,
    shrink_longer_side,
    shrunk_size,
    size_of_patches,
)
from refdiff.runtime.clip_tower import GraphReader, ImageTower, slices
from refdiff.runtime.observer import NullObserver, Observer, observed
from refdiff.runtime.phrase import Phrase, direction
from refdiff.runtime.spatial import Direction, place_scores, ramp
from refdiff.runtime.tokenizer import Tokenizer

Texts = Mapping[str, Float]
"""Text -> its vector [e]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipViews:
    """An image's candidates as CLIP sees them; any number of phrases use it."""

    image: ImageArray
    """[y, x, 3]."""
    candidates: Candidates
    soft: Float = field(repr=False)
    """[n, e] vectors of the masked attention."""
    hard: dict[Direction, Float] = field(default_factory=dict, repr=False)
    """[n, e] vectors of the crops by the side that the position ramp favors, computed for the first phrase
    that needs them. They depend on the image alone: whichever phrase comes first, they are the same."""


class ClipBranch:
    """Scores candidates with the graphs `clip_text` and `clip_image`.

    Args:
        sessions: opens the graphs.
        spec: CLIP's sizes.
        options: of the segmenter.
        tokenizer: of the bundle.
        positions: [g*g, w], the position table without the class token's row.
        observer: notified of the stages "soft", "text" and "crops".
        read_graph: reads a graph's file, for images that no engine takes.

    Raises:
        InputError: the options need what the runtime does not compute, or the table does not fit the spec.
    """

    def __init__(
        self,
        sessions: SessionFactory,
        spec: ClipSpec,
        options: Options,
        tokenizer: Tokenizer,
        positions: Float,
        observer: Observer | None = None,
        read_graph: GraphReader | None = None,
    ) -> None:
        _check(spec, options, positions)
        self._sessions = sessions
        self._spec = spec
        self._options = options
        self._tokenizer = tokenizer
        self._tower = ImageTower(sessions, spec, positions, read_graph)
        self._observer = observer or NullObserver()
        self._is_used = options.mode in ("disc+seg", "full")

    def check_size(self, image: ImageArray) -> None:
        """Refuse an image [y, x, 3] that the masked attention cannot see, before anything is computed.

        Raises:
            InputError: it has no CLIP patch.
        """
        if self._is_used:
            patch = self._spec.patch_size
            patch_grid(shrunk_size(image.shape[:2], self._options.crops.soft_long_side, least=patch), patch)

    def encode(self, image: ImageArray, candidates: Candidates | None) -> ClipViews | None:
        """Return the candidates as CLIP sees them (METHOD §6).

        Returns:
            None in modes that do not use CLIP, and for candidates that wait for a phrase's heatmap.

        Raises:
            EngineError: a graph failed.
        """
        if candidates is None or not self._is_used:
            return None
        return ClipViews(image=image, candidates=candidates, soft=self.soft_vectors(image, candidates))

    def encode_text(self, phrase: Phrase) -> Texts:
        """Return the vector of every text of one phrase: see `encode_texts`."""
        return next(self.encode_texts([phrase]))

    def encode_texts(self, phrases: Sequence[Phrase]) -> Iterator[Texts]:
        """Compute the vector of every text of each phrase (METHOD §3); the graph runs as they are taken.

        Yields:
            For each phrase a mapping that holds its texts, and may hold others; empty in modes without CLIP.
        """
        for some in slices(len(phrases), TEXT_ROWS):
            texts = [text for phrase in phrases[some] for text in self._texts_of(phrase)]
            distinct = list(dict.fromkeys(texts)) if self._is_used else []
            vectors = dict(zip(distinct, self.text_vectors(distinct), strict=True)) if distinct else {}
            yield from repeat(vectors, len(phrases[some]))

    def scores(self, views: ClipViews | None, phrase: Phrase, texts: Texts) -> dict[str, Float]:
        """Return the parts of the score that CLIP and the candidates' places decide, each [n].

        Args:
            views: from `encode`; None has no parts.
            phrase: what is looked for.
            texts: from `encode_text`, of this phrase.
        """
        if views is None:
            return {}
        crops = self._options.crops
        hard = self._hard(views, direction(phrase.text, word_boundaries=crops.word_boundaries))
        whole, root, *others = (texts[text] for text in self._texts_of(phrase))
        unlike = crops.negative * np.mean(others, axis=0) if crops.negative and others else 0.0
        shares = (crops.hard_root_weight, crops.soft_root_weight)
        hard_text, soft_text = ((1 - share) * whole + share * root - unlike for share in shares)
        parts = {"hard": _cosines(hard, hard_text), "soft": _cosines(views.soft, soft_text)}
        if self._options.fusion.place:
            similarity = _cosines(hard, others[0]) if phrase.relation is not None else None
            parts["place"] = _place_scores_of_kept(phrase, views, similarity)
        return parts

    def vectors_of_kept(self, views: ClipViews, phrase: Phrase) -> tuple[Float, Float]:
        """Return the kept candidates' vectors that `scores` used: of the crops and of the masked attention.

        Returns:
            [n, e] each, n = kept candidates.
        """
        side = direction(phrase.text, word_boundaries=self._options.crops.word_boundaries)
        kept = views.candidates.kept
        return self._hard(views, side)[kept], views.soft[kept]

    @observed("text")
    def text_vectors(self, texts: Sequence[str]) -> Float:
        """Return the vectors [b, e] of plain texts: no template, no logit scale."""
        encoded = [self._tokenizer.clip_ids(text) for text in texts]
        feeds = {
            "ids": np.stack([ids for ids, _ in encoded]).astype(np.int32),
            "end": np.array([end for _, end in encoded], dtype=np.int32),
        }
        session = self._sessions.open("clip_text")
        return unit(run_batched(session, feeds, batch_size(session, TEXT_ROWS))["vector"])

    def hard_vectors(self, image: ImageArray, candidates: Candidates, side: Direction) -> Float:
        """Return the vector h_i of each candidate cut out on black, under the side's ramp (METHOD §5).

        Returns:
            [n, e].
        """
        spec, weights = self._spec, ramp(side, image.shape[1])  # [x]
        kept, crops = np.flatnonzero(candidates.kept), []
        for i in kept:
            crop = masked_crop(image, candidates.masks[i], candidates.boxes_xyxy_px[i], weights)
            if self._options.crops.letterbox:
                crops.append(letterbox(crop, spec.image_size))
            else:
                longest = self._longest_crop(crop.shape[:2])
                crops.append(resize_shorter_side(crop, spec.image_size, longest=longest))
        vectors = np.zeros((len(candidates), spec.embed_dim), dtype=np.float32)
        vectors[kept] = unit(self._tower.vectors(crops))
        return vectors

    @observed("soft")
    def soft_vectors(self, image: ImageArray, candidates: Candidates) -> Float:
        """Return the vector o_i of each candidate seen in its surroundings (METHOD §6): [n, e]."""
        spec = self._spec
        vectors = np.zeros((len(candidates), spec.embed_dim), dtype=np.float32)
        kept = np.flatnonzero(candidates.kept)
        if not len(kept):
            return vectors
        seen = shrink_longer_side(image, self._options.crops.soft_long_side, least=spec.patch_size)
        seen = resize(seen, self._seen_size(seen.shape[:2]))
        vectors[kept] = unit(self._tower.masked_vectors(seen, candidates.masks[kept]))
        return vectors

    def cautions(self, views: ClipViews | None) -> tuple[str, ...]:
        """Return what CLIP saw with less detail than the method asks for, a line each; usually nothing."""
        if views is None or self._options.crops.letterbox:
            return ()
        found = []
        size_yx = views.image.shape[:2]
        seen_yx = self._seen_size(
            shrunk_size(size_yx, self._options.crops.soft_long_side, least=self._spec.patch_size)
        )
        if self._options.crops.soft_long_side == 0 and seen_yx != size_yx:
            found.append(
                f"large image: the masked attention read it at {seen_yx[1]}x{seen_yx[0]} px; more CLIP"
                " patches do not fit"
            )
        for i in np.flatnonzero(views.candidates.kept):
            x0, y0, x1, y1 = (int(corner) for corner in views.candidates.boxes_xyxy_px[i])
            height, width = y1 - y0 + 1, x1 - x0 + 1
            longer = longer_side((height, width), self._spec.image_size)
            if self._longest_crop((height, width)) < longer:
                found.append(
                    f"thin candidate: number {i} of {width}x{height} px was scored on a shortened crop;"
                    " more CLIP patches do not fit"
                )
        return tuple(found)

    def _seen_size(self, size_yx: tuple[int, int]) -> tuple[int, int]:
        """Return the size at which the masked attention sees an image."""
        patch = self._spec.patch_size
        most = self._tower.most_patches(math.prod(patch_grid(size_yx, patch)))
        return size_of_patches(size_yx, patch, most)

    def _longest_crop(self, size_yx: tuple[int, int]) -> int:
        """Return the most px that the longer side of a resized crop may have."""
        patch, across = self._spec.patch_size, self._spec.grid
        wanted = longer_side(size_yx, self._spec.image_size)
        most = self._tower.most_patches(across * (wanted // patch)) // across
        return wanted if wanted // patch <= most else most * patch

    @observed("crops")
    def _hard(self, views: ClipViews, side: Direction) -> Float:
        """Return the crops' vectors [n, e] under the side's ramp, computed once."""
        if side not in views.hard:
            views.hard[side] = self.hard_vectors(views.image, views.candidates, side)
        return views.hard[side]

    def _texts_of(self, phrase: Phrase) -> list[str]:
        """Return the texts CLIP encodes for a phrase: itself, its head word, and what it is compared with."""
        related = phrase.relation is not None and bool(self._options.fusion.place)
        named = phrase.others if self._options.crops.negative else phrase.others[:1] if related else ()
        return [phrase.text, phrase.root, *named]


def unit(vectors: Float) -> Float:
    """Scale vectors [..., e] to length 1; a zero vector stays zero."""
    lengths = np.linalg.norm(vectors.astype(np.float32), axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, np.float32(1e-12)), dtype=np.float32)


def _check(spec: ClipSpec, options: Options, positions: Float) -> None:
    if options.crops.ramp_on_soft:
        raise InputError(
            "the options follow the paper's text and ramp the masked attention, which the runtime does not"
            " compute; use --variant official or edge, or the torch reference"
        )
    expected = (spec.grid**2, spec.width)
    if positions.shape != expected:
        raise InputError(
            f"CLIP's position table has shape {positions.shape}, expected {expected};"
            " take table and spec from one bundle"
        )


def _cosines(vectors: Float, text: NDArray[Any]) -> Float:
    """[n, e] and [e] to [n]; a matrix product would wake the linear algebra library (see `resize`)."""
    return np.asarray(np.einsum("ne,e->n", vectors, text), np.float32)


def _place_scores_of_kept(phrase: Phrase, views: ClipViews, other_similarity: Float | None) -> Float:
    """Return place scores [n], computed among the kept candidates alone; zero for the others."""
    candidates, kept = views.candidates, views.candidates.kept
    scores = np.zeros(len(candidates), dtype=np.float32)
    if kept.any():
        boxes, areas = candidates.boxes_xyxy_px[kept], candidates.areas_px[kept]
        similarity = None if other_similarity is None else other_similarity[kept]
        scores[kept] = place_scores(phrase, boxes, areas, views.image.shape[:2], similarity)
    return scores
