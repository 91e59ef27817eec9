"""Kill an evaluation at random moments, resume it, and compare its records with those of a run in peace.

    .venv/bin/python -m benchmarks.eval_kills                 30 kills, 40 scenes

An evaluation is started in its own process and killed with SIGKILL: half of the kills after a random time
from the start, half after a random number of new records and a random part of a sentence's time. After
`PER_RUN` kills it may finish. The records must be those of a run that nothing stopped, line for line, each
sentence once; what was in the file before a kill must still be there after it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from benchmarks.records import RESULTS, add_entry
from refdiff.cli import main as run_refdiff
from refdiff.evaluation.records import RECORDS_NAME, SUMMARY_NAME

RECORD = RESULTS / "eval-kills.json"
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["refdiff.cli", "refdiff.engines.ort"])
PER_RUN = 6
"""Kills of one evaluation before it may finish."""

_TIMES = ("resumed", "seconds", "pipeline_seconds")
"""Fields of the summary that a kill may change."""


@dataclass
class Outcome:
    """What happened over all kills."""

    kills: int = 0
    partial_lines: int = 0
    """Kills that left an incomplete last line."""
    before_records: int = 0
    """Kills before the first new record."""
    lost: int = 0
    repeated: int = 0
    differing: int = 0
    """Evaluations whose records or metrics are not those of the run in peace."""


def main() -> None:
    """Kill, compare and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--mode", default="gen")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        outcome = kill_and_resume(
            Path(folder), kills=given.kills, scenes=given.scenes, mode=given.mode, seed=given.seed
        )
    entry = {**vars(given), **vars(outcome), "seconds": round(time.perf_counter() - started)}
    add_entry(RECORD, f"{given.kills} kills", entry)
    sys.exit(bool(outcome.lost or outcome.repeated or outcome.differing))


def kill_and_resume(folder: Path, *, kills: int, scenes: int, mode: str, seed: int) -> Outcome:
    """Kill evaluations until there were `kills`, and count what went wrong.

    Args:
        folder: an empty one.
        kills: how many.
        scenes: rendered scenes of each evaluation.
        mode: of the pipeline.
        seed: of the moments.
    """
    draw, outcome = random.Random(seed), Outcome()  # noqa: S311 - moments, no secrets
    started = time.perf_counter()
    _finish(folder / "peace", scenes, mode)
    duration = time.perf_counter() - started
    expected = read_run(folder / "peace")
    while outcome.kills < kills:
        output = folder / "killed"
        for _ in range(min(PER_RUN, kills - outcome.kills)):
            _kill_once(output, scenes, mode, draw, duration, outcome)
        _finish(output, scenes, mode)
        found = read_run(output)
        outcome.repeated += len(found[0]) - len({json.loads(line)["id"] for line in found[0]})
        outcome.differing += found != expected
        shutil.rmtree(output)
    return outcome


def _start(output: Path, scenes: int, mode: str) -> BaseProcess:
    """Start an evaluation in a process of its own, which need not import what all of them do."""
    options = ["--count", str(scenes), "--mode", mode, "--output", str(output), "--quiet", "--json"]
    process = _FORKS.Process(target=_run, args=(["eval", "mini", *options],))
    process.start()
    return process


def _run(arguments: list[str]) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(run_refdiff(arguments))


def _finish(output: Path, scenes: int, mode: str) -> None:
    process = _start(output, scenes, mode)
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"an evaluation that nothing disturbed ended with {process.exitcode}, expected 0")


def _kill_once(
    output: Path, scenes: int, mode: str, draw: random.Random, duration: float, outcome: Outcome
) -> None:
    """Start or resume an evaluation and kill it; one that ends before its moment does not count."""
    before = _lines(output)
    process = _start(output, scenes, mode)
    left = scenes - len(before)
    if draw.random() < 0.5 or left < 2:
        moment, new = draw.uniform(0, duration), None
    else:
        moment, new = draw.uniform(0, 0.1), draw.randint(1, max(1, left // 3))
    while new is not None and process.is_alive() and len(_lines(output)) < len(before) + new:
        time.sleep(0.002)
    time.sleep(moment)
    process.kill()
    process.join()
    if process.exitcode != -signal.SIGKILL:
        return
    after = _lines(output)
    outcome.kills += 1
    outcome.before_records += after == before
    path = output / RECORDS_NAME
    outcome.partial_lines += (
        path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
    )
    outcome.lost += after[: len(before)] != before


def _lines(output: Path) -> list[bytes]:
    """Return the complete lines of the records."""
    path = output / RECORDS_NAME
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def read_run(output: Path) -> tuple[list[bytes], dict[str, Any]]:
    """Return the sorted lines of the records, and the summary without times."""
    summary = json.loads((output / SUMMARY_NAME).read_text(encoding="utf-8"))
    return sorted(_lines(output)), {key: value for key, value in summary.items() if key not in _TIMES}


if __name__ == "__main__":
    main()
