from dataclasses import replace

import numpy as np
import pytest

from refdiff.contracts.options import FusionOptions, Options
from refdiff.runtime.overlay import LEAST_SIDE, draw_answer, heat_overlay
from refdiff.runtime.phrase import Phrase
from refdiff.runtime.proposals import level_sets
from refdiff.runtime.scoring import fuse, heatmap_scores, select

SIZE = (60, 96)


def _image(size=SIZE):
    y, x = np.mgrid[: size[0], : size[1]]
    return np.stack([x * 2 % 256, y * 3 % 256, (x + y) % 256], axis=-1).astype(np.uint8)


def _heat(size=SIZE, peak=1.0):
    y, x = np.mgrid[: size[0], : size[1]]
    distance = np.hypot(y / size[0] - 0.4, x / size[1] - 0.3)
    return np.clip(peak - 2 * distance, 0, 1).astype(np.float32)


def _result(heat, phrase="the small red mug on the left"):
    levels = level_sets(heat)
    options = Options(mode="gen", fusion=FusionOptions(level_selector="between-class"))
    scores = fuse(options, heatmap_scores(options, heat, levels), levels.kept)
    return select(levels, scores, Phrase(phrase, "mug", len(phrase)), heat, empty_reason="the map is flat")


def _overlay(image, result):
    return replace(result, image=image).overlay()


def test_a_small_image_is_enlarged_and_gets_a_caption_below():
    drawn = _overlay(_image(), _result(_heat()))
    height = SIZE[0] * 5
    assert drawn.dtype == np.uint8
    assert drawn.shape[1] == SIZE[1] * 5 >= LEAST_SIDE
    assert drawn.shape[0] > height
    assert drawn[height:].max() > 200  # light letters on a dark strip


def test_cautions_are_drawn_below_the_caption():
    plain = replace(_result(_heat()), cautions=())
    cautious = replace(plain, cautions=("random weights: the mask means nothing; more about it",))
    assert _overlay(_image(), cautious).shape[0] > _overlay(_image(), plain).shape[0]


def test_a_large_image_keeps_its_size():
    size = (300, 640)
    drawn = _overlay(_image(size), _result(_heat(size)))
    assert drawn.shape[1] == 640


@pytest.mark.parametrize("level", [0, 120, 255])
def test_the_object_keeps_its_colors_and_the_rest_is_dimmed(level):
    image, mask = np.full((400, 640, 3), level, np.uint8), np.zeros((400, 640), np.bool_)
    mask[100:200, 300:400] = True
    drawn = draw_answer(image, mask)
    assert (drawn[mask] == level).all()
    assert (drawn[50, 50] == int(level * 0.45)).all()


@pytest.mark.parametrize("level", [0, 120, 255])
def test_the_outline_is_seen_on_dark_and_on_light_images(level):
    image, mask = np.full((400, 640, 3), level, np.uint8), np.zeros((400, 640), np.bool_)
    mask[100:200, 300:400] = True
    row = draw_answer(image, mask)[150, :300].astype(int)
    jumps = np.abs(np.diff(row, axis=0)).sum(axis=1)
    assert jumps.max() > 200
    line = (row[:, 0] - row[:, 1] > 100).sum()
    assert line == 640 / 160


def test_a_mask_of_the_whole_image_is_outlined_inside():
    image = np.full((400, 640, 3), 120, np.uint8)
    drawn = draw_answer(image, np.ones((400, 640), np.bool_)).astype(int)
    assert all((drawn[at][0] - drawn[at][1]) > 100 for at in ((0, 0), (399, 300), (200, 639)))
    assert (drawn[200, 300] == 120).all()


def test_a_single_pixel_keeps_its_color_inside_its_outline():
    image, mask = np.full((40, 64, 3), 120, np.uint8), np.zeros((40, 64), np.bool_)
    mask[20, 30] = True
    factor = draw_answer(image, mask).shape[0] // 40
    drawn = draw_answer(image, mask)[20 * factor : 21 * factor, 30 * factor : 31 * factor]
    assert (drawn == 120).all()


def test_no_match_leaves_the_picture_as_it_is():
    image = np.full((*SIZE, 3), 120, np.uint8)
    drawn = _overlay(image, _result(np.zeros(SIZE, np.float32)))
    assert (drawn[: SIZE[0] * 5] == 120).all()


@pytest.mark.parametrize("phrase", ["a" * 300, "the mug " * 40, "größere Tasse café ☕"])
def test_any_phrase_can_be_drawn(phrase):
    assert _overlay(_image(), _result(_heat(), phrase)).shape[1] == SIZE[1] * 5


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1)])
def test_pictures_of_any_shape_can_be_drawn(size):
    assert _overlay(_image(size), _result(_heat(size))).ndim == 3
    assert heat_overlay(_image(size), _heat(size)).ndim == 3


def test_heat_is_brightest_where_it_is_highest():
    heat = _heat()
    drawn = heat_overlay(np.full((*SIZE, 3), 100, np.uint8), heat).astype(int).sum(axis=-1)
    peak = np.unravel_index(heat.argmax(), heat.shape)
    assert drawn.shape == (SIZE[0] * 5, SIZE[1] * 5)
    assert drawn[peak[0] * 5 + 2, peak[1] * 5 + 2] > drawn[-1, -1]
