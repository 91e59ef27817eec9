"""macOS and Windows import the device's rooms and run the CPU path; simulated, on Linux."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from refdiff.cli import main
from refdiff.data.synthetic import DEMO_SEEDS
from refdiff.miniature.scenes import render_scene
from refdiff.runtime.image import png
from tests.support import other_system

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it takes Linux's own parts away")


def run_on(system: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "warn_default_encoding", "-W", "error::EncodingWarning"]
    return subprocess.run(
        [*command, other_system.__file__, system, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.mark.slow
@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_the_cpu_path_runs_without_what_the_system_lacks(tmp_path: Path, system: str) -> None:
    """Every module of the device's rooms is imported first; a folder run locks, writes and resumes."""
    pytest.importorskip("onnxruntime")
    images, answers = tmp_path / "images", tmp_path / "answers"
    images.mkdir()
    scene = images / "scene.png"
    scene.write_bytes(png(render_scene(DEMO_SEEDS[0]).image))
    here = tmp_path / "here.png"
    assert main(["segment", "mini", str(scene), "the mug", "-o", str(here)]) == 0
    there = tmp_path / "there.png"
    one = ["segment", "mini", str(scene), "the mug", "-o", str(there)]
    folder = ["segment", "mini", str(images), "the mug", "-o", str(answers)]
    process = run_on(system, *one, ";", *folder, ";", *folder)
    assert process.returncode == 0, process.stderr
    assert there.read_bytes() == here.read_bytes()
    assert (answers / "results.jsonl").is_file()


@pytest.mark.slow
def test_the_simulation_takes_away_what_windows_lacks() -> None:
    program = (
        "import sys; from tests.support.other_system import become; become('win32'); import importlib, os;"
        "print(sys.platform, hasattr(os, 'fork')); importlib.import_module('fcntl')"
    )
    process = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120, cwd=ROOT
    )
    assert process.stdout.split() == ["win32", "False"]
    assert "No module named 'fcntl'" in process.stderr
