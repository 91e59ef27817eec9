"""`segment --box --point` as a function."""

import json
from pathlib import Path

import numpy as np
import pytest

import refdiff
from refdiff.batch import prediction
from refdiff.batch.prompted import PromptedMasks, prompted_table, segment_prompt
from refdiff.data.synthetic import HELD_OUT_FROM
from refdiff.miniature.scenes import render_scene
from refdiff.runtime.masks import to_coco_rle

IMAGE = np.asarray(render_scene(HELD_OUT_FROM).image)


@pytest.fixture(scope="module")
def found(mini_bundle: Path) -> PromptedMasks:
    return segment_prompt(
        mini_bundle, IMAGE, box=(10, 10, 90, 90), points=[(50, 50), (12.5, 20)], labels=[1, 0]
    )


def test_the_masks_are_those_of_refine(mini_bundle: Path, found: PromptedMasks) -> None:
    with refdiff.load(mini_bundle) as segmenter:
        result = segmenter.refine(IMAGE, box=(10, 10, 90, 90), points=[(50, 50), (12.5, 20)], labels=[1, 0])
    np.testing.assert_array_equal(found.result.masks, result.masks)


def test_the_document_says_what_was_asked_and_found(found: PromptedMasks) -> None:
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert document["prompt"] == {
        "box": [10, 10, 90, 90],
        "points": [[50, 50], [12.5, 20]],
        "labels": [1, 0],
    }
    assert document["matched"]
    assert len(document["masks"]) == len(document["predicted_iou"]) == 3
    assert document["mask"] == document["masks"][0]
    assert document["mask"]["size"] == to_coco_rle(found.result.mask)["size"]
    rows, columns = np.nonzero(found.result.mask)
    assert document["box_xyxy_px"] == [columns.min(), rows.min(), columns.max(), rows.max()]
    assert document["area_px"] == len(rows)


def test_the_table_names_negative_points(found: PromptedMasks) -> None:
    rows = {str(row[0]): str(row[1]) for row in prompted_table(found, {"mask": Path("m.png")}).rows}
    assert rows["prompt"] == "box 10, 10, 90, 90   point 50, 50   negative point 12.5, 20"
    assert rows["mask"] == "m.png"


def test_mask_overlay_and_json_are_written(found: PromptedMasks, tmp_path: Path) -> None:
    files = prediction.save(found, output=tmp_path / "m.png")
    assert set(files) == {"mask", "overlay", "json"}
    assert json.loads(files["json"].read_text()) == json.loads(json.dumps(found.to_json()))
