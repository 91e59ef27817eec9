"""CSV files of images and phrases: what is read, and what is refused."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from refdiff.data.folder import csv_dataset
from refdiff.errors import InputError
from refdiff.miniature.scenes import render_scene
from tests.support.fuzzing import fuzz


@pytest.fixture
def table(tmp_path: Path) -> tuple[Path, Path]:
    """Two images, the second of them with two phrases."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, seed in (("b.png", 300_001), ("a.png", 300_002)):
        Image.fromarray(render_scene(seed).image).save(folder / name)
    return folder, write_csv(
        tmp_path, ("b.png", "the mug"), ("a.png", "left  ball"), ("a.png", "a book, red")
    )


def write_csv(folder: Path, *rows: Sequence[str], header: Sequence[str] = ("image", "phrase")) -> Path:
    path = folder / "phrases.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


def test_rows_become_samples_in_their_order(table: tuple[Path, Path]) -> None:
    samples = list(csv_dataset(*table))
    assert [sample.phrase for sample in samples] == ["the mug", "left ball", "a book, red"]
    assert [sample.id for sample in samples[:2]] == [
        "phrases.csv, line 2: b.png",
        "phrases.csv, line 3: a.png",
    ]
    assert samples[0].read().ndim == 3
    assert samples[0].truth is None


def test_an_image_or_phrase_that_changed_gives_another_fingerprint(
    table: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, rows = table
    before = csv_dataset(folder, rows).fingerprint
    assert csv_dataset(folder, rows).fingerprint == before
    Image.fromarray(render_scene(300_003).image).save(folder / "b.png")
    changed = csv_dataset(folder, rows).fingerprint
    assert changed != before
    write_csv(tmp_path, ("b.png", "the mug"), ("a.png", "left ball"), ("a.png", "a book, blue"))
    assert csv_dataset(folder, rows).fingerprint != changed


def test_the_first_rows_can_be_selected(table: tuple[Path, Path]) -> None:
    assert [sample.phrase for sample in csv_dataset(*table, 2)] == ["the mug", "left ball"]
    for count in (0, 4):
        with pytest.raises(InputError, match="expected 1 to 3"):
            csv_dataset(*table, count)


def test_an_image_without_a_phrase_is_refused_on_request_only(
    table: tuple[Path, Path], tmp_path: Path
) -> None:
    rows = write_csv(tmp_path, ("a.png", "the mug"))
    assert len(csv_dataset(table[0], rows)) == 1
    with pytest.raises(InputError, match=r"^b\.png in .* has no phrase"):
        csv_dataset(table[0], rows, require_all_images=True)


def test_other_files_of_the_folder_need_no_phrase(table: tuple[Path, Path]) -> None:
    (table[0] / "LICENCE.txt").write_text("mine")
    assert len(csv_dataset(*table, require_all_images=True)) == 3


@pytest.mark.parametrize("header", [("phrase", "image"), ("file", "text"), ("image", "phrase", "x"), ()])
def test_another_header_is_refused(table: tuple[Path, Path], tmp_path: Path, header: Sequence[str]) -> None:
    with pytest.raises(InputError, match="with the header image,phrase"):
        csv_dataset(table[0], write_csv(tmp_path, ("a.png", "x"), header=header))


@pytest.mark.parametrize("data", [b"", b"image,phrase\na.png,\xff\xfe\n", b'image,phrase\na.png,"x', None])
def test_a_file_that_is_no_csv_is_an_input_error(
    table: tuple[Path, Path], tmp_path: Path, data: bytes | None
) -> None:
    path = tmp_path / "other.csv"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError, match=r"other\.csv .*expected a CSV file"):
        csv_dataset(table[0], path)


def test_a_byte_order_mark_and_blank_lines_are_ignored(table: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "excel.csv"
    path.write_bytes(b"\xef\xbb\xbfimage,phrase\r\n\r\na.png,mug\r\nb.png, ball \r\n")
    assert [sample.phrase for sample in csv_dataset(table[0], path)] == ["mug", "ball"]


def test_a_folder_without_images_is_an_input_error(table: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds no images"):
        csv_dataset(tmp_path / "empty", table[1])
    with pytest.raises(InputError, match="missing does not exist"):
        csv_dataset(tmp_path / "missing", table[1])
    with pytest.raises(InputError, match=r"phrases\.csv is not a folder"):
        csv_dataset(table[1], table[1])


def test_the_fingerprint_is_that_of_recordings_made_by_earlier_versions(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"not decoded for a fingerprint")
    rows = write_csv(tmp_path, ("a.png", "the mug"))
    assert csv_dataset(tmp_path, rows).fingerprint == {
        "kind": "pictures",
        "count": 1,
        "sha256": "9aabc31388320083cd202a50a949f236d3ebba24e110ddf7659392c3e7cff9c2",
    }


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no FIFOs")
def test_a_fifo_in_the_place_of_the_table_is_refused_without_waiting(
    table: tuple[Path, Path], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo.csv")
    with pytest.raises(InputError, match="not a regular file"):
        csv_dataset(table[0], tmp_path / "fifo.csv")


@pytest.mark.slow
def test_any_csv_file_is_read_or_refused(table: tuple[Path, Path]) -> None:
    folder, path = table

    def read(content: bytes) -> None:
        path.write_bytes(content)
        csv_dataset(folder, path)

    assert fuzz(read, [path.read_bytes()], seed=8, allowed=InputError).refused
