"""Batch runs into a folder: what is written, what is reused, and what stops a run."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from refdiff.batch import folder as batch_folder
from refdiff.batch import folder_run
from refdiff.batch.folder import FolderOptions
from refdiff.cli import main
from refdiff.contracts.atomic_io import hash_file
from refdiff.contracts.options import VARIANTS, BackendOptions, RunOptions
from refdiff.contracts.results import Candidates, Scores
from refdiff.errors import EngineError, InputError
from refdiff.miniature.scenes import render_scene
from refdiff.runtime.segmentation import Segmentation
from tests.support.answers import prediction

PHRASES = ["the red mug", "the book"]


class FakeSegmenter:
    """Returns a box as wide as the phrase is long, and records the phrases."""

    def __init__(self):
        self.options, self.encoded, self.asked, self.stop_at = VARIANTS["edge"], 0, [], None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def check_phrases(self, phrases):
        for phrase in phrases:
            if "#" in phrase:
                raise InputError(f"phrase {phrase!r}: too strange")

    def encode(self, image):
        self.encoded += 1
        return SimpleNamespace(pixels=image)

    def segment_each(self, encoded, phrases, *, batch_size):
        for phrase in phrases:
            if self.stop_at is not None and len(self.asked) == self.stop_at[0]:
                raise self.stop_at[1]
            self.asked.append(phrase)
            yield _result(encoded.pixels.shape[:2], phrase)


def _result(size, phrase):
    masks = np.zeros((2, *size), np.bool_)
    masks[1, :, : len(phrase)] = True
    values = np.array([0.25, 0.5], np.float32)
    boxes = np.array([[0, 0, 0, 0], [0, 0, len(phrase) - 1, size[0] - 1]])
    areas = masks.sum(axis=(1, 2))
    return Segmentation(
        phrase=phrase,
        root=phrase.split()[-1],
        mask=masks[1],
        index=1,
        score=0.5,
        scores=Scores(hard=values, soft=values, generative=values, place=values, total=values),
        heat=np.zeros(size, np.float32),
        candidates=Candidates(
            masks=masks, predicted_iou=values, areas_px=areas, boxes_xyxy_px=boxes, kept=values > 0
        ),
        image=np.zeros((*size, 3), np.uint8),
        cautions=("confidence: not calibrated",),
    )


@pytest.fixture
def fake(monkeypatch):
    segmenter = FakeSegmenter()
    monkeypatch.setattr(batch_folder, "segmenter_of", lambda *_: segmenter)
    return segmenter


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, name in enumerate(["a b.png", "a.jpg", "a.png", "é.png"]):
        pixels = np.full((20, 30 + number, 3), 60 * number, np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def _segment(pictures, phrases=PHRASES, **given):
    given.setdefault("output", pictures.parent / "out")
    return batch_folder.segment_many(
        "mini", pictures, phrases, backend=BackendOptions(name="ort-cpu"), **given
    )


def _results(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text("utf-8").splitlines()]


def _pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def _assert_complete(folder):
    """Check that records have their mask and overlay, and that there are no drafts."""
    for path in folder.rglob("*"):
        assert not path.name.endswith((".partial", ".replaced")), path
        if path.is_dir():
            continue
        if path.suffix == ".png":
            with Image.open(path) as picture:
                picture.load()
        if path.parent.name == "records":
            record = json.loads(path.read_text("utf-8"))
            for kind, digest in record["sha256"].items():
                assert hash_file(folder / record["files"][kind]) == digest


def test_every_image_and_phrase_gets_a_mask_an_overlay_a_record_and_a_line(fake, pictures):
    result = _segment(pictures)
    out = result.output
    assert (result.answered, result.resumed, result.matched, result.images, result.failures) == (
        8,
        0,
        8,
        4,
        {},
    )
    lines = _results(out)
    assert [(each["image"], each["phrase"]) for each in lines] == [
        (name, phrase) for name in ("a b.png", "a.jpg", "a.png", "é.png") for phrase in PHRASES
    ]
    for line in lines:
        mask = _pixels(out / line["files"]["mask"])
        assert mask[:, : len(line["phrase"])].all()
        assert not mask[:, len(line["phrase"]) :].any()
        assert _pixels(out / line["files"]["overlay"]).ndim == 3
        assert json.loads((out / line["files"]["record"]).read_text())["score"] == line["score"] == 0.5
        assert (line["cautions"], line["confidence"]) == (["confidence: not calibrated"], None)
    assert len({line["files"]["mask"] for line in lines}) == 8
    assert fake.encoded == 4
    _assert_complete(out)


@pytest.mark.slow
def test_phrases_with_similar_file_names_do_not_collide(fake, pictures):
    alike = ["the mug", "the mug!", "The Mug", "the mug " + "x" * 60, "the mug " + "x" * 61]
    assert _segment(pictures, alike).answered == 4 * 5
    lines = _results(pictures.parent / "out")
    assert len({line["files"]["mask"] for line in lines}) == 20


def test_equal_phrases_are_segmented_once(fake, pictures):
    assert _segment(pictures, ["the mug", " the  mug", "the mug"]).answered == 4


@pytest.mark.slow
def test_a_repeated_run_computes_nothing_and_reports_the_same(fake, pictures):
    _segment(pictures)
    out = pictures.parent / "out"
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    again = _segment(pictures)
    assert (again.answered, again.resumed, again.matched) == (0, 8, 8)
    assert fake.encoded == 4
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_an_added_phrase_costs_only_that_phrase(fake, pictures):
    _segment(pictures)
    fake.asked.clear()
    result = _segment(pictures, [*PHRASES, "the ball"])
    assert fake.asked == ["the ball"] * 4
    assert (result.answered, result.resumed) == (4, 8)
    assert len(_results(result.output)) == 12


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143), EngineError("unet failed")])
def test_an_interrupted_run_keeps_its_results_and_resumes(fake, pictures, error):
    fake.stop_at = (5, error)
    with pytest.raises(type(error)):
        _segment(pictures)
    out = pictures.parent / "out"
    _assert_complete(out)
    assert len(list(out.glob("records/*.json"))) == 5
    assert not (out / "results.jsonl").exists(), "it is of a whole run"
    assert not [t for t in threading.enumerate() if t.name.startswith(("read", "write"))]
    fake.stop_at = None
    result = _segment(pictures)
    assert (result.answered, result.resumed) == (3, 5)
    assert len(_results(out)) == 8


def test_an_engine_failure_names_the_image_and_the_output_folder(fake, pictures):
    fake.stop_at = (2, EngineError("graph unet failed"))
    with pytest.raises(EngineError, match=r"a\.png: graph unet failed .*the same command resumes"):
        _segment(pictures)


@pytest.mark.slow
def test_an_unusable_image_is_reported_and_stops_no_other(fake, pictures, capsys):
    (pictures / "b.jpg").write_text("no picture")
    result = _segment(pictures)
    assert (result.answered, result.matched, result.images) == (8, 8, 5)
    assert list(result.failures) == ["b.jpg"]
    lines = [each for each in _results(result.output) if each["image"] == "b.jpg"]
    assert [each["phrase"] for each in lines] == PHRASES
    assert all("b.jpg is not an image that can be read" in each["error"] for each in lines)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(pictures / "b.jpg")
    repaired = _segment(pictures)
    assert (repaired.answered, repaired.resumed, repaired.failures) == (2, 8, {})


def test_a_changed_image_is_segmented_again(fake, pictures):
    _segment(pictures)
    Image.fromarray(np.full((9, 40, 3), 7, np.uint8)).save(pictures / "a.png")
    result = _segment(pictures)
    assert (result.answered, result.resumed) == (2, 6)
    sizes = {line["image"]: line["size"] for line in _results(result.output)}
    assert sizes["a.png"] == {"width": 40, "height": 9}
    _assert_complete(result.output)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-9])])
@pytest.mark.parametrize("kind", ["mask", "overlay", "thumbnail", "record"])
def test_a_result_with_a_missing_or_changed_file_is_computed_again(fake, pictures, kind, damage):
    result = _segment(pictures)
    damage(result.output / _results(result.output)[3]["files"][kind])
    assert _segment(pictures).answered == 1
    assert _segment(pictures).answered == 0


@pytest.mark.slow
def test_drafts_of_a_killed_run_are_removed(fake, pictures):
    out = _segment(pictures).output
    left = [
        out / ".results.jsonl.0123456789ab.partial",
        out / "masks" / ".a--the-book.png.0123456789ab.partial",
    ]
    for path in left:
        path.write_text("half")
    _segment(pictures)
    assert not any(path.exists() for path in left)


@pytest.mark.slow
def test_results_of_other_settings_are_not_mixed_in(fake, pictures):
    _segment(pictures)
    fake.options = VARIANTS["official"]
    with pytest.raises(InputError, match=r"was written with variant 'edge', this run has 'official'"):
        _segment(pictures)
    replaced = _segment(pictures, folder=FolderOptions(overwrite=True))
    assert (replaced.answered, replaced.resumed) == (8, 0)
    assert {line["variant"] for line in _results(replaced.output)} == {"official"}


def test_a_folder_with_other_content_is_not_modified(fake, pictures):
    with pytest.raises(InputError, match=r"is not an output folder: it contains 'a b\.png'"):
        _segment(pictures, output=pictures)
    assert sorted(path.name for path in pictures.iterdir()) == ["a b.png", "a.jpg", "a.png", "é.png"]
    with pytest.raises(InputError, match="is a file, expected a folder"):
        _segment(pictures, output=pictures / "a.jpg")


@pytest.mark.slow
def test_a_second_run_into_a_folder_is_refused_while_the_first_writes(fake, pictures):
    out = _segment(pictures).output
    with (out / ".lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another run is writing to"):
            _segment(pictures)
    assert _segment(pictures).resumed == 8


def test_a_phrase_that_cannot_be_used_is_refused_before_any_work(fake, pictures):
    for phrases in (["the mug", "#"], ["the mug", "the #"], []):
        with pytest.raises(InputError, match="phrase"):
            _segment(pictures, phrases)
    assert fake.encoded == 0
    assert not (pictures.parent / "out").exists()


def test_a_csv_file_pairs_images_and_phrases(fake, pictures):
    table = pictures.parent / "phrases.csv"
    table.write_text("image,phrase\na.png,the mug\na b.png,the book\na.png,the ball\n", encoding="utf-8")
    result = _segment(pictures, table)
    asked = [(line["image"], line["phrase"]) for line in _results(result.output)]
    assert asked == [("a.png", "the mug"), ("a.png", "the ball"), ("a b.png", "the book")]
    table.write_text("image,phrase\nabsent.png,the mug\n")
    with pytest.raises(InputError, match=r"names absent\.png"):
        _segment(pictures, table)
    table.write_text("image,phrase\na.png,#\n")
    with pytest.raises(InputError, match=r"phrases\.csv, line 2: a\.png: got phrase '#'"):
        _segment(pictures, table)


def test_predictions_on_one_image_are_returned_if_no_folder_is_named(fake, pictures):
    result = _segment(pictures / "a.jpg", output=None)
    assert [each.result.phrase for each in result.predictions] == PHRASES
    document = result.to_json()
    assert [each["phrase"] for each in document["answers"]] == PHRASES
    assert document["output"] is None
    json.dumps(document, allow_nan=False)


def test_a_folder_needs_an_output_folder(fake, pictures):
    with pytest.raises(InputError, match="no output folder"):
        _segment(pictures, output=None)
    with pytest.raises(InputError, match="expected a folder for many results"):
        _segment(pictures, output=pictures.parent / "out.png")


def test_a_single_string_is_not_a_sequence_of_phrases(fake, pictures):
    with pytest.raises(InputError, match="put it into a list"):
        _segment(pictures, "the mug")


def test_a_prediction_that_waits_to_be_written_holds_no_heatmap_and_no_other_masks():
    whole = prediction(_result((20, 30), "the mug"), np.zeros((20, 30, 3), np.uint8))
    light = folder_run._without_intermediates(whole)
    assert light.to_json() == whole.to_json()
    assert light.result.heat is None
    assert light.result.candidates.masks.nbytes == 0
    assert light.result.mask.base is None


def test_the_command_exits_with_1_and_names_the_image_that_failed(fake, pictures, capsys):
    out = pictures.parent / "out"
    command = ["segment", "mini", str(pictures), *PHRASES, "-o", str(out)]
    assert main([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["answered"], document["output"]) == (8, str(out))
    (pictures / "b.jpg").write_text("no picture")
    assert main(command) == 1
    streams = capsys.readouterr()
    summary = "10 phrases on 5 images: 0 answered, 8 resumed from an earlier run, 2 failed"
    assert summary in " ".join(streams.out.split())
    assert streams.err.splitlines()[-1].startswith("error: b.jpg is not an image")


def test_several_phrases_on_one_image_give_a_table_with_a_row_each(fake, pictures, capsys):
    assert main(["segment", "mini", str(pictures / "a.jpg"), *PHRASES]) == 0
    shown = capsys.readouterr().out
    assert all(phrase in shown for phrase in PHRASES)
    assert "2 phrases on 1 image: 2 answered" in shown


@pytest.mark.parametrize(
    ("extra", "complaint"),
    [
        (["--focus", "mug"], "--focus is for one image and one phrase"),
        (["--overlay", "x.png"], "--overlay is for one image and one phrase"),
        (["--phrases", "phrases.csv"], "got phrases and --phrases"),
    ],
)
def test_options_of_a_single_prediction_are_refused_for_many(fake, pictures, extra, complaint, capsys):
    assert main(["segment", "mini", str(pictures), *PHRASES, *extra]) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="signals as POSIX has them")
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_leaves_complete_results_and_resumes(tmp_path: Path, sent: signal.Signals):
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    pictures.mkdir()
    for number in range(8):
        Image.fromarray(render_scene(1_000_007 + number).image).save(pictures / f"{number}.png")
    command = ["segment", "mini", str(pictures), *PHRASES, "--mode", "gen", "-o", str(out)]
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from refdiff.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, *command], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        while not list(out.glob("records/*.json")):
            assert process.stderr.readline(), "it ended before it answered"
        process.send_signal(sent)
        process.communicate(timeout=120)
    expected = {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130}
    assert process.returncode == expected[sent]
    if sent != signal.SIGKILL:
        _assert_complete(out)
    recorded = len(list(out.glob("records/*.json")))
    result = batch_folder.segment_many("mini", pictures, PHRASES, options=RunOptions(mode="gen"), output=out)
    assert result.resumed == recorded > 0
    assert result.answered + result.resumed == len(_results(out)) == 16
    _assert_complete(out)


def test_a_batch_size_is_refused_for_one_phrase(pictures, capsys):
    command = ["segment", "mini", str(pictures / "a.jpg"), PHRASES[0], "--batch-size", "4"]
    assert main(command) == 2
    assert "--batch-size is for several phrases; leave it out" in capsys.readouterr().err


def test_results_of_another_refdiff_version_are_not_mixed_in(fake, pictures):
    _segment(pictures)
    run = pictures.parent / "out" / "run.json"
    settings = json.loads(run.read_text("utf-8"))
    run.write_text(json.dumps({**settings, "refdiff": "0.0.1"}), "utf-8")
    with pytest.raises(InputError, match="--overwrite"):
        _segment(pictures)
