"""Requests: what is read, and what is refused with got, expected and what to do."""

import base64
import json

import pytest

from refdiff.errors import InputError
from refdiff.serve.request import MOST_PROMPTS, Prompt, decode_base64, image_id_of, read_form, read_json

IMAGE = base64.b64encode(b"file").decode()


def body(**changes):
    return json.dumps({"image": IMAGE, "prompts": [{"text": "the red mug"}], **changes}).encode()


def test_fields_of_roboflows_request_are_understood():
    asked = read_json(
        body(
            image={"type": "base64", "value": IMAGE},
            prompts=[{"type": "text", "text": "the mug", "output_prob_thresh": 0.5}, "the cup"],
            format="polygon",
            min_confidence=0.25,
        )
    )
    assert asked.image == b"file"
    assert asked.prompts == (
        Prompt(text="the mug", min_confidence=0.5),
        Prompt(text="the cup", min_confidence=0.25),
    )
    assert asked.format == "polygon"


@pytest.mark.parametrize("size", [0, 1, 2, 3, 786_431, 786_432, 786_433, 2_000_000])
def test_base64_of_any_length_is_decoded(size):
    data = bytes(size)
    assert decode_base64(base64.b64encode(data).decode()) == data


def test_a_data_url_is_its_base64():
    assert read_json(body(image=f"data:image/png;base64,{IMAGE}")).image == b"file"


def test_a_form_is_the_same_request():
    fields = [("image", b"file"), ("prompt", "the mug"), ("prompt", "the cup"), ("heat", "true")]
    asked = read_form([*fields, ("min_confidence", "0.5"), ("format", "png")])
    assert asked == read_json(
        body(prompts=["the mug", "the cup"], heat=True, min_confidence=0.5, format="png")
    )


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (b"", "not JSON"),
        (b"[1]", "JSON list"),
        (b"[" * 50_000, "not JSON"),
        (b"[" * 100_000, "at most 65536"),
        (b"\xff\xfe", "not JSON"),
        (body(image=None), "got neither"),
        (body(image_id="x"), "got both"),
        (body(image="%%%"), "not base64"),
        (body(image="A" * ((1 << 20) - 2) + "==" + "AAAA"), "not base64"),
        (body(prompts=[[]] * (1 << 16)), "values, expected at most"),
        (b"[]," * (1 << 20) + b"[]", "lists and objects, expected at most"),
        (body(image={"type": "url", "value": "http://x"}), "addresses are not fetched"),
        (body(image=7), "no text"),
        (body(image=None, image_id=""), "image_id"),
        (body(image=None, image_id="x" * 200), "image_id"),
        (body(prompts=[]), "expected prompts"),
        (body(prompts="the mug"), "expected prompts"),
        (body(prompts=["x"] * (MOST_PROMPTS + 1)), "at most"),
        (body(prompts=[7]), "a prompt of type int"),
        (body(prompts=[{"text": 7}]), "without a text"),
        (body(prompts=[{"type": "box", "text": "x"}]), "expected text"),
        (body(prompts=[{"text": "x", "box": [1]}]), "'box' in a prompt"),
        (body(prompts=[{"text": "x", "output_prob_thresh": 2}]), "0 to 1"),
        (body(min_confidence=True), "0 to 1"),
        (body(min_confidence="a"), "0 to 1"),
        (body(format="jpeg"), "rle, polygon, png"),
        (body(heat=1), "true or false"),
        (body(nms_iou_threshold=0.5), "'nms_iou_threshold' in the request"),
    ],
)
def test_what_cannot_be_meant_is_refused(sent, message):
    with pytest.raises(InputError, match=message):
        read_json(sent)


def test_a_number_that_is_none_is_refused():
    with pytest.raises(InputError, match="0 to 1"):
        read_json(body().replace(b'"prompts"', b'"min_confidence": NaN, "prompts"'))


def test_a_part_that_is_there_twice_is_refused():
    with pytest.raises(InputError, match="'image' twice"):
        read_form([("image", b"a"), ("image", b"b"), ("prompt", "x")])


def test_the_id_of_an_image_is_that_of_its_bytes():
    assert image_id_of(b"a") == image_id_of(b"a") != image_id_of(b"b")
