"""The sizes a plan is made for: one optimisation profile for each way the pipeline feeds a graph.

In: a graph's contract, the model's sizes, the pipeline's options. Out: for every input its smallest, most
usual and largest shape. The pipeline pads to a few sizes (`runtime.buckets`), which are read from there.

Axes: b = batch, p = patches, c = class tokens, t = c + p; n = decoded prompts, k = prompts that are drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from refdiff.contracts.graphs import POINTS_PER_BATCH, POINTS_PER_DRAWING, Dimension, GraphSpec
from refdiff.contracts.options import Options
from refdiff.contracts.spec import ClipSpec, ModelSpec
from refdiff.errors import InputError
from refdiff.runtime.patches import (
    CLASS_BUCKETS,
    class_bucket,
    patch_bucket,
    patch_buckets,
    pictures_per_call,
)
from refdiff.runtime.phrase import MOST_OTHERS

Shape = tuple[int, ...]
Sizes = Mapping[str, int]
"""Dynamic axis -> its size."""


@dataclass(frozen=True, kw_only=True)
class ShapeRange:
    """What one input may be."""

    least: Shape
    usual: Shape
    """What the plan is tuned for."""
    most: Shape

    def holds(self, shape: Sequence[int]) -> bool:
        """Whether a shape is inside."""
        return len(shape) == len(self.least) and all(
            low <= size <= high for low, size, high in zip(self.least, shape, self.most, strict=True)
        )


ShapeProfile = Mapping[str, ShapeRange]
"""Every input of a graph -> its range: one of TensorRT's optimisation profiles."""

_Axes = tuple[Sizes, Sizes, Sizes]
"""Least, usual and most of each dynamic axis."""


def shape_profiles(
    graph: GraphSpec, spec: ModelSpec, profiles: Sequence[Options]
) -> tuple[ShapeProfile, ...]:
    """All sizes that the pipeline runs a graph at.

    Args:
        graph: its contract.
        spec: the model's sizes.
        profiles: of the pipeline; the plan serves each of them.

    Returns:
        At least one, in a fixed order, no two the same. A graph without dynamic axes has one.

    Raises:
        InputError: no profile was named.
    """
    if not profiles:
        raise InputError("got no profile, expected edge or official")
    found: list[ShapeProfile] = []
    for axes in _axes(graph.name, spec, profiles):
        profile = {tensor.name: _range(tensor.shape, axes) for tensor in graph.inputs}
        if profile not in found:
            found.append(profile)
    return tuple(found)


def fitting_profile(profiles: Sequence[ShapeProfile], shapes: Mapping[str, Sequence[int]]) -> int | None:
    """Index of the first profile that holds these input shapes, None when no profile does."""
    for index, profile in enumerate(profiles):
        if all(name in shapes and each.holds(shapes[name]) for name, each in profile.items()):
            return index
    return None


def _axes(name: str, spec: ModelSpec, profiles: Sequence[Options]) -> Iterator[_Axes]:
    if name == "clip_image":
        for options in profiles:
            yield from _crops(spec.clip, options)
            yield _surroundings(spec.clip, options)
        return
    if name == "sam_masks":
        drawing = {"n": POINTS_PER_BATCH, "k": POINTS_PER_DRAWING}
        yield {"n": 1, "k": 1}, drawing, drawing
        return
    batches = [_batches(name, options) for options in profiles]
    least, usual, most = (max(each[i] for each in batches) for i in range(3))
    yield {"b": least}, {"b": usual}, {"b": most}


def _batches(name: str, options: Options) -> tuple[int, int, int]:
    """Least, usual and most of the batch, as `runtime.generative` and `runtime.discriminative` feed it."""
    passes = len(options.attention.timesteps)
    if name == "unet":  # all passes but the last; only the first is of one prompt alone
        return 1, 2 if passes > 2 else 1, 2
    if name == "unet_taps":  # the last pass; of one prompt alone where it is also the first
        return 1, 2 if passes > 1 else 1, 2
    if name == "clip_text":  # the phrase, its head word, and what it is compared with
        compared = MOST_OTHERS if options.crops.negative else 1 if options.fusion.place else 0
        return 1, 2, 2 + compared
    return 1, 1, 1


def _crops(clip: ClipSpec, options: Options) -> Iterator[_Axes]:
    """Candidates cut out: one class token each, several pictures to a call."""
    trained = clip.grid**2
    ladder = (trained,) if options.crops.letterbox else patch_buckets(clip)
    candidates = options.proposals.keep_largest

    def most_pictures(patches: int) -> int:
        return min(candidates, pictures_per_call(1 + patches))

    for pictures, buckets in groupby(ladder, most_pictures):
        sizes = list(buckets)
        yield (
            _clip_sizes(1, sizes[0], 1),
            _clip_sizes(max(1, pictures // 2), sizes[0], 1),
            _clip_sizes(pictures, sizes[-1], 1),
        )


def _surroundings(clip: ClipSpec, options: Options) -> _Axes:
    """The whole picture once, a class token for each candidate."""
    ladder, side = patch_buckets(clip), options.crops.soft_long_side // clip.patch_size
    largest = patch_bucket(clip, min(side**2, ladder[-1])) if side else ladder[-1]
    usual = patch_bucket(clip, max(1, largest * 3 // 4))  # a picture of 4 by 3
    classes = class_bucket(min(options.proposals.keep_largest, CLASS_BUCKETS[-1]))
    return _clip_sizes(1, ladder[0], 1), _clip_sizes(1, usual, classes), _clip_sizes(1, largest, classes)


def _clip_sizes(pictures: int, patches: int, classes: int) -> Sizes:
    return {"b": pictures, "p": patches, "c": classes, "t": patches + classes}


def _range(shape: Sequence[Dimension], axes: _Axes) -> ShapeRange:
    least, usual, most = (tuple(_size(each, sizes) for each in shape) for sizes in axes)
    return ShapeRange(least=least, usual=usual, most=most)


def _size(dimension: Dimension, sizes: Sizes) -> int:
    return sizes[dimension] if isinstance(dimension, str) else dimension
