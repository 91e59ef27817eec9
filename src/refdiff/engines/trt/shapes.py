"""The sizes a plan is built for: one optimization profile for each way the pipeline feeds a graph.

In: a graph's contract, the model's sizes, the pipeline's options. Out: for every input its smallest, most
usual and largest shape. The pipeline pads to a few sizes, which are read from `runtime.clip_inputs`.

Axes: b = batch, p = patches, c = class tokens, t = c + p; n = decoded prompts, q = tokens of a prompt, k =
prompts that are drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from refdiff.contracts.graphs import (
    POINT_TOKENS,
    POINTS_PER_BATCH,
    POINTS_PER_DRAWING,
    PROMPT_TOKENS,
    PROMPTS_PER_BATCH,
    Dimension,
    GraphSpec,
)
from refdiff.contracts.options import Options
from refdiff.contracts.spec import ClipSpec, ModelSpec
from refdiff.errors import InputError
from refdiff.runtime.clip_inputs import (
    CLASS_BUCKETS,
    class_bucket,
    images_per_call,
    patch_bucket,
    patch_buckets,
)
from refdiff.runtime.phrase import MOST_OTHERS

Shape = tuple[int, ...]
Sizes = Mapping[str, int]
"""Dynamic axis -> its size."""


@dataclass(frozen=True, kw_only=True)
class ShapeRange:
    """The shapes that one input may have."""

    least: Shape
    usual: Shape
    """The shape that the plan is tuned for."""
    most: Shape


ShapeProfile = Mapping[str, ShapeRange]
"""Every input of a graph -> its range: one of TensorRT's optimization profiles."""

_Axes = tuple[Sizes, Sizes, Sizes]
"""Least, usual and largest size of each dynamic axis."""


def shape_profiles(
    graph: GraphSpec, spec: ModelSpec, variants: Sequence[Options]
) -> tuple[ShapeProfile, ...]:
    """Return all sizes at which the pipeline runs a graph.

    Args:
        graph: its contract.
        spec: the model's sizes.
        variants: options of the pipeline; the plan serves each of them.

    Returns:
        At least one, in a fixed order, no two the same. A graph without dynamic axes has one.

    Raises:
        InputError: no variant was given.
    """
    if not variants:
        raise InputError("got no variant, expected edge or official")
    found: list[ShapeProfile] = []
    for axes in _axes(graph.name, spec, variants):
        profile = {tensor.name: _range(tensor.shape, axes) for tensor in graph.inputs}
        if profile not in found:
            found.append(profile)
    return tuple(found)


def _axes(name: str, spec: ModelSpec, variants: Sequence[Options]) -> Iterator[_Axes]:
    if name == "clip_image":
        for options in variants:
            yield from _crops(spec.clip, options)
            yield _surroundings(spec.clip, options)
        return
    if name == "sam_decoder":  # the automatic mode's one size; then what a caller's own prompts have
        points, fewest = {"n": POINTS_PER_BATCH, "q": POINT_TOKENS}, {"n": 1, "q": POINT_TOKENS}
        yield points, points, points
        yield fewest, fewest, {"n": PROMPTS_PER_BATCH, "q": PROMPT_TOKENS}
        return
    if name == "sam_masks":
        drawing = {"n": POINTS_PER_BATCH, "k": POINTS_PER_DRAWING}
        yield {"n": 1, "k": 1}, drawing, drawing
        return
    batches = [_batches(name, options) for options in variants]
    least, usual, most = (max(each[i] for each in batches) for i in range(3))
    yield {"b": least}, {"b": usual}, {"b": most}


def _batches(name: str, options: Options) -> tuple[int, int, int]:
    """Return least, usual and largest batch, as `runtime.attention_branch` and `clip_branch` feed it."""
    passes = len(options.attention.timesteps)
    if name == "unet":  # all passes but the last; only the first has one prompt alone
        return 1, 2 if passes > 2 else 1, 2
    if name == "unet_taps":  # the last pass; it has one prompt alone if it is also the first
        return 1, 2 if passes > 1 else 1, 2
    if name == "clip_text":  # the phrase, its head word, and what it is compared with
        compared = MOST_OTHERS if options.crops.negative else 1 if options.fusion.place else 0
        return 1, 2, 2 + compared
    return 1, 1, 1


def _crops(clip: ClipSpec, options: Options) -> Iterator[_Axes]:
    """Yield the axes of cropped candidates: one class token each, several crops in a call."""
    trained = clip.grid**2
    ladder = (trained,) if options.crops.letterbox else patch_buckets(clip)
    candidates = options.proposals.keep_largest

    def most_images(patches: int) -> int:
        return min(candidates, images_per_call(1 + patches))

    for images, buckets in groupby(ladder, most_images):
        sizes = list(buckets)
        yield (
            _clip_sizes(1, sizes[0], 1),
            _clip_sizes(max(1, images // 2), sizes[0], 1),
            _clip_sizes(images, sizes[-1], 1),
        )


def _surroundings(clip: ClipSpec, options: Options) -> _Axes:
    """Return the axes of the whole image, with a class token for each candidate."""
    ladder, side = patch_buckets(clip), options.crops.soft_long_side // clip.patch_size
    largest = patch_bucket(clip, min(side**2, ladder[-1])) if side else ladder[-1]
    usual = patch_bucket(clip, max(1, largest * 3 // 4))  # an image of 4 by 3
    classes = class_bucket(min(options.proposals.keep_largest, CLASS_BUCKETS[-1]))
    return _clip_sizes(1, ladder[0], 1), _clip_sizes(1, usual, classes), _clip_sizes(1, largest, classes)


def _clip_sizes(images: int, patches: int, classes: int) -> Sizes:
    return {"b": images, "p": patches, "c": classes, "t": patches + classes}


def _range(shape: Sequence[Dimension], axes: _Axes) -> ShapeRange:
    least, usual, most = (tuple(_size(each, sizes) for each in shape) for sizes in axes)
    return ShapeRange(least=least, usual=usual, most=most)


def _size(dimension: Dimension, sizes: Sizes) -> int:
    return sizes[dimension] if isinstance(dimension, str) else dimension
