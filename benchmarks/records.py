"""Records of measurements: JSON files with one entry per configuration, each with its provenance."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def add_entry(
    path: Path, name: str, entry: dict[str, Any], *, gpu: str | None = None, commit: str | None = None
) -> None:
    """Write or replace one entry, with where and when it was measured; the others stay."""
    document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    document[name] = {**entry, "provenance": provenance(gpu=gpu, commit=commit)}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dict(sorted(document.items())), indent=1)
    path.write_text(text + "\n", encoding="utf-8")
    print(f"{path.name}: {name}")  # noqa: T201 - what a benchmark is for


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
    "ray",
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
