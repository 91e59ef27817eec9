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
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt_rtx",
    "cuda-bindings",
)


def provenance(*, gpu: str | None = None, commit: str | None = None) -> dict[str, Any]:
    """Commit, date, machine and versions.

    Args:
        gpu: the one it was measured on.
        commit: what was measured, where the files are a copy that git does not know.
    """
    return {
        "commit": commit or _commit(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "gpu": gpu},
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name)) is not None},
    }


def _commit() -> str:
    command = ["git", "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    with open("/proc/cpuinfo") as lines:  # noqa: PTH123 - a kernel file
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
