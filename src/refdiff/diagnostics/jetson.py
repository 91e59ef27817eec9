"""Read what only a Jetson has: model, JetPack, power mode, clocks."""

from __future__ import annotations

import re
from collections.abc import Iterator

from refdiff.diagnostics.facts import Clock, Jetson
from refdiff.diagnostics.sources import Sources

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
