"""Bodies of the Open Inference Protocol: JSON and binary tensors, and every way to get them wrong."""

import json
import struct

import numpy as np
import pytest

from refdiff.errors import InputError
from refdiff.serve.open_inference import read_request, write_response
from refdiff.serve.tensors import OUTPUTS
from tests.support.http_attacks import picture

PHRASES = {"name": "phrases", "datatype": "BYTES", "shape": [1], "data": ["the mug"]}


def elements(*parts):
    return b"".join(struct.pack("<I", len(each)) + each for each in parts)


def pixels(**changes):
    return {"name": "pixels", "datatype": "UINT8", "shape": [1, 2, 3], "data": [0, 1, 2, 3, 4, 5], **changes}


def document(*inputs, **fields):
    return json.dumps({"inputs": [*inputs, PHRASES], **fields}).encode()


def binary(name, datatype, shape, size):
    return {
        "name": name,
        "datatype": datatype,
        "shape": shape,
        "parameters": {"binary_data_size": size},
    }


@pytest.mark.parametrize("data", [[0, 1, 2, 3, 4, 5], [[[0, 1, 2], [3, 4, 5]]], [[0, 1, 2], [3, 4, 5]]])
def test_values_in_json_are_flat_or_nested(data):
    read = read_request(document(pixels(data=data), id="seven"), None)
    assert read.tensors["pixels"].tolist() == [[[0, 1, 2], [3, 4, 5]]]
    assert read.tensors["phrases"].tolist() == [b"the mug"]
    assert read.id == "seven"


def test_binary_data_follow_the_json_in_the_order_of_the_inputs():
    file, least = elements(picture()), struct.pack("<f", 0.5)
    head = json.dumps(
        {
            "inputs": [
                binary("image", "BYTES", [1], len(file)),
                PHRASES,
                binary("min_confidence", "FP32", [1], 4),
            ]
        }
    ).encode()
    tensors = read_request(head + file + least, str(len(head))).tensors
    assert tensors["image"].tolist() == [picture()]
    assert tensors["min_confidence"].tolist() == [0.5]
    assert list(tensors) == ["image", "phrases", "min_confidence"]


def test_all_outputs_are_asked_for_unless_some_are_named():
    assert read_request(document(), None).outputs == {each.name: False for each in OUTPUTS}
    every = read_request(document(parameters={"binary_data_output": True}), None)
    assert set(every.outputs.values()) == {True}
    named = document(
        outputs=[{"name": "score", "parameters": {"binary_data": False}}, {"name": "masks"}],
        parameters={"binary_data_output": True},
    )
    assert list(read_request(named, None).outputs.items()) == [("score", False), ("masks", True)]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "expected an object"),
        (document(id=7), "id"),
        (document(id="a" * 257), "256"),
        (b'{"inputs": 7}', "expected inputs"),
        (b'{"inputs": [7]}', "expected inputs"),
        (document({"name": "x"}), "expected only image"),
        (document({"name": ["image"]}), "expected only image"),
        (document({}), "expected only image"),
        (document(PHRASES), "twice"),
        (document(pixels(datatype="INT8")), "expected UINT8"),
        (document(pixels(datatype=[])), "expected UINT8"),
        (document(pixels(shape=[2, 3])), r"expected \[-1, -1, 3\]"),
        (document(pixels(shape=[1, 2, 4])), r"expected \[-1, -1, 3\]"),
        (document(pixels(shape=[-1, 2, 3])), "1 or more"),
        (document(pixels(shape=[0, 2, 3])), "1 or more"),
        (document(pixels(shape=[True, 2, 3])), "whole numbers"),
        (document(pixels(shape=[1.0, 2, 3])), "whole numbers"),
        (document(pixels(shape="1,2,3")), "whole numbers"),
        (document(pixels(shape=[2**62, 2**62, 3])), "at most"),
        (document(pixels(shape=[10**1000, 2, 3])), "at most"),
        (document(pixels(shape=[1, 3, 3])), "got 6 values"),
        (document(pixels(data=[0, 1, 2, 3, 4, 256])), "not UINT8"),
        (document(pixels(data=[0, 1, 2, 3, 4, -1])), "not UINT8"),
        (document(pixels(data=[0, 1, 2, 3, 4, 5.0])), "not UINT8"),
        (document(pixels(data=[0, 1, 2, 3, 4, True])), "not UINT8"),
        (document(pixels(data=[0, 1, 2, 3, 4, None])), "not UINT8"),
        (document(pixels(data=[0, 1, 2, [3, 4, 5]])), "got 4 values"),
        (document(pixels(data=[[[[0, 1, 2, 3, 4, 5]]]])), "got 1 values"),
        (document(pixels(data={})), "no data"),
        (document(pixels(data=None)), "no data"),
        (document(pixels(parameters=[])), "no object"),
        (document(pixels(parameters={"binary_data_size": 6})), "both"),
        (document(pixels(parameters={"shared_memory_region": "x"})), "shared memory"),
        (document(pixels(data=None, parameters={"binary_data_size": 6})), "0 are left"),
        (document(pixels(data=None, parameters={"binary_data_size": -6})), "whole number"),
        (document(pixels(data=None, parameters={"binary_data_size": True})), "whole number"),
        (document(pixels(data=None, parameters={"binary_data_size": "6"})), "whole number"),
        (document(pixels(data=None, parameters={"binary_data_size": 10**30})), "0 are left"),
        (document({"name": "image", "datatype": "BYTES", "shape": [1], "data": [7]}), "not BYTES"),
        (document({"name": "min_confidence", "datatype": "FP32", "shape": [1], "data": ["1"]}), "not FP32"),
        (
            b'{"inputs": [{"name": "min_confidence", "datatype": "FP32", "shape": [1], "data": [NaN]}]}',
            "not FP32",
        ),
        (
            b'{"inputs": [{"name": "min_confidence", "datatype": "FP32", "shape": [1], "data": [1e999]}]}',
            "not FP32",
        ),
        (document(outputs=[{"name": "heat"}]), "expected only masks"),
        (document(outputs=[{"name": "score"}, {"name": "score"}]), "twice"),
        (document(outputs="score"), "expected outputs"),
        (document(outputs=[{"name": "score", "parameters": {"binary_data": 1}}]), "true or false"),
        (document(outputs=[{"name": "score", "parameters": {"classification": 1}}]), "as a tensor only"),
        (document(parameters={"binary_data_output": "yes"}), "true or false"),
        (document(parameters=7), "no object"),
    ],
)
def test_a_malformed_document_is_refused_with_what_was_expected(body, message):
    with pytest.raises(InputError, match=message):
        read_request(body, None)


@pytest.mark.parametrize("length", ["0", "-1", "+5", "0x10", "1e3", "", " 5", "٣", "9" * 30, "1000000"])
def test_a_wrong_length_of_the_json_part_is_refused(length):
    with pytest.raises(InputError, match="inference-header-content-length"):
        read_request(document(pixels()), length)


def test_a_length_that_cuts_the_json_part_is_refused():
    body = document(pixels())
    with pytest.raises(InputError, match="not JSON"):
        read_request(body, str(len(body) - 5))
    with pytest.raises(InputError, match="6 bytes of binary data, the inputs announce 0"):
        read_request(body + b"abcdef", str(len(body)))


@pytest.mark.parametrize(
    ("entry", "data"),
    [
        (binary("pixels", "UINT8", [1, 2, 3], 5), b"\0" * 5),
        (binary("pixels", "UINT8", [1, 2, 3], 7), b"\0" * 7),
        (binary("pixels", "UINT8", [1, 2, 3], 6), b"\0" * 7),
        (binary("pixels", "UINT8", [1, 2, 3], 7), b"\0" * 6),
        (binary("min_confidence", "FP32", [1], 8), b"\0" * 8),
        (binary("image", "BYTES", [1], 0), b""),
        (binary("image", "BYTES", [1], 3), b"\0" * 3),
        (binary("image", "BYTES", [1], 8), b"\xff\xff\xff\xff1234"),
        (binary("image", "BYTES", [1], 9), elements(b"1234") + b"5"),
        (binary("image", "BYTES", [1], 10), elements(b"1", b"2")),
    ],
)
def test_binary_data_of_another_size_than_the_shape_are_refused(entry, data):
    head = document(entry)
    with pytest.raises(InputError, match=r"bytes|elements"):
        read_request(head + data, str(len(head)))


def test_a_response_has_the_outputs_in_both_forms():
    arrays = {
        "masks": np.array([[[True, False]]]),
        "score": np.array([0.5], np.float32),
        "reason": np.array(["große".encode()], np.object_),
    }
    asked = document(
        outputs=[
            {"name": "reason"},
            {"name": "masks", "parameters": {"binary_data": True}},
            {"name": "score", "parameters": {"binary_data": True}},
        ],
        id="seven",
    )
    body, length = write_response(read_request(asked, None), arrays)
    answer = json.loads(body[:length])
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("seven", "refdiff", "1")
    assert answer["outputs"][0] == {"name": "reason", "datatype": "BYTES", "shape": [1], "data": ["große"]}
    assert [each.get("parameters") for each in answer["outputs"][1:]] == [
        {"binary_data_size": 2},
        {"binary_data_size": 4},
    ]
    assert body[length:] == b"\1\0" + struct.pack("<f", 0.5)


def test_large_outputs_are_not_written_as_json():
    arrays = {"masks": np.broadcast_to(np.True_, (5, 1 << 11, 1 << 11))}
    plain = read_request(document(outputs=[{"name": "masks"}]), None)
    with pytest.raises(InputError, match="binary_data"):
        write_response(plain, arrays)
    packed = read_request(document(outputs=[{"name": "masks", "parameters": {"binary_data": True}}]), None)
    assert len(write_response(packed, arrays)[0]) > 5 << 22
