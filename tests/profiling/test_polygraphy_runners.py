"""Graphs side by side: Polygraphy's runners run them, its comparator compares them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("polygraphy")

from refdiff.cli import main
from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.progress import silent
from refdiff.engines.factory import open_sessions
from refdiff.errors import EngineError, MissingDependencyError
from refdiff.profiling import compare_backends
from refdiff.profiling.tables import backends_section
from tests.support.damage import copy_of
from tests.support.fake_machine import install_gpu

runners = compare_backends.load_polygraphy(None)


class Doubling:
    """A session whose one output is twice its feed."""

    def __init__(self, off: float = 0.0) -> None:
        self.off, self.runs = off, 0

    def run(self, feeds, outputs=None):
        self.runs += 1
        return {"y": 2 * feeds["x"] + self.off}


def test_a_session_runs_as_one_of_polygraphys_runners_by_both_clocks() -> None:
    session, feeds = Doubling(), {"x": np.arange(4, dtype=np.float32)}
    ran = runners.run(runners.SessionRunner(session, "ours"), feeds, runs=3, warmup=2)
    assert session.runs == 5
    assert (len(ran.ms), len(ran.polygraphy_ms)) == (3, 3)
    assert all(theirs <= ours for ours, theirs in zip(ran.ms, ran.polygraphy_ms, strict=True))
    np.testing.assert_array_equal(ran.outputs["y"], [0, 2, 4, 6])


@pytest.mark.slow
def test_the_comparator_tells_how_far_apart_outputs_are_and_whether_that_is_allowed() -> None:
    first, second = {"y": np.zeros(4, np.float32)}, {"y": np.array([0, 0.5, 0, 0], np.float32)}
    (near,) = runners.compare(first, second, {"y": 0.6})
    assert (near.max_absolute, near.mean_absolute, near.within) == (0.5, 0.125, True)
    (far,) = runners.compare(first, second, {"y": 0.4})
    assert not far.within


@pytest.mark.slow
def test_outputs_of_another_shape_or_with_nan_are_outside() -> None:
    zeros = {"y": np.zeros((2, 2), np.float32)}
    (shaped,) = runners.compare(zeros, {"y": np.zeros(3, np.float32)}, {"y": 1.0})
    (broken,) = runners.compare(zeros, {"y": np.full((2, 2), np.nan, np.float32)}, {"y": 1.0})
    assert not shaped.within
    assert not broken.within


def test_outputs_that_are_not_contiguous_are_compared_too() -> None:
    wide = np.arange(12, dtype=np.float32).reshape(3, 4)
    (same,) = runners.compare({"y": wide[:, ::2]}, {"y": wide[:, ::2]}, {"y": 0.0})
    assert same.within


def test_a_runner_that_fails_is_an_engine_error(tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(b"nothing")
    with pytest.raises(EngineError):
        runners.run(runners.ort_runner(tmp_path / "g.onnx", "ort-cpu", 1), {}, runs=1, warmup=0)


def test_a_plan_of_the_other_tensorrt_is_refused_not_loaded_by_the_wrong_one(tmp_path: Path) -> None:
    speaks_rtx = bool(runners.config.USE_TENSORRT_RTX)
    with pytest.raises(EngineError, match="imported for the other TensorRT"):
        runners.trt_runner(tmp_path / "g.plan", "tensorrt" if speaks_rtx else "tensorrt-rtx")


@pytest.mark.slow
@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_polygraphy_speaks_the_flavour_it_is_loaded_for_and_the_environment_stays(flavour: str) -> None:
    code = (
        "import os; from pathlib import Path; from refdiff.profiling.compare_backends import load_polygraphy;"
        f" runners = load_polygraphy({flavour!r}); print(runners.config.USE_TENSORRT_RTX,"
        f" runners.trt_runner(Path('g.plan'), {flavour!r}).name, 'POLYGRAPHY_USE_TENSORRT_RTX' in os.environ)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "POLYGRAPHY_USE_TENSORRT_RTX"}
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    speaks = str(flavour == "tensorrt-rtx")
    assert process.stdout.splitlines()[-1] == f"{speaks} polygraphy {flavour} False"


def test_a_missing_polygraphy_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "refdiff.profiling.polygraphy_runners")
    for name in [name for name in sys.modules if name.split(".")[0] == "polygraphy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    with pytest.raises(MissingDependencyError, match=r"\[profile\]"):
        compare_backends.load_polygraphy(None)


def test_a_missing_polygraphy_is_reported_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    assert main(["profile", "mini", "--compare-backends"]) == 3
    streams = capsys.readouterr()
    assert "pip install '.[profile]'" in streams.err
    assert "cold start" not in streams.err


def test_every_graph_of_a_bundle_is_run_by_ours_and_by_polygraphys_runner(tiny_bundle: Path) -> None:
    bundle = find_bundle(tiny_bundle)
    sessions = open_sessions(bundle, backend="ort-cpu", threads=1)
    try:
        found = compare_backends.compare_backends(
            bundle, sessions, threads=1, runs=2, warmup=1, progress=silent
        )
    finally:
        sessions.close()
    assert [each.graph for each in found] == list(bundle.golden())
    for each in found:
        names = [timing.name for timing in each.timings]
        assert names[:2] == ["ort-cpu", "polygraphy ort-cpu"]
        for timing in each.timings:
            assert all(difference.within for difference in timing.from_golden)
            assert timing.ms.n == 2
        assert each.timings[0].from_first == ()
        assert all(difference.max_absolute == 0 for difference in each.timings[1].from_first)
        json.dumps(each.to_json(), allow_nan=False)
    (table,) = backends_section(found).tables
    assert {row[-1].text for row in table.cells} == {"ok"}


def test_what_cannot_run_here_is_reported_with_its_reason(
    tiny_bundle: Path, tmp_path: Path, monkeypatch
) -> None:
    install_gpu(monkeypatch, None)
    bundle = find_bundle(copy_of(tiny_bundle, tmp_path / "bundle"))
    plan = bundle.path / "engines/tensorrt-sm86/unet.plan"
    plan.parent.mkdir(parents=True)
    plan.touch()
    sessions = open_sessions(bundle, backend="ort-cpu", threads=1)
    try:
        found = compare_backends.compare_backends(
            bundle, sessions, threads=1, runs=1, warmup=0, progress=silent
        )
    finally:
        sessions.close()
    assert all("needs an NVIDIA GPU" in each.failures["polygraphy tensorrt"] for each in found)
