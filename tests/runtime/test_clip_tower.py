"""Images of more patches than an engine takes: the same vectors, in bounded memory."""

import tracemalloc

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from refdiff.contracts.graphs import BLOCKED
from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.onnx_file import read_onnx
from refdiff.contracts.options import BackendOptions
from refdiff.loading import open_backend
from refdiff.runtime import clip_tower
from refdiff.runtime.clip_inputs import (
    MAX_HOST_PATCHES,
    MAX_PATCHES,
    candidate_attention_mask,
    patch_bucket,
    resize_shorter_side,
    size_of_patches,
)
from refdiff.runtime.clip_tower import ImageTower
from refdiff.runtime.host_graph import Rows, run_on_host, unsupported_operators
from tests.support.fake_pipeline import POSITIONS, SPEC, FakeFactory, fake_image

EXACT = 5e-6
"""Of a vector of length about 6; measured: 2e-6. The order of sums differs."""


def _bundle(name="mini"):
    return find_bundle(name)


def _tower(bundle, sessions=None, call_patches=MAX_PATCHES):
    def read(name):
        return read_onnx(bundle.graph_path(name))

    return ImageTower(sessions, bundle.spec.clip, bundle.clip_positions(), read, call_patches)


@pytest.fixture
def sessions():
    opened = open_backend(_bundle(), BackendOptions(name="ort-cpu", threads=1))
    yield opened
    opened.close()


def _image(height, width):
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _feeds(bundle, patches, classes):
    clip, rng = bundle.spec.clip, np.random.default_rng(5)
    on_patches = rng.random((classes, patches)) < 0.3
    on_patches[0] = False  # a class token that sees itself alone
    mask = candidate_attention_mask(on_patches)[None]
    return {
        "patches": rng.standard_normal((1, patches, 3 * clip.patch_size**2), dtype=np.float32),
        "positions": rng.standard_normal((1, patches, clip.width), dtype=np.float32),
        "slots": np.zeros((1, classes, 1), np.float32),
        "mask": mask,
    }, on_patches


def _on_host(bundle, feeds):
    mask = feeds["mask"]
    lazy = {**feeds, "mask": Rows(mask.shape, lambda _, rows: mask[:, rows])}
    return run_on_host(read_onnx(bundle.graph_path("clip_image")), lazy)["vectors"]


@pytest.mark.slow
def test_the_host_gives_the_engines_vectors_across_several_blocks(sessions):
    bundle = _bundle()
    feeds, _ = _feeds(bundle, 1500, 4)  # 1504 tokens a row: 697 rows are a block
    expected = sessions.open("clip_image").run(feeds)["vectors"]
    assert np.abs(_on_host(bundle, feeds) - expected).max() <= EXACT


@pytest.mark.slow
@pytest.mark.needs_torch
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("fp16", 2e-3), ("bf16", 0.05), ("int8", 0.15), ("fp8", 0.3)]
)
def test_a_bundle_in_fewer_bits_runs_on_the_host_with_its_own_weights(mini_in, precision, tolerance):
    exact, bundle = _bundle(), _bundle(mini_in(precision))
    feeds, _ = _feeds(exact, 100, 2)
    assert not unsupported_operators(read_onnx(bundle.graph_path("clip_image")))
    assert np.abs(_on_host(bundle, feeds) - _on_host(exact, feeds)).max() <= tolerance


def test_the_rows_of_the_mask_are_those_of_the_whole_mask():
    on_patches = np.random.default_rng(0).random((3, 10)) < 0.5
    rows, whole = clip_tower._candidate_rows(on_patches), candidate_attention_mask(on_patches)
    for start, stop in [(0, 2), (1, 5), (3, 13), (12, 13), (0, 13)]:
        np.testing.assert_array_equal(rows.at(slice(0, 1), slice(start, stop))[0], whole[start:stop])
    assert whole.min() == np.float32(BLOCKED)


class _Unused:
    def open(self, name):
        raise AssertionError(f"{name} was opened for an image that it has no room for")


@pytest.mark.slow
def test_an_image_just_above_the_engines_limit_runs_on_the_host_in_little_memory():
    bundle = _bundle()
    side = bundle.spec.clip.patch_size
    image = _image(64 * side, (MAX_PATCHES // 64 + 1) * side)
    masks = np.zeros((2, *image.shape[:2]), np.bool_)
    masks[0, :100, :200] = masks[1] = True
    tower = _tower(bundle, _Unused())
    tracemalloc.start()
    try:
        vectors = tower.masked_vectors(image, masks)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.isfinite(vectors).all()
    assert vectors.shape == (2, bundle.spec.clip.embed_dim)
    assert peak < 160e6, "one head's logits alone are 273 MB"


def test_images_of_both_kinds_keep_their_order(sessions):
    bundle = _bundle()
    images = [_image(64, 64), _image(64, 160), _image(64, 64)[::-1]]
    expected = _tower(bundle, sessions).vectors(images)
    mixed = _tower(bundle, sessions, call_patches=100).vectors(images)
    assert np.abs(mixed - expected).max() <= EXACT


@pytest.mark.parametrize("count", [20, 21])
def test_a_call_of_several_images_is_bounded_in_memory(count):
    factory, images = FakeFactory(), [fake_image((32, 32))] * count
    tokens = 1 + patch_bucket(SPEC.clip, 16)
    ImageTower(factory, SPEC.clip, POSITIONS, call_pairs=3 * tokens**2).vectors(images)
    calls = [shapes["patches"][0] for _, shapes in factory.log]
    assert calls == [3] * (count // 3) + [2] * (count % 3 > 0)


def test_without_the_graphs_file_an_image_is_limited_to_what_an_engine_takes():
    bundle = _bundle()
    blind = ImageTower(None, bundle.spec.clip, bundle.clip_positions())
    assert blind.most_patches(10**6) == MAX_PATCHES
    assert _tower(bundle).most_patches(10**6) == MAX_HOST_PATCHES


@pytest.mark.parametrize(
    "size_yx", [(2160, 3840), (4882, 16384), (16, 16384), (16384, 40), (8000, 9999), (224, 224)]
)
@pytest.mark.parametrize("patch", [8, 14, 16])
def test_a_size_is_shrunk_to_the_patches_that_fit(size_yx, patch):
    height, width = size_of_patches(size_yx, patch, MAX_PATCHES)
    down, across = height // patch, width // patch
    assert 1 <= down * across <= MAX_PATCHES
    if (size_yx[0] // patch) * (size_yx[1] // patch) <= MAX_PATCHES:
        assert (height, width) == size_yx
    else:
        assert down * across > MAX_PATCHES / 2
        assert height <= size_yx[0]
        assert width <= size_yx[1]


def test_a_thin_crop_is_shortened_to_the_patches_that_fit():
    crop = _image(14, 600)
    assert resize_shorter_side(crop, 224).shape == (224, 9600, 3)
    assert resize_shorter_side(crop, 224, longest=9360).shape == (224, 9360, 3)
    assert resize_shorter_side(crop.transpose(1, 0, 2), 224, longest=9360).shape == (9360, 224, 3)
