"""The sizes the `clip_image` graph is run at (METHOD §9: buckets, padded keys masked).

In: how many patches or class tokens there are. Out: what they are padded to, and how many pictures of that
size share a call. An engine is built for a few shapes: these are all of them, so whoever writes an engine's
shape profiles reads them here. The batch is not padded.

Axes: p = patches, c = class tokens, t = c + p, b = batch.
"""

from __future__ import annotations

from bisect import bisect_left

from refdiff.contracts.spec import ClipSpec

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
