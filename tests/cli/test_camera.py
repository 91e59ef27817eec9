"""The verb `camera`, from the command line to the files."""

import json
import signal
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest

from refdiff.cli import main

av = pytest.importorskip("av")
pytest.importorskip("cv2")

SMALL = ["--source", "scenes", "--size", "160x120", "--threads", "1"]
COMMAND = [sys.executable, "-m", "refdiff", "camera", "mini", "the red mug", *SMALL]


def run(*options, phrases=("the red mug",)):
    return main(["camera", "mini", *phrases, *map(str, options)])


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A run over every frame of a clip, with all that it can write."""
    folder = tmp_path_factory.mktemp("camera")
    options = ("--frames", "every", "--max-frames", "35", "--json")
    code = run(
        *SMALL,
        *options,
        "-o",
        folder / "out",
        "--every-mask",
        folder / "masks",
        phrases=("the mug", "the ball"),
    )
    return folder, code


@pytest.mark.slow
def test_a_run_writes_a_video_one_record_per_frame_masks_and_a_summary(recorded):
    folder, code = recorded
    assert code == 0
    records = [json.loads(line) for line in (folder / "out" / "results.jsonl").read_text().splitlines()]
    numbers = [each["frame"] for each in records]
    assert numbers == list(range(numbers[0], numbers[0] + 35))
    assert [target["phrase"] for target in records[0]["targets"]] == ["the mug", "the ball"]
    masks = sum(target["mask"] is not None for each in records for target in each["targets"])
    assert masks == len(list((folder / "masks").glob("*.png"))) > 0
    with av.open(str(folder / "out" / "overlay.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == 35
    summary = json.loads((folder / "out" / "summary.json").read_text())
    assert summary["results"] == 35
    assert summary["key_frames"] >= 2
    assert {values["dropped"] for values in summary["files"].values()} == {0}
    assert summary["error"] is None


@pytest.mark.slow
def test_every_mask_of_the_video_follows_its_key_frame(recorded):
    folder, _ = recorded
    records = [json.loads(line) for line in (folder / "out" / "results.jsonl").read_text().splitlines()]
    targets = [target for each in records for target in each["targets"] if target["mask"]]
    assert {"seen", "tracked"} <= {each["state"] for each in targets}
    assert all((each["age_ms"] == 0) == (each["state"] == "seen") for each in targets)
    assert max(each["age_ms"] for each in targets) <= 1000


@pytest.mark.slow
def test_what_was_recorded_is_not_replaced_unless_asked_for(recorded, capsys):
    folder, _ = recorded
    before = (folder / "out" / "results.jsonl").read_bytes()
    assert run(*SMALL, "-o", folder / "out") == 2
    assert run(*SMALL, "--every-mask", folder / "masks") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (folder / "out" / "results.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_source_that_cannot_be_opened_ends_with_3(tmp_path, capsys):
    (tmp_path / "video.mp4").write_bytes(b"no video")
    assert run("--source", tmp_path / "video.mp4") == 3
    assert "video.mp4" in capsys.readouterr().err


@pytest.mark.slow
def test_a_source_that_is_lost_for_good_ends_with_1_and_the_summary(tmp_path, capsys):
    script, unplugged = tmp_path / "camera.py", tmp_path / "unplugged"
    script.write_text(f"""
import sys
from contextlib import contextmanager
from pathlib import Path
if not Path({str(unplugged)!r}).exists():
    Path({str(unplugged)!r}).touch()
    sys.stdout.buffer.write(bytes(64 * 48 * 3) * 3)
sys.exit(1)
""")
    source = ["--source", f"cmd:{sys.executable} {script}", "--size", "64x48", "--reconnect-for", "0.01"]
    assert run(*source, "--json") == 1
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    assert summary["frames_captured"] == 3
    assert summary["error"] in captured.err.replace("\n", " ")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--source", "nothing.mp4"], "no file or folder"),
        ([*SMALL, "--key", "often"], "a number of seconds"),
        ([*SMALL, "--key", "-1"], "got key=-1"),
        ([*SMALL, "--frames", "some"], "newest, every"),
        ([*SMALL, "--level", "dense"], "auto, points"),
        (["--source", "scenes", "--size", "big"], "640x480"),
        ([*SMALL, "--variant", "tiny"], "unknown variant"),
        ([*SMALL, "--video", "/no/such/folder/out.mp4"], "not a folder"),
    ],
)
def test_an_option_that_cannot_be_used_is_named(options, says, capsys):
    assert run(*options) == 2
    assert says in capsys.readouterr().err


@contextmanager
def started(*options, **streams):
    """Run the command; it is killed if the block ends before it does."""
    process = subprocess.Popen(
        [*COMMAND, *options],
        stdout=subprocess.PIPE,
        text=True,
        # Background jobs of a shell inherit SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **streams,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_ctrl_c_ends_a_run_with_0_a_summary_and_whole_files(tmp_path):
    results = tmp_path / "results.jsonl"
    with started("--json", "--output", tmp_path, stdin=subprocess.PIPE) as process:
        process.stdin.write("status\nphrase: the ball\n")
        process.stdin.flush()
        wait_for_lines(process, results, 20)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    summary = json.loads(output)
    records = [json.loads(line) for line in results.read_text().splitlines()]
    assert len(records) + summary["files"][str(results)]["dropped"] == summary["results"]
    assert records[-1]["targets"][0]["phrase"] == "the ball"
    numbers = [each["frame"] for each in records]
    assert np.all(np.diff(numbers) > 0)
    with av.open(str(tmp_path / "overlay.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) > 0


@pytest.mark.slow
def test_a_full_disk_stops_a_recording_and_not_the_run(tmp_path):
    resource = pytest.importorskip("resource")
    if not hasattr(resource, "prlimit"):
        pytest.skip("this system cannot limit the files of another process")
    results = tmp_path / "results.jsonl"
    options = ("--frames", "every", "--max-frames", "60", "--results", results, "--json")
    with started(*options, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        wait_for_lines(process, results, 3)
        most = results.stat().st_size + 100
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (most, most))  # no file gets longer
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    summary = json.loads(output)
    assert summary["results"] == 60
    written = summary["files"][str(results)]
    assert (
        3 <= written["written"] == len([json.loads(line) for line in results.read_text().splitlines()]) < 60
    )
    assert written["written"] + written["dropped"] == 60
    assert "File too large" in errors


def wait_for_lines(process, path, count):
    while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < count):
        pass
