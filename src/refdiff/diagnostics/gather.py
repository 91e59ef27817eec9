"""Read all facts about a machine from its sources: `gather`.

System, processor and memory come from Linux's files, a Jetson's model, clocks and power mode from its own,
GPUs from the driver in a separate process, and CUDA's libraries from the loader; no package of NVIDIA is
needed.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from refdiff.contracts.manifest import refdiff_version
from refdiff.diagnostics.facts import Clock, CudaLibraries, Disk, Gpus, Host, Jetson, Machine
from refdiff.diagnostics.packages import read_extras, read_onnxruntime, read_packages
from refdiff.diagnostics.sources import Sources
from refdiff.engines.trt.device import Device

DRIVER_REPORT = (sys.executable, "-m", "refdiff.engines.trt.device")
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")

_DRIVER_SECONDS = 20.0
"""Time limit; an idle driver first wakes every GPU of the machine."""

_LIBRARIES = ("cudart", "cublasLt", "cudnn", "nvinfer")


def read_gpus(sources: Sources) -> Gpus:
    """Query the driver, and nvidia-smi if it is installed."""
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
    """Read the libraries that the loader finds, and the toolkit in /usr/local/cuda."""
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
    """Return the version of the kernel's module, which needs no nvidia-smi."""
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


_CGROUPS = (
    ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Folder and files of cgroup versions 2 and 1: the limit, the used memory, and its reclaimable part."""


def read_host(sources: Sources) -> Host:
    """Describe the machine without its GPU."""
    memory = _memory_table(sources.text("proc/meminfo") or "")
    processor = sources.text("proc/cpuinfo") or ""
    return Host(
        system=_match(r'^PRETTY_NAME="?([^"\n]+)', sources.text("etc/os-release")) or "unknown system",
        kernel=sources.text("proc/sys/kernel/osrelease") or "unknown",
        arch=sources.arch,
        python=sources.python,
        processor=_match(r"^model name\s*:\s*(.+)$", processor) or sources.arch,
        cores=len(re.findall(r"^processor\s*:", processor, flags=re.MULTILINE)),
        memory_total=memory.get("MemTotal"),
        memory_free=_least(memory.get("MemAvailable"), _container_free(sources)),
        swap_free=memory.get("SwapFree", 0),
    )


def read_disk(sources: Sources, purpose: str, folder: Path) -> Disk:
    """Read the free space of a folder that exists or will be created."""
    existing = next(each for each in (folder, *folder.absolute().parents) if each.is_dir())
    return Disk(
        purpose=purpose,
        folder=existing,
        free=sources.disk_free(existing),
        writable=os.access(existing, os.W_OK),
    )


def _memory_table(text: str) -> dict[str, int]:
    return {name: int(size) * 1024 for name, size in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}


def _container_free(sources: Sources) -> int | None:
    for folder, limit_name, used_name, cached_name in _CGROUPS:
        limit, used = sources.text(f"{folder}/{limit_name}"), sources.text(f"{folder}/{used_name}")
        if limit is None or used is None or not limit.isdigit():  # "max": no limit
            continue
        cached = _match(rf"^{cached_name} (\d+)$", sources.text(f"{folder}/memory.stat")) or "0"
        return max(int(limit) - int(used) + int(cached), 0)
    return None


def _least(*sizes: int | None) -> int | None:
    return min((size for size in sizes if size is not None), default=None)


def _match(pattern: str, text: str | None) -> str | None:
    found = re.search(pattern, text or "", flags=re.MULTILINE)
    return None if found is None else found[1].strip()


def gather(sources: Sources, folders: Mapping[str, Path]) -> Machine:
    """Describe a machine; what cannot be read becomes a fact as well, never an exception.

    Args:
        sources: of the machine.
        folders: purpose -> folder whose disk is described.
    """
    return Machine(
        refdiff=refdiff_version(),
        host=read_host(sources),
        gpus=read_gpus(sources),
        cuda=read_cuda(sources),
        jetson=read_jetson(sources),
        packages=read_packages(sources),
        onnxruntime=read_onnxruntime(sources),
        extras=read_extras(sources),
        disks=tuple(read_disk(sources, purpose, folder) for purpose, folder in folders.items()),
    )


_JETPACKS = {
    "36.2": "6.0",
    "36.3": "6.0",
    "36.4": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.4.7": "6.2.1",
    "38.2": "7.0",
    "38.2.1": "7.0",
    "38.4": "7.1",
}
"""Jetson Linux -> JetPack, if the package nvidia-jetpack is not installed (NVIDIA's JetPack archive)."""

_KHZ, _HZ = 10**3, 10**6
"""Per MHz, in the units of cpufreq and of devfreq."""


def read_jetson(sources: Sources) -> Jetson | None:
    """Describe the Jetson; None on any other machine."""
    model = sources.text("proc/device-tree/model") or ""
    l4t = _l4t(sources.text("etc/nv_tegra_release"))
    if l4t is None and "Jetson" not in model:
        return None
    mode, fault = _power_mode(sources)
    return Jetson(
        model=model or "a Jetson",
        l4t=l4t,
        jetpack=_jetpack(sources, l4t),
        power_mode=mode,
        power_modes=_power_modes(sources),
        power_fault=fault,
        clocks=tuple(_clocks(sources)),
    )


def _l4t(text: str | None) -> str | None:
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text or "")
    return None if found is None else f"{found[1]}.{found[2]}".removesuffix(".0")


def _jetpack(sources: Sources, l4t: str | None) -> str | None:
    """Return the version of the installed package, or what Jetson Linux implies."""
    ran = sources.tool("dpkg-query", "--showformat=${Version}", "--show", "nvidia-jetpack")
    found = re.match(r"\d+(\.\d+)+", ran.output) if ran.fault is None else None
    return _JETPACKS.get(l4t or "") if found is None else found[0]


def _power_mode(sources: Sources) -> tuple[str | None, str]:
    """Return the mode's name and "", or None and the reason."""
    ran = sources.tool("nvpmodel", "-q")
    found = re.search(r"^NV Power Mode: *(\S+)", ran.output, flags=re.MULTILINE)
    if found is not None:
        return found[1], ""
    # Inside a container there is no nvpmodel, but its state may be mounted.
    status = re.search(r"pmode:(\d+)", sources.text("var/lib/nvpmodel/status") or "")
    if status is not None:
        names = {number: name for name, number in _power_modes(sources).items()}
        return names.get(int(status[1]), f"number {int(status[1])}"), ""
    return None, ran.fault or "nvpmodel did not name it"


def _power_modes(sources: Sources) -> dict[str, int]:
    text = sources.text("etc/nvpmodel.conf") or ""
    found = re.findall(r"^<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", text, flags=re.MULTILINE)
    return {name: int(number) for number, name in found}


def _clocks(sources: Sources) -> Iterator[Clock]:
    cpu = "sys/devices/system/cpu/cpu0/cpufreq/scaling_{}_freq"
    found = [("cpu", _range(sources, cpu.format("min"), cpu.format("max"), _KHZ))]
    for folder in sorted((sources.root / "sys/class/devfreq").glob("*gpu*")):
        path = str(folder.relative_to(sources.root))
        found.append((folder.name, _range(sources, f"{path}/min_freq", f"{path}/max_freq", _HZ)))
    for name, limits in found:
        if limits is not None:
            yield Clock(name=name, least=limits[0], most=limits[1])


def _range(sources: Sources, least: str, most: str, per_mhz: int) -> tuple[int, int] | None:
    texts = sources.text(least), sources.text(most)
    if not all(text is not None and text.isdigit() for text in texts):
        return None
    low, high = (int(text or 0) // per_mhz for text in texts)
    return low, high
