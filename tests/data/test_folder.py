"""Phrases for image files."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from refdiff.data import folder
from refdiff.data.folder import (
    check_images,
    csv_dataset,
    describe_skipped,
    image_sample,
    list_images,
    read_phrase_rows,
    unique_phrases,
)
from refdiff.errors import InputError


def save(path: Path, kind: str = "PNG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(path, format=kind)
    return path


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF"])
def test_an_image_is_found_by_its_content(tmp_path: Path, kind: str) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("Pillow was built without AVIF")
    save(tmp_path / "photo", kind)
    save(tmp_path / "photo.txt", kind)
    assert list_images(tmp_path).images == ("photo", "photo.txt")


@pytest.mark.parametrize("name", ["a.jfif", "a.avif", "a.gif", "a.HEIC", "a.Png", "a.CR2", "a.tif"])
def test_a_file_that_is_named_like_an_image_is_listed_whatever_it_holds(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("no image")
    assert list_images(tmp_path).images == (name,)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"image,phrase\n",
        b"BMW and other makes of cars",
        b"P1 tasks: none",
        b"RIFF",
        b"....ftypisom....mp42",
    ],
)
def test_other_files_are_skipped_by_name(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "notes").write_bytes(data)
    found = list_images(tmp_path)
    assert found.images == ()
    assert found.skipped == {folder.NO_IMAGE: ("notes",)}


def test_hidden_files_and_folders_are_skipped(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    for name in ("._a.png", ".DS_Store", ".cache/b.png"):
        save(tmp_path / name)
    found = list_images(tmp_path, recursive=True)
    assert found.images == ("a.png",)
    assert found.skipped == {folder.HIDDEN: (".DS_Store", "._a.png", ".cache")}


def test_a_sub_folder_is_searched_on_request_and_named_otherwise(tmp_path: Path) -> None:
    save(tmp_path / "b.png")
    save(tmp_path / "cats" / "white" / "a.png")
    found = list_images(tmp_path)
    assert found.images == ("b.png",)
    assert found.skipped == {folder.NOT_SEARCHED: ("cats/",)}
    assert list_images(tmp_path, recursive=True).images == ("b.png", "cats/white/a.png")


def test_results_are_not_searched(tmp_path: Path) -> None:
    save(tmp_path / "photos" / "a.png")
    save(tmp_path / "out" / "overlays" / "a.png")
    save(tmp_path / "earlier" / "overlays" / "a.png")
    (tmp_path / "earlier" / "records").mkdir()
    (tmp_path / "earlier" / "run.json").write_text("{}")
    found = list_images(tmp_path, recursive=True, exclude=tmp_path / "out")
    assert found.images == ("photos/a.png",)
    assert found.skipped == {folder.RESULTS: ("earlier",)}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX only")
def test_links_and_special_files_are_listed_or_named(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "a.png")
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "linked.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    (photos / "broken.png").symlink_to("nothing.png")
    (photos / "broken").symlink_to("nothing")
    (photos / "loop.png").symlink_to("loop.png")
    (photos / "folder").symlink_to(tmp_path)
    os.mkfifo(photos / "pipe.png")
    found = list_images(photos, recursive=True)
    assert found.images == ("broken.png", "linked.png", "loop.png")
    assert found.skipped == {
        folder.LINKED_FOLDER: ("folder",),
        folder.NO_FILE: ("pipe.png",),
        folder.BROKEN_LINK: ("broken",),
    }


def test_skipped_names_are_counted_and_a_few_are_shown() -> None:
    (line,) = describe_skipped({"hidden": tuple(f".{number}" for number in range(9))})
    assert line == "skipped, hidden: .0, .1, .2 and 6 more (9)"


def test_a_folder_that_is_none_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing does not exist"):
        list_images(tmp_path / "missing")
    with pytest.raises(InputError, match=r"a\.png is not a folder"):
        list_images(save(tmp_path / "a.png"))


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
