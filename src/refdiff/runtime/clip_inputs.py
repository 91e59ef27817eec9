"""The inputs of CLIP: crops, patches, interpolated positions, attention masks (METHOD §5, §6).

The graph `clip_image` is run at a few sizes only: an engine is built for exactly these, and its optimization
profiles are read from here. An image is padded to its bucket with rows of zeros, which nothing may attend to:
a blocked key's weight is exp(-1e4), exactly 0 in float32, so padding changes only the order of sums
(METHOD §9). The batch is not padded.

Axes: p = patches (row by row), w = token width, c = class tokens, t = c + p (class tokens first),
n = candidates, b = batch, y/x = rows/columns.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from refdiff.contracts.graphs import BLOCKED
from refdiff.contracts.results import Masks
from refdiff.contracts.session import Bool, Float, ImageArray
from refdiff.contracts.spec import ClipSpec
from refdiff.errors import InputError
from refdiff.runtime.resize import cubic, resize_image

MAX_PATCHES = 8192
"""Most patches of one image in a call. Their attention mask takes 256 MiB, and one unfused float32 attention
of ViT-B/16 3 GiB; a 1920x1080 image has 8,040. The host computes an image of more (see `clip_tower`)."""

MAX_HOST_PATCHES = 40_960
"""Most patches of one image on the host. The release would need 80 GB for one attention of so many; a
3840x2160 image has 32,400. Time grows with their square: see benchmarks/results/big-images.json."""

CLASS_BUCKETS = (1, 16, 32, 64)
"""Class tokens of one image: one for a crop, one per candidate for the masked attention. The release keeps 10
candidates, `edge` 20. More than the last are read in several calls, which is exact: no class token is seen by
another, nor by a patch."""

MAX_PAIRS = 2**22
"""Most pairs of tokens, b * t * t, of one call of several images. Unfused, each head holds a float32 per
pair: 192 MiB for the 12 heads of ViT-B/16 (and once more for its softmax), a 16 MiB mask. That is 108 crops
of the training size, or 6 of four times that. One image may exceed it alone, up to `MAX_PATCHES`."""

_MULTIPLE = 8
"""Tensor cores read half-precision rows in multiples of eight."""

_BAND_PX = 2**18  # pixels of a crop computed together

_SCALE_MARGIN = 0.1  # the released code's margin against rounding in the scale factor (METHOD §5)


def masked_crop(
    image: ImageArray, mask: Bool, box_xyxy_px: NDArray[np.int64], ramp: NDArray[np.float64]
) -> ImageArray:
    """Cut a candidate out on black, weighted by the position ramp (METHOD §5).

    The released order is kept: ramp and mask in float, cut to the box, truncate to uint8.

    Args:
        image: [y, x, 3].
        mask: [y, x].
        box_xyxy_px: [4], inclusive corners of the mask.
        ramp: [x], 0..1.

    Returns:
        [y, x, 3], of the box's size.
    """
    x0, y0, x1, y1 = (int(corner) for corner in box_xyxy_px)
    columns = slice(x0, x1 + 1)
    crop = np.empty((y1 + 1 - y0, x1 + 1 - x0, 3), np.uint8)
    step = max(1, _BAND_PX // crop.shape[1])
    for top in range(0, len(crop), step):  # in float64 a whole crop would take eight times its memory
        band = slice(y0 + top, min(y0 + top + step, y1 + 1))
        weights = mask[band, columns] * ramp[columns]  # [y, x]
        crop[top : top + step] = image[band, columns] * weights[..., None]
    return crop


def resize_shorter_side(image: ImageArray, side: int, *, longest: int | None = None) -> ImageArray:
    """Resize the shorter side to `side` px, as `torchvision.transforms.Resize(side)` does.

    The aspect is kept, unless the longer side would have more than `longest` px: it then gets that many.
    """
    height, width = image.shape[:2]
    longer = longer_side((height, width), side)
    longer = longer if longest is None else min(longer, longest)
    return resize(image, (longer, side) if width <= height else (side, longer))


def longer_side(size_yx: tuple[int, int], side: int) -> int:
    """Return the longer side in px of an image whose shorter side is resized to `side` px."""
    return int(side * max(size_yx) / min(size_yx))


def letterbox(image: ImageArray, side: int) -> ImageArray:
    """Resize the longer side to `side` px, aspect kept, centered on a black square."""
    height, width = image.shape[:2]
    longer = max(height, width)
    size_xy = (max(1, round(width * side / longer)), max(1, round(height * side / longer)))
    square = np.zeros((side, side, 3), dtype=np.uint8)
    left, top = (side - size_xy[0]) // 2, (side - size_xy[1]) // 2
    square[top : top + size_xy[1], left : left + size_xy[0]] = resize(image, size_xy[::-1])
    return square


def shrink_longer_side(image: ImageArray, limit: int, *, least: int) -> ImageArray:
    """Resize the longer side to at most `limit` px, aspect kept, no side below `least` px; 0: unchanged."""
    return resize(image, shrunk_size(image.shape[:2], limit, least=least))


def shrunk_size(size_yx: tuple[int, int], limit: int, *, least: int) -> tuple[int, int]:
    """Return the size that `shrink_longer_side` makes of an image's size."""
    if limit <= 0:
        return size_yx
    scale = min(1.0, limit / max(size_yx))
    height, width = (max(least, round(side * scale)) for side in size_yx)
    return height, width


def size_of_patches(size_yx: tuple[int, int], patch: int, most: int) -> tuple[int, int]:
    """Return an image's size, shrunk to at most `most` patches if it has more; the aspect is about kept."""
    down, across = patch_grid(size_yx, patch)
    if down * across <= most:
        return size_yx
    scale = (most / (down * across)) ** 0.5
    down, across = max(1, int(down * scale)), max(1, int(across * scale))
    return min(down, most // across) * patch, min(across, most // down) * patch


def patch_grid(size_yx: tuple[int, int], patch: int) -> tuple[int, int]:
    """Return how many whole patches an image has; the rest at the right and bottom is ignored, as in CLIP.

    Raises:
        InputError: none fits.
    """
    height, width = size_yx
    grid = (height // patch, width // patch)
    if 0 in grid:
        raise InputError(
            f"the image of {width}x{height} px is smaller than one CLIP patch of {patch}x{patch} px;"
            " use a larger image"
        )
    return grid


def to_patches(image: ImageArray, clip: ClipSpec) -> Float:
    """Return the normalized patches [p, 3*P*P] of an image [y, x, 3]; values by (channel, row, column)."""
    side = clip.patch_size
    ny, nx = patch_grid(image.shape[:2], side)
    mean, std = np.array(clip.pixel_mean, np.float32), np.array(clip.pixel_std, np.float32)
    pixels = (image[: ny * side, : nx * side].astype(np.float32) / np.float32(255) - mean) / std
    blocks = pixels.reshape(ny, side, nx, side, 3)  # [ny, row, nx, column, channel]
    return np.ascontiguousarray(blocks.transpose(0, 2, 4, 1, 3)).reshape(ny * nx, 3 * side * side)


def interpolate_positions(table: Float, grid_yx: tuple[int, int], *, square: bool = True) -> Float:
    """Fit position embeddings to another patch grid, as the released code (after DINO's) does.

    Args:
        table: [g*g, w], without the class token's row.
        grid_yx: patches down and across.
        square: the image's sides in px are equal. The release takes the table as it is when the grid is the
            training grid *and* this holds; a 224x230 crop has the training grid and is interpolated.

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


def sample_on_grid(masks: Masks, grid_yx: tuple[int, int]) -> Bool:
    """Sample masks [n, y, x] on the patch grid, NEAREST as in torch: pixel floor(i * scale). -> [n, p]."""
    rows, columns = (_nearest(length, count) for length, count in zip(masks.shape[1:], grid_yx, strict=True))
    sampled = np.empty((len(masks), len(rows), len(columns)), dtype=np.bool_)
    for on_grid, mask in zip(sampled, masks, strict=True):
        on_grid[...] = mask[rows[:, None], columns[None, :]]
    return sampled.reshape(len(masks), -1)


def pad_rows(tables: Sequence[Float], rows: int) -> Float:
    """Stack tables [p, v] of up to `rows` rows as one batch [b, rows, v], filled up with zeros."""
    batch = np.zeros((len(tables), rows, tables[0].shape[1]), dtype=np.float32)
    for filled, table in zip(batch, tables, strict=True):
        filled[: len(table)] = table
    return batch


def candidate_attention_mask(
    on_patches: Bool, *, classes: int | None = None, patches: int | None = None
) -> Float:
    """Return the additive mask of the masked attention (METHOD §6).

    Class token i sees itself and the patches of mask i; patches see patches only. A mask that covers no patch
    leaves its class token to itself: finite and deterministic, as in the release. So does padding: a padded
    class token sees itself only, and a padded patch is seen by none.

    Args:
        on_patches: [c, p].
        classes: class tokens with padding; None: c.
        patches: patches with padding; None: p.

    Returns:
        [t, t], rows attend to columns.
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


def open_attention_masks(patches: Sequence[int], padded_to: int) -> Float:
    """Return additive masks [b, t, t] of the plain tower: one class token, only the padding is blocked.

    Args:
        patches: how many each image of the batch has.
        padded_to: how many with padding.
    """
    masks = np.zeros((len(patches), padded_to + 1, padded_to + 1), dtype=np.float32)
    for mask, count in zip(masks, patches, strict=True):
        mask[:, 1 + count :] = BLOCKED
    return masks


def patch_buckets(clip: ClipSpec) -> tuple[int, ...]:
    """Return all patch counts the graph is run at, rising.

    The training grid's own count, which is never padded, then 1.5, 2, 3, 4, 6, 8, ... times that, rounded up
    to a multiple of 8; the last is `MAX_PATCHES`. From the training grid on, at most half the patches again
    (and 8) are padding; a smaller grid is padded to the training grid's count.
    """
    trained = clip.grid**2
    ladder, octave = {trained}, 1
    while max(ladder) < MAX_PATCHES:
        ladder |= {min(_round_up(trained * octave * ratio), MAX_PATCHES) for ratio in (1.5, 2)}
        octave *= 2
    return tuple(sorted(ladder))


def patch_bucket(clip: ClipSpec, patches: int) -> int:
    """Return the count that `patches`, at most `MAX_PATCHES`, are padded to."""
    ladder = patch_buckets(clip)
    return ladder[bisect_left(ladder, patches)]


def class_bucket(classes: int) -> int:
    """Return the count that `classes`, at most `CLASS_BUCKETS[-1]`, are padded to."""
    return CLASS_BUCKETS[bisect_left(CLASS_BUCKETS, classes)]


def images_per_call(tokens: int, pairs: int = MAX_PAIRS) -> int:
    """Return the most images of `tokens` tokens each, padding included, that one call takes."""
    return max(1, pairs // tokens**2)


def resize(image: ImageArray, size_yx: tuple[int, int]) -> ImageArray:
    """Resize an image [y, x, 3] as the release does; one of that size is returned as it is."""
    if size_yx == image.shape[:2]:
        return image
    # Pillow's BILINEAR widens its filter when it shrinks: the antialiased resize of the release.
    return resize_image(image, size_yx, Image.Resampling.BILINEAR)


def _nearest(length: int, count: int) -> NDArray[np.int64]:
    scale = np.float32(length) / np.float32(count)  # torch computes in single precision here
    indices: NDArray[np.int64] = np.floor(np.arange(count, dtype=np.float32) * scale).astype(np.int64)
    return np.minimum(indices, length - 1)


def _round_up(count: float) -> int:
    return int(-(-count // _MULTIPLE)) * _MULTIPLE
