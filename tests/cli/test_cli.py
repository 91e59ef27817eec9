"""The command line as a person and a script see it: one document, one line, one exit code."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refdiff import __version__
from refdiff.cli import main
from refdiff.contracts.atomic_io import hash_file
from refdiff.miniature.scenes import render_scene

VERBS = (
    "demo",
    "fetch",
    "export",
    "convert",
    "calibrate",
    "audit",
    "bisect",
    "sensitivity",
    "build",
    "segment",
    "camera",
    "ros2",
    "bag",
    "serve",
    "triton",
    "check",
    "profile",
    "inspect",
    "doctor",
    "eval",
    "tune",
)


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image that is not square."""
    path = tmp_path_factory.mktemp("photo") / "table.png"
    Image.fromarray(render_scene(1_000_007).image).save(path)
    return path


def loaded_by(arguments: list[str]) -> set[str]:
    """The modules a fresh process holds after it ran the command line."""
    report = "import json, sys; print('\\n' + json.dumps(sorted(sys.modules)))"
    code = f"from refdiff.cli import main; main({arguments!r})\n{report}"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(process.stdout.splitlines()[-1]))


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(verb in said for verb in VERBS)


def test_help_needs_neither_numpy_nor_rich_nor_any_room_but_its_own() -> None:
    loaded = loaded_by(["--help"])
    assert loaded.isdisjoint(
        {"numpy", "PIL", "rich", "tokenizers", "torch", "onnxruntime", "refdiff.loading"}
    )


def test_the_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"refdiff {__version__}\n"


@pytest.mark.parametrize("arguments", [["segment", "mini"], ["no-such-verb"], ["inspect", "mini", "--bogus"]])
def test_misuse_is_one_line_and_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith("error: ")
    assert streams.err.count("\n") == 1


def test_misuse_with_json_is_a_document_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["segment", "mini", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 2


def test_a_refdiff_error_is_a_line_and_with_json_a_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "no/such/bundle", "--json"]) == 2
    streams = capsys.readouterr()
    error = json.loads(streams.out)["error"]
    assert error["kind"] == "BundleError"
    assert "no/such/bundle" in error["message"]
    assert streams.err == f"error: {error['message']}\n"


def test_inspect_prints_one_document_with_files_hashes_and_versions(
    mini_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(mini_bundle), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["model"] == "mini"
    assert document["files"]["unet.onnx"]["sha256"] == hash_file(mini_bundle / "unet.onnx")
    assert "torch" in document["versions"]
    assert document["size_bytes"] == sum(file["size_bytes"] for file in document["files"].values())


def test_inspect_s_table_names_every_graph(mini_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(mini_bundle)]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("sd_text", "unet_taps", "clip_image", "embedding 1×64×20×20"))


def test_segment_takes_a_box_and_points_in_the_place_of_a_phrase(
    mini_bundle: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = ["--box", "20,20,90,90", "--point", "50,50", "--point", "25,30:0"]
    command = ["segment", mini_bundle, photo, *prompt, "-o", tmp_path / "out.png", "--json"]
    assert main(list(map(str, command))) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["prompt"] == {
        "box": [20, 20, 90, 90],
        "points": [[50, 50], [25, 30]],
        "labels": [1, 0],
    }
    mask = np.asarray(Image.open(document["files"]["mask"])) == 255
    assert mask.sum() == document["area_px"]


def test_segment_writes_mask_overlay_and_json_and_says_the_same(
    mini_bundle: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.png"
    command = ["segment", mini_bundle, photo, "the left mug", "-o", output, "--variant", "official", "--json"]
    assert main(list(map(str, command))) == 0
    said = json.loads(capsys.readouterr().out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "out.overlay.png", "out.png"]
    written = json.loads((tmp_path / "out.json").read_text())
    assert {**written, "files": said["files"]} == said
    assert said["matched"] is True
    assert (said["reason"], said["confidence"]) == (None, None)
    assert any(caution.startswith("confidence: not calibrated") for caution in said["cautions"])
    assert set(said["scores"]) == {"hard", "soft", "generative", "place"}
    with Image.open(output) as opened:
        mask = np.asarray(opened)
    assert mask.shape == (176, 128)
    assert set(np.unique(mask)) <= {0, 255}
    assert np.count_nonzero(mask) == said["area_px"]


@pytest.mark.slow
def test_segment_s_table_calls_the_answer_the_best_candidate_and_lists_files_and_cautions(
    mini_bundle: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overlay = tmp_path / "o.png"
    command = ["segment", mini_bundle, photo, "mug", "--overlay", overlay, "--variant", "official"]
    assert main(list(map(str, command))) == 0
    streams = capsys.readouterr()
    said = streams.out
    assert re.search(r"^answer +best candidate *$", said, re.MULTILINE)
    assert re.search(r"^caution +confidence: not calibrated", said, re.MULTILINE)
    assert "128x176 px" in said
    assert str(overlay) in said
    assert re.search(r"^back-end ort-\w+: .*onnxruntime", streams.err, re.MULTILINE)
    assert [path.name for path in tmp_path.iterdir()] == ["o.png"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--memory", "8GB", "--backend", "ort-cpu"], 2, "memory '8GB' is for plans"),
        (["--backend", "abacus"], 2, "choose one of: auto, ort-cpu, ort-cuda, ort-tensorrt"),
    ],
)
def test_back_end_and_memory_that_do_not_go_together_are_misuse(
    mini_bundle: Path,
    photo: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    code: int,
    message: str,
) -> None:
    assert main(["segment", str(mini_bundle), str(photo), "mug", *options]) == code
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_an_existing_output_is_kept_unless_overwrite_is_said(
    mini_bundle: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out.json").write_text("mine")
    command = ["segment", str(mini_bundle), str(photo), "mug", "-o", str(tmp_path / "out.png")]
    assert main(command) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "out.json").read_text() == "mine"
    assert main([*command, "--overwrite"]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["phrase"] == "mug"


def test_the_picture_itself_is_never_an_output(
    mini_bundle: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = photo.read_bytes()
    assert main(["segment", str(mini_bundle), str(photo), "mug", "-o", str(photo), "--overwrite"]) == 2
    assert "the image itself" in capsys.readouterr().err
    assert photo.read_bytes() == before


@pytest.mark.slow
def test_check_passes_a_fresh_bundle_and_says_what_it_did_not_run(
    mini_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(mini_bundle), "--golden-only", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is True
    assert [each["name"] for each in report["golden"]][:2] == ["sd_text", "vae_encoder"]
    assert report["reference"] == {}
    assert report["reference_not_run"] == "left out on request"


def test_check_without_reference_weights_says_so_in_its_table(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(tiny_bundle)]) == 0
    assert "NOT RUN" in capsys.readouterr().out


def test_a_failed_gate_is_exit_code_1_with_the_report_and_one_line(
    drifted_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(drifted_bundle), "--golden-only", "--json"]) == 1
    streams = capsys.readouterr()
    report = json.loads(streams.out)
    assert report["passed"] is False
    assert [each["name"] for each in report["golden"] if not each["passed"]] == ["clip_text"]
    assert "1 of 22 gates failed: clip_text" in streams.err.splitlines()[-1]


@pytest.mark.slow
def test_the_demo_writes_its_pictures_and_can_be_run_again(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["demo", "--bundle", str(tiny_bundle), "-o", str(tmp_path / "out")]
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [*(f"scene-{number}.overlay.png" for number in range(1, 7)), "scenes", "sheet.png"]
    scenes = sorted(path.name for path in (tmp_path / "out" / "scenes").iterdir())
    assert scenes == [f"scene-{number}.png" for number in range(1, 7)]
    assert len(report["scenes"]) == 6
    assert all({"phrase", "iou", "scores", "score"} <= set(scene) for scene in report["scenes"])
    assert main([*command, "--mode", "gen"]) == 0
    said = capsys.readouterr().out
    assert "mean IoU" in said
    assert f"refdiff segment mini {tmp_path / 'out' / 'scenes' / 'scene-1.png'}" in said
    assert f'refdiff segment mini {tmp_path / "out" / "scenes"} "the mug" "the ball" -o answers' in said


@pytest.mark.slow
def test_the_demo_shows_both_built_in_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--mode", "gen", "-o", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [each["model"] for each in (report, *report["others"])] == ["mini", "mini-edge"]
    assert Path(report["others"][0]["sheet"]) == tmp_path / "mini-edge" / "sheet.png"
    assert all(Path(each["sheet"]).is_file() for each in (report, *report["others"]))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="signals as POSIX has them")
def test_a_terminated_demo_ends_with_the_signal_s_code_and_leaves_nothing(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "refdiff",
        "demo",
        "--bundle",
        str(tiny_bundle),
        "-o",
        str(tmp_path / "o"),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        process.stderr.readline()  # it is at work
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def drifted_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle whose record of one graph is not what the graph computes, with hashes that fit."""
    from tests.support.damage import copy_of, rehash

    bundle = copy_of(tiny_bundle, tmp_path / "drifted")
    with np.load(bundle / "golden.npz") as archive:
        arrays = dict(archive)
    arrays["clip_text/out/vector"] = arrays["clip_text/out/vector"] * 1.01
    np.savez_compressed(bundle / "golden.npz", **arrays)
    rehash(bundle, "golden.npz")
    return bundle
