"""Polygons around masks, filled as ultralytics fills them."""

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refdiff.batch.outline import outline

cv2 = pytest.importorskip("cv2")

MASKS = arrays.arrays(
    np.bool_, arrays.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.booleans()
).filter(np.any)


def filled(mask, points=None):
    """Fill a polygon as `polygon2mask` of ultralytics does: whole numbers, even-odd, with edges."""
    points = outline(mask) if points is None else points
    canvas = np.zeros(mask.shape, np.uint8)
    cv2.fillPoly(canvas, np.asarray([points], np.int32), color=1)
    return canvas.astype(bool)


def parts_of(mask):
    return cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1


@pytest.mark.slow
@given(MASKS)
@settings(max_examples=150, deadline=None)
def test_the_filled_polygon_is_the_mask_and_bridges_between_its_parts(mask):
    found = filled(mask)
    assert found[mask].all()
    if parts_of(mask) == 1:
        assert np.array_equal(found, mask)


def test_a_ring_keeps_its_hole():
    rows, columns = np.mgrid[:40, :40]
    distance = np.hypot(rows - 20, columns - 20)
    mask = (distance < 15) & (distance > 7)
    assert np.array_equal(filled(mask), mask)


def test_parts_inside_holes_and_holes_side_by_side_come_back():
    mask = np.zeros((40, 60), bool)
    mask[2:38, 2:58] = True
    mask[6:34, 6:26] = False
    mask[6:34, 30:54] = False
    mask[15:25, 12:20] = True
    extra = filled(mask) & ~mask
    assert filled(mask)[mask].all()
    assert extra.sum() <= 6  # the bridge to the part inside the hole


def test_two_parts_are_joined_by_a_line_of_one_pixel():
    mask = np.zeros((20, 40), bool)
    mask[5:15, 2:10] = True
    mask[5:15, 30:38] = True
    extra = filled(mask) & ~mask
    assert extra.sum() == 20
    assert extra.any(axis=1).sum() == 1


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1), (2, 2)])
def test_a_pixel_and_a_line_have_three_corners_and_a_box_with_an_area(size):
    mask = np.zeros((9, 9), bool)
    mask[3 : 3 + size[0], 4 : 4 + size[1]] = True
    points = outline(mask)
    assert len(points) >= 3
    assert (np.ptp(points, axis=0) > 0).all()
    assert np.array_equal(filled(mask, points), mask)


def test_corners_are_at_the_centers_of_pixels_so_that_scaling_keeps_them_in_place():
    mask = np.zeros((10, 10), bool)
    mask[0:10, 0:5] = True
    points = outline(mask)
    assert points.min(axis=0).tolist() == [0.5, 0.5]
    assert points.max(axis=0).tolist() == [4.5, 9.5]
    twice = filled(np.kron(mask, np.ones((2, 2), bool)), points * 2)
    assert np.ptp(np.flatnonzero(twice.any(axis=0))) + 1 in (9, 10)


def test_straight_edges_have_no_corners_of_their_own():
    mask = np.zeros((50, 50), bool)
    mask[10:40, 10:40] = True
    assert len(outline(mask)) == 4


def test_a_mask_full_of_noise_is_joined_in_bounded_memory():
    mask = np.random.default_rng(0).random((60, 60)) > 0.5
    assert filled(mask)[mask].all()
