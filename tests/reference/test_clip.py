"""The reference's view through CLIP, against open_clip's own forward pass and the runtime's arithmetic."""

import dataclasses

import numpy as np
import pytest

from refdiff.contracts.options import CropOptions
from refdiff.runtime import clip_inputs
from refdiff.runtime import spatial as runtime_places
from refdiff.runtime.tokenizer import Tokenizer

torch = pytest.importorskip("torch")

from refdiff.reference import clip
from tests.support.tiny_stack import TINY, tiny_picture, tiny_stack

pytestmark = pytest.mark.needs_torch

SIDE = TINY.clip.image_size
FLAT = clip.position_ramp(None, (48, 72))


def _masks():
    masks = np.zeros((3, 48, 72), dtype=np.bool_)
    masks[0, 8:40, 8:24] = True
    masks[1, 30:47, 40:71] = True
    masks[2, 0:3, 0:3] = True  # one sampled pixel of the patch grid
    return masks


def _boxes():
    return np.array([[8, 8, 23, 39], [40, 30, 70, 46], [0, 0, 2, 2]])


def _unit(vectors):
    return torch.nn.functional.normalize(vectors, dim=-1).numpy()


@torch.no_grad()
def test_at_the_training_size_a_crop_is_what_open_clip_encodes():
    visual = tiny_stack().clip.visual
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    got = clip.read_classes(visual, clip.embed(visual, pixels, classes=1), classes=1)
    torch.testing.assert_close(got, visual(pixels))


def test_the_text_vector_is_read_at_the_end_token():
    stack = tiny_stack()
    tokenizer = Tokenizer(stack.tokenizer_json, TINY.context_length)
    ids, end = tokenizer.clip_ids("the man on the left")
    assert ids.argmax() == end
    vectors = clip.text_vectors(stack, tokenizer, ("the man on the left", "man"))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(
    ("grid_yx", "size_yx"),
    [((6, 9), (48, 72)), ((4, 4), (32, 35)), ((4, 4), (32, 32)), ((1, 13), (8, 105))],
)
def test_positions_are_fitted_as_the_runtime_fits_them(grid_yx, size_yx):
    visual = tiny_stack().clip.visual
    _, got = clip.positions(visual, grid_yx, size_yx)
    table = visual.positional_embedding[1:].numpy()
    expected = clip_inputs.interpolate_positions(table, grid_yx, square=size_yx[0] == size_yx[1])
    assert got.shape == (grid_yx[0] * grid_yx[1], TINY.clip.width)
    np.testing.assert_allclose(got.numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("letterbox", [True, False])
def test_a_candidate_is_read_the_same_alone_and_among_others(letterbox):
    stack, options, masks = tiny_stack(), CropOptions(letterbox=letterbox), _masks()
    hard = clip.hard_vectors(stack, options, tiny_picture(), masks, _boxes(), FLAT)
    soft = clip.soft_vectors(stack, options, tiny_picture(), masks, FLAT)
    alone = clip.soft_vectors(stack, options, tiny_picture(), masks[1:2], FLAT)
    assert hard.shape == soft.shape == (3, TINY.clip.embed_dim)
    np.testing.assert_allclose(soft[1:2], alone, atol=1e-5)
    assert not np.allclose(soft[0], soft[1], atol=1e-2)


def test_a_class_token_does_not_see_the_patches_outside_its_mask_directly():
    seen = torch.tensor([[True, False, True], [False, False, False]])
    open_to = clip.class_attention(seen) == 0
    expected = [[1, 0, 1, 0, 1], [0, 1, 0, 0, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 1, 1, 1]]
    assert open_to.int().tolist() == expected
    theirs = clip_inputs.candidate_attention_mask(seen.numpy()) == 0
    assert np.array_equal(open_to.numpy(), theirs)


def test_a_mask_that_meets_no_patch_is_finite():
    nowhere = np.zeros((1, 48, 72), dtype=np.bool_)
    nowhere[0, 1, 1] = True
    vectors = clip.soft_vectors(tiny_stack(), CropOptions(), tiny_picture(), nowhere, FLAT)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_no_candidate_is_no_vector():
    nothing = np.zeros((0, 48, 72), dtype=np.bool_)
    no_boxes = np.zeros((0, 4), dtype=np.int64)
    hard = clip.hard_vectors(tiny_stack(), CropOptions(), tiny_picture(), nothing, no_boxes, FLAT)
    soft = clip.soft_vectors(tiny_stack(), CropOptions(), tiny_picture(), nothing, FLAT)
    assert hard.shape == soft.shape == (0, TINY.clip.embed_dim)


@pytest.mark.parametrize("grid_yx", [(6, 9), (3, 5), (7, 11)])
def test_masks_are_sampled_where_the_runtime_samples_them(grid_yx):
    masks = np.random.default_rng(0).random((4, 53, 71)) > 0.5
    expected = clip_inputs.sample_on_grid(masks, grid_yx)
    assert np.array_equal(clip.masks_on_grid(masks, grid_yx).numpy(), expected)


@pytest.mark.parametrize("side", ["left", "right", None])
@pytest.mark.parametrize("width", [72, 71, 70])
def test_the_ramp_is_the_runtimes_to_rounding(side, width):
    expected = np.broadcast_to(runtime_places.ramp(side, width), (3, width))
    np.testing.assert_allclose(clip.position_ramp(side, (3, width)), expected, atol=1e-15)


def test_the_ramp_of_the_paper_knows_top_and_bottom():
    options = CropOptions(word_boundaries=True)
    paper = dataclasses.replace(options, ramp_on_soft=True)
    assert clip.named_side("bottom mug", options) is None
    assert clip.named_side("bottom mug", paper) == "bottom"
    assert clip.named_side("table top on the left", paper) == "left"
    top = clip.position_ramp("top", (9, 4))
    assert top[:, 0].tolist() == [1, 0.8, 0.6, 0.3999999999999999, 0.19999999999999996, 0, 0, 0, 0]
    np.testing.assert_array_equal(clip.position_ramp("right", (4, 9))[0, 3:], np.linspace(0, 1, 6))


@pytest.mark.parametrize("side", ["left", "right", None])
def test_crops_are_the_runtimes_pixel_for_pixel(side):
    image, ramp, weights = tiny_picture(), clip.position_ramp(side, (48, 72)), runtime_places.ramp(side, 72)
    for mask, box in zip(_masks(), _boxes(), strict=True):
        crop = clip.cut_out(image, ramp, mask, box)
        assert np.array_equal(crop, clip_inputs.masked_crop(image, mask, box, weights))
        assert np.array_equal(clip.letterbox(crop, SIDE), clip_inputs.letterbox(crop, SIDE))
        fitted = clip.fit_shorter_side(crop, SIDE)
        assert min(fitted.shape[:2]) == SIDE
        assert np.array_equal(fitted, clip_inputs.resize_shorter_side(crop, SIDE))


@pytest.mark.parametrize("limit", [0, 40, 100])
def test_the_longer_side_is_limited_as_the_runtime_limits_it(limit):
    got = clip.limit_longer_side(tiny_picture(), limit, least=8)
    assert np.array_equal(got, clip_inputs.shrink_longer_side(tiny_picture(), limit, least=8))
    assert max(got.shape) == (40 if limit == 40 else 72)
