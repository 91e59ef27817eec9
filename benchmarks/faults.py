"""Attack refdiff: killed, interrupted and refused commands; damaged and hostile files; a hostile hub; leaks.

    .venv/bin/python -m benchmarks.faults              all attacks, two classes at a time, recorded
    .venv/bin/python -m benchmarks.faults --sample     a few cases of most, not recorded
    .venv/bin/python -m benchmarks.faults --only images --only signals

Each class of attacks runs in a process of its own, with a seed of its own: a fork of one that has imported
what they share. A class that crashes, or is not done in time, has lost a case. Exit code 1 if a case is lost.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.records import RESULTS, add_entry

RECORD = RESULTS / "faults.json"
ROOMS = ("fault_kills", "fault_files", "fault_models")
_FORKS = multiprocessing.get_context("forkserver")
_SHOWN = 5
"""Lost cases of a class that are printed and recorded."""


def main() -> int:
    """Attack, print a line per class, and record the counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sample", action="store_true", help="a few cases of most classes, not recorded")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", help="a class of attacks; repeatable")
    parser.add_argument("--processes", type=int, default=2, help="classes at a time")
    parser.add_argument("--class-limit", type=float, default=400.0, help="seconds that one class may take")
    given = parser.parse_args()
    names = given.only or [name for name in class_names() if not given.sample or name not in _LONG]
    started = time.perf_counter()
    os.environ["OMP_NUM_THREADS"] = "1"
    _FORKS.set_forkserver_preload([f"benchmarks.{room}" for room in ROOMS])
    with (
        tempfile.TemporaryDirectory(prefix="refdiff-faults-") as folder,
        ThreadPoolExecutor(given.processes) as pool,
    ):
        write_photos(Path(folder) / "photos")
        rows = {}
        found = pool.map(lambda name: run_class(Path(folder), name, given), names)
        for name, row in zip(names, found, strict=True):
            rows[name] = row
            if not given.sample:
                add_entry(RECORD, name, {"seed": given.seed, **row})
    lost = sum(row["lost"] for row in rows.values())
    tried, seconds = sum(row["tried"] for row in rows.values()), time.perf_counter() - started
    report = f"{tried} attacks, {tried - lost} survived, {lost} lost; {seconds:.0f} s"
    print(report)  # noqa: T201 - what a benchmark is for
    return int(lost > 0)


_LONG = (
    *("leaks", "threads", "checkpoints", "hostile bundles"),
    *("kill -9 at a change of a name", "signals", "permissions", "two processes, one output"),
)
"""Classes that a sample leaves out."""


def class_names() -> list[str]:
    """Return the names of all classes of attacks."""
    return [name for room in ROOMS for name in importlib.import_module(f"benchmarks.{room}").ATTACKS]


def run_class(folder: Path, name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Run one class in a fork, and return its counts."""
    own = folder / name.replace(" ", "-")
    own.mkdir()
    started = time.perf_counter()
    child = _FORKS.Process(target=attack_here, args=(own, name, given.seed, given.sample))
    child.start()
    child.join(given.class_limit)
    end = f"the process ended with {child.exitcode}" if child.exitcode else ""
    if child.exitcode is None:
        child.kill()
        child.join()
        end = f"not done within {given.class_limit:.0f} s"
    cases = [json.loads(line) for line in _lines(own / "journal")]
    if end:
        last = cases[-1][0] if cases else "the start"
        cases.append((f"after {last}", f"{end}: {(own / 'log').read_text(errors='replace')[-600:]}"))
    row = summary(cases)
    row["seconds"] = round(time.perf_counter() - started)
    print(f"{name}: {row['tried']} tried, {row['lost']} lost; {row['seconds']} s")  # noqa: T201
    for case in row.get("lost_cases", ()):
        print(f"  LOST {case['what']}: {case['how']}")  # noqa: T201
    return row


def summary(cases: Sequence[Sequence[str | None]]) -> dict[str, Any]:
    """Count cases, each a description and how it was lost."""
    lost = [{"what": what, "how": how} for what, how in cases if how is not None]
    counts = {"tried": len(cases), "survived": len(cases) - len(lost), "lost": len(lost)}
    return {**counts, **({"lost_cases": lost[:_SHOWN]} if lost else {})}


def _lines(journal: Path) -> list[str]:
    return journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []


def _environment(folder: Path) -> dict[str, str]:
    """Return the variables that put caches, state and hub into the class's folder."""
    own = {
        "XDG_CACHE_HOME": folder / "cache",
        "XDG_STATE_HOME": folder / "state",
        "HF_HOME": folder / "hf",
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_TOKEN": "hf_secret",
        "NO_PROXY": "127.0.0.1",
        "TMPDIR": folder / "temporary",
    }
    (folder / "temporary").mkdir()
    return {name: str(value) for name, value in own.items()}


def attack_here(folder: Path, name: str, seed: int, sample: bool) -> None:  # noqa: FBT001 - sent to a process
    """Give this process the class's environment and log, and attack."""
    with (folder / "log").open("wb") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    os.environ.update(_environment(folder))
    tempfile.tempdir = None
    attack(folder, name, seed=seed, sample=sample)


def attack(folder: Path, name: str, *, seed: int, sample: bool) -> None:
    """Run one class in this process, and write a line per case."""
    from benchmarks.fault_ground import Ground

    ground = Ground(
        folder=folder,
        photos=folder.parent / "photos",
        sample=sample,
        rng=random.Random(f"{seed}:{name}"),  # noqa: S311 - no secret
    )
    ground.outside.mkdir()
    attacks = {
        key: each
        for room in ROOMS
        for key, each in importlib.import_module(f"benchmarks.{room}").ATTACKS.items()
    }
    cases: Iterator[Any] = attacks[name](ground)
    with (folder / "journal").open("w", encoding="utf-8") as journal:
        for what, how in cases:
            journal.write(json.dumps([what, how]) + "\n")
            journal.flush()


def write_photos(folder: Path, count: int = 3) -> None:
    """Render scenes."""
    from PIL import Image

    from refdiff.data.synthetic import scene_samples

    folder.mkdir()
    for number, sample in enumerate(scene_samples(range(1_000_000, 1_000_000 + count))):
        Image.fromarray(sample.read()).save(folder / f"scene-{number}.png")


if __name__ == "__main__":
    sys.exit(main())
