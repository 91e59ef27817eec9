"""Every verb that takes a back-end says which one `auto` came to, and why: on stderr and in its document."""

import inspect
import json
import re

import pytest
from PIL import Image

from refdiff.cli import main
from refdiff.cli.app import app
from refdiff.miniature.scenes import render_scene

pytest.importorskip("onnxruntime")

CHEAPEST = {
    "segment": "mini PICTURE mug --mode gen",
    "demo": "--bundle mini --output FOLDER/demo --mode gen",
    "check": "mini --golden-only",
    "eval": "mini --count 1 --mode gen",
    "calibrate": "mini --count 1 --variant edge --mode gen --output FOLDER/feeds",
}
"""Verb -> arguments with which it does the least."""

NOTED = re.compile(r"^back-end (ort-\w+): (.*onnxruntime.*)$", re.MULTILINE)


def test_no_verb_with_a_back_end_is_left_out_here():
    verbs = {
        each.name or each.callback.__name__: inspect.signature(each.callback)
        for each in app.registered_commands
    }
    assert {name for name, takes in verbs.items() if "backend" in takes.parameters} == {
        *CHEAPEST,
        *("bag", "camera", "ros2", "serve"),  # run until they are stopped; tests of their own
        "profile",  # its record names the back-end; tests of its own
        "triton",  # only writes the name down, for a server
        "tune",  # needs labeled samples; tests of its own
    }


@pytest.mark.slow
@pytest.mark.parametrize("verb", CHEAPEST)
def test_what_auto_chose_is_noted_on_stderr_and_in_the_answer(verb, tmp_path, capsys):
    Image.fromarray(render_scene(1_000_007).image).save(tmp_path / "photo.png")
    arguments = (
        CHEAPEST[verb].replace("PICTURE", str(tmp_path / "photo.png")).replace("FOLDER", str(tmp_path))
    )
    assert main([verb, *arguments.split(), "--json"]) == 0
    streams = capsys.readouterr()
    said, (noted,) = json.loads(streams.out), NOTED.findall(streams.err)
    assert noted == (said["backend"], said["backend_reason"])
    if verb == "demo":  # it takes seconds, and its options are those of segment
        return
    assert main([verb, *arguments.split(), "--backend", said["backend"], "--json", *again(verb)]) == 0
    streams = capsys.readouterr()
    assert NOTED.findall(streams.err) == []
    assert json.loads(streams.out)["backend_reason"] == "asked for"


def again(verb):
    """A second recording in the same folder takes the first's place."""
    return ["--overwrite"] if verb == "calibrate" else []
