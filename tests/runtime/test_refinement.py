"""Masks of a caller's prompt are those of segment_anything."""

import numpy as np
import pytest

from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.options import RunOptions
from refdiff.errors import InputError
from refdiff.loading import load
from refdiff.miniature.scenes import render_scene
from refdiff.runtime.refinement import Refinement

pytest.importorskip("onnxruntime")

MINI = find_bundle("mini")
SCENE = render_scene(1_000_003)
IMAGE = np.asarray(SCENE.image)


@pytest.fixture(scope="module")
def segmenter():
    with load("mini") as opened:
        yield opened


@pytest.fixture(scope="module")
def encoded(segmenter):
    return segmenter.encode(IMAGE)


def center_of(mask):
    rows, columns = np.nonzero(mask)
    middle = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    return int(columns[middle]), int(rows[middle])


def test_a_point_on_an_object_gives_its_mask(segmenter, encoded):
    largest = max(SCENE.masks, key=np.count_nonzero)
    found = segmenter.refine(encoded, points=[center_of(largest)])
    assert found.masks.shape == (3, *IMAGE.shape[:2])
    assert (np.diff(found.predicted_iou) <= 0).all()
    assert (found.mask & largest).sum() / (found.mask | largest).sum() > 0.8
    assert found.area == found.mask.sum()
    x0, y0, x1, y1 = found.box
    assert found.mask[y0:y1, x0:x1].sum() == found.area


def test_an_image_gives_what_its_encoding_gives(segmenter, encoded):
    prompt = {"box": (20, 20, 90, 80), "points": [(50, 50)], "labels": [0]}
    first, second = (segmenter.refine(each, **prompt) for each in (encoded, IMAGE))
    np.testing.assert_array_equal(first.low_res, second.low_res)


def test_a_mask_below_an_iou_of_a_half_has_a_caution():
    low = Refinement(
        masks=np.zeros((3, 4, 4), np.bool_),
        predicted_iou=np.zeros(3, np.float32),
        low_res=np.zeros((3, 2, 2), np.float32),
    )
    assert low.box is None
    assert low.area == 0
    with pytest.raises(InputError, match="no image to draw on"):
        low.overlay()


def test_doubt_is_said(segmenter, encoded):
    found = segmenter.refine(encoded, box=(20, 20, 90, 80))  # the miniature has learned points only
    assert found.predicted_iou[0] < 0.5
    assert found.cautions[-1].startswith("mask: SAM expects an IoU of only 0.")
    assert found.cautions[0].startswith("miniature:")
    assert found.overlay().shape[2] == 3


def test_a_segmenter_of_mode_gen_refines_too(encoded, segmenter):
    with load("mini", options=RunOptions(mode="gen")) as other:
        found = other.refine(other.encode(IMAGE), points=[(50, 50)])
    np.testing.assert_array_equal(found.low_res, segmenter.refine(encoded, points=[(50, 50)]).low_res)


def test_a_closed_segmenter_does_not_refine():
    with load("mini") as opened:
        pass
    with pytest.raises(InputError, match="closed"):
        opened.refine(IMAGE, points=[(5, 5)])


@pytest.fixture(scope="module")
def predictor():
    from segment_anything import SamPredictor

    from refdiff.miniature.stack import load_miniature

    made = SamPredictor(load_miniature().sam)
    made.set_image(IMAGE)
    return made


@pytest.mark.needs_torch
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "prompt",
    [
        {"points": [(50, 50)]},
        {"points": [(50, 50), (90, 30), (20, 100)], "labels": [1, 0, 1]},
        {"box": (12.5, 20, 140, 120)},
        {"box": (12, 20, 140, 100), "points": [(50, 50), (90, 30)], "labels": [1, 0]},
    ],
    ids=["point", "points", "box", "all"],
)
def test_masks_equal_segment_anythings_predictor(segmenter, encoded, predictor, prompt, masked):
    side = MINI.spec.sam.low_res_size
    logits = (
        np.random.default_rng(0).normal(scale=6, size=(side, side)).astype(np.float32) if masked else None
    )
    points, box = prompt.get("points"), prompt.get("box")
    masks, iou, low_res = predictor.predict(
        point_coords=None if points is None else np.array(points, np.float64),
        point_labels=None if points is None else np.array(prompt.get("labels", [1] * len(points))),
        box=None if box is None else np.array(box, np.float64),
        mask_input=None if logits is None else logits[None],
        multimask_output=True,
    )
    order = np.argsort(-iou, kind="stable")
    found = segmenter.refine(encoded, **prompt, mask=logits)
    np.testing.assert_allclose(found.predicted_iou, iou[order], atol=1e-5)
    np.testing.assert_allclose(found.low_res, low_res[order], atol=1e-5 * np.ptp(low_res))
    assert (found.masks != masks[order]).mean() < 1e-4  # a logit within rounding of the threshold
