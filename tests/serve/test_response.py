"""Answers as JSON: the mask comes back the same from every format."""

import base64
import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from refdiff.serve.request import Prompt, SegmentRequest
from refdiff.serve.response import encode_mask, prompt_result
from tests.support.http_server import segmentation


def ring_mask():
    mask = np.zeros((20, 30), bool)
    mask[3:15, 4:25] = True
    mask[6:10, 8:16] = False
    mask[17:19, 27:29] = True
    return mask


def test_run_lengths_are_those_of_pycocotools():
    coco = pytest.importorskip("pycocotools.mask")
    encoded = encode_mask(ring_mask(), "rle")
    assert np.array_equal(coco.decode(encoded).astype(bool), ring_mask())


def test_a_png_holds_the_mask():
    data = base64.b64decode(encode_mask(ring_mask(), "png"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))) == 255, ring_mask())


def test_polygons_draw_the_mask_with_its_holes():
    pytest.importorskip("cv2")
    page = Image.new("1", (30, 20))
    for number, ring in enumerate(encode_mask(ring_mask(), "polygon")):
        assert all(isinstance(value, int) for point in ring for value in point), number
        ImageDraw.Draw(page).polygon([tuple(point) for point in ring], fill=1)
    filled = np.asarray(page)
    assert np.array_equal(filled | ring_mask(), filled)
    rings = encode_mask(ring_mask(), "polygon")
    assert len(rings) == 3


def test_an_answer_is_json_without_numbers_that_json_lacks():
    request = SegmentRequest(image=b"", prompts=(Prompt(text="x"),), candidates=True, heat=True)
    document = prompt_result(segmentation("the mug"), 4, request)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["prompt_index"] == 4
    assert document["echo"] == {"text": "the mug"}
    (prediction,) = document["predictions"]
    assert prediction["bbox"] == [3, 2, 6, 3]
    assert prediction["confidence"] == 0.75
    assert len(document["candidates"]) == 1
    assert document["heat"]


def test_an_answer_without_a_mask_says_why():
    none = replace(
        segmentation("x"),
        index=None,
        score=-math.inf,
        reason="nothing was found",
        mask=np.zeros((8, 12), bool),
    )
    document = prompt_result(none, 0, SegmentRequest(image=b"", prompts=(Prompt(text="x"),)))
    assert document["predictions"] == []
    assert document["matched"] is False
    assert document["reason"] == "nothing was found"
