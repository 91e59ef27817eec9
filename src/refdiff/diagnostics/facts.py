"""Facts about a machine, and the lines of a diagnosis, as plain values.

None and empty values mean unknown. Sizes are in bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from refdiff.engines.trt.device import Device

State = Literal["ok", "warn", "fail"]
"""ok: nothing to do. warn: something fails, or works less well than it could. fail: nothing runs."""


@dataclass(frozen=True)
class Diagnosis:
    """One line: what was checked, its state, what was found, and the cure."""

    section: str
    name: str
    state: State
    found: str
    cure: str = ""

    def to_json(self) -> dict[str, str]:
        """Return a JSON-ready dictionary."""
        return dataclasses.asdict(self)


def format_size(size: int | None) -> str:
    """Return a size in MB or GB."""
    if size is None:
        return "an unknown amount"
    return f"{size / 1e9:.1f} GB" if size >= 10**9 else f"{size / 1e6:.0f} MB"


@dataclass(frozen=True, kw_only=True)
class Host:
    """The machine without its GPU."""

    system: str
    """Name and version, such as "Ubuntu 22.04.5 LTS"."""
    kernel: str
    arch: str
    python: str
    processor: str
    cores: int
    memory_total: int | None
    memory_free: int | None
    """Memory that a program can still allocate, within the container's limit if there is one."""
    swap_free: int


@dataclass(frozen=True, kw_only=True)
class Gpus:
    """The GPUs and their driver."""

    devices: tuple[Device, ...]
    """GPUs in CUDA's order; the first is used."""
    why_none: str
    """Reason why there are none; empty if there are some."""
    listed: tuple[str, ...]
    """Names that nvidia-smi shows."""
    driver: str | None
    """Version of the driver."""
    memory_free: int | None
    """Free memory of the first GPU."""

    @property
    def first(self) -> Device | None:
        """The GPU that is used."""
        return self.devices[0] if self.devices else None


@dataclass(frozen=True, kw_only=True)
class CudaLibraries:
    """CUDA's libraries of the system, without those from pip."""

    toolkit: str | None
    found: Mapping[str, tuple[str, ...]]
    """Library -> its major versions, such as "cudnn" -> ("9",)."""


@dataclass(frozen=True, kw_only=True)
class Clock:
    """The range of a clock in MHz."""

    name: str
    least: int
    most: int


@dataclass(frozen=True, kw_only=True)
class Jetson:
    """Facts that only a Jetson has."""

    model: str
    l4t: str | None
    """Version of Jetson Linux, such as "36.4.3"."""
    jetpack: str | None
    power_mode: str | None
    power_modes: Mapping[str, int]
    """Name -> the number that nvpmodel takes."""
    power_fault: str
    """Reason why the mode is unknown; empty if it is known."""
    clocks: tuple[Clock, ...]


@dataclass(frozen=True, kw_only=True)
class OnnxRuntime:
    """ONNX Runtime's report of itself."""

    providers: tuple[str, ...]
    fault: str | None
    """Reason why it cannot be imported; None if it can."""


@dataclass(frozen=True, kw_only=True)
class Extra:
    """One of refdiff's extras, on this machine."""

    name: str
    missing: tuple[str, ...]
    outdated: tuple[str, ...]
    """Packages, such as "onnx 1.16, needs 1.17"."""


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Free space of a folder."""

    purpose: str
    folder: Path
    """The folder itself, or its nearest existing parent."""
    free: int
    writable: bool


@dataclass(frozen=True, kw_only=True)
class Machine:
    """All facts about a machine."""

    refdiff: str
    host: Host
    gpus: Gpus
    cuda: CudaLibraries
    jetson: Jetson | None
    packages: Mapping[str, str]
    """Installed package -> version, of those that refdiff uses."""
    onnxruntime: OnnxRuntime | None
    extras: tuple[Extra, ...]
    """Empty if refdiff was not installed as a package."""
    disks: tuple[Disk, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        document = dataclasses.asdict(self)
        for disk in document["disks"]:
            disk["folder"] = str(disk["folder"])
        return document


def version_numbers(version: str) -> tuple[int, ...]:
    """Return the numbers at the start of a version: "10.3.0+cu12" -> (10, 3, 0)."""
    numbers: list[int] = []
    for part in version.partition("+")[0].split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if digits:
            numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers)
