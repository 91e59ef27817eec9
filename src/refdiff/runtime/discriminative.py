"""CLIP's view of the candidates: text vectors, hard crops, soft masked attention (METHOD §3, §5, §6).

All vectors leave this module with unit length. A candidate that the area filter took out is not computed,
which is exact, because no candidate's vector depends on another's (METHOD §2); its vector is zero.

Axes: n = candidates, e = CLIP embedding, p = patches, b = batch, c = class tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.options import CropOptions
from refdiff.contracts.results import Candidates
from refdiff.contracts.session import Float, SessionFactory
from refdiff.contracts.spec import ClipSpec
from refdiff.runtime.crops import letterbox, masked_crop, resize_shorter_side, shrink_longer_side
from refdiff.runtime.patches import (
    candidate_attention_mask,
    interpolate_positions,
    open_attention_mask,
    patch_grid,
    sample_on_grid,
    to_patches,
)
from refdiff.runtime.places import Direction, ramp
from refdiff.runtime.tokenizer import Tokenizer

Picture = NDArray[np.uint8]


def text_vectors(sessions: SessionFactory, tokenizer: Tokenizer, texts: Sequence[str]) -> Float:
    """Unit CLIP text vectors [b, e] of plain texts: no template, no logit scale."""
    encoded = [tokenizer.clip_ids(text) for text in texts]
    feeds = {
        "ids": np.stack([ids for ids, _ in encoded]).astype(np.int32),
        "end": np.array([end for _, end in encoded], dtype=np.int32),
    }
    return unit(sessions.open("clip_text").run(feeds)["vector"])


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

    Crops with one patch grid share a call; the graph's position input is one per call, so others cannot.
    """
    weights = ramp(direction, image.shape[1])  # [x]
    by_size: dict[tuple[int, int, bool], list[tuple[int, Picture]]] = defaultdict(list)
    for i in np.flatnonzero(candidates.kept):
        crop = masked_crop(image, candidates.masks[i], candidates.boxes_xyxy_px[i], weights)
        crop = (
            letterbox(crop, clip.image_size)
            if options.letterbox
            else resize_shorter_side(crop, clip.image_size)
        )
        by_size[_grid_key(crop, clip)].append((int(i), crop))
    vectors = np.zeros((len(candidates), clip.embed_dim), dtype=np.float32)
    for crops in by_size.values():
        vectors[[i for i, _ in crops]] = _plain_tower(sessions, clip, positions, [crop for _, crop in crops])
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
    if not candidates.kept.any():
        return vectors
    picture = shrink_longer_side(image, options.soft_long_side, least=clip.patch_size)
    size_yx = (picture.shape[0], picture.shape[1])
    grid_yx = patch_grid(size_yx, clip.patch_size)
    on_patches = sample_on_grid(candidates.masks[candidates.kept], grid_yx)  # [c, p]
    feeds = {
        "patches": to_patches(picture, clip)[None],
        "positions": interpolate_positions(positions, grid_yx, square=size_yx[0] == size_yx[1]),
        "slots": np.zeros((1, len(on_patches), 1), dtype=np.float32),
        "mask": candidate_attention_mask(on_patches)[None],
    }
    vectors[candidates.kept] = unit(sessions.open("clip_image").run(feeds)["vectors"][0])
    return vectors


def unit(vectors: Float) -> Float:
    """Vectors [..., e] at length 1; a zero vector stays zero."""
    lengths = np.linalg.norm(vectors.astype(np.float32), axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, np.float32(1e-12)), dtype=np.float32)


def _plain_tower(
    sessions: SessionFactory, clip: ClipSpec, positions: Float, crops: Sequence[Picture]
) -> Float:
    """Unit vectors [b, e] of crops of one patch grid, by the usual CLIP tower: one class token, no mask."""
    height, width = crops[0].shape[:2]
    grid_yx = patch_grid((height, width), clip.patch_size)
    mask = open_attention_mask(grid_yx[0] * grid_yx[1])
    feeds = {
        "patches": np.stack([to_patches(crop, clip) for crop in crops]),
        "positions": interpolate_positions(positions, grid_yx, square=height == width),
        "slots": np.zeros((len(crops), 1, 1), dtype=np.float32),
        "mask": np.repeat(mask[None], len(crops), axis=0),
    }
    return unit(sessions.open("clip_image").run(feeds)["vectors"][:, 0])


def _grid_key(crop: Picture, clip: ClipSpec) -> tuple[int, int, bool]:
    """Crops that agree in this use the same positions."""
    height, width = crop.shape[:2]
    return (*patch_grid((height, width), clip.patch_size), height == width)
