"""Image folders as datasets."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refdiff.data.folder import check_images, folder_dataset, image_sample, phrases_by_file
from refdiff.errors import InputError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("b.png", "a.JPG", "notes.txt"):
        Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(tmp_path / name, format="PNG")
    return tmp_path


def test_each_image_is_paired_with_each_different_phrase(images: Path) -> None:
    dataset = folder_dataset(images, ["the mug", " the  mug", "the ball"])
    assert [sample.id for sample in dataset] == [
        "a.JPG: the mug",
        "a.JPG: the ball",
        "b.png: the mug",
        "b.png: the ball",
    ]
    assert phrases_by_file(dataset) == {
        images / "a.JPG": ("the mug", "the ball"),
        images / "b.png": ("the mug", "the ball"),
    }


def test_one_image_file_is_a_dataset_too(images: Path) -> None:
    (sample,) = folder_dataset(images / "notes.txt", ["the mug"])
    assert sample.read().shape == (8, 9, 3)


def test_an_image_s_bytes_can_be_the_sample(images: Path) -> None:
    sample = image_sample(images / "b.png", "the mug")
    assert sample.image == (images / "b.png").read_bytes()
    assert sample.read().shape == (8, 9, 3)
    with pytest.raises(InputError, match="cannot be read"):
        image_sample(images / "absent.png", "the mug")


def test_phrases_are_a_sequence(images: Path) -> None:
    with pytest.raises(InputError, match="put it into a list"):
        folder_dataset(images, "the mug")
    with pytest.raises(InputError, match="got no phrase"):
        folder_dataset(images, [])


def test_images_that_cannot_be_decoded_are_named_together(images: Path) -> None:
    check_images(folder_dataset(images, ["the mug"]))
    (images / "a.JPG").write_bytes(b"")
    (images / "b.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"a\.JPG: got no data.*cannot be read either: b\.png"):
        check_images(folder_dataset(images, ["the mug", "the ball"]))
