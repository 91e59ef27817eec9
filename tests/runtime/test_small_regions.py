import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from refdiff.runtime.masks import without_small_regions
from tests.support.regions import region_sizes

MASKS = arrays.arrays(np.bool_, arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12))


def _mask(*rows):
    return np.array([[letter == "#" for letter in row] for row in rows])


def _regions(mask):
    """Flood fill, one pixel at a time: the sets of pixels that hang together, corners included."""
    left, found = {tuple(pixel) for pixel in np.argwhere(mask)}, []
    while left:
        region, edge = set(), {min(left)}
        while edge:
            region |= edge
            left -= edge
            edge = {(y + dy, x + dx) for y, x in edge for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
        found.append(region)
    return found


def _first_block(region):
    """The place of a region's first block of 2x2 pixels, in whose order OpenCV numbers regions."""
    return min((y // 2, x // 2) for y, x in region)


def _slowly(mask, least_px):
    """What segment_anything's `remove_small_regions` does for holes, then for regions."""
    filled = mask.copy()
    for hole in _regions(~mask):
        if len(hole) < least_px:
            filled[tuple(zip(*hole, strict=True))] = True
    regions = _regions(filled)
    kept = [region for region in regions if len(region) >= least_px]
    if regions and not kept:
        kept = [min(regions, key=lambda region: (-len(region), _first_block(region)))]
    left = np.zeros_like(mask)
    for region in kept:
        left[tuple(zip(*region, strict=True))] = True
    return left


@given(MASKS, st.integers(0, 30))
def test_holes_and_regions_go_as_a_flood_fill_finds_them(mask, least_px):
    np.testing.assert_array_equal(without_small_regions(mask, least_px)[0], _slowly(mask, least_px))


@given(MASKS)
def test_regions_are_those_of_a_flood_fill_in_reading_order(mask):
    assert region_sizes(mask).tolist() == [len(region) for region in _regions(mask)]


def test_a_hole_is_filled_and_a_region_dropped():
    mask = _mask(
        "####...",
        "#.##...",
        "####..#",
    )
    tidy = _mask(
        "####...",
        "####...",
        "####...",
    )
    np.testing.assert_array_equal(without_small_regions(mask, 2)[0], tidy)


def test_pixels_that_touch_at_a_corner_are_one_region():
    assert region_sizes(_mask("#.#", ".#.", "#.#")).tolist() == [5]
    assert region_sizes(_mask("##..##", "......", "..##..")).tolist() == [2, 2, 2]


def test_a_spiral_is_one_region():
    spiral = _mask("#####", "#...#", "#.#.#", "#.###", "#....", "#####")
    assert region_sizes(spiral).tolist() == [int(spiral.sum())]


def test_the_largest_region_stays_where_all_are_too_small():
    np.testing.assert_array_equal(
        without_small_regions(_mask("#..##...", "...##..#") & True, 5)[0], _mask("...##...", "...##...")
    )


def test_a_mask_with_nothing_too_small_is_handed_back():
    mask = np.zeros((40, 50), dtype=np.bool_)
    mask[10:30, 10:30] = True
    np.testing.assert_array_equal(without_small_regions(mask, 400)[0], mask)


@pytest.mark.parametrize("value", [False, True])
def test_an_empty_and_a_full_mask_stay_as_they_are(value):
    mask = np.full((6, 7), value)
    np.testing.assert_array_equal(without_small_regions(mask, 10)[0], mask)


@pytest.mark.needs_torch
@given(MASKS, st.integers(0, 30))
def test_mask_and_flag_are_those_of_segment_anything(mask, least_px):
    amg = pytest.importorskip("segment_anything.utils.amg")
    pytest.importorskip("cv2")
    filled, has_hole = amg.remove_small_regions(mask, least_px, mode="holes")
    cleaned, has_region = amg.remove_small_regions(filled, least_px, mode="islands")
    ours, changed = without_small_regions(mask, least_px)
    np.testing.assert_array_equal(ours, cleaned)
    assert changed == (has_hole or has_region)


def test_a_lone_region_that_is_too_small_stays_and_counts_as_changed():
    mask = _mask("....", ".#..", "....")
    cleaned, changed = without_small_regions(mask, 2)
    np.testing.assert_array_equal(cleaned, mask)
    assert changed
