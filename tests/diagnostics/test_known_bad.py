"""Known-bad combinations: each is seen where it is, and nowhere else."""

import datetime
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from refdiff.diagnostics.known_bad import KNOWN_BAD, check_known_bad
from tests.support.machines import (
    CPU_ONLY,
    FakeMachine,
    cpu_box,
    orin_jetpack6,
    rtx_workstation,
    thor_jetpack7,
)

Make = Callable[[Path], FakeMachine]


def seen(machine: FakeMachine) -> set[str]:
    return {each.name for each in check_known_bad(machine.facts()) if each.state == "warn"}


@pytest.mark.parametrize("make", [cpu_box, rtx_workstation, orin_jetpack6])
def test_a_machine_in_order_has_none(make: Make, tmp_path: Path) -> None:
    (line,) = check_known_bad(make(tmp_path).facts())
    assert line.state == "ok"
    assert line.found.startswith(f"none of the {len(KNOWN_BAD)}")


@pytest.mark.parametrize(
    ("make", "packages", "title"),
    [
        (cpu_box, {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.32.0"}, "two ONNX Runtimes"),
        (cpu_box, {"torch": "2.13.0+cpu", "torchvision": "0.28.0"}, "torch and torchvision"),
        (cpu_box, {"nvidia-modelopt": "0.39.0"}, "ModelOpt with refdiff"),
        (orin_jetpack6, {"tensorrt": "11.4.1"}, "TensorRT 11 on a Jetson"),
        (thor_jetpack7, {"tensorrt": "11.3.0"}, "TensorRT 11 on a Jetson"),
        (thor_jetpack7, {"tensorrt": "11.4.1"}, "TensorRT 11 on a Jetson"),
        (orin_jetpack6, {"tensorrt-cu12-libs": "10.8.0.43"}, "TensorRT from pip on a Jetson"),
        (orin_jetpack6, {"cuda-python": "13.0.1"}, "CUDA newer than the driver"),
    ],
)
def test_a_package_that_does_not_fit_is_seen(
    make: Make, packages: dict[str, str], title: str, tmp_path: Path
) -> None:
    machine = make(tmp_path)
    before = seen(machine)
    machine.packages = {**machine.packages, **packages}
    assert seen(machine) - before == {title}


@pytest.mark.parametrize(
    "packages",
    [
        {"torch": "2.15.0", "torchvision": "0.29.2"},
        {"torch": "2.7.0+cpu", "torchvision": "0.22.0+cpu"},
        {"torch": "2.7.0+cpu"},
    ],
)
def test_torch_and_torchvision_of_one_build_are_in_order(packages: dict[str, str], tmp_path: Path) -> None:
    machine = cpu_box(tmp_path)
    machine.packages = packages
    assert seen(machine) == set()


@pytest.mark.parametrize(
    ("capability", "title"),
    [
        ("7.5", "TensorRT-RTX on Turing"),
        ("7.0", "TensorRT-RTX on this GPU"),
        ("9.0", "TensorRT-RTX on this GPU"),
        ("10.0", "TensorRT-RTX on this GPU"),
        ("8.0", None),
        ("8.6", None),
        ("12.0", None),
    ],
)
def test_gpus_that_tensorrt_rtx_does_not_support_are_found(
    capability: str, title: str | None, tmp_path: Path
) -> None:
    machine = rtx_workstation(tmp_path)
    machine.devices = [replace(machine.devices[0], compute_capability=capability)]
    assert seen(machine) == ({title} if title else set())


def test_packages_for_cuda_13_do_not_go_with_a_driver_of_cuda_12(tmp_path: Path) -> None:
    machine = rtx_workstation(tmp_path)
    machine.devices = [replace(machine.devices[0], driver_cuda="12.8")]
    (line,) = check_known_bad(machine.facts())
    assert line.name == "CUDA newer than the driver"
    assert "cuda-bindings" in line.found
    assert "tensorrt-rtx-cu13-libs" in line.found
    assert "need CUDA 13, the driver knows 12.8 (NVIDIA/cutlass#2866" in line.found


@pytest.mark.parametrize("make", [orin_jetpack6, thor_jetpack7])
@pytest.mark.parametrize(
    ("jetpack", "tensorrt", "fits"),
    [
        ("7.2.2+b10", "11.4.1", True),
        ("7.2.2+b10", "11.4.1.12", True),
        ("7.3+b1", "11.5.0", True),
        ("7.2.2+b10", "11.4.0.106", False),
        ("7.2.1+b10", "11.4.1", False),
        ("6.2+b77", "11.4.1", False),
    ],
)
def test_the_sbsa_tensorrt_fits_a_jetson_from_11_4_1_and_jetpack_7_2_2(
    make: Make, jetpack: str, tensorrt: str, fits: bool, tmp_path: Path
) -> None:
    machine = make(tmp_path)
    machine.packages = {**machine.packages, "tensorrt": tensorrt}
    machine.answers["dpkg-query"] = jetpack
    assert ("TensorRT 11 on a Jetson" in seen(machine)) is not fits


def test_an_arm_board_with_the_registry_s_onnxruntime_is_reported(tmp_path: Path) -> None:
    assert seen(thor_jetpack7(tmp_path)) == {"ONNX Runtime on aarch64"}


def test_an_arm_server_without_a_gpu_is_not(tmp_path: Path) -> None:
    machine = cpu_box(tmp_path)
    machine.arch, machine.providers = "aarch64", CPU_ONLY
    assert seen(machine) == set()


def test_a_jetson_s_tensorrt_that_this_python_does_not_see_is_reported(tmp_path: Path) -> None:
    machine = orin_jetpack6(tmp_path)
    machine.packages = {"onnxruntime-gpu": "1.23.0"}
    (line,) = check_known_bad(machine.facts())
    assert "libnvinfer.so.10 is on this system, and this Python 3.10.12 has no tensorrt" in line.found
    assert "--system-site-packages" in line.cure


def test_every_entry_has_a_source_a_date_and_a_cure() -> None:
    assert len({entry.title for entry in KNOWN_BAD}) == len(KNOWN_BAD)
    for entry in KNOWN_BAD:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", entry.source) or entry.source.startswith("NVIDIA, ")
        assert datetime.date.fromisoformat(entry.dated) >= datetime.date(2020, 1, 1)
        assert entry.cure
