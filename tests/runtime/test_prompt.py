import numpy as np
import pytest

from refdiff.errors import InputError
from refdiff.runtime.prompt import read_logits, read_prompt

SIZE = (40, 60)


def test_a_point_is_followed_by_the_padding_and_a_box_is_not():
    point = read_prompt(SIZE, None, [(3, 4)], None)
    assert point.places.tolist() == [[3, 4], [0, 0]]
    assert point.labels.tolist() == [1, -1]
    box = read_prompt(SIZE, (1, 2, 60, 40), [], None)
    assert box.places.tolist() == [[1, 2], [60, 40]]
    assert box.labels.tolist() == [2, 3]


def test_points_come_before_the_box_as_in_sam():
    prompt = read_prompt(SIZE, np.array([1.5, 2, 3, 4]), np.array([[5, 6], [7, 8]]), [0, 1])
    assert prompt.places.tolist() == [[5, 6], [7, 8], [1.5, 2], [3, 4]]
    assert prompt.labels.tolist() == [0, 1, 2, 3]


def test_a_box_with_negative_points_is_a_prompt():
    assert read_prompt(SIZE, (1, 2, 3, 4), [(5, 6)], [0]).labels.tolist() == [0, 2, 3]


@pytest.mark.parametrize(
    ("box", "points", "labels", "said"),
    [
        (None, [], None, "got no prompt, expected a box or a point on the thing"),
        (None, [(1, 1)], [0], "got 1 negative point alone, expected a box or a point on the thing"),
        (None, [(1, 1), (2, 2)], [0, 0], "got 2 negative points alone"),
        ((5, 5, 5, 9), [], None, r"box 5, 5, 5, 9 without an area, expected x0 < x1 and y0 < y1"),
        ((9, 5, 5, 9), [], None, "without an area"),
        ((-1, 0, 5, 9), [], None, "box -1, 0, 5, 9, which leaves the image; its size is 60x40 px"),
        ((0, 0, 61, 9), [], None, "leaves the image"),
        ((0, 0, 9, 41), [], None, "leaves the image"),
        ((70, 50, 80, 60), [], None, "leaves the image"),
        ((0, 0, np.nan, 9), [], None, "expected 4 finite numbers: x0, y0, x1, y1 in px"),
        ((0, 0, 9), [], None, "expected 4 finite numbers"),
        ("abcd", [], None, "expected 4 finite numbers"),
        (None, [(60, 0)], None, "point 60, 0, outside of the image; its size is 60x40 px"),
        (None, [(0, 40)], None, "outside of the image"),
        (None, [(-0.1, 4)], None, "outside of the image"),
        (None, [(0, np.inf)], None, "expected 2 finite numbers: x, y in px"),
        (None, [(1, 2, 3)], None, "expected 2 finite numbers"),
        (None, (1, 2), None, "got point 1, expected 2 finite numbers"),
        (None, [(1, 1)], [], "got 0 labels for 1 point, expected one each"),
        ((0, 0, 9, 9), [], [1], "got 1 label for 0 points"),
        (None, [(1, 1)], [2], "got label 2, expected 1 for a point on the thing or 0 for one that is not"),
        (None, [(1, 1)] * 16, None, "got 16 points, expected at most 15"),
        ((0, 0, 9, 9), [(1, 1)] * 15, None, "got 15 points, expected at most 14"),
    ],
)
def test_what_is_no_prompt_is_refused(box, points, labels, said):
    with pytest.raises(InputError, match=said):
        read_prompt(SIZE, box, points, labels)


@pytest.mark.parametrize("points", [15, 14])
def test_as_many_points_as_a_plan_takes_are_read(points):
    box = (0, 0, 9, 9) if points == 14 else None
    assert len(read_prompt(SIZE, box, [(1, 1)] * points, None).labels) == 16


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (np.zeros((8, 8), np.bool_), r"got a mask of bool \[8, 8\], expected float logits \[8, 8\]"),
        (np.zeros((8, 9), np.float32), r"float32 \[8, 9\]"),
        (np.full((8, 8), np.nan), "not finite"),
        ("mask", "expected float logits"),
    ],
)
def test_what_are_no_logits_is_refused(mask, said):
    with pytest.raises(InputError, match=said):
        read_logits(mask, 8)


def test_logits_in_double_precision_are_taken():
    assert read_logits(np.ones((8, 8)), 8).dtype == np.float32
