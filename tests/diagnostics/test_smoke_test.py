"""Trying a back-end: what ran, and every reason why nothing did."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from refdiff.contracts.bundle import Bundle
from refdiff.contracts.inspection import find_bundle
from refdiff.diagnostics import smoke_test as trial
from refdiff.diagnostics.backends import SMOKE_TEST
from refdiff.diagnostics.smoke_test import graph_bytes, run_smoke_test
from refdiff.engines.trt import open as choice
from refdiff.engines.trt.device import Device
from refdiff.errors import MissingDependencyError
from tests.support.fake_builder import fake_flavour, fake_rtx
from tests.support.fake_cuda import Error
from tests.support.plan_bundle import GPU, GRAPHS, Machine, feeds_of, write_bundle, write_plan


def put_in_place(machine: Machine, monkeypatch: pytest.MonkeyPatch, device: Device | None = GPU) -> None:
    machine.put_in_place(monkeypatch)
    monkeypatch.setattr(choice, "find_device", lambda: device)
    monkeypatch.setattr(trial, "load_flavour", lambda name: machine.flavour)
    monkeypatch.setattr(trial, "find_device", lambda: device)


def recorded_bundle(tmp_path: Path) -> Bundle:
    """Its golden record is what the fake TensorRT gives."""
    machine, plain = Machine(), write_bundle(tmp_path / "plain")
    for name in GRAPHS:
        write_plan(plain, name)
    sessions = machine.sessions(plain)
    golden = {name: (feeds_of(name), sessions.open(name).run(feeds_of(name))) for name in GRAPHS}
    sessions.close()
    return write_bundle(tmp_path / "bundle", golden=golden)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    bundle = recorded_bundle(tmp_path)
    for name in GRAPHS:
        write_plan(bundle, name)
    return bundle


def test_a_bundle_with_plans_that_fit_runs(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    put_in_place(machine, monkeypatch)
    result = run_smoke_test(bundle, "tensorrt")
    assert (result.runs, result.can_build, result.refused) == (True, True, {})
    assert result.fitting == GRAPHS
    smallest = min(GRAPHS, key=lambda name: graph_bytes(bundle, name))
    assert result.said.startswith(f"ran {smallest}, 0e+00 off its record, memory: resident takes ")
    assert machine.cuda.is_clean


def test_a_bundle_without_plans_lacks_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_in_place(Machine(), monkeypatch)
    result = run_smoke_test(recorded_bundle(tmp_path), "tensorrt")
    assert (result.runs, result.can_build, result.fitting) == (False, True, ())
    assert "has no plan of sam_encoder for tensorrt; build it with: refdiff build" in result.said


def test_a_plan_that_was_changed_is_refused_by_its_hash(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = write_plan(bundle, "unet")
    plan.write_bytes(plan.read_bytes().replace(b"1000", b"1001"))
    machine = Machine()
    put_in_place(machine, monkeypatch)
    result = run_smoke_test(bundle, "tensorrt")
    assert (result.runs, result.fitting) == (False, ("sam_encoder", "sam_decoder", "sam_masks"))
    assert "is not the plan that was built: got sha256" in result.refused["unet"]
    assert machine.trt.loads == 0


def test_plans_of_another_gpu_are_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(GPU, name="Orin", compute_capability="8.7")
    put_in_place(Machine(), monkeypatch, other)
    result = run_smoke_test(bundle, "tensorrt")
    assert (result.runs, result.can_build) == (False, True)
    assert "was built for compute capability 8.6, this Orin is 8.7; build it again" in result.said


def test_a_gpu_that_tensorrt_rtx_does_not_know_cannot_even_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = recorded_bundle(tmp_path)
    put_in_place(Machine(), monkeypatch, replace(GPU, name="H200", compute_capability="9.0"))
    monkeypatch.setattr(trial, "load_flavour", lambda name: fake_flavour(fake_rtx()))
    result = run_smoke_test(bundle, "tensorrt-rtx")
    assert (result.runs, result.can_build) == (False, False)
    assert "does not know compute capability 9.0 (H200); use --backend ort-cuda" in result.said


def test_plans_are_looked_at_without_a_gpu(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    machine.cuda.fail["cudaGetDeviceCount"] = Error.cudaErrorNoDevice
    put_in_place(machine, monkeypatch, None)
    result = run_smoke_test(bundle, "tensorrt")
    assert (result.runs, result.can_build, result.fitting) == (False, False, GRAPHS)
    assert "cudaErrorNoDevice" in result.said


def test_a_package_that_is_missing_is_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise MissingDependencyError(f"{name} is not installed; install it")

    monkeypatch.setattr(trial, "load_flavour", missing)
    result = run_smoke_test(bundle, "tensorrt")
    assert (result.runs, result.said, result.fitting) == (False, "tensorrt is not installed; install it", ())


def test_too_little_device_memory_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = recorded_bundle(tmp_path)
    for name in GRAPHS:
        write_plan(bundle, name, activations=10**7)
    put_in_place(Machine(total=280 << 20), monkeypatch)
    result = run_smoke_test(bundle, "tensorrt")
    assert result.runs is False
    assert "the engines do not fit" in result.said


def test_values_that_are_not_finite_are_not_a_run(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    put_in_place(Machine(), monkeypatch)
    feeds = {
        name: np.full_like(array, np.nan)
        for name, array in feeds_of("unet").items()
        if array.dtype.kind == "f"
    }
    golden = {"unet": ({**feeds_of("unet"), **feeds}, bundle.golden()["unet"][1])}
    monkeypatch.setattr(Bundle, "golden", lambda self: golden)
    result = run_smoke_test(bundle, "tensorrt")
    assert result.runs is False
    assert "unet returned values that are not finite; see: refdiff check" in result.said


def test_a_bundle_without_a_record_cannot_be_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = recorded_bundle(tmp_path)
    for name in GRAPHS:
        write_plan(bundle, name)
    put_in_place(Machine(), monkeypatch)
    monkeypatch.setattr(Bundle, "golden", lambda self: {})
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
