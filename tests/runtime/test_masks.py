import json

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.runtime import masks
from tests.support.coco_rle import from_coco_rle

MASKS = arrays.arrays(
    np.bool_, arrays.array_shapes(min_dims=3, max_dims=3, max_side=9), elements=st.booleans()
)


@given(MASKS)
def test_areas_and_boxes_are_those_of_the_true_pixels(some):
    for mask, area, box in zip(some, masks.areas(some), masks.boxes(some), strict=True):
        rows, columns = np.nonzero(mask)
        assert area == len(rows)
        expected = [columns.min(), rows.min(), columns.max(), rows.max()] if len(rows) else [0, 0, 0, 0]
        assert box.tolist() == expected


@given(MASKS)
def test_run_lengths_come_back_as_the_same_mask(some):
    rle = masks.to_coco_rle(some[0])
    compressed = masks.compress_coco_rle(rle)
    assert np.array_equal(from_coco_rle(rle), some[0])
    assert np.array_equal(from_coco_rle(json.loads(json.dumps(compressed))), some[0])
    assert np.array_equal(from_coco_rle(compressed | {"counts": compressed["counts"].encode()}), some[0])


def test_run_lengths_walk_down_the_columns():
    mask = np.zeros((3, 4), dtype=np.bool_)
    mask[1:, 1] = True
    assert masks.to_coco_rle(mask) == {"size": [3, 4], "counts": [4, 2, 6]}


def test_run_lengths_of_a_mask_that_begins_true_begin_with_zero():
    assert masks.to_coco_rle(np.ones((2, 3), dtype=np.bool_))["counts"] == [0, 6]


def test_compressed_text_is_what_pycocotools_writes():
    # Source: the annotation in pycocotools 2.0, test_mask.py.
    runs = [6, 1, 40, 4, 5, 4, 5, 4, 21]
    compressed = masks.compress_coco_rle({"size": [9, 10], "counts": runs})
    assert compressed["counts"] == "61X13mN000`0"


def test_a_mask_of_steep_logits_is_stable_and_one_of_flat_logits_is_not():
    steep, flat = np.full((2, 5, 8), -9.0, dtype=np.float32)
    steep[1:3, 2:6], flat[1:3, 2:6], flat[0] = 9.0, 0.5, -0.5
    steady = masks.stability(masks.cut_areas(np.stack([steep, flat]), threshold=0.0, offset=1.0))
    assert steady.tolist() == [1.0, 0.0]


def test_an_empty_mask_has_no_stability_and_no_warning():
    assert masks.stability(masks.cut_areas(np.full((1, 3, 4), -9.0), threshold=0.0, offset=1.0)).tolist() == [
        0.0
    ]


def test_of_two_equal_boxes_the_better_score_survives():
    boxes = np.array([[0, 0, 9, 5], [0, 0, 9, 5], [20, 0, 29, 5]])
    kept = masks.suppress_duplicates(boxes, np.array([0.8, 0.9, 0.7], np.float32), max_iou=0.7)
    assert kept.tolist() == [1, 2]


def test_one_pixel_lines_never_suppress_each_other():
    boxes = np.array([[0, 3, 9, 3], [0, 3, 9, 3]])
    assert len(masks.suppress_duplicates(boxes, np.ones(2, np.float32), max_iou=0.7)) == 2


def test_nothing_suppresses_to_nothing():
    none = masks.suppress_duplicates(np.zeros((0, 4), np.int64), np.zeros(0, np.float32), max_iou=0.7)
    assert len(none) == 0


def _random_boxes(seed, count):
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 30, (count, 2))
    return np.concatenate([low, low + rng.integers(0, 40, (count, 2))], axis=1)


@pytest.mark.needs_torch
@given(st.integers(0, 2**32 - 1), st.integers(1, 60))
def test_suppression_equals_torchvision(seed, count):
    import torch
    from torchvision.ops import batched_nms

    boxes = _random_boxes(seed, count)
    scores = np.random.default_rng(seed).integers(0, 9, count).astype(np.float32) / 9  # with ties
    theirs = batched_nms(
        torch.from_numpy(boxes).float(), torch.from_numpy(scores), torch.zeros(count), iou_threshold=0.7
    )
    assert masks.suppress_duplicates(boxes, scores, max_iou=0.7).tolist() == theirs.tolist()


@pytest.mark.needs_torch
@given(st.integers(0, 2**32 - 1))
def test_stability_boxes_and_runs_equal_segment_anything(seed):
    import torch
    from segment_anything.utils import amg

    logits = np.random.default_rng(seed).normal(0.5, 2, (4, 7, 11)).astype(np.float32)
    theirs = torch.from_numpy(logits)
    stability = amg.calculate_stability_score(theirs, 0.0, 1.0).numpy()
    assert np.allclose(masks.stability(masks.cut_areas(logits, threshold=0.0, offset=1.0)), stability)
    assert masks.boxes(logits > 0).tolist() == amg.batched_mask_to_box(theirs > 0).tolist()
    assert [masks.to_coco_rle(m) for m in logits > 0] == amg.mask_to_rle_pytorch(theirs > 0)
