"""The auto-annotation function, checked by the types and the driver of CVAT's SDK."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from refdiff.batch.cvat import PhraseFunction, create, read_labels
from refdiff.errors import InputError, MissingDependencyError
from refdiff.miniature.scenes import render_scene
from tests.support.answers import answer

ROWS = [("mug", "the red mug"), ("mug", "the mug on the left"), ("ball", "the ball"), ("none", "nothing")]


class FakeSegmenter:
    """Finds a ring for each mug, a corner for the ball, and nothing else."""

    def segment_each(self, image, phrases):
        for phrase in phrases:
            mask = np.zeros((image.height, image.width), bool)
            if "mug" in phrase:
                mask[2:9, 3:12] = True
                mask[4:6, 5:8] = False
            elif "ball" in phrase:
                mask[-3:, -4:] = True
            yield answer(phrase, mask, score=1.0, confidence=0.4 if "ball" in phrase else 0.9)


@pytest.fixture
def cvat():
    return pytest.importorskip("cvat_sdk.auto_annotation.driver")


def context_of(cvat, **given):
    return cvat._DetectionFunctionContextImpl(frame_name="a.png", **given)


def decoded(shape, image):
    from cvat_sdk.masks import decode_mask

    return decode_mask(shape.points, image_width=image.width, image_height=image.height)


def test_masks_come_back_from_run_lengths_under_the_labels_of_the_task(cvat):
    from cvat_sdk import models

    image, function = Image.new("RGB", (30, 20)), PhraseFunction(FakeSegmenter(), ROWS)
    labels = [
        models.Label(name=name, id=100 + n, type="mask", attributes=[], sublabels=[])
        for n, name in enumerate(["ball", "none", "mug"])
    ]
    mapper = cvat._AnnotationMapper(
        logging.getLogger("test"),
        function.spec.labels,
        labels,
        allow_unmatched_labels=False,
        conv_mask_to_poly=False,
    )
    tags, shapes = mapper.validate_and_remap(function.detect(context_of(cvat), image), 7)
    assert not tags
    assert [(shape.label_id, shape.frame, str(shape.type)) for shape in shapes] == [
        (102, 7, "mask"),
        (100, 7, "mask"),
    ]  # two phrases of the mug have one mask
    expected = [each.mask for each in FakeSegmenter().segment_each(image, ["mug", "ball"])]
    for shape, mask in zip(shapes, expected, strict=True):
        assert np.array_equal(decoded(shape, image), mask)


def test_polygons_are_given_where_cvat_asks_for_them(cvat):
    cv2 = pytest.importorskip("cv2")
    image, function = Image.new("RGB", (30, 20)), PhraseFunction(FakeSegmenter(), ROWS[:1])
    (shape,) = function.detect(context_of(cvat, conv_mask_to_poly=True), image)
    assert str(shape.type) == "polygon"
    canvas = np.zeros((20, 30), np.uint8)
    cv2.fillPoly(canvas, [np.array(shape.points).reshape(-1, 2).astype(np.int32)], color=1)
    (expected,) = FakeSegmenter().segment_each(image, ["mug"])
    assert np.array_equal(canvas.astype(bool), expected.mask)


def test_cvats_threshold_withholds_what_is_less_certain(cvat):
    image, function = Image.new("RGB", (30, 20)), PhraseFunction(FakeSegmenter(), ROWS)
    assert len(function.detect(context_of(cvat, conf_threshold=0.5), image)) == 1
    assert len(function.detect(context_of(cvat, conf_threshold=0.3), image)) == 2


def test_a_file_has_a_phrase_on_each_line_or_labels_with_phrases(tmp_path):
    path = tmp_path / "phrases"
    path.write_text("\ufeffthe  red mug\n\nthe cup, the blue one\nthe red mug\n", "utf-8")
    assert read_labels(path) == [(each, each) for each in ("the red mug", "the cup, the blue one")]
    path.write_text('label,phrase\nmug,the red mug\nmug,"the mug, the blue one"\nball, the ball\n')
    assert read_labels(path) == [
        ("mug", "the red mug"),
        ("mug", "the mug, the blue one"),
        ("ball", "the ball"),
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"", "has no phrase"),
        (b"label,phrase\n", "has no phrase"),
        (b"label,phrase\nmug\n", "has the row 'mug'"),
        (b"label,phrase\nmug, \n", "expected a label and a phrase"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_file_without_labels_or_phrases_is_refused(tmp_path, text, complaint):
    path = tmp_path / "phrases"
    path.write_bytes(text)
    with pytest.raises(InputError, match=complaint):
        read_labels(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.txt cannot be read"):
        read_labels(tmp_path / "none.txt")


def test_without_the_sdk_the_error_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "cvat_sdk", None)
    with pytest.raises(MissingDependencyError, match="pip install cvat-sdk cvat-cli"):
        create(str(tmp_path / "phrases"))


@pytest.mark.slow
def test_the_miniature_annotates_a_scene_as_cvats_driver_asks_it(cvat, tmp_path):
    (tmp_path / "p.csv").write_text("label,phrase\nthing,the mug\n")
    scene = render_scene(3)
    function = create(phrases=str(tmp_path / "p.csv"), bundle="mini", backend="ort-cpu", threads=1)
    try:
        (shape,) = function.detect(context_of(cvat), Image.fromarray(scene.image))
        assert decoded(shape, SimpleNamespace(width=scene.image.shape[1], height=scene.image.shape[0])).any()
    finally:
        function.close()
