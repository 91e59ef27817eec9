"""CLIP's view of the candidates: text vectors, crops, soft masked attention (METHOD §3, §5, §6, §10.4).

All vectors have unit length. A candidate that the area filter took out is not computed, which is exact,
because no candidate's vector depends on another's (METHOD §2); its vector is zero. Images reach the graph
padded to a few sizes (see `clip_inputs`), which is exact too.

Axes: n = candidates, e = CLIP embedding, p = patches, b = batch, c = class tokens, g = CLIP's training grid,
w = its token width, y/x = image rows/columns.
"""

from __future__ import annotations

import math
from collections import defaultdict
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
    CLASS_BUCKETS,
    candidate_attention_mask,
    class_bucket,
    images_per_call,
    interpolate_positions,
    letterbox,
    masked_crop,
    open_attention_masks,
    pad_rows,
    patch_bucket,
    patch_grid,
    resize_shorter_side,
    sample_on_grid,
    shrink_longer_side,
    shrunk_size,
    to_patches,
)
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
    ) -> None:
        _check(spec, options, positions)
        self._sessions = sessions
        self._spec = spec
        self._options = options
        self._tokenizer = tokenizer
        self._positions = positions
        self._observer = observer or NullObserver()
        self._is_used = options.mode in ("disc+seg", "full")

    def check_size(self, image: ImageArray) -> None:
        """Refuse an image [y, x, 3] that the masked attention cannot see, before anything is computed.

        Raises:
            InputError: it has no CLIP patch, or too many.
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
        for some in _slices(len(phrases), TEXT_ROWS):
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

        Crops of one bucket share calls, whatever their patch grids.

        Returns:
            [n, e].
        """
        spec, weights = self._spec, ramp(side, image.shape[1])  # [x]
        fit = letterbox if self._options.crops.letterbox else resize_shorter_side
        by_bucket: dict[int, list[tuple[int, ImageArray]]] = defaultdict(list)
        for i in np.flatnonzero(candidates.kept):
            crop = masked_crop(image, candidates.masks[i], candidates.boxes_xyxy_px[i], weights)
            crop = fit(crop, spec.image_size)
            by_bucket[patch_bucket(spec, math.prod(self._grid(crop)))].append((int(i), crop))
        vectors = np.zeros((len(candidates), spec.embed_dim), dtype=np.float32)
        for padded_to, crops in by_bucket.items():
            for some in _slices(len(crops), images_per_call(1 + padded_to)):
                indices, images = zip(*crops[some], strict=True)
                vectors[list(indices)] = self._run_plain_tower(images, padded_to)
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
        grid_yx = self._grid(seen)
        padded_to = patch_bucket(spec, math.prod(grid_yx))
        patches = pad_rows([to_patches(seen, spec)], padded_to)
        positions = pad_rows([self._positions_of(seen)], padded_to)
        for some in _slices(len(kept), CLASS_BUCKETS[-1]):
            on_patches = sample_on_grid(candidates.masks[kept[some]], grid_yx)  # [c, p]
            classes = class_bucket(len(on_patches))
            feeds = {
                "patches": patches,
                "positions": positions,
                "slots": np.zeros((1, classes, 1), dtype=np.float32),
                "mask": candidate_attention_mask(on_patches, classes=classes, patches=padded_to)[None],
            }
            outputs = self._sessions.open("clip_image").run(feeds)["vectors"]
            vectors[kept[some]] = unit(outputs[0, : len(on_patches)])
        return vectors

    @observed("crops")
    def _hard(self, views: ClipViews, side: Direction) -> Float:
        """Return the crops' vectors [n, e] under the side's ramp, computed once."""
        if side not in views.hard:
            views.hard[side] = self.hard_vectors(views.image, views.candidates, side)
        return views.hard[side]

    def _run_plain_tower(self, crops: Sequence[ImageArray], padded_to: int) -> Float:
        """Return the vectors [b, e] of crops of one bucket: one class token each, no mask."""
        patches = [to_patches(crop, self._spec) for crop in crops]
        feeds = {
            "patches": pad_rows(patches, padded_to),
            "positions": pad_rows([self._positions_of(crop) for crop in crops], padded_to),
            "slots": np.zeros((len(crops), 1, 1), dtype=np.float32),
            "mask": open_attention_masks([len(each) for each in patches], padded_to),
        }
        return unit(self._sessions.open("clip_image").run(feeds)["vectors"][:, 0])

    def _texts_of(self, phrase: Phrase) -> list[str]:
        """Return the texts CLIP encodes for a phrase: itself, its head word, and what it is compared with."""
        related = phrase.relation is not None and bool(self._options.fusion.place)
        named = phrase.others if self._options.crops.negative else phrase.others[:1] if related else ()
        return [phrase.text, phrase.root, *named]

    def _grid(self, image: ImageArray) -> tuple[int, int]:
        return patch_grid(image.shape[:2], self._spec.patch_size)

    def _positions_of(self, image: ImageArray) -> Float:
        """Return the position table fitted to an image: [p, w]."""
        height, width = image.shape[:2]
        return interpolate_positions(self._positions, self._grid(image), square=height == width)


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


def _slices(length: int, step: int) -> Iterator[slice]:
    """Cut `length` items into slices of `step`."""
    return (slice(start, start + step) for start in range(0, length, step))


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
