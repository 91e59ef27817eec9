"""What a failure means to a folder run, and what a kill leaves: seams are the predictor and the writer."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from refdiff.batch.folder_run import FolderRun
from refdiff.batch.prediction import Prediction
from refdiff.batch.result_store import ResultStore, open_result_store
from refdiff.batch.work_list import plan_work
from refdiff.contracts.atomic_io import hash_file, write_file
from refdiff.errors import BundleError, EngineError, InputError, MissingDependencyError
from tests.support.answers import answer, prediction

PHRASES = ("the mug", "the book")
BAD_WIDTH = 31
"""Width in px of the image on which the predictor fails."""


def predicted(image: NDArray[np.uint8], phrase: str, rows: int = 3) -> Prediction:
    mask = np.zeros(image.shape[:2], np.bool_)
    mask[:rows] = True
    return prediction(answer(phrase, mask, image=image), image)


def predictor(error: Exception | None = None, *, on: Callable[[int], bool] = BAD_WIDTH.__eq__, rows: int = 3):
    """Return a predictor that raises `error` on images of the given widths."""

    def predict(image: NDArray[np.uint8], phrases: Sequence[str]) -> Iterator[Prediction]:
        if error is not None and on(image.shape[1]):
            raise error
        for phrase in phrases:
            yield predicted(image, phrase, rows)

    return predict


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number, name in enumerate("abc"):
        Image.fromarray(np.full((20, 30 + number, 3), 60, np.uint8)).save(folder / f"{name}.png")
    return folder


def run(
    images: Path,
    predict: Any,
    *,
    write: Callable[[Path, bytes], None] = write_file,
    run_id: str = "1",
    **given: Any,
) -> dict[str, Any]:
    out = images.parent / "out"
    plan = plan_work(images, given.pop("phrases", PHRASES), output=out)
    with open_result_store(out, {"run": run_id}, overwrite=True) as opened:
        store = ResultStore(path=opened.path, run=opened.run, write=write)
        folder_run = FolderRun(store=store, predict=predict, report=lambda line: None)
        return folder_run.complete(plan, title="a test", coco=given.get("coco", False))


def lines(images: Path) -> list[dict[str, Any]]:
    text = (images.parent / "out" / "results.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (InputError("b.png: 8400 patches, expected at most 8192"), "b.png: 8400 patches"),
        (EngineError("graph unet failed"), "b.png: graph unet failed"),
        (MemoryError(), "b.png: unexpected MemoryError"),
        (ZeroDivisionError("division\nby zero"), "b.png: unexpected ZeroDivisionError: division by zero"),
        (OSError(5, "Input/output error"), "b.png cannot be read: Input/output error"),
    ],
)
def test_whatever_one_image_raises_is_recorded_and_the_run_goes_on(
    images: Path, error: Exception, reason: str
) -> None:
    outcome = run(images, predictor(error))
    assert (outcome["answered"], outcome["failed"]) == (4, 2)
    assert outcome["failures"]["b.png"].startswith(reason)
    failed = [line for line in lines(images) if "error" in line]
    assert [(line["image"], line["phrase"]) for line in failed] == [("b.png", phrase) for phrase in PHRASES]
    assert all(line["error"] == outcome["failures"]["b.png"] for line in failed)
    again = run(images, predictor())
    assert (again["answered"], again["resumed"], again["failed"]) == (2, 4, 0), (
        "the failed image is tried again"
    )


@pytest.mark.parametrize("error", [BundleError("changed"), MissingDependencyError("no GPU")])
def test_what_concerns_every_image_ends_the_run(images: Path, error: Exception) -> None:
    with pytest.raises(type(error)):
        run(images, predictor(error))


def test_a_device_that_also_fails_on_another_image_ends_the_run(images: Path) -> None:
    with pytest.raises(EngineError, match=r"device lost .*the same command resumes"):
        run(images, predictor(EngineError("device lost"), on=lambda width: True))


def test_an_engine_error_on_several_images_is_theirs_if_the_device_works(images: Path) -> None:
    outcome = run(images, predictor(EngineError("out of memory"), on=lambda width: width < 40))
    assert (outcome["answered"], outcome["failed"]) == (0, 6)


def test_a_failed_drawing_is_the_image_s_and_a_full_disk_ends_the_run(images: Path) -> None:
    def undrawable(image: NDArray[np.uint8], phrases: Sequence[str]) -> Iterator[Prediction]:
        return (
            predicted(image[:, :, :2] if image.shape[1] == BAD_WIDTH else image, each) for each in phrases
        )

    outcome = run(images, undrawable)
    assert list(outcome["failures"]) == ["b.png"]

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="No space left"):
        run(images, predictor(), write=full, run_id="2")


class Killed(BaseException):
    """Ends a run as a kill does: nothing of ours catches it."""


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", range(4))
def test_a_kill_at_any_file_leaves_no_record_of_other_files(images: Path, number: int, after: bool) -> None:
    run(images, predictor())
    out, written = images.parent / "out", []

    def write(path: Path, data: bytes) -> None:
        if len(written) == number and not after:
            raise Killed
        write_file(path, data)
        written.append(path)
        if len(written) > number:
            raise Killed

    with pytest.raises(Killed):
        run(images, predictor(rows=5), write=write, run_id="2")
    for path in (out / "records").glob("*.json"):
        record = json.loads(path.read_text())
        for kind, digest in record["sha256"].items():
            assert hash_file(out / record["files"][kind]) == digest
    assert not any((out / name).exists() for name in ("results.jsonl", "index.html"))
    run(images, predictor(rows=5), run_id="2")
    for line in lines(images):
        with Image.open(out / line["files"]["mask"]) as mask:
            assert np.count_nonzero(np.asarray(mask).any(axis=1)) == 5


def test_images_of_odd_names_lie_under_names_that_every_system_takes(images: Path) -> None:
    names = [".a.partial", "CON.png", "a.jpg", "dots...png", "写真.png", "x" * 200 + ".png", "<b>&.png"]
    for name in names:
        (images / name).write_bytes((images / "a.png").read_bytes())
    table = images.parent / "phrases.csv"
    table.write_text("image,phrase\n" + "".join(f"{name},the mug\n" for name in [*names, "a.png"]), "utf-8")
    for expected in (len(names) + 1, 0):
        assert run(images, predictor(), phrases=table)["answered"] == expected
    masks = [path.stem for path in (images.parent / "out" / "masks").iterdir()]
    assert len(masks) == len(names) + 1
    assert all(stem.isascii() and "." not in stem and len(stem) < 110 for stem in masks)
    assert not any(stem.upper() == "CON" or stem.startswith("-") for stem in masks)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no FIFOs")
def test_a_fifo_among_the_images_is_reported_without_waiting(images: Path) -> None:
    table = images.parent / "phrases.csv"
    table.write_text("image,phrase\na.png,the mug\nfifo.png,the mug\n", "utf-8")
    os.mkfifo(images / "fifo.png")
    outcome = run(images, predictor(), phrases=table)
    assert outcome["answered"] == 1
    assert "fifo.png" in outcome["failures"]


def test_missing_images_are_reported_and_images_without_a_line_are_named(
    images: Path,
) -> None:
    table = images.parent / "phrases.csv"
    table.write_text("image,phrase\na.png,the mug\nabsent.png,the mug\n../secret.png,the mug\n", "utf-8")
    outcome = run(images, predictor(), phrases=table)
    assert outcome["answered"] == 1
    assert outcome["failures"]["absent.png"].startswith("absent.png (phrases.csv, line 3) is no file in")
    assert outcome["failures"]["../secret.png"].startswith("../secret.png (phrases.csv, line 4) is outside")
    skipped = plan_work(images, table, output=images.parent / "out").skipped
    assert skipped == {f"no phrase in {table}": ("b.png", "c.png")}


def test_the_coco_file_is_read_by_pycocotools(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco_module = pytest.importorskip("pycocotools.coco")
    (images / "d.png").write_text("no image")
    run(images, predictor(), coco=True)
    coco = coco_module.COCO(str(images.parent / "out" / "coco.json"))
    capsys.readouterr()  # it prints what it does
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == ["a.png", "b.png", "c.png"]
    assert [each["name"] for each in coco.loadCats(coco.getCatIds())] == list(PHRASES)
    annotations = coco.loadAnns(coco.getAnnIds())
    assert len(annotations) == 6
    for each in annotations:
        mask = coco.annToMask(each)
        assert mask[:3].all()
        assert not mask[3:].any()
        assert each["area"] == mask.sum()
        assert each["bbox"] == [0, 0, mask.shape[1], 3]


def test_the_page_escapes_names_and_links_to_files_that_exist(images: Path) -> None:
    (images / "<img src=x onerror=alert(1)>#%.png").write_bytes((images / "a.png").read_bytes())
    run(images, predictor(), phrases=('the "red" <script>alert(1)</script> mug',))
    out = images.parent / "out"
    page = (out / "index.html").read_text("utf-8")
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert page.count("<article ") == 4
    linked = [part.split('"')[0] for part in page.split('src="')[1:]]
    assert len(linked) == 4
    assert all((out / path).is_file() for path in linked)
    assert "http" not in page, "nothing is loaded from elsewhere"
