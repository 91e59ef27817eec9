"""Check the facts of a machine and of its Python packages, back-ends excluded: one line each."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from refdiff.contracts.optional import install_line
from refdiff.diagnostics.facts import (
    Diagnosis,
    Disk,
    Extra,
    Jetson,
    Machine,
    format_size,
    version_numbers,
)
from refdiff.diagnostics.packages import ONNX_RUNTIMES, ORT_PLUGINS, SBSA_JETPACK, TENSORRTS, tensorrt_version
from refdiff.engines.trt.flavour import INSTALL

_line = partial(Diagnosis, "machine")
_package_line = partial(Diagnosis, "packages")

_TESTED_PYTHONS = ((3, 10), (3, 13))
_MIN_TENSORRT = (10, 3)
_MIN_DISK_BYTES = 10**9
"""Free space below which plans of a real model do not fit."""


def check_machine(machine: Machine) -> list[Diagnosis]:
    """Check system, GPU, driver, CUDA, Jetson, memory and disks."""
    return [
        *_system(machine),
        *_gpus(machine),
        *([] if machine.jetson is None else _jetson(machine.jetson)),
        *_memory(machine),
        *(_disk(disk) for disk in machine.disks),
    ]


def _system(machine: Machine) -> Iterator[Diagnosis]:
    host = machine.host
    yield _line("system", "ok", f"{host.system}, Linux {host.kernel}, {host.arch}")
    yield _line("processor", "ok", f"{host.processor}, {host.cores} cores")
    yield _python(host.python)


def _python(version: str) -> Diagnosis:
    oldest, newest = _TESTED_PYTHONS
    if oldest <= version_numbers(version)[:2] <= newest:
        return _line("Python", "ok", version)
    return _line("Python", "warn", f"{version}, tested are 3.10 to 3.13", "use one of those")


def _gpus(machine: Machine) -> Iterator[Diagnosis]:
    gpus, first = machine.gpus, machine.gpus.first
    if first is None:
        yield _no_gpu(machine)
    for number, gpu in enumerate(gpus.devices):
        used = "" if len(gpus.devices) == 1 else ", the one that is used" if number == 0 else ", not used"
        found = (
            f"{gpu.name}, compute capability {gpu.compute_capability}, {format_size(gpu.memory_bytes)}{used}"
        )
        yield _line("GPU", "ok", found)
    if first is not None or gpus.driver is not None:
        knows = f", knows CUDA {first.driver_cuda}" if first is not None else ""
        yield _line("driver", "ok", f"{gpus.driver or 'version unknown'}{knows}")
    yield _line("CUDA libraries", "ok", _cuda_libraries(machine))


def _no_gpu(machine: Machine) -> Diagnosis:
    listed = machine.gpus.listed
    if listed:
        return _line(
            "GPU",
            "warn",
            f"nvidia-smi shows {', '.join(listed)}, CUDA does not: {machine.gpus.why_none}",
            "look at CUDA_VISIBLE_DEVICES, and restart after an update of the driver",
        )
    return _line(
        "GPU",
        "warn",
        f"none: {machine.gpus.why_none}",
        "plans, ort-cuda, ort-rtx and ort-tensorrt need an NVIDIA GPU and its driver (in a container: "
        "--gpus all, on a Jetson --runtime nvidia); ort-cpu needs neither",
    )


def _cuda_libraries(machine: Machine) -> str:
    """List the system's and pip's libraries, since a program may load either."""
    found = [f"{name} {', '.join(majors)}" for name, majors in machine.cuda.found.items()]
    toolkit = f"toolkit {machine.cuda.toolkit}, " if machine.cuda.toolkit else ""
    by_pip = [
        f"{name} {version}"
        for name, version in machine.packages.items()
        if name.startswith(("nvidia-cu", "cuda-"))
    ]
    return f"system: {toolkit}{'; '.join(found) or 'none'}   pip: {', '.join(by_pip) or 'none'}"


def _jetson(jetson: Jetson) -> Iterator[Diagnosis]:
    yield _line("Jetson", "ok", jetson.model)
    yield _jetpack(jetson)
    yield _power(jetson)
    if jetson.clocks:
        ranges = ", ".join(
            f"{clock.name} {clock.most} MHz"
            if clock.least == clock.most
            else f"{clock.name} {clock.least} to {clock.most} MHz"
            for clock in jetson.clocks
        )
        moving = any(clock.least != clock.most for clock in jetson.clocks)
        cure = "to measure, hold them at their highest: sudo jetson_clocks" if moving else ""
        yield _line("clocks", "ok", ranges, cure)


def _jetpack(jetson: Jetson) -> Diagnosis:
    found = f"{jetson.jetpack or 'unknown'}, Jetson Linux {jetson.l4t or 'unknown'}"
    version, oldest = (jetson.jetpack, (6,)) if jetson.jetpack else (jetson.l4t, (36,))
    if version and version_numbers(version) < oldest:
        return _line("JetPack", "warn", found, "its TensorRT is older than 10.3; update to JetPack 6 or 7")
    return _line("JetPack", "ok", found)


def _power(jetson: Jetson) -> Diagnosis:
    if jetson.power_mode is None:
        found = f"not known: {jetson.power_fault}"
        return _line("power mode", "warn", found, "sudo nvpmodel -q, outside of a container")
    fastest = _fastest(jetson)
    if fastest is None or jetson.power_mode.startswith("MAXN"):
        return _line("power mode", "ok", jetson.power_mode)
    return _line(
        "power mode",
        "warn",
        f"{jetson.power_mode}: slower than the module can be",
        f"if power and cooling allow it: sudo nvpmodel -m {jetson.power_modes[fastest]} ({fastest})",
    )


def _fastest(jetson: Jetson) -> str | None:
    return max((name for name in jetson.power_modes if name.startswith("MAXN")), default=None, key=len)


def _memory(machine: Machine) -> Iterator[Diagnosis]:
    host = machine.host
    yield _line("memory", "ok", f"{format_size(host.memory_free)} free of {format_size(host.memory_total)}")
    gpu = machine.gpus.first
    if gpu is not None:
        found = f"{format_size(machine.gpus.memory_free)} free of {format_size(gpu.memory_bytes)}"
        shared = ", shared with the processor" if machine.jetson is not None else ""
        yield _line("GPU memory", "ok", found + shared)


def _disk(disk: Disk) -> Diagnosis:
    name, found = f"disk for {disk.purpose}", f"{format_size(disk.free)} free in {disk.folder}"
    if not disk.writable:
        return _line(name, "warn", f"{found}, which cannot be written to", "build in a copy of the bundle")
    if disk.free < _MIN_DISK_BYTES:
        return _line(
            name, "warn", found, "free some: plans take about as much as the graphs they are built from"
        )
    return _line(name, "ok", found)


def check_packages(machine: Machine) -> list[Diagnosis]:
    """Check refdiff, the packages of its back-ends, and its extras."""
    return [
        _package_line("refdiff", "ok", machine.refdiff),
        *(_tensorrt(machine, flavour) for flavour in TENSORRTS),
        _onnxruntime(machine),
        *_extras(machine),
    ]


def _tensorrt(machine: Machine, flavour: str) -> Diagnosis:
    version = tensorrt_version(machine, flavour)
    if version is None:
        return _no_tensorrt(machine, flavour)
    if flavour == "tensorrt" and version_numbers(version) < _MIN_TENSORRT:
        return _package_line(
            flavour, "warn", f"{version}, needed is 10.3 or later", "update JetPack, or TensorRT"
        )
    return _package_line(flavour, "ok", version)


def _no_tensorrt(machine: Machine, flavour: str) -> Diagnosis:
    """Report a missing TensorRT; a warning only where it would be used: on a GPU, without the other."""
    if flavour == "tensorrt-rtx" and machine.host.arch != "x86_64":
        return _package_line(flavour, "ok", f"not installed; there is none for {machine.host.arch}")
    other = any(name in machine.packages for several in TENSORRTS.values() for name in several)
    wanted = bool(machine.gpus.devices) and not other
    cure = (
        INSTALL[flavour] if flavour != "tensorrt" or machine.jetson is None else _jetson_cure(machine.jetson)
    )
    return _package_line(flavour, "warn" if wanted else "ok", "not installed", cure)


def _jetson_cure(jetson: Jetson) -> str:
    """Say where a Jetson's TensorRT comes from; the second source as NVIDIA's release notes have it."""
    cure = "it comes with JetPack: sudo apt-get install python3-libnvinfer"
    if jetson.jetpack is None or version_numbers(jetson.jetpack) < SBSA_JETPACK:
        return cure
    return f"{cure}, or NVIDIA's SBSA package of TensorRT 11.4.1 or later (docs/jetson.md)"


def _onnxruntime(machine: Machine) -> Diagnosis:
    runtime = machine.onnxruntime
    if runtime is None:
        cure = install_line("gpu" if machine.gpus.devices else "cpu")
        return _package_line("onnxruntime", "warn", "not installed", cure)
    names = [
        f"{name} {machine.packages[name]}"
        for name in (*ONNX_RUNTIMES, *ORT_PLUGINS)
        if name in machine.packages
    ]
    if runtime.fault is not None:
        return _package_line(
            "onnxruntime", "warn", f"{', '.join(names)}: {runtime.fault}", "install it again"
        )
    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in runtime.providers)
    found = f"{', '.join(names)}; providers: {providers}"
    if machine.gpus.devices and "CUDAExecutionProvider" not in runtime.providers:
        return _package_line("onnxruntime", "warn", f"{found}; none for the GPU", _gpu_cure(machine))
    return _package_line("onnxruntime", "ok", found)


def _gpu_cure(machine: Machine) -> str:
    if machine.host.arch != "x86_64":
        return "install the onnxruntime-gpu that NVIDIA publishes for this machine"
    return f"pip uninstall onnxruntime, then {install_line('gpu')}"


def _extras(machine: Machine) -> list[Diagnosis]:
    if not machine.extras:
        found = "not known: refdiff runs from its sources and was not installed"
        return [_package_line("extras", "warn", found, "pip install it, with -e from its sources")]
    return [_extra(extra, machine) for extra in machine.extras]


def _extra(extra: Extra, machine: Machine) -> Diagnosis:
    """Report an extra; a missing one is the user's choice, one with an outdated package is a warning."""
    name, cure = f"extra {extra.name}", install_line(extra.name)
    if extra.name == "gpu" and "onnxruntime" in machine.packages:
        cure = f"in place of the extra cpu: pip uninstall onnxruntime, then {cure}"
    lacks = f"lacks {', '.join(extra.missing)}" if extra.missing else ""
    if extra.outdated:
        return _package_line(name, "warn", "; ".join(filter(None, (*extra.outdated, lacks))), cure)
    return _package_line(name, "ok", lacks or "complete", cure if lacks else "")
