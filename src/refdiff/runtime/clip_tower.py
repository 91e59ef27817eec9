"""CLIP's image tower for images of any number of patches (METHOD §5, §6).

Up to `MAX_PATCHES` an engine runs the graph `clip_image`, padded to a bucket. An image of more is computed
alone on the host, its attention in blocks of queries, up to `MAX_HOST_PATCHES`. A larger one has to be
resized to `most_patches` first.

Axes: b = images, c = class tokens, e = CLIP embedding, p = patches, t = tokens = c + p, y/x = image
rows/columns.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import numpy as np

from refdiff.contracts.graphs import BLOCKED
from refdiff.contracts.onnx_file import OnnxGraph
from refdiff.contracts.results import Masks
from refdiff.contracts.session import Array, Bool, Float, ImageArray, SessionFactory
from refdiff.contracts.spec import ClipSpec
from refdiff.errors import BundleError
from refdiff.runtime.clip_inputs import (
    CLASS_BUCKETS,
    MAX_HOST_PATCHES,
    MAX_PAIRS,
    MAX_PATCHES,
    candidate_attention_mask,
    class_bucket,
    images_per_call,
    interpolate_positions,
    open_attention_masks,
    pad_rows,
    patch_bucket,
    patch_grid,
    sample_on_grid,
    to_patches,
)
from refdiff.runtime.host_graph import Rows, run_on_host, unsupported_operators

GraphReader = Callable[[str], OnnxGraph]
"""Reads a graph of the bundle from its file."""

_GRAPH = "clip_image"


class ImageTower:
    """Encodes images with the graph `clip_image`.

    Args:
        sessions: opens the graph.
        spec: CLIP's sizes.
        positions: [g*g, w], the position table without the class token's row.
        read_graph: reads the graph's file for the host; None: nothing is computed there.
        call_patches: most patches of an image that an engine runs.
        call_pairs: most pairs of tokens of a call of several images.
    """

    def __init__(
        self,
        sessions: SessionFactory,
        spec: ClipSpec,
        positions: Float,
        read_graph: GraphReader | None = None,
        call_patches: int = MAX_PATCHES,
        call_pairs: int = MAX_PAIRS,
    ) -> None:
        self._sessions = sessions
        self._spec = spec
        self._positions = positions
        self._read_graph = read_graph
        self._call_patches = call_patches
        self._call_pairs = call_pairs

    def most_patches(self, wanted: int) -> int:
        """Return the most patches of an image; the graph's file is read only where `wanted` asks for it."""
        fits = wanted <= self._call_patches or self._host_graph is None
        return self._call_patches if fits else MAX_HOST_PATCHES

    def vectors(self, images: Sequence[ImageArray]) -> Float:
        """Return the vector of each image [y, x, 3], not normalized: [b, e].

        Images of one bucket share calls, whatever their patch grids.
        """
        by_bucket: dict[int, list[int]] = defaultdict(list)
        vectors = np.zeros((len(images), self._spec.embed_dim), dtype=np.float32)
        for i, image in enumerate(images):
            patches = math.prod(self._grid(image))
            if patches > self._call_patches:
                vectors[i] = self._run_on_host(image, None)[0]
            else:
                by_bucket[patch_bucket(self._spec, patches)].append(i)
        for padded_to, members in by_bucket.items():
            for some in slices(len(members), images_per_call(1 + padded_to, self._call_pairs)):
                vectors[members[some]] = self._run_plain([images[i] for i in members[some]], padded_to)
        return vectors

    def masked_vectors(self, image: ImageArray, masks: Masks) -> Float:
        """Return the vector of each mask [c, y, x], seen in its surroundings, not normalized: [c, e]."""
        grid_yx = self._grid(image)
        if math.prod(grid_yx) > self._call_patches:
            return self._run_on_host(image, sample_on_grid(masks, grid_yx))
        padded_to = patch_bucket(self._spec, math.prod(grid_yx))
        patches = pad_rows([to_patches(image, self._spec)], padded_to)
        positions = pad_rows([self._positions_of(image)], padded_to)
        found = []
        for some in slices(len(masks), CLASS_BUCKETS[-1]):
            on_patches = sample_on_grid(masks[some], grid_yx)  # [c, p]
            classes = class_bucket(len(on_patches))
            feeds = {
                "patches": patches,
                "positions": positions,
                "slots": np.zeros((1, classes, 1), dtype=np.float32),
                "mask": candidate_attention_mask(on_patches, classes=classes, patches=padded_to)[None],
            }
            found.append(self._sessions.open(_GRAPH).run(feeds)["vectors"][0, : len(on_patches)])
        return np.concatenate(found)

    def _run_plain(self, images: Sequence[ImageArray], padded_to: int) -> Float:
        """Return the vectors [b, e] of images of one bucket: one class token each, no mask."""
        patches = [to_patches(image, self._spec) for image in images]
        feeds = {
            "patches": pad_rows(patches, padded_to),
            "positions": pad_rows([self._positions_of(image) for image in images], padded_to),
            "slots": np.zeros((len(images), 1, 1), dtype=np.float32),
            "mask": open_attention_masks([len(each) for each in patches], padded_to),
        }
        return np.asarray(self._sessions.open(_GRAPH).run(feeds)["vectors"][:, 0])

    def _run_on_host(self, image: ImageArray, on_patches: Bool | None) -> Float:
        """Return the vectors [c, e] of an image's class tokens; None: one, which sees all of the image."""
        if self._host_graph is None:
            raise BundleError(f"the file of {_GRAPH} cannot be run on the host; resize to `most_patches`")
        patches = to_patches(image, self._spec)
        classes = 1 if on_patches is None else len(on_patches)
        tokens = classes + len(patches)
        mask = _open_rows(tokens) if on_patches is None else _candidate_rows(on_patches)
        feeds: dict[str, Array | Rows] = {
            "patches": patches[None],
            "positions": self._positions_of(image)[None],
            "slots": np.zeros((1, classes, 1), dtype=np.float32),
            "mask": mask,
        }
        vectors: Float = run_on_host(self._host_graph, feeds)["vectors"][0]
        return vectors

    @cached_property
    def _host_graph(self) -> OnnxGraph | None:
        """The graph for the host; None where it cannot be run there."""
        if self._read_graph is None:
            return None
        graph = self._read_graph(_GRAPH)
        return None if unsupported_operators(graph) else graph

    def _grid(self, image: ImageArray) -> tuple[int, int]:
        return patch_grid(image.shape[:2], self._spec.patch_size)

    def _positions_of(self, image: ImageArray) -> Float:
        """Return the position table fitted to an image: [p, w]."""
        height, width = image.shape[:2]
        return interpolate_positions(self._positions, self._grid(image), square=height == width)


def slices(length: int, step: int) -> Iterator[slice]:
    """Cut `length` items into slices of `step`."""
    return (slice(start, start + step) for start in range(0, length, step))


def _open_rows(tokens: int) -> Rows:
    """Return the additive mask [1, t, t] of `open_attention_masks` without padding, by rows."""
    return Rows((1, tokens, tokens), lambda *_: np.zeros((1, 1, 1), np.float32))


def _candidate_rows(on_patches: Bool) -> Rows:
    """Return the additive mask [1, t, t] of `candidate_attention_mask`, by rows."""
    classes, patches = on_patches.shape
    sees = np.concatenate([np.eye(classes, dtype=np.bool_), on_patches], axis=1)
    of_classes = np.where(sees, np.float32(0), np.float32(BLOCKED))  # [c, t]
    of_patches = np.concatenate([np.full(classes, BLOCKED, np.float32), np.zeros(patches, np.float32)])

    def at(_: slice, rows: slice) -> Float:
        first = of_classes[rows.start : min(rows.stop, classes)]
        count = rows.stop - max(rows.start, classes)
        if count <= 0:
            return first[None]
        return np.concatenate([first, np.broadcast_to(of_patches, (count, len(of_patches)))])[None]

    return Rows((1, classes + patches, classes + patches), at)
