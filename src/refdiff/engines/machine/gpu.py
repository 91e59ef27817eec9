"""GPUs, driver and CUDA's libraries; nothing of NVIDIA's has to be installed to ask.

In: sources. Out: `Gpus`, `CudaLibraries`.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

from refdiff.engines.machine.facts import CudaLibraries, Gpus
from refdiff.engines.machine.sources import Sources
from refdiff.engines.trt.device import Device

DRIVER_REPORT = (sys.executable, "-m", "refdiff.engines.machine.driver_report")
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")

_DRIVER_SECONDS = 20.0
"""A driver that nobody uses wakes every GPU of the machine before it answers."""

_LIBRARIES = ("cudart", "cublasLt", "cudnn", "nvinfer")


def read_gpus(sources: Sources) -> Gpus:
    """Ask the driver, and nvidia-smi where there is one."""
    report = _driver_report(sources)
    rows = _smi_rows(sources)
    return Gpus(
        devices=tuple(Device(**device) for device in report["devices"]),
        why_none=report["why_none"],
        listed=tuple(name for name, _ in rows),
        driver=_kernel_driver(sources) or next((driver for _, driver in rows), None),
        memory_free=report["memory_free"],
    )


def read_cuda(sources: Sources) -> CudaLibraries:
    """What the loader finds, and the toolkit that /usr/local/cuda points to."""
    ran = sources.tool("ldconfig", "-p")
    if ran.fault is not None:
        ran = sources.tool("/sbin/ldconfig", "-p")  # not on every user's PATH
    found = {name: _majors(name, ran.output) for name in _LIBRARIES}
    return CudaLibraries(
        toolkit=_toolkit(sources.text("usr/local/cuda/version.json")),
        found={name: majors for name, majors in found.items() if majors},
    )


def _driver_report(sources: Sources) -> dict[str, Any]:
    ran = sources.run(DRIVER_REPORT, _DRIVER_SECONDS)
    if ran.fault is None:
        document: dict[str, Any] = json.loads(ran.output)
        return document
    return {"devices": [], "why_none": f"the driver could not be asked: {ran.fault}", "memory_free": None}


def _smi_rows(sources: Sources) -> list[tuple[str, str]]:
    ran = sources.tool(*NVIDIA_SMI)
    if ran.fault is not None:
        return []
    rows = [line.rpartition(",") for line in ran.output.splitlines()]
    return [(name.strip(), driver.strip()) for name, comma, driver in rows if comma]


def _kernel_driver(sources: Sources) -> str | None:
    """The version of the kernel's module, which nvidia-smi need not be there for."""
    text = sources.text("proc/driver/nvidia/version") or ""
    found = re.search(r"Kernel Module\D.*?(\d+\.\d+(?:\.\d+)?)", text)
    return None if found is None else found[1]


def _majors(library: str, listing: str) -> tuple[str, ...]:
    found = set(re.findall(rf"\blib{library}\.so\.(\d+)", listing))
    return tuple(sorted(found, key=int))


def _toolkit(text: str | None) -> str | None:
    try:
        version = json.loads(text or "{}")["cuda"]["version"]
    except (KeyError, TypeError, ValueError):
        return None
    return str(version)
