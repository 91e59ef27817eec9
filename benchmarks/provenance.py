"""What every record says about where it was measured."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib import metadata
from typing import Any

PACKAGES = (
    "numpy",
    "torch",
    "diffusers",
    "transformers",
    "onnxruntime",
    "segment-anything",
    "open_clip_torch",
)


def provenance() -> dict[str, Any]:
    """Commit, date, machine and versions."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "gpu": None},
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
    }


def _processor() -> str:
    with open("/proc/cpuinfo") as lines:  # noqa: PTH123 - a kernel file
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
