"""CLIP's view of the candidates: text vectors, hard crops, soft masked attention (METHOD §3, §5, §6).

All vectors leave this module with unit length. A candidate that the area filter took out is not computed,
which is exact, because no candidate's vector depends on another's (METHOD §2); its vector is zero.
Pictures reach the graph padded to a few sizes (see `buckets`), which is exact too.

Axes: n = candidates, e = CLIP embedding, p = patches, b = batch, c = class tokens.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.options import ALL_SHORTCUTS, CropOptions, Shortcuts
from refdiff.contracts.results import Candidates
from refdiff.contracts.session import Float, SessionFactory
from refdiff.contracts.spec import ClipSpec
from refdiff.runtime.buckets import CLASS_BUCKETS, class_bucket, patch_bucket, pictures_per_call
from refdiff.runtime.crops import letterbox, masked_crop, resize_shorter_side, shrink_longer_side
from refdiff.runtime.patches import (
    candidate_attention_mask,
    interpolate_positions,
    open_attention_masks,
    padded_rows,
    patch_grid,
    sample_on_grid,
    to_patches,
)
from refdiff.runtime.places import Direction, ramp
from refdiff.runtime.rows import TEXT_ROWS, rows_per_call, run_rows
from refdiff.runtime.tokenizer import Tokenizer

Picture = NDArray[np.uint8]


def text_vectors(
    sessions: SessionFactory, tokenizer: Tokenizer, texts: Sequence[str], safe: int | None = None
) -> Float:
    """Unit CLIP text vectors [b, e] of plain texts: no template, no logit scale.

    Args:
        sessions: opens `clip_text`.
        tokenizer: of the bundle.
        texts: one or more.
        safe: how many a session takes at once that does not say; None: all of these.
    """
    encoded = [tokenizer.clip_ids(text) for text in texts]
    feeds = {
        "ids": np.stack([ids for ids, _ in encoded]).astype(np.int32),
        "end": np.array([end for _, end in encoded], dtype=np.int32),
    }
    session = sessions.open("clip_text")
    step = rows_per_call(session, wanted=TEXT_ROWS, safe=safe or len(texts))
    return unit(run_rows(session, feeds, step)["vector"])


def hard_vectors(
    sessions: SessionFactory,
    clip: ClipSpec,
    positions: Float,
    image: Picture,
    candidates: Candidates,
    options: CropOptions,
    direction: Direction,
    shortcuts: Shortcuts = ALL_SHORTCUTS,
) -> Float:
    """Unit vector h_i of each candidate cut out on black (METHOD §5). Returns [n, e].

    Crops of one bucket share calls, whatever their patch grids.
    """
    weights = ramp(direction, image.shape[1])  # [x]
    fit = letterbox if options.letterbox else resize_shorter_side
    by_bucket: dict[int, list[tuple[int, Picture]]] = defaultdict(list)
    for i in _looked_at(candidates, shortcuts):
        crop = masked_crop(image, candidates.masks[i], candidates.boxes_xyxy_px[i], weights)
        crop = fit(crop, clip.image_size)
        by_bucket[patch_bucket(clip, math.prod(_grid(crop, clip)))].append((int(i), crop))
    vectors = np.zeros((len(candidates), clip.embed_dim), dtype=np.float32)
    for padded_to, crops in by_bucket.items():
        together = pictures_per_call(1 + padded_to) if shortcuts.batch_crops else 1
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
    shortcuts: Shortcuts = ALL_SHORTCUTS,
) -> Float:
    """Unit vector o_i of each candidate seen in its surroundings by masked attention (METHOD §6).

    Returns:
        [n, e].
    """
    vectors = np.zeros((len(candidates), clip.embed_dim), dtype=np.float32)
    kept = _looked_at(candidates, shortcuts)
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


def _looked_at(candidates: Candidates, shortcuts: Shortcuts) -> NDArray[np.intp]:
    """Indices of the candidates that CLIP looks at."""
    return np.flatnonzero(candidates.kept) if shortcuts.filter_candidates else np.arange(len(candidates))


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
