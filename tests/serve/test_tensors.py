"""The tensors of a question and of its answers: what is read, refused and returned."""

import base64
from dataclasses import replace

import numpy as np
import pytest

from refdiff.errors import InputError
from refdiff.serve import tensors
from refdiff.serve.tensors import INPUTS, OUTPUTS, read_question, row_of, stack_rows
from tests.support.http_attacks import picture
from tests.support.http_server import segmentation

NAMES = tuple(each.name for each in OUTPUTS)


def texts(*elements):
    return np.array(elements, np.object_)


def asked(**changes):
    return {"image": texts(picture()), "phrases": texts(b"the mug"), **changes}


def test_a_file_its_base64_and_pixels_are_images():
    pixels = np.zeros((8, 12, 3), np.uint8)
    assert read_question(asked()).image == picture()
    assert read_question(asked(image=texts(base64.b64encode(picture())))).image == picture()
    assert read_question({"pixels": pixels, "phrases": texts(b"the mug")}).image is pixels


def test_phrases_share_the_least_confidence():
    question = read_question(
        asked(
            phrases=texts("die große Tasse".encode(), b"the cup"), min_confidence=np.array([0.25], np.float32)
        )
    )
    assert [(each.text, each.min_confidence) for each in question.prompts] == [
        ("die große Tasse", 0.25),
        ("the cup", 0.25),
    ]
    assert read_question(asked()).prompts[0].min_confidence is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"picture": texts(b"x")}, "expected only image, pixels"),
        ({"pixels": np.zeros((8, 12, 3), np.uint8)}, "both"),
        ({"pixels": np.zeros((8, 12, 4), np.uint8)}, r"\[-1, -1, 3\]"),
        ({"pixels": np.zeros((8, 12, 3), np.float32)}, "expected UINT8"),
        ({"pixels": np.zeros((0, 12, 3), np.uint8)}, "1 or more"),
        ({"phrases": texts(*[b"x"] * 65)}, "at most 64"),
        ({"phrases": texts()}, "1 or more"),
        ({"phrases": texts(b"\xff")}, "UTF-8"),
        ({"image": texts(b"abcde")}, "base64"),
        ({"min_confidence": np.array([1.5], np.float32)}, "from 0 to 1"),
        ({"min_confidence": np.array([np.nan], np.float32)}, "from 0 to 1"),
        ({"min_confidence": np.array([0.5], np.float64)}, "expected FP32"),
    ],
)
def test_other_inputs_are_refused_by_name(changes, message):
    with pytest.raises(InputError, match=message):
        read_question(asked(**changes))


def test_an_image_and_phrases_are_needed():
    with pytest.raises(InputError, match="neither"):
        read_question({"phrases": texts(b"the mug")})
    with pytest.raises(InputError, match="phrases is missing"):
        read_question({"image": texts(picture())})


def test_outputs_have_one_row_for_each_answer_in_the_contract_s_types():
    found = segmentation("the mug")
    nothing = replace(
        segmentation("the cup", confidence=None),
        index=None,
        mask=np.zeros((8, 12), bool),
        score=float("-inf"),
        reason="no candidate",
    )
    arrays = stack_rows([row_of(each, NAMES, 2) for each in (found, nothing)], NAMES)
    for tensor in OUTPUTS:
        array = arrays[tensor.name]
        assert array.dtype == tensor.dtype
        assert len(array.shape) == len(tensor.shape)
        assert all(own in (-1, size) for own, size in zip(tensor.shape, array.shape, strict=True))
    np.testing.assert_array_equal(arrays["masks"], [found.mask, nothing.mask])
    assert arrays["matched"].tolist() == [True, False]
    assert arrays["bbox"].tolist() == [[3, 2, 6, 3], [0, 0, 0, 0]]
    assert arrays["confidence"].tolist() == [0.75, tensors.NO_CONFIDENCE]
    assert arrays["score"].tolist() == [1.0, tensors.NO_SCORE]
    assert arrays["reason"].tolist() == [b"", b"no candidate"]
    assert arrays["cautions"].tolist() == [b"test: a caution"] * 2


def test_masks_that_are_too_large_together_are_refused_unless_they_are_left_out():
    answer = segmentation("the mug")
    large = replace(answer, mask=np.broadcast_to(np.True_, (1 << 13, 1 << 13)))
    assert row_of(large, ("masks",), 4)["masks"] is large.mask
    with pytest.raises(InputError, match="fewer phrases"):
        row_of(large, ("masks",), 5)
    assert row_of(large, ("matched",), 5) == {"matched": True}


def test_a_configuration_has_triton_s_names_of_the_types():
    described = {each.name: each.config() for each in (*INPUTS, *OUTPUTS)}
    assert described["phrases"] == {"name": "phrases", "data_type": "TYPE_STRING", "dims": [-1]}
    assert described["image"]["optional"] is True
    assert described["masks"] == {"name": "masks", "data_type": "TYPE_BOOL", "dims": [-1, -1, -1]}
