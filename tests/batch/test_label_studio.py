"""The documents of Label Studio; its own converter is the oracle of the run lengths."""

import importlib.util
import sys
from importlib.metadata import PackageNotFoundError, distribution
from xml.etree import ElementTree

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refdiff.batch.label_studio import brush_region, label_config, prediction_task, region_id
from refdiff.runtime.masks import to_brush_rle

MASKS = arrays.arrays(
    np.bool_, arrays.array_shapes(min_dims=2, max_dims=2, max_side=20), elements=st.booleans()
)


@pytest.fixture(scope="module")
def brush():
    """The module of label-studio-converter, without the rest of the package, which reads corpora of text."""
    try:
        path = distribution("label-studio-converter").locate_file("label_studio_converter/brush.py")
    except PackageNotFoundError:
        pytest.skip("label-studio-converter is not installed")
    spec = importlib.util.spec_from_file_location("label_studio_brush", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@given(MASKS)
@settings(max_examples=100, deadline=None)
def test_run_lengths_are_those_of_label_studio_byte_by_byte(brush, mask):
    assert list(to_brush_rle(mask)) == brush.mask2rle(mask.astype(np.uint8) * 255)


@given(MASKS)
@settings(max_examples=50, deadline=None)
def test_label_studio_reads_the_mask_back(brush, mask):
    channels = brush.decode_rle(list(to_brush_rle(mask))).reshape(*mask.shape, 4)
    for channel in range(4):
        assert np.array_equal(channels[..., channel], mask * 255)


@pytest.mark.parametrize("inside", [3, 4, 5, 64, 65, 16_384, 16_385, 40_000])
def test_runs_of_every_size_are_written_as_label_studio_writes_them(brush, inside):
    mask = np.zeros((250, 200), bool)
    mask.ravel()[7 : 7 + inside] = True
    assert list(to_brush_rle(mask)) == brush.mask2rle(mask.astype(np.uint8) * 255)


def test_known_bytes():
    mask = np.array([[False, True, True]])
    # 12 values, of 8 bits, lengths of 3, 4, 8, 16 bits; four zeros, eight times 255
    header = f"{12:032b}" + "00111" + "0010001101111111"
    runs = "10001100000000" + "10011111111111"
    bits = header + runs
    bits += "0" * (8 - len(bits) % 8)
    assert to_brush_rle(mask) == int(bits, 2).to_bytes(len(bits) // 8, "big")


def test_a_labeling_interface_escapes_its_labels():
    labels = ['the "red" <mug> & co', "l'œuf"]
    root = ElementTree.fromstring(label_config(labels))  # noqa: S314 - written above
    assert [each.get("value") for each in root.iter("Label")] == labels
    assert root.find("BrushLabels").get("toName") == root.find("Image").get("name")


def test_a_region_has_the_size_of_its_image_and_names_the_tags():
    region = brush_region(
        np.eye(3, 5, dtype=bool), "the mug", region="r", score=0.5, from_name="b", to_name="i"
    )
    assert (region["original_width"], region["original_height"], region["image_rotation"]) == (5, 3, 0)
    assert (region["type"], region["from_name"], region["to_name"]) == ("brushlabels", "b", "i")
    assert region["value"]["brushlabels"] == ["the mug"]
    assert region["score"] == 0.5


def test_a_task_has_one_prediction_with_all_regions_and_the_lowest_confidence():
    lines = [
        {"phrase": phrase, "model": "m", "confidence": confidence}
        for phrase, confidence in [("a", 0.9), ("b", 0.2), ("c", None)]
    ]
    task = prediction_task("x.png", "x y.png", [(line, np.ones((2, 2), bool)) for line in lines])
    (only,) = task["predictions"]
    assert (only["score"], only["model_version"], len(only["result"])) == (0.2, "refdiff-m", 3)
    assert len({region["id"] for region in only["result"]}) == 3
    assert task["data"] == {"image": "/data/local-files/?d=images/x.png", "original_name": "x y.png"}
    assert prediction_task("x.png", "x", [])["predictions"] == []


def test_ids_of_regions_depend_on_all_parts_and_on_nothing_else():
    assert region_id("a", "b") == region_id("a", "b")
    assert len({region_id("a", "b"), region_id("ab", ""), region_id("a b"), region_id("b", "a")}) == 4
