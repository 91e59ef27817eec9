import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from refdiff.contracts.results import Candidates, Scores
from refdiff.errors import InputError, MissingDependencyError
from refdiff.runtime.segmentation import Segmentation

SIZE = (40, 64)


def _answer(mask: np.ndarray | None, *, with_image: bool = True) -> Segmentation:
    masks = np.zeros((1, *SIZE), np.bool_) if mask is None else mask[None]
    one = np.zeros(1, np.float32)
    return Segmentation(
        phrase="the mug",
        root="mug",
        mask=masks[0],
        index=None if mask is None else 0,
        score=float("-inf") if mask is None else 0.25,
        scores=Scores(hard=one, soft=one, generative=one, place=one, total=one),
        heat=None,
        candidates=Candidates(
            masks=masks,
            predicted_iou=one,
            areas_px=np.zeros(1, np.int64),
            boxes_xyxy_px=np.zeros((1, 4), np.int64),
            kept=np.ones(1, np.bool_),
        ),
        reason="no proposal passes the filters" if mask is None else None,
        cautions=("confidence: not calibrated; and more",),
        image=np.full((*SIZE, 3), 90, np.uint8) if with_image else None,
    )


def _rectangle(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros(SIZE, np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


@pytest.mark.parametrize("box", [(3, 5, 20, 30), (0, 0, 64, 40), (63, 39, 64, 40)])
def test_the_box_cuts_the_mask_out_and_the_area_counts_its_pixels(box: tuple[int, int, int, int]) -> None:
    mask = _rectangle(*box)
    answer = _answer(mask)
    assert answer.box == box
    x0, y0, x1, y1 = answer.box
    assert mask[y0:y1, x0:x1].all()
    assert answer.area == (x1 - x0) * (y1 - y0) == mask.sum()
    assert answer.matched


def test_without_a_mask_there_is_no_box_and_no_annotation() -> None:
    answer = _answer(None)
    assert (answer.matched, answer.box, answer.area) == (False, None, 0)
    with pytest.raises(InputError, match=r"no proposal passes the filters.*matched"):
        answer.to_coco(image_id=1, annotation_id=1)


def test_a_coco_annotation_is_json_and_holds_the_mask_box_and_phrase() -> None:
    annotation = _answer(_rectangle(3, 5, 20, 30)).to_coco(image_id=7, annotation_id=9, category_id=2)
    assert json.loads(json.dumps(annotation)) == annotation
    counts = annotation.pop("segmentation")
    assert counts["size"] == [40, 64]
    assert annotation == {
        "id": 9,
        "image_id": 7,
        "category_id": 2,
        "area": 17 * 25,
        "bbox": [3, 5, 17, 25],
        "iscrowd": 0,
        "score": 0.25,
        "caption": "the mug",
    }


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_pycocotools_reads_the_annotation_s_mask() -> None:
    coco = pytest.importorskip("pycocotools.mask")
    mask = np.random.default_rng(0).random(SIZE) > 0.7
    counts = _answer(mask).to_coco(image_id=1, annotation_id=1)["segmentation"]
    np.testing.assert_array_equal(coco.decode(counts).astype(bool), mask)


def test_save_writes_the_mask_as_a_png(tmp_path: Path) -> None:
    mask = _rectangle(3, 5, 20, 30)
    path = tmp_path / "mask.PNG"
    _answer(mask).save(path)
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        np.testing.assert_array_equal(np.asarray(image), mask * np.uint8(255))
    assert [each.name for each in tmp_path.iterdir()] == ["mask.PNG"]
    with pytest.raises(InputError, match="exists"):
        _answer(mask).save(path)
    _answer(None).save(str(path), overwrite=True)
    with Image.open(path) as image:
        assert not np.asarray(image).any()


@pytest.mark.parametrize("name", ["mask.jpg", "mask", "mask.npy"])
def test_save_refuses_names_that_are_no_png(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in \.png"):
        _answer(_rectangle(0, 0, 1, 1)).save(tmp_path / name)


def test_an_answer_without_its_image_says_that_it_cannot_be_drawn() -> None:
    with pytest.raises(InputError, match="no image to draw on"):
        _answer(_rectangle(0, 0, 9, 9), with_image=False).overlay()


def test_the_overlay_is_the_image_enlarged_above_a_strip() -> None:
    drawn = _answer(_rectangle(0, 0, 9, 9)).overlay()
    assert drawn.shape[1] == 512
    assert drawn.shape[0] > 320
    assert drawn.dtype == np.uint8


def test_detections_are_those_of_supervision(monkeypatch: pytest.MonkeyPatch) -> None:
    made = SimpleNamespace(
        Detections=type("Detections", (SimpleNamespace,), {"empty": classmethod(lambda cls: cls(xyxy=[]))})
    )
    monkeypatch.setitem(sys.modules, "supervision", made)
    answer = _answer(_rectangle(1, 2, 4, 5))
    found = answer.to_detections()
    assert found.xyxy.tolist() == [[1, 2, 4, 5]]
    assert found.mask.shape == (1, *answer.mask.shape)
    assert found.data["class_name"].tolist() == [answer.phrase]
    assert found.confidence.tolist() == [answer.score]
    assert _answer(None).to_detections().xyxy == []
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingDependencyError, match="pip install supervision"):
        answer.to_detections()
