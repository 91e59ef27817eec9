"""What the `clip_image` graph is fed: patches, interpolated positions, attention masks.

A picture is padded to its bucket (see `buckets`) with rows of zeros, which nothing is allowed to see: a
blocked key's weight is exp(-1e4), exactly 0 in float32, so padding changes no more than the order of sums.

Axes: p = patches (row by row), w = token width, c = class tokens, t = c + p (class tokens first),
n = candidates, b = batch, y/x = rows/columns.

The sizes the `clip_image` graph is run at (METHOD §9: buckets, padded keys masked).

In: how many patches or class tokens there are. Out: what they are padded to, and how many pictures of that
size share a call. An engine is built for a few shapes: these are all of them, so whoever writes an engine's
shape profiles reads them here. The batch is not padded.

Axes: p = patches, c = class tokens, t = c + p, b = batch.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from refdiff.contracts.graphs import BLOCKED
from refdiff.contracts.session import Bool, Float
from refdiff.contracts.spec import ClipSpec
from refdiff.errors import InputError
from refdiff.runtime.resize import cubic

_SCALE_MARGIN = 0.1  # the released code's margin against rounding in the scale factor (METHOD §5)


def patch_grid(size_yx: tuple[int, int], patch: int) -> tuple[int, int]:
    """Whole patches in a picture; what remains at the right and bottom is ignored, as by the convolution.

    Raises:
        InputError: none fits, or more than `MAX_PATCHES`.
    """
    height, width = size_yx
    grid = (height // patch, width // patch)
    if 0 in grid:
        raise InputError(
            f"the picture of {width}x{height} px is smaller than one CLIP patch of {patch}x{patch} px;"
            " use a larger picture"
        )
    if grid[0] * grid[1] > MAX_PATCHES:
        raise InputError(
            f"a picture or crop of {width}x{height} px has {grid[0] * grid[1]} CLIP patches, at most"
            f" {MAX_PATCHES} fit; use --variant edge or shrink the picture"
        )
    return grid


def to_patches(image: NDArray[np.uint8], clip: ClipSpec) -> Float:
    """Normalised patches [p, 3*P*P] of a picture [y, x, 3]; values in the order (channel, row, column)."""
    side = clip.patch_size
    ny, nx = patch_grid(image.shape[:2], side)
    mean, std = np.array(clip.pixel_mean, np.float32), np.array(clip.pixel_std, np.float32)
    pixels = (image[: ny * side, : nx * side].astype(np.float32) / np.float32(255) - mean) / std
    blocks = pixels.reshape(ny, side, nx, side, 3)  # [ny, row, nx, column, channel]
    return np.ascontiguousarray(blocks.transpose(0, 2, 4, 1, 3)).reshape(ny * nx, 3 * side * side)


def interpolate_positions(table: Float, grid_yx: tuple[int, int], *, square: bool = True) -> Float:
    """Position embeddings for another patch grid, as the released code (after DINO's) makes them.

    Args:
        table: [g*g, w], without the class token's row.
        grid_yx: patches down and across.
        square: the picture's sides in px are equal. The release takes the table as it is when the grid is
            the training grid *and* this holds; a 224x230 crop has the training grid and is interpolated.

    Returns:
        [p, w].
    """
    side = round(len(table) ** 0.5)
    if grid_yx == (side, side) and square:
        return table
    down, across = (cubic(side, count, margin=_SCALE_MARGIN) for count in grid_yx)
    cube = table.reshape(side, side, -1).astype(np.float64)
    full = across.mix(down.mix(cube, axis=-3), axis=-2)  # [ny, nx, w]
    return np.asarray(full.reshape(grid_yx[0] * grid_yx[1], -1), dtype=np.float32)


def sample_on_grid(masks: Bool, grid_yx: tuple[int, int]) -> Bool:
    """Masks [n, y, x] at the patch grid, NEAREST as torch does it: pixel floor(i * scale). Returns [n, p]."""
    rows, columns = (_nearest(length, count) for length, count in zip(masks.shape[1:], grid_yx, strict=True))
    return masks[:, rows[:, None], columns[None, :]].reshape(len(masks), -1)


def padded_rows(tables: Sequence[Float], rows: int) -> Float:
    """Tables [p, v], each with up to `rows` rows, as one batch [b, rows, v]; what is left is zero."""
    batch = np.zeros((len(tables), rows, tables[0].shape[1]), dtype=np.float32)
    for filled, table in zip(batch, tables, strict=True):
        filled[: len(table)] = table
    return batch


def candidate_attention_mask(
    on_patches: Bool, *, classes: int | None = None, patches: int | None = None
) -> Float:
    """Additive mask of the masked attention (METHOD §6).

    Class token i sees itself and the patches of mask i; patches see patches only. A mask that covers no
    patch leaves its class token to itself: finite and deterministic, as in the release. So does padding: a
    padded class token sees itself only, and a padded patch is seen by none.

    Args:
        on_patches: [c, p].
        classes: class tokens with padding; None: c.
        patches: patches with padding; None: p.

    Returns:
        [t, t], rows look at columns.
    """
    real_classes, real_patches = on_patches.shape
    first_patch = real_classes if classes is None else classes
    tokens = first_patch + (real_patches if patches is None else patches)
    end = first_patch + real_patches
    blocked = np.full((tokens, tokens), BLOCKED, dtype=np.float32)
    np.fill_diagonal(blocked[:first_patch, :first_patch], 0.0)
    blocked[:real_classes, first_patch:end][on_patches] = 0.0
    blocked[first_patch:, first_patch:end] = 0.0
    return blocked


def open_attention_mask(patches: int) -> Float:
    """Additive mask [t, t] of the plain tower without padding: everything sees everything."""
    mask: Float = open_attention_masks([patches], patches)[0]
    return mask


def open_attention_masks(patches: Sequence[int], padded_to: int) -> Float:
    """Additive masks [b, t, t] of the plain tower: one class token, and everything sees all but the padding.

    Args:
        patches: how many each picture of the batch has.
        padded_to: how many with padding.
    """
    masks = np.zeros((len(patches), padded_to + 1, padded_to + 1), dtype=np.float32)
    for mask, count in zip(masks, patches, strict=True):
        mask[:, 1 + count :] = BLOCKED
    return masks


def _nearest(length: int, count: int) -> NDArray[np.int64]:
    scale = np.float32(length) / np.float32(count)  # torch computes in single precision here
    indices: NDArray[np.int64] = np.floor(np.arange(count, dtype=np.float32) * scale).astype(np.int64)
    return np.minimum(indices, length - 1)


MAX_PATCHES = 8192
"""Most patches of one picture. Their attention mask takes 256 MiB, and one unfused float32 attention
of ViT-B/16 3 GiB; a 1920x1080 picture has 8,040."""

CLASS_BUCKETS = (1, 16, 32, 64)
"""Class tokens of one picture: one for a crop, one per candidate for the masked attention. The release keeps
10 candidates, `edge` 20. More than the last are read in several calls, which is exact: no class token is
seen by another, nor by a patch."""

MAX_PAIRS = 2**22
"""Most pairs of tokens, b * t * t, of one call of several pictures. Unfused, each head holds a float32 per
pair: 192 MiB for the 12 heads of ViT-B/16 (and once more for its softmax), a 16 MiB mask. That is 108 crops
of the training size, or 6 of four times that. One picture may exceed it alone, up to `MAX_PATCHES`."""

_MULTIPLE = 8
"""Tensor cores read half-precision rows in eights."""


def patch_buckets(clip: ClipSpec) -> tuple[int, ...]:
    """All patch counts the graph is run at, rising.

    The training grid's own count, which is never padded, then 1.5, 2, 3, 4, 6, 8, ... times that, rounded up
    to a multiple of 8; the last is `MAX_PATCHES`. From the training grid on, at most half the patches again
    (and 8) are padding; a smaller grid is padded to the training grid's count.
    """
    trained = clip.grid**2
    ladder, octave = {trained}, 1
    while max(ladder) < MAX_PATCHES:
        ladder |= {min(_rounded_up(trained * octave * ratio), MAX_PATCHES) for ratio in (1.5, 2)}
        octave *= 2
    return tuple(sorted(ladder))


def patch_bucket(clip: ClipSpec, patches: int) -> int:
    """What `patches`, at most `MAX_PATCHES`, are padded to."""
    ladder = patch_buckets(clip)
    return ladder[bisect_left(ladder, patches)]


def class_bucket(classes: int) -> int:
    """What `classes`, at most `CLASS_BUCKETS[-1]`, are padded to."""
    return CLASS_BUCKETS[bisect_left(CLASS_BUCKETS, classes)]


def pictures_per_call(tokens: int) -> int:
    """Most pictures of `tokens` tokens each, padding included, that one call takes."""
    return max(1, MAX_PAIRS // tokens**2)


def _rounded_up(count: float) -> int:
    return int(-(-count // _MULTIPLE)) * _MULTIPLE
