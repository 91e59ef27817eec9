"""Padding to a bucket changes no vector: the reference pads nothing, nor does the same graph on its own."""

import numpy as np
import pytest

pytestmark = pytest.mark.needs_torch
torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from refdiff.contracts.graphs import graph_contract
from refdiff.contracts.options import CropOptions, Options
from refdiff.contracts.results import Candidates
from refdiff.engines.ort import OrtSession
from refdiff.export.wrappers import TorchSessions, clip_positions
from refdiff.reference import clip as reference
from refdiff.reference.clip import position_ramp
from refdiff.runtime import clip_inputs
from refdiff.runtime.clip_branch import ClipBranch, unit
from refdiff.runtime.clip_inputs import CLASS_BUCKETS, masked_crop, patch_buckets, resize_shorter_side
from refdiff.runtime.spatial import ramp
from tests.support.tiny_stack import TINY, tiny_stack

EXACT = 2e-6
"""Of a unit vector: the order of sums differs. Measured: 2.4e-7, in torch and in ONNX Runtime."""

PICTURE_YX = (150, 211)

BOXES_YX = (
    (10, 120),  # 1:12
    (144, 12),  # 12:1
    (64, 64),
    (50, 51),  # the training grid, but not square to the pixel
    (40, 31),
    (30, 47),
    (90, 33),
    (33, 120),
    (17, 120),
    (120, 21),
)
"""Height and width of the candidates: every aspect from 1:12 to 12:1."""


class Spy:
    """A session factory that notes the shapes `clip_image` is fed."""

    def __init__(self, session):
        self._session, self.shapes = session, []

    def open(self, name):
        assert name == "clip_image"
        return self

    def run(self, feeds, outputs=None):
        self.shapes.append((feeds["patches"].shape[:2], feeds["slots"].shape[1]))
        return self._session.run(feeds, outputs)

    def close(self):
        self._session.close()


@pytest.fixture(scope="module")
def onnx_session(tiny_bundle):
    graph = graph_contract(TINY)["clip_image"]  # the bundle is of the calm stack, which has the same CLIP
    return OrtSession(tiny_bundle / "clip_image.onnx", graph, threads=1)


@pytest.fixture(params=["torch", "onnx"])
def sessions(request):
    if request.param == "onnx":
        return Spy(request.getfixturevalue("onnx_session"))
    return Spy(TorchSessions(tiny_stack()).open("clip_image"))


def _picture(size_yx=PICTURE_YX):
    return np.random.default_rng(1).integers(0, 256, (*size_yx, 3), dtype=np.uint8)


def _branch(sessions, options=None):
    """CLIP's branch over the sessions; no text is encoded, so it needs no tokenizer."""
    crops = Options(crops=options or CropOptions())
    return ClipBranch(sessions, TINY.clip, crops, None, clip_positions(tiny_stack()))


def _candidates(count=10, size_yx=PICTURE_YX):
    """Blobs that touch all sides of their boxes, at several places; ten have every aspect."""
    rng = np.random.default_rng(count)
    masks, boxes = np.zeros((count, *size_yx), np.bool_), np.zeros((count, 4), np.int64)
    for i, (mask, box) in enumerate(zip(masks, boxes, strict=True)):
        height, width = np.minimum(BOXES_YX[i % len(BOXES_YX)], size_yx)
        top, left = rng.integers(0, size_yx[0] - height + 1), rng.integers(0, size_yx[1] - width + 1)
        inside = mask[top : top + height, left : left + width]
        inside[:] = rng.random(inside.shape) < 0.8
        inside[[0, -1]] = inside[:, [0, -1]] = True
        box[:] = left, top, left + width - 1, top + height - 1
    return Candidates(
        masks=masks,
        predicted_iou=np.ones(count, np.float32),
        areas_px=masks.sum(axis=(1, 2)),
        boxes_xyxy_px=boxes,
        kept=np.ones(count, np.bool_),
    )


@pytest.mark.parametrize("direction", [None, "left"])
@pytest.mark.parametrize("letterbox", [False, True])
def test_hard_crops_of_every_aspect_equal_the_references_one_at_a_time(sessions, letterbox, direction):
    options, picture, found = CropOptions(letterbox=letterbox), _picture(), _candidates()
    got = _branch(sessions, options).hard_vectors(picture, found, direction)
    expected = reference.hard_vectors(
        tiny_stack(), options, picture, found.masks, found.boxes_xyxy_px, position_ramp(direction, PICTURE_YX)
    )
    assert np.abs(got - expected).max() <= EXACT
    assert {p for (_, p), _ in sessions.shapes} <= set(patch_buckets(TINY.clip))
    if letterbox:
        assert sessions.shapes == [((len(found), TINY.clip.grid**2), 1)]
    else:
        assert len(sessions.shapes) < len(found)  # unlike grids did share calls


@pytest.mark.parametrize("size_yx", [PICTURE_YX, (211, 150), (64, 64), (35, 37), (16, 200), (257, 130)])
@pytest.mark.parametrize("count", [1, 3, 16, 20])
def test_masked_attention_in_a_bucket_equals_the_references(sessions, size_yx, count):
    picture, found = _picture(size_yx), _candidates(count, size_yx)
    got = _branch(sessions).soft_vectors(picture, found)
    expected = reference.soft_vectors(
        tiny_stack(), CropOptions(), picture, found.masks, position_ramp(None, size_yx)
    )
    assert np.abs(got - expected).max() <= EXACT
    (((_, padded_to), classes),) = sessions.shapes
    assert padded_to in patch_buckets(TINY.clip)
    assert classes == min(size for size in CLASS_BUCKETS if size >= count)


def test_more_candidates_than_one_call_reads_equal_the_references(sessions):
    found = _candidates(CLASS_BUCKETS[-1] + 3)
    got = _branch(sessions).soft_vectors(_picture(), found)
    expected = reference.soft_vectors(
        tiny_stack(), CropOptions(), _picture(), found.masks, position_ramp(None, PICTURE_YX)
    )
    assert np.abs(got - expected).max() <= EXACT
    assert [classes for _, classes in sessions.shapes] == [CLASS_BUCKETS[-1], CLASS_BUCKETS[1]]


def test_a_padded_crop_equals_the_same_graph_without_padding(sessions):
    picture, found, table = _picture(), _candidates(), clip_positions(tiny_stack())
    weights = ramp(None, PICTURE_YX[1])
    padded = _branch(sessions).hard_vectors(picture, found, None)
    for vector, mask, box in zip(padded, found.masks, found.boxes_xyxy_px, strict=True):
        crop = resize_shorter_side(masked_crop(picture, mask, box, weights), TINY.clip.image_size)
        grid_yx = clip_inputs.patch_grid(crop.shape[:2], TINY.clip.patch_size)
        square = crop.shape[0] == crop.shape[1]
        feeds = {
            "patches": clip_inputs.to_patches(crop, TINY.clip)[None],
            "positions": clip_inputs.interpolate_positions(table, grid_yx, square=square)[None],
            "slots": np.zeros((1, 1, 1), np.float32),
            "mask": clip_inputs.open_attention_masks([grid_yx[0] * grid_yx[1]], grid_yx[0] * grid_yx[1]),
        }
        alone = unit(sessions.run(feeds)["vectors"][0])[0]
        assert np.abs(vector - alone).max() <= EXACT


def test_padded_masked_attention_equals_the_same_graph_without_padding(sessions):
    picture, found, table = _picture(), _candidates(5), clip_positions(tiny_stack())
    padded = _branch(sessions).soft_vectors(picture, found)
    grid_yx = clip_inputs.patch_grid(PICTURE_YX, TINY.clip.patch_size)
    feeds = {
        "patches": clip_inputs.to_patches(picture, TINY.clip)[None],
        "positions": clip_inputs.interpolate_positions(table, grid_yx, square=False)[None],
        "slots": np.zeros((1, 5, 1), np.float32),
        "mask": clip_inputs.candidate_attention_mask(clip_inputs.sample_on_grid(found.masks, grid_yx))[None],
    }
    alone = unit(sessions.run(feeds)["vectors"][0])
    assert np.abs(padded - alone).max() <= EXACT


def test_what_fills_the_padding_does_not_matter(sessions):
    """Exactly: the blocked weights are zero, not small."""
    rng, clip = np.random.default_rng(5), TINY.clip
    rows = [rng.standard_normal((20, 3 * clip.patch_size**2), dtype=np.float32)]
    feeds = {
        "patches": clip_inputs.pad_rows(rows, 24),
        "positions": rng.standard_normal((1, 24, clip.width), dtype=np.float32),
        "slots": np.zeros((1, 1, 1), np.float32),
        "mask": clip_inputs.open_attention_masks([20], 24),
    }
    zeros = sessions.run(feeds)["vectors"]
    feeds["patches"][:, 20:] = 50.0
    assert np.array_equal(sessions.run(feeds)["vectors"], zeros)
