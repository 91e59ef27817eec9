"""Records of measurements: JSON files with one entry per configuration, each with its provenance."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


KEPT = Path(__file__).parent.parent / "runs"
"""Folder of results that are kept as they come, so that an interrupted run resumes."""


def resumed(
    name: str, key: str, ask: Callable[[int], dict[str, Any]], seeds: Sequence[int], jobs: int
) -> list[dict[str, Any]]:
    """Ask for the result of each scene in several processes, but for those that an earlier run kept.

    Args:
        name: of the file in `KEPT`.
        key: everything that decides the results; those under another key are not used.
        ask: returns the result for a seed, JSON-ready; a module's own function, so that it can be pickled.
        seeds: of the scenes.
        jobs: processes.

    Returns:
        The results in the order of the seeds.
    """
    path = KEPT / name
    KEPT.mkdir(exist_ok=True)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = {each["seed"]: each["result"] for each in map(json.loads, lines) if each["key"] == key}
    missing = [seed for seed in seeds if seed not in kept]
    with (
        path.open("a", encoding="utf-8") as file,
        ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as workers,
    ):
        for done, (seed, result) in enumerate(zip(missing, workers.map(ask, missing), strict=True), start=1):
            kept[seed] = result
            file.write(json.dumps({"key": key, "seed": seed, "result": result}) + "\n")
            file.flush()
            if done % 20 == 0:
                sys.stderr.write(f"{done}/{len(missing)} scenes\n")
    return [kept[seed] for seed in seeds]


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


class QuietMachine:
    """A block that is timed: it ends with an error if other programs use the cores.

    Linux only, where /proc/stat counts the processor time of all programs together.

    Args:
        most: share of all cores that others may use, 0..1.
        look_s: seconds to look at the machine before the block begins.

    Raises:
        SystemExit: others use more, before the block or during it.
    """

    def __init__(self, most: float = 0.05, look_s: float = 3.0) -> None:
        self._most = most
        self._look_s = look_s
        self.others = 0.0
        """Share of all cores that other programs used during the block."""

    def __enter__(self) -> QuietMachine:
        before = _clocks()
        time.sleep(self._look_s)
        self._check(before, "before the measurement; stop what else runs")
        self._begun = _clocks()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.others = self._check(self._begun, "during the measurement; nothing is recorded")

    def _check(self, since: tuple[float, float, float], when: str) -> float:
        wall, busy, own = (now - then for now, then in zip(_clocks(), since, strict=True))
        others = min(1.0, max(0.0, busy - own) / (wall * (os.cpu_count() or 1)))
        if others > self._most:
            raise SystemExit(
                f"other programs used {others:.0%} of the cores {when} (expected at most {self._most:.0%})"
            )
        return others


def _clocks() -> tuple[float, float, float]:
    """Return wall clock, processor time of all programs, and that of this one with its children, in s."""
    with open("/proc/stat") as lines:  # noqa: PTH123 - a kernel file
        user, nice, system, _, _, irq, soft = map(int, lines.readline().split()[1:8])
    ticks = os.sysconf("SC_CLK_TCK")
    own = os.times()
    return (
        time.monotonic(),
        (user + nice + system + irq + soft) / ticks,
        own.user + own.system + own.children_user + own.children_system,
    )


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
