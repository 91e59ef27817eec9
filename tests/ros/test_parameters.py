from dataclasses import fields

import pytest

from refdiff.errors import InputError
from refdiff.ros.parameters import NodeParameters, key_of, phrases_of, read_parameters


def test_what_is_left_out_keeps_its_default():
    assert read_parameters({"bundle": "mini"}) == NodeParameters(bundle="mini")


def test_parameters_become_the_options_they_stand_for():
    given = {
        "bundle": "mini",
        "key": 1,
        "min_confidence": 0,
        "threads": 2,
        "memory": "8GB",
        "run_limit_s": 5,
        "variant": "official",
        "level": "points",
    }
    parameters = read_parameters(given)
    camera, backend = parameters.camera_options(), parameters.backend_options()
    assert (camera.key, camera.track.level) == (1.0, "points")
    assert (camera.run.variant, camera.run.min_confidence) == ("official", 0.0)
    assert (backend.threads, backend.memory, backend.run_limit_s) == (2, "8GB", 5.0)


def test_numbers_that_mean_none_are_none():
    parameters = NodeParameters(bundle="mini")
    assert parameters.camera_options().run.min_confidence is None
    backend = parameters.backend_options()
    assert (backend.threads, backend.memory, backend.run_limit_s) == (None, None, None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "set the parameter bundle"),
        ({"bundle": 3}, "parameter bundle: got 3, expected str"),
        (
            {"bundle": "mini", "transport": "theora"},
            "parameter transport: got 'theora', expected one of: raw",
        ),
        ({"bundle": "mini", "policy": "oldest"}, "parameter policy: got 'oldest'"),
        ({"bundle": "mini", "level": "magic"}, "level"),
        ({"bundle": "mini", "encoding": "rgb9"}, "parameter encoding: got 'rgb9'"),
        ({"bundle": "mini", "encoding": "yuyv", "transport": "compressed"}, "parameter encoding: got 'yuyv'"),
        ({"bundle": "mini", "key": "often"}, "got key 'often'"),
        ({"bundle": "mini", "key": -1}, "got key '-1'"),
        ({"bundle": "mini", "key": True}, "parameter key: got True"),
        ({"bundle": "mini", "threads": -1}, "threads and run_limit_s from 0"),
        ({"bundle": "mini", "silence_s": 0.0}, "silence_s above 0"),
        ({"bundle": "mini", "threads": 1.5}, "parameter threads: got 1.5, expected int"),
        ({"bundle": "mini", "autostart": 1}, "parameter autostart: got 1, expected bool"),
    ],
)
def test_a_parameter_that_cannot_be_used_is_named(given, said):
    with pytest.raises(InputError, match=said):
        read_parameters(given)


def test_an_encoding_is_accepted_in_the_case_that_ros_writes_it():
    assert read_parameters({"bundle": "mini", "encoding": "BGR8"}).encoding == "BGR8"


def test_a_prompt_has_one_phrase_a_line():
    assert phrases_of("the red mug\n\n  the plate \n") == ("the red mug", "the plate")
    assert phrases_of(" \n") == ()


def test_the_compressed_topic_is_the_one_of_image_transport():
    assert NodeParameters(image_topic="/cam/image", transport="compressed").topic == "/cam/image/compressed"
    assert NodeParameters(image_topic="/cam/image").topic == "/cam/image"


def test_every_parameter_has_a_description():
    assert all(each.metadata["text"] for each in fields(NodeParameters))


@pytest.mark.parametrize(("text", "key"), [("auto", "auto"), ("change", "change"), ("0", 0.0), ("1.5", 1.5)])
def test_a_key_is_a_name_or_seconds(text, key):
    assert key_of(text) == key


@pytest.mark.parametrize("text", ["", "nan", "inf", "-0.1", "1 s"])
def test_a_key_of_another_form_is_refused(text):
    with pytest.raises(InputError, match="expected auto, change, or seconds"):
        key_of(text)
