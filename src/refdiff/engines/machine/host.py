"""System, processor and memory, from the files in which Linux tells them.

In: sources. Out: `Host`, `Disk`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from refdiff.engines.machine.facts import Disk, Host
from refdiff.engines.machine.sources import Sources

_CGROUPS = (
    ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Of versions 2 and 1: where a container's limit is, what is used, and what of that the kernel gives back."""


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
    """What is free where a folder is, or will be."""
    there = next(each for each in (folder, *folder.absolute().parents) if each.is_dir())
    return Disk(
        purpose=purpose, folder=there, free=sources.disk_free(there), writable=os.access(there, os.W_OK)
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
