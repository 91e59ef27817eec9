"""Detect combinations that are known not to work, each with its source and that source's date.

In: facts. Out: lines. An entry is removed when its source says that it is fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from refdiff.contracts.optional import install_line
from refdiff.diagnostics.facts import Diagnosis, Machine, version_numbers
from refdiff.diagnostics.packages import ONNX_RUNTIMES, SBSA_JETPACK, TENSORRTS, tensorrt_version

_line = partial(Diagnosis, "known-bad combinations")


@dataclass(frozen=True, kw_only=True)
class KnownBad:
    """One combination."""

    title: str
    seen: Callable[[Machine], str | None]
    """Returns what of it was found; None if it is not present."""
    cure: str
    source: str
    """An issue as owner/repository#number, or a vendor's page."""
    dated: str
    """Date of the issue or of the comment that says so; for a page, the day it was read."""


def check_known_bad(machine: Machine) -> list[Diagnosis]:
    """Return a warning for each combination that was found, or one line that there is none."""
    seen = [(entry, found) for entry in KNOWN_BAD if (found := entry.seen(machine)) is not None]
    if not seen:
        none = f"none of the {len(KNOWN_BAD)} that are listed ({max(entry.dated for entry in KNOWN_BAD)})"
        return [_line("all", "ok", none)]
    return [
        _line(entry.title, "warn", f"{found} ({entry.source}, {entry.dated})", entry.cure)
        for entry, found in seen
    ]


def _several_onnxruntimes(machine: Machine) -> str | None:
    here = [f"{name} {machine.packages[name]}" for name in ONNX_RUNTIMES if name in machine.packages]
    if len(here) < 2:
        return None
    return f"{' and '.join(here)} bring the same module, and with both CUDA is not found"


def _onnxruntime_on_arm(machine: Machine) -> str | None:
    on_gpu = machine.gpus.devices or machine.jetson
    runtime = machine.onnxruntime
    if machine.host.arch != "aarch64" or not on_gpu or runtime is None or runtime.fault:
        return None
    if "CUDAExecutionProvider" in runtime.providers:
        return None
    return "this onnxruntime runs on the CPU alone, and the registry has no onnxruntime-gpu for aarch64"


def _torch_pair(machine: Machine) -> str | None:
    torch, vision = machine.packages.get("torch"), machine.packages.get("torchvision")
    if torch is None or vision is None or _build(torch) == _build(vision):
        return None
    return f"torch {torch} and torchvision {vision} are of different builds: torchvision::nms does not exist"


def _tensorrt_11_on_jetson(machine: Machine) -> str | None:
    version, jetson = tensorrt_version(machine, "tensorrt"), machine.jetson
    if version is None or jetson is None or version_numbers(version) < (11, 2):
        return None
    if version_numbers(version) < (11, 4, 1):
        return f"TensorRT {version} on a Jetson"
    jetpack = jetson.jetpack
    if jetpack is None or version_numbers(jetpack) >= SBSA_JETPACK:
        return None
    return f"TensorRT {version} with JetPack {jetpack}"


_WHEELS = ("tensorrt-cu12", "tensorrt-cu13", "tensorrt-cu12-libs", "tensorrt-cu13-libs")


def _tensorrt_wheel_on_jetson(machine: Machine) -> str | None:
    jetpack = None if machine.jetson is None else machine.jetson.jetpack
    wheels = [name for name in _WHEELS if name in machine.packages]
    if jetpack is None or version_numbers(jetpack) >= (7,) or not wheels:
        return None
    return f"{wheels[0]} {machine.packages[wheels[0]]} from pip, with JetPack {jetpack}"


def _tensorrt_not_seen(machine: Machine) -> str | None:
    """Detect TensorRT's library on the system without its module in this Python."""
    majors = machine.cuda.found.get("nvinfer")
    if not majors or any(tensorrt_version(machine, flavour) for flavour in TENSORRTS):
        return None
    return (
        f"libnvinfer.so.{majors[-1]} is on this system, and this Python {machine.host.python} has no tensorrt"
    )


def _rtx_unknown_gpu(machine: Machine) -> str | None:
    gpu = machine.gpus.first
    version = tensorrt_version(machine, "tensorrt-rtx")
    if version is None or gpu is None or gpu.compute_capability == "7.5":
        return None
    if gpu.compute_capability.split(".")[0] in ("8", "12"):
        return None
    return f"TensorRT-RTX {version} refuses compute capability {gpu.compute_capability} ({gpu.name})"


def _rtx_on_turing(machine: Machine) -> str | None:
    gpu = machine.gpus.first
    version = tensorrt_version(machine, "tensorrt-rtx")
    if version is None or gpu is None or gpu.compute_capability != "7.5":
        return None
    return f"TensorRT-RTX {version} on {gpu.name}: float32 products of dynamic shapes come out as zeros"


def _cuda_newer_than_driver(machine: Machine) -> str | None:
    gpu = machine.gpus.first
    if gpu is None:
        return None
    driver = version_numbers(gpu.driver_cuda)[0]
    newer = [name for name in machine.packages if (_cuda_of(machine, name) or 0) > driver]
    if not newer:
        return None
    return f"{', '.join(newer)} need CUDA {_cuda_of(machine, newer[0])}, the driver knows {gpu.driver_cuda}"


def _modelopt(machine: Machine) -> str | None:
    version = machine.packages.get("nvidia-modelopt")
    if version is None:
        return None
    return f"nvidia-modelopt {version} pins onnx and onnxruntime-gpu to other versions"


def _build(version: str) -> str:
    """Return the part after +, such as "cpu" or "cu126"; empty for the registry's build."""
    return version.partition("+")[2]


def _cuda_of(machine: Machine, package: str) -> int | None:
    """Return the major version of CUDA that a package is for."""
    if package in ("cuda-bindings", "cuda-python"):
        return version_numbers(machine.packages[package])[0]
    known = (number for number in (12, 13) if f"-cu{number}" in package)
    return next(known, None) if package.startswith("tensorrt") else None


KNOWN_BAD = (
    KnownBad(
        title="two ONNX Runtimes",
        seen=_several_onnxruntimes,
        cure="pip uninstall every onnxruntime*, then install one extra: gpu or cpu",
        source="microsoft/onnxruntime#26996",
        dated="2026-01-13",
    ),
    KnownBad(
        title="ONNX Runtime on aarch64",
        seen=_onnxruntime_on_arm,
        cure="install the onnxruntime-gpu that NVIDIA publishes for this JetPack, or refdiff build plans",
        source="microsoft/onnxruntime#20503",
        dated="2024-04-29",
    ),
    KnownBad(
        title="torch and torchvision",
        seen=_torch_pair,
        cure="install both from the same index, in one command (export needs them, running does not)",
        source="pytorch/vision#9085",
        dated="2025-05-26",
    ),
    KnownBad(
        title="TensorRT 11 on a Jetson",
        seen=_tensorrt_11_on_jetson,
        cure="use the TensorRT that JetPack brings; JetPack 7.2.2 and later take the SBSA package of 11.4.1",
        source="NVIDIA, TensorRT 11.4.1, Migrating from 10.x to 11.x on Jetson",
        dated="2026-11-30",
    ),
    KnownBad(
        title="TensorRT from pip on a Jetson",
        seen=_tensorrt_wheel_on_jetson,
        cure="pip uninstall it, and use JetPack's: an environment made with --system-site-packages sees it",
        source="NVIDIA/TensorRT#4176",
        dated="2025-01-24",
    ),
    KnownBad(
        title="TensorRT out of sight",
        seen=_tensorrt_not_seen,
        cure="apt install python3-libnvinfer, and make the environment with the system's own Python and "
        "--system-site-packages",
        source="pytorch/TensorRT#1233",
        dated="2022-08-09",
    ),
    KnownBad(
        title="TensorRT-RTX on this GPU",
        seen=_rtx_unknown_gpu,
        cure=f"use --backend ort-cuda, or TensorRT: {install_line('trt')}; it knows 7.5, 8.x and 12.x",
        source="NVIDIA, TensorRT-RTX 1.5 Support Matrix, and docs/engines.md",
        dated="2026-11-27",
    ),
    KnownBad(
        title="TensorRT-RTX on Turing",
        seen=_rtx_on_turing,
        cure=f"use --backend ort-cuda, or TensorRT: {install_line('trt')}",
        source="pytorch/TensorRT#4643",
        dated="2026-08-29",
    ),
    KnownBad(
        title="CUDA newer than the driver",
        seen=_cuda_newer_than_driver,
        cure="update the driver (CUDA 13 needs 580 or later), or on an older one, a Jetson's too: "
        "pip install 'cuda-python<13', and for TensorRT-RTX the packages with cu12 in their names",
        source="NVIDIA/cutlass#2866",
        dated="2025-12-16",
    ),
    KnownBad(
        title="ModelOpt with refdiff",
        seen=_modelopt,
        cure="use a separate environment for it; refdiff quantizes without it",
        source="NVIDIA/Model-Optimizer#103",
        dated="2024-11-07",
    ),
)
