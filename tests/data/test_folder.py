"""Phrases for image files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refdiff.data.folder import check_images, csv_dataset, image_sample, read_phrase_rows, unique_phrases
from refdiff.errors import InputError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("b.png", "a.JPG"):
        Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(tmp_path / name, format="PNG")
    return tmp_path


def test_equal_phrases_count_once() -> None:
    assert unique_phrases(["the mug", " the  mug", "the ball"]) == ("the mug", "the ball")


def test_an_image_s_bytes_can_be_the_sample(images: Path) -> None:
    sample = image_sample(images / "b.png", "the mug")
    assert sample.image == (images / "b.png").read_bytes()
    assert sample.read().shape == (8, 9, 3)
    with pytest.raises(InputError, match="cannot be read"):
        image_sample(images / "absent.png", "the mug")


def test_phrases_are_a_sequence() -> None:
    with pytest.raises(InputError, match="put it into a list"):
        unique_phrases("the mug")
    with pytest.raises(InputError, match="got no phrase"):
        unique_phrases([])


def test_a_row_states_its_line(images: Path) -> None:
    (images / "phrases.csv").write_text("image,phrase\n\na.JPG, the  mug\n")
    (row,) = read_phrase_rows(images / "phrases.csv")
    assert (row.where, row.image, row.phrase) == ("phrases.csv, line 3", "a.JPG", "the mug")


def test_images_that_cannot_be_decoded_are_named_together(images: Path) -> None:
    (images / "phrases.csv").write_text("image,phrase\na.JPG,the mug\nb.png,the ball\n")
    dataset = csv_dataset(images, images / "phrases.csv")
    check_images(dataset)
    (images / "a.JPG").write_bytes(b"")
    (images / "b.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"a\.JPG: got no data.*cannot be read either: b\.png"):
        check_images(dataset)
