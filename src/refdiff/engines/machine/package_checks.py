"""What the facts of Python packages mean: TensorRT, ONNX Runtime, refdiff and its extras.

In: facts. Out: lines.
"""

from __future__ import annotations

from refdiff.engines.machine.facts import Extra, Machine, version_numbers
from refdiff.engines.machine.findings import Finding, State
from refdiff.engines.machine.packages import ONNX_RUNTIMES, TENSORRTS, tensorrt_version
from refdiff.engines.trt.flavour import INSTALL

SECTION = "packages"

_LEAST_TENSORRT = (10, 3)


def check_packages(machine: Machine) -> list[Finding]:
    """refdiff, its back-ends' packages, its extras."""
    return [
        _line("refdiff", "ok", machine.refdiff),
        *(_tensorrt(machine, flavour) for flavour in TENSORRTS),
        _onnxruntime(machine),
        *_extras(machine),
    ]


def _line(name: str, state: State, found: str, cure: str = "") -> Finding:
    return Finding(section=SECTION, name=name, state=state, found=found, cure=cure)


def _tensorrt(machine: Machine, flavour: str) -> Finding:
    version = tensorrt_version(machine, flavour)
    if version is None:
        return _no_tensorrt(machine, flavour)
    if flavour == "tensorrt" and version_numbers(version) < _LEAST_TENSORRT:
        return _line(flavour, "warn", f"{version}, needed is 10.3 or later", "update JetPack, or TensorRT")
    return _line(flavour, "ok", version)


def _no_tensorrt(machine: Machine, flavour: str) -> Finding:
    """Worth a warning where it would be used: on a GPU, with no other TensorRT."""
    if flavour == "tensorrt-rtx" and machine.host.arch != "x86_64":
        return _line(flavour, "ok", f"not installed; there is none for {machine.host.arch}")
    other = any(name in machine.packages for several in TENSORRTS.values() for name in several)
    wanted = bool(machine.gpus.devices) and not other
    return _line(flavour, "warn" if wanted else "ok", "not installed", INSTALL[flavour])


def _onnxruntime(machine: Machine) -> Finding:
    runtime = machine.onnxruntime
    if runtime is None:
        cure = "pip install 'refdiff[gpu]'" if machine.gpus.devices else "pip install 'refdiff[cpu]'"
        return _line("onnxruntime", "warn", "not installed", cure)
    names = [f"{name} {machine.packages[name]}" for name in ONNX_RUNTIMES if name in machine.packages]
    if runtime.fault is not None:
        return _line("onnxruntime", "warn", f"{', '.join(names)}: {runtime.fault}", "install it again")
    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in runtime.providers)
    found = f"{', '.join(names)}; providers: {providers}"
    if machine.gpus.devices and "CUDAExecutionProvider" not in runtime.providers:
        return _line("onnxruntime", "warn", f"{found}; none for the GPU", _gpu_cure(machine))
    return _line("onnxruntime", "ok", found)


def _gpu_cure(machine: Machine) -> str:
    if machine.host.arch != "x86_64":
        return "install the onnxruntime-gpu that NVIDIA publishes for this machine"
    return "pip uninstall onnxruntime, then pip install 'refdiff[gpu]'"


def _extras(machine: Machine) -> list[Finding]:
    if not machine.extras:
        found = "not known: refdiff runs from its sources and was not installed"
        return [_line("extras", "warn", found, "pip install it, with -e from its sources")]
    return [_extra(extra, machine) for extra in machine.extras]


def _extra(extra: Extra, machine: Machine) -> Finding:
    """An extra that is not there is a choice; one with a package too old is a fault."""
    name, cure = f"extra {extra.name}", f"pip install 'refdiff[{extra.name}]'"
    if extra.name == "gpu" and "onnxruntime" in machine.packages:
        cure = f"in place of the extra cpu: pip uninstall onnxruntime, then {cure}"
    lacks = f"lacks {', '.join(extra.missing)}" if extra.missing else ""
    if extra.outdated:
        return _line(name, "warn", "; ".join(filter(None, (*extra.outdated, lacks))), cure)
    return _line(name, "ok", lacks or "complete", cure if lacks else "")
