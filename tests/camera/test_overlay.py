import dataclasses

import numpy as np
import pytest

from refdiff.camera.overlay import COLORS, describe, draw_frame
from tests.support.frames import made_result

pytest.importorskip("cv2")


def edge_px(image, color):
    return int((np.abs(image.astype(int) - color).sum(axis=-1) < 20).sum())


def test_each_phrase_has_an_edge_of_its_color_and_the_image_is_left_outside_of_it():
    result = made_result(0, (480, 640))
    other = dataclasses.replace(result.targets[0], mask=np.roll(result.targets[0].mask, 300, axis=1))
    drawn = draw_frame(dataclasses.replace(result, targets=(result.targets[0], other)))
    assert edge_px(drawn[:480], COLORS[0]) > 50
    assert edge_px(drawn[:480], COLORS[1]) > 50
    assert np.array_equal(drawn[100:480], result.frame.pixels[100:])


def test_a_stale_mask_has_a_broken_edge():
    whole = edge_px(draw_frame(made_result(0, (480, 640)))[:480], COLORS[0])
    broken = edge_px(draw_frame(made_result(0, (480, 640), state="stale"))[:480], COLORS[0])
    assert 0.2 * whole < broken < 0.8 * whole


def test_a_frame_without_a_mask_is_shown_as_it_is_with_the_reason_below():
    result = made_result(0, (480, 640), state="lost")
    drawn = draw_frame(result, status="30 fps")
    assert np.array_equal(drawn[:480], result.frame.pixels)
    assert drawn[480:].max() > 150
    assert describe(result.targets[0]) == "the red mug: lost, 250 ms, nothing was found"


def test_a_small_frame_is_enlarged_so_that_the_text_is_legible():
    drawn = draw_frame(made_result(0, (96, 128)))
    assert drawn.shape[1] == 512
    assert edge_px(drawn[:384], COLORS[0]) > 50
