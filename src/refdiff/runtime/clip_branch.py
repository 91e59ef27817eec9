"""CLIP's view of the candidates: text vectors, hard crops, soft masked attention (METHOD §3, §5, §6).

All vectors leave this module with unit length. A candidate that the area filter took out is not computed,
which is exact, because no candidate's vector depends on another's (METHOD §2); its vector is zero.
Pictures reach the graph padded to a few sizes (see `buckets`), which is exact too.

Axes: n = candidates, e = CLIP embedding, p = patches, b = batch, c = class tokens.

What CLIP says of the candidates, and where they lie (METHOD §5, §6, §10.4 to §10.7).

In: a scene's picture and candidates, a read phrase. Out: the discriminative parts of the score.

Axes: n = candidates, e = CLIP embedding, y/x = picture rows/columns, g = CLIP's training grid, w = its token
width.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.options import CropOptions, Options
from refdiff.contracts.results import Candidates
from refdiff.contracts.session import Float, SessionFactory
from refdiff.contracts.spec import ClipSpec
from refdiff.runtime.batching import TEXT_ROWS, batch_size, run_batched
from refdiff.runtime.crops import letterbox, masked_crop, resize_shorter_side, shrink_longer_side, shrunk_size
from refdiff.runtime.encoded_image import Scene
from refdiff.runtime.observer import Observer, staged
from refdiff.runtime.patches import (
    CLASS_BUCKETS,
    candidate_attention_mask,
    class_bucket,
    interpolate_positions,
    open_attention_masks,
    padded_rows,
    patch_bucket,
    patch_grid,
    pictures_per_call,
    sample_on_grid,
    to_patches,
)
from refdiff.runtime.phrase import Phrase, direction
from refdiff.runtime.spatial import Direction, place_scores, ramp
from refdiff.runtime.tokenizer import Tokenizer

Picture = NDArray[np.uint8]


def text_vectors(sessions: SessionFactory, tokenizer: Tokenizer, texts: Sequence[str]) -> Float:
    """Unit CLIP text vectors [b, e] of plain texts: no template, no logit scale.

    Args:
        sessions: opens `clip_text`.
        tokenizer: of the bundle.
        texts: one or more.
    """
    encoded = [tokenizer.clip_ids(text) for text in texts]
    feeds = {
        "ids": np.stack([ids for ids, _ in encoded]).astype(np.int32),
        "end": np.array([end for _, end in encoded], dtype=np.int32),
    }
    session = sessions.open("clip_text")
    return unit(run_batched(session, feeds, batch_size(session, TEXT_ROWS))["vector"])


def hard_vectors(
    sessions: SessionFactory,
    clip: ClipSpec,
    positions: Float,
    image: Picture,
    candidates: Candidates,
    options: CropOptions,
    direction: Direction,
) -> Float:
    """Unit vector h_i of each candidate cut out on black (METHOD §5). Returns [n, e].

    Crops of one bucket share calls, whatever their patch grids.
    """
    weights = ramp(direction, image.shape[1])  # [x]
    fit = letterbox if options.letterbox else resize_shorter_side
    by_bucket: dict[int, list[tuple[int, Picture]]] = defaultdict(list)
    for i in np.flatnonzero(candidates.kept):
        crop = masked_crop(image, candidates.masks[i], candidates.boxes_xyxy_px[i], weights)
        crop = fit(crop, clip.image_size)
        by_bucket[patch_bucket(clip, math.prod(_grid(crop, clip)))].append((int(i), crop))
    vectors = np.zeros((len(candidates), clip.embed_dim), dtype=np.float32)
    for padded_to, crops in by_bucket.items():
        together = pictures_per_call(1 + padded_to)
        for some in _slices(len(crops), together):
            indices, pictures = zip(*crops[some], strict=True)
            vectors[list(indices)] = _plain_tower(sessions, clip, positions, pictures, padded_to)
    return vectors


def soft_vectors(
    sessions: SessionFactory,
    clip: ClipSpec,
    positions: Float,
    image: Picture,
    candidates: Candidates,
    options: CropOptions,
) -> Float:
    """Unit vector o_i of each candidate seen in its surroundings by masked attention (METHOD §6).

    Returns:
        [n, e].
    """
    vectors = np.zeros((len(candidates), clip.embed_dim), dtype=np.float32)
    kept = np.flatnonzero(candidates.kept)
    if not len(kept):
        return vectors
    picture = shrink_longer_side(image, options.soft_long_side, least=clip.patch_size)
    grid_yx = _grid(picture, clip)
    padded_to = patch_bucket(clip, math.prod(grid_yx))
    patches = padded_rows([to_patches(picture, clip)], padded_to)
    places = padded_rows([_positions(positions, picture, clip)], padded_to)
    for some in _slices(len(kept), CLASS_BUCKETS[-1]):
        on_patches = sample_on_grid(candidates.masks[kept[some]], grid_yx)  # [c, p]
        classes = class_bucket(len(on_patches))
        feeds = {
            "patches": patches,
            "positions": places,
            "slots": np.zeros((1, classes, 1), dtype=np.float32),
            "mask": candidate_attention_mask(on_patches, classes=classes, patches=padded_to)[None],
        }
        seen = sessions.open("clip_image").run(feeds)["vectors"][0, : len(on_patches)]
        vectors[kept[some]] = unit(seen)
    return vectors


def unit(vectors: Float) -> Float:
    """Vectors [..., e] at length 1; a zero vector stays zero."""
    lengths = np.linalg.norm(vectors.astype(np.float32), axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, np.float32(1e-12)), dtype=np.float32)


def _plain_tower(
    sessions: SessionFactory, clip: ClipSpec, positions: Float, crops: Sequence[Picture], padded_to: int
) -> Float:
    """Unit vectors [b, e] of crops of one bucket, by the usual CLIP tower: one class token, no mask."""
    patches = [to_patches(crop, clip) for crop in crops]
    feeds = {
        "patches": padded_rows(patches, padded_to),
        "positions": padded_rows([_positions(positions, crop, clip) for crop in crops], padded_to),
        "slots": np.zeros((len(crops), 1, 1), dtype=np.float32),
        "mask": open_attention_masks([len(each) for each in patches], padded_to),
    }
    return unit(sessions.open("clip_image").run(feeds)["vectors"][:, 0])


def _grid(picture: Picture, clip: ClipSpec) -> tuple[int, int]:
    return patch_grid(picture.shape[:2], clip.patch_size)


def _positions(table: Float, picture: Picture, clip: ClipSpec) -> Float:
    """The position table fitted to a picture: [p, w]."""
    height, width = picture.shape[:2]
    return interpolate_positions(table, _grid(picture, clip), square=height == width)


def _slices(length: int, step: int) -> Iterator[slice]:
    """`length` items, `step` at a time."""
    return (slice(start, start + step) for start in range(0, length, step))


class ClipBranch:
    """Both of CLIP's views of the candidates, over the graphs `clip_text` and `clip_image`.

    Args:
        sessions: opens the graphs.
        spec: CLIP's sizes.
        options: of the segmenter.
        tokenizer: of the bundle.
        positions: [g*g, w], the position table without the class token's row.
        observer: told of every stage.
    """

    def __init__(
        self,
        *,
        sessions: SessionFactory,
        spec: ClipSpec,
        options: Options,
        tokenizer: Tokenizer,
        positions: Float,
        observer: Observer,
    ) -> None:
        self._sessions = sessions
        self._spec = spec
        self._options = options
        self._tokenizer = tokenizer
        self._positions = positions
        self._observer = observer

    def check_size(self, image: NDArray[np.uint8]) -> None:
        """Refuse a picture [y, x, 3] that the masked attention cannot see, before anything is computed.

        Raises:
            InputError: it has no CLIP patch, or too many.
        """
        patch = self._spec.patch_size
        patch_grid(shrunk_size(image.shape[:2], self._options.crops.soft_long_side, least=patch), patch)

    @staged("soft")
    def soft(self, image: NDArray[np.uint8], candidates: Candidates) -> Float:
        """Masked-attention vectors [n, e] (METHOD §6)."""
        options = self._options
        return soft_vectors(self._sessions, self._spec, self._positions, image, candidates, options.crops)

    @staged("text")
    def texts(self, queries: Sequence[Phrase]) -> Mapping[str, Float]:
        """The vector [e] of every text of these phrases, each computed once (METHOD §3)."""
        texts = list(dict.fromkeys(text for query in queries for text in self._texts_of(query)))
        return dict(zip(texts, text_vectors(self._sessions, self._tokenizer, texts), strict=True))

    def cues(
        self, scene: Scene, candidates: Candidates, query: Phrase, texts: Mapping[str, Float]
    ) -> dict[str, Float]:
        """The parts of the score that CLIP and the candidates' places decide, each [n]."""
        crops = self._options.crops
        side = direction(query.text, word_boundaries=crops.word_boundaries)
        hard = self._hard(scene, candidates, side)
        whole, root, *others = (texts[text] for text in self._texts_of(query))
        unlike = crops.negative * np.mean(others, axis=0) if crops.negative and others else 0.0
        shares = (crops.hard_root_weight, crops.soft_root_weight)
        hard_text, soft_text = ((1 - share) * whole + share * root - unlike for share in shares)
        parts = {"hard": _cosines(hard, hard_text), "soft": _cosines(scene.soft, soft_text)}
        if self._options.fusion.place:
            similar = _cosines(hard, others[0]) if query.relation is not None else None
            parts["place"] = _places(query, candidates, scene.size_yx, similar)
        return parts

    def _texts_of(self, query: Phrase) -> list[str]:
        """What CLIP is asked: the phrase, its head word, and what it is compared with."""
        related = query.relation is not None and bool(self._options.fusion.place)
        named = query.others if self._options.crops.negative else query.others[:1] if related else ()
        return [query.text, query.root, *named]

    @staged("crops")
    def _hard(self, scene: Scene, candidates: Candidates, side: Direction) -> Float:
        """Crop vectors [n, e] under the side's ramp (METHOD §5); kept in the scene."""
        options = self._options

        def vectors(to: Direction) -> Float:
            return hard_vectors(
                self._sessions,
                self._spec,
                self._positions,
                scene.image,
                candidates,
                options.crops,
                to,
            )

        return scene.hard.towards(side, vectors)


def _cosines(vectors: Float, text: NDArray[Any]) -> Float:
    """[n, e] and [e] to [n]; a matrix product would wake the linear algebra library (see `interpolation`)."""
    return np.asarray(np.einsum("ne,e->n", vectors, text), np.float32)


def _places(
    query: Phrase, candidates: Candidates, size_yx: tuple[int, int], other_similarity: Float | None
) -> Float:
    """Place scores [n] among the kept candidates, so that what was filtered out is nobody's neighbour."""
    kept = candidates.kept
    scores = np.zeros(len(candidates), dtype=np.float32)
    if kept.any():
        similar = None if other_similarity is None else other_similarity[kept]
        scores[kept] = place_scores(
            query, candidates.boxes_xyxy_px[kept], candidates.areas_px[kept], size_yx, similar
        )
    return scores
