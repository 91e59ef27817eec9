"""Scenes: the same seed gives the same image, and the masks match it."""

import time
from functools import cache

import numpy as np
import pytest

from refdiff.miniature.scenes import RenderedScene, render_scene
from refdiff.miniature.scenes.canvas import Canvas
from refdiff.miniature.scenes.layout import COLOURS, SIZES
from refdiff.miniature.scenes.scene import IMAGE_SIZES_WH, LEAST_AREA_PX
from refdiff.miniature.scenes.shapes import KINDS, draw, extent_of

SEEDS = range(80)


@cache
def scene_of(seed: int) -> RenderedScene:
    return render_scene(seed)


def test_a_seed_names_one_scene():
    once, again = render_scene(7), render_scene(7)
    assert np.array_equal(once.image, again.image)
    assert np.array_equal(once.masks, again.masks)
    assert once.objects == again.objects
    assert once.seed == 7


def test_different_seeds_give_different_pictures():
    assert len({scene_of(seed).image.tobytes() for seed in SEEDS}) == len(SEEDS)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_scene_keeps_its_promises(seed):
    scene = scene_of(seed)
    height, width = scene.image.shape[:2]
    assert (width, height) in IMAGE_SIZES_WH
    assert scene.image.dtype == np.uint8
    assert scene.image.shape[2] == 3
    assert scene.masks.dtype == np.bool_
    assert scene.masks.shape == (len(scene.objects), height, width)
    assert 2 <= len(scene.objects) <= 6
    assert scene.masks.sum(axis=0).max() == 1, "masks overlap"


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_said_about_an_object_is_what_its_mask_shows(seed):
    scene = scene_of(seed)
    for item, mask in zip(scene.objects, scene.masks, strict=True):
        rows, columns = np.nonzero(mask)
        left, top, right, bottom = item.box_xyxy
        assert (left, top, right, bottom) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert item.centre_xy == ((left + right) / 2, (top + bottom) / 2)
        assert item.area_px == mask.sum() >= LEAST_AREA_PX
        assert item.kind in KINDS
        assert item.colour in COLOURS


@pytest.mark.parametrize("seed", SEEDS)
def test_objects_come_farthest_first_and_nothing_is_cut_off(seed):
    scene = scene_of(seed)
    height, width = scene.image.shape[:2]
    bases = [item.base_y for item in scene.objects]
    assert bases == sorted(bases)
    for left, top, right, bottom in (item.box_xyxy for item in scene.objects):
        assert left > 0
        assert top > 0
        assert right < width
        assert bottom < height


@pytest.mark.parametrize("seed", SEEDS)
def test_a_size_word_fits_one_range_of_diameters(seed):
    scene = scene_of(seed)
    short = min(scene.image.shape[:2])
    for item in scene.objects:
        nearest = min(SIZES, key=lambda size: abs(np.log(item.diameter_px / short / SIZES[size])))
        assert nearest == item.size


def test_no_two_size_words_share_a_diameter():
    least, most = 0.96 * 0.94, 1.04 * 1.06  # jitter times perspective
    assert SIZES["small"] * most < SIZES["medium"] * least
    assert SIZES["medium"] * most < SIZES["large"] * least


@pytest.mark.slow
def test_kinds_and_colours_repeat_often_enough_to_need_attributes_and_places():
    scenes = [scene_of(seed) for seed in SEEDS]
    kinds = sum(len({item.kind for item in s.objects}) < len(s.objects) for s in scenes) / len(scenes)
    colours = sum(len({item.colour for item in s.objects}) < len(s.objects) for s in scenes) / len(scenes)
    assert 0.4 < kinds < 0.8
    assert 0.2 < colours < 0.6


def test_every_kind_and_colour_occurs():
    seen = [item for seed in SEEDS for item in scene_of(seed).objects]
    assert {item.kind for item in seen} == set(KINDS)
    assert {item.colour for item in seen} == set(COLOURS)


@pytest.mark.parametrize("seed", range(20))
def test_objects_stand_out_from_their_table(seed):
    scene = scene_of(seed)
    for mask in scene.masks:
        inside = scene.image[mask].astype(float)
        away = scene.image[~scene.masks.any(axis=0)].astype(float)
        assert np.abs(np.median(inside, axis=0) - np.median(away, axis=0)).max() > 15


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("light", [-1.0, 1.0])
def test_a_shape_stays_within_its_stated_extent(kind, light):
    sprite = draw(kind, (0.8, 0.2, 0.2), 60.0, light, np.random.default_rng(0))
    rows, columns = np.nonzero(sprite.alpha)
    extent, (x, y) = extent_of(kind), sprite.foot_xy
    assert x - columns.min() <= extent.half_width * 60 + 1.5
    assert columns.max() + 1 - x <= extent.half_width * 60 + 1.5
    assert y - rows.min() <= extent.height * 60 + 1.5
    assert rows.max() + 1 - y <= 2.5
    assert sprite.alpha.min() >= 0
    assert sprite.alpha.max() == 1
    assert sprite.rgb.min() >= 0
    assert sprite.rgb.max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_no_shape_touches_the_edge_of_its_patch(kind):
    alpha = draw(kind, (0.8, 0.2, 0.2), 60.0, 1.0, np.random.default_rng(1)).alpha
    assert alpha[0].max() == alpha[:, 0].max() == alpha[:, -1].max() == 0


def test_a_later_part_covers_an_earlier_one():
    canvas = Canvas(extent_of("ball"), 40.0, (1.0, 0.0, 0.0), 1.0)
    whole = canvas.ellipse(0.0, 0.5, 0.3, 0.3)
    canvas.paint(whole)
    canvas.paint(canvas.ellipse(0.0, 0.5, 0.15, 0.15), colour=(0.0, 0.0, 1.0))
    sprite = canvas.to_sprite()
    x, y = int(sprite.foot_xy[0]), int(sprite.foot_xy[1] - 20)
    assert sprite.rgb[y, x].tolist() == [0.0, 0.0, 1.0]
    assert sprite.rgb[y, x + 9].tolist() == [1.0, 0.0, 0.0]


def test_a_scene_takes_a_few_milliseconds():
    times = []
    for seed in range(10):
        started = time.process_time()
        render_scene(seed)
        times.append(time.process_time() - started)
    assert min(times) < 0.06  # about 0.005 on a quiet core
