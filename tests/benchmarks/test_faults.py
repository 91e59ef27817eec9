"""benchmarks/faults.py: a sample of its attacks, and that it notices what it should."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="attacks are made in forks")

ROOT = Path(__file__).parents[2]


@pytest.fixture
def ground():
    return importlib.import_module("benchmarks.fault_ground")


@pytest.mark.slow
def test_a_sample_of_the_attacks_is_survived() -> None:
    command = [sys.executable, "-m", "benchmarks.faults", "--sample"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert " 0 lost" in ended.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "changes",
    [
        {"code": 70},
        {"code": -11},
        {"err": "error: one\nerror: two\n"},
        {"err": "Traceback (most recent call last)\n"},
        {"err": "error: \x1b[31m\n"},
        {"err": ""},
        {"touched": ("open /etc/evil",)},
    ],
)
def test_a_bad_end_is_lost(ground, changes) -> None:
    sound = {"code": 2, "out": "", "err": "error: damaged\n"}
    assert ground.fault_of(ground.Ending(**sound), codes=(2,)) is None
    assert ground.fault_of(ground.Ending(**{**sound, **changes}), codes=(2,)) is not None


def test_another_answer_is_lost(ground) -> None:
    answer = {"matched": True, "mask": {"counts": "a"}, "score": 0.5, "box_xyxy_px": [0, 0, 1, 1]}
    text = json.dumps(answer)
    ending = ground.Ending(code=0, out=text, err="")
    assert ground.refused_or_same(ending, answer) is None
    assert ground.refused_or_same(ending, {**answer, "score": 0.6}) is not None


def test_a_class_is_counted_with_its_lost_cases() -> None:
    summary = importlib.import_module("benchmarks.faults").summary
    assert summary([("a", None), ("b", "it hung")]) == {
        "tried": 2,
        "survived": 1,
        "lost": 1,
        "lost_cases": [{"what": "b", "how": "it hung"}],
    }
