"""Read the versions of Python packages without importing them; a separate process queries ONNX Runtime.

In: sources. Out: versions, `OnnxRuntime`, `Extra`s.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping

from refdiff.diagnostics.facts import Extra, Machine, OnnxRuntime, version_numbers
from refdiff.diagnostics.sources import Sources

ONNX_RUNTIMES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-training",
)
"""All of them provide the module `onnxruntime`."""

ORT_PLUGINS = ("onnxruntime-ep-nv-tensorrt-rtx-cu13", "onnxruntime-ep-nv-tensorrt-rtx-cu12")
"""Packages that add a provider to it: the one of "ort-rtx"."""

TENSORRTS: Mapping[str, tuple[str, ...]] = {
    "tensorrt": ("tensorrt", "tensorrt-cu13-bindings", "tensorrt-cu12-bindings"),
    "tensorrt-rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings"),
}
"""Flavour -> the packages that provide its module and have its version."""

SBSA_JETPACK = (7, 2, 2)
"""First JetPack on which NVIDIA's SBSA package of TensorRT (11.4.1 or later) serves AGX Orin and Thor."""


def tensorrt_version(machine: Machine, flavour: str) -> str | None:
    """Return the version of the package that provides a flavour; None if none does."""
    return next((machine.packages[name] for name in TENSORRTS[flavour] if name in machine.packages), None)


_OTHERS = (
    "cuda-bindings",
    "cuda-python",
    "numpy",
    "nvidia-cublas",
    "nvidia-cublas-cu12",
    "nvidia-cuda-runtime",
    "nvidia-cuda-runtime-cu12",
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
    "nvidia-modelopt",
    "onnx",
    "onnx-ir",
    "polygraphy",
    "tensorrt-cu12",
    "tensorrt-cu12-libs",
    "tensorrt-cu13",
    "tensorrt-cu13-libs",
    "tensorrt-rtx-cu12-libs",
    "tensorrt-rtx-cu13-libs",
    "torch",
    "torchvision",
)

_PRINT_PROVIDERS = "import json, onnxruntime as o; print(json.dumps(o.get_available_providers()))"
ORT_REPORT = (sys.executable, "-c", _PRINT_PROVIDERS)
_ORT_SECONDS = 60.0
"""Time limit; a cold import from a slow memory card takes long."""

_INSTEAD = {
    "cuda-python": ("cuda-bindings",),
    "onnxruntime": ("onnxruntime-gpu",),
    "onnxruntime-ep-nv-tensorrt-rtx": ORT_PLUGINS,
    "tensorrt": TENSORRTS["tensorrt"][1:],
    "tensorrt-rtx": TENSORRTS["tensorrt-rtx"][1:],
}
"""A required package -> others that provide the same module."""

_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)(\[[^\]]*\])?\s*(?P<versions>[^;]*)(;\s*(?P<marker>.*))?", flags=re.DOTALL
)
"""A requirement of package metadata: name, extras of the package, version specifiers, marker."""


def read_packages(sources: Sources) -> dict[str, str]:
    """Return the version of each installed package that refdiff uses."""
    names = (
        *ONNX_RUNTIMES,
        *ORT_PLUGINS,
        *(name for several in TENSORRTS.values() for name in several),
        *_OTHERS,
    )
    versions = {name: sources.version(name) for name in names}
    return {name: version for name, version in versions.items() if version is not None}


def read_onnxruntime(sources: Sources) -> OnnxRuntime | None:
    """Query ONNX Runtime's providers; None if no package provides it."""
    if not any(sources.version(name) for name in ONNX_RUNTIMES):
        return None
    ran = sources.run(ORT_REPORT, _ORT_SECONDS)
    if ran.fault is not None:
        return OnnxRuntime(providers=(), fault=ran.fault)
    return OnnxRuntime(providers=tuple(json.loads(ran.output.splitlines()[-1])), fault=None)


def read_extras(sources: Sources) -> tuple[Extra, ...]:
    """Return what each of refdiff's extras lacks on this machine."""
    lacking: dict[str, tuple[list[str], list[str]]] = {}
    for requirement in sources.requirements:
        parts = _REQUIREMENT.fullmatch(requirement)
        marker = "" if parts is None else parts["marker"] or ""
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
        if parts is None or extra is None:
            continue
        missing, outdated = lacking.setdefault(extra[1], ([], []))
        if _applies(marker, sources):
            least = re.search(r">=\s*([\d.]+)", parts["versions"])
            _check_requirement(sources, parts["name"], least[1] if least else None, missing, outdated)
    return tuple(
        Extra(name=name, missing=tuple(missing), outdated=tuple(outdated))
        for name, (missing, outdated) in sorted(lacking.items())
    )


def _applies(marker: str, sources: Sources) -> bool:
    """Return whether a requirement is for this processor and this Python."""
    arch = re.search(r"platform_machine == ['\"](\w+)['\"]", marker)
    python = re.search(r"python_version (<|>=) ['\"]([\d.]+)['\"]", marker)
    if python is not None:
        older = version_numbers(sources.python) < version_numbers(python[2])
        if older != (python[1] == "<"):
            return False
    return arch is None or arch[1] == sources.arch


def _check_requirement(
    sources: Sources, name: str, least: str | None, missing: list[str], outdated: list[str]
) -> None:
    version = next(filter(None, map(sources.version, (name, *_INSTEAD.get(name, ())))), None)
    if version is None:
        missing.append(name)
    elif least is not None and version_numbers(version) < version_numbers(least):
        outdated.append(f"{name} {version}, needs {least}")
