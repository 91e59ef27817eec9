"""Trying a back-end: what ran, and every reason why nothing did."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from refdiff.contracts.bundle import Bundle, GoldenTensors
from refdiff.contracts.inspection import find_bundle
from refdiff.diagnostics.doctor import SMOKE_TEST
from refdiff.diagnostics.smoke_test import graph_bytes, run_smoke_test
from tests.support.fake_builder import fake_rtx
from tests.support.fake_cuda import Error
from tests.support.fake_machine import install_tensorrt
from tests.support.plan_bundle import GPU, GRAPHS, Machine, feeds_of, write_bundle, write_plan


def golden_record(folder: Path) -> GoldenTensors:
    """What the fake TensorRT computes."""
    machine, plain = Machine(), with_plans(write_bundle(folder))
    sessions = machine.sessions(plain)
    golden = {name: (feeds_of(name), sessions.open(name).run(feeds_of(name))) for name in GRAPHS}
    sessions.close()
    return golden


def recorded_bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "bundle", golden=golden_record(tmp_path / "plain"))


def with_plans(bundle: Bundle) -> Bundle:
    for name in GRAPHS:
        write_plan(bundle, name)
    return bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return with_plans(recorded_bundle(tmp_path))


def test_a_bundle_with_plans_that_fit_runs(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    machine.put_in_place(monkeypatch)
    result = run_smoke_test(bundle, "tensorrt")
    assert (result.runs, result.can_build, result.refused) == (True, True, {})
    assert result.fitting == GRAPHS
    smallest = min(GRAPHS, key=lambda name: graph_bytes(bundle, name))
    assert result.said.startswith(f"ran {smallest}, 0e+00 off its record, memory: resident takes ")
    assert machine.cuda.is_clean


def test_a_bundle_without_plans_lacks_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Machine().put_in_place(monkeypatch)
    result = run_smoke_test(recorded_bundle(tmp_path), "tensorrt")
    assert (result.runs, result.can_build, result.fitting) == (False, True, ())
    assert "has no plan of sam_encoder for tensorrt; build it with: refdiff build" in result.said


def test_a_plan_that_was_changed_is_refused_by_its_hash(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = write_plan(bundle, "unet")
    plan.write_bytes(plan.read_bytes().replace(b"1000", b"1001"))
    machine = Machine()
    machine.put_in_place(monkeypatch)
    result = run_smoke_test(bundle, "tensorrt")
    assert (result.runs, result.fitting) == (False, ("sam_encoder", "sam_decoder", "sam_masks"))
    assert "is not the plan that was built: got sha256" in result.refused["unet"]
    assert machine.trt.loads == 0


def test_plans_of_another_gpu_are_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(GPU, name="Orin", compute_capability="8.7")
    Machine().put_in_place(monkeypatch, other)
    result = run_smoke_test(bundle, "tensorrt")
    assert (result.runs, result.can_build) == (False, True)
    assert "was built for compute capability 8.6, this Orin is 8.7; build it again" in result.said


def test_a_gpu_that_tensorrt_rtx_does_not_know_cannot_even_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = recorded_bundle(tmp_path)
    Machine().put_in_place(monkeypatch, replace(GPU, name="H200", compute_capability="9.0"))
    install_tensorrt(monkeypatch, fake_rtx())
    result = run_smoke_test(bundle, "tensorrt-rtx")
    assert (result.runs, result.can_build) == (False, False)
    assert "does not know compute capability 9.0 (H200); use --backend ort-cuda" in result.said


def test_plans_are_looked_at_without_a_gpu(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    machine.cuda.fail["cudaGetDeviceCount"] = Error.cudaErrorNoDevice
    machine.put_in_place(monkeypatch, None)
    result = run_smoke_test(bundle, "tensorrt")
    assert (result.runs, result.can_build, result.fitting) == (False, False, GRAPHS)
    assert "cudaErrorNoDevice" in result.said


def test_a_package_that_is_missing_is_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    install_tensorrt(monkeypatch)
    result = run_smoke_test(bundle, "tensorrt")
    assert (result.runs, result.fitting) == (False, ())
    assert result.said.startswith("tensorrt needs the package tensorrt, which is not installed; ")


def test_too_little_device_memory_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = recorded_bundle(tmp_path)
    for name in GRAPHS:
        write_plan(bundle, name, activations=10**7)
    Machine(total=280 << 20).put_in_place(monkeypatch)
    result = run_smoke_test(bundle, "tensorrt")
    assert result.runs is False
    assert "the engines do not fit" in result.said


def test_values_that_are_not_finite_are_not_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feeds, results = golden_record(tmp_path / "plain")["unet"]
    broken = {
        name: np.full_like(array, np.nan) if array.dtype.kind == "f" else array
        for name, array in feeds.items()
    }
    bundle = with_plans(write_bundle(tmp_path / "bundle", golden={"unet": (broken, results)}))
    Machine().put_in_place(monkeypatch)
    result = run_smoke_test(bundle, "tensorrt")
    assert result.runs is False
    assert "unet returned values that are not finite; see: refdiff check" in result.said


def test_a_bundle_without_a_record_cannot_be_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = with_plans(write_bundle(tmp_path / "bundle", golden={}))
    Machine().put_in_place(monkeypatch)
    assert "has no recorded run" in run_smoke_test(bundle, "tensorrt").said


def test_onnx_runtime_runs_the_built_in_bundle_in_a_process_of_its_own() -> None:
    pytest.importorskip("onnxruntime")
    bundle = find_bundle("mini")
    command = [*SMOKE_TEST, str(bundle.path), "ort-cpu"]
    process = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    answer = json.loads(process.stdout.splitlines()[-1])
    assert answer["runs"] is True
    assert answer["said"].startswith("ran ")


def test_a_provider_that_is_not_there_is_the_reason() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has a CUDA provider")
    result = run_smoke_test(find_bundle("mini"), "ort-cuda")
    assert result.runs is False
    assert "needs CUDAExecutionProvider" in result.said
