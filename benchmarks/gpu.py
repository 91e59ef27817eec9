"""Check and time every graph of a bundle on this GPU, in turns with torch on the same GPU.

    .venv/bin/python -m benchmarks.gpu [BUNDLE] [--rounds 40] [--programs FOLDER]      (or: make gpu)

Builds plans on the spot, runs the golden feeds with each contender that works here, compares with the golden
record by accuracy/gates.json, and takes times in turns: in each round every contender runs a few times, so
that a clock that drifts drifts for all. Adds an entry to results/gpu.json; a contender that does not work
here is in it with its error. Without torch's model libraries, `--programs` takes the modules as exported
programs (gpu_programs.py).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_contenders import CONTENDERS
from benchmarks.gpu_workers import Worker, WorkerError
from benchmarks.records import RESULTS, add_entry
from refdiff.accuracy.tolerances import graph_tolerance
from refdiff.contracts.bundle import Bundle
from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.parity import measure_parity, select_recorded
from refdiff.engines.trt.device import Device, find_device
from refdiff.errors import RefdiffError

RECORD = RESULTS / "gpu.json"
PER_TURN = 5
PERCENTILES = (50, 90, 99)


def main() -> int:
    """Measure and record; without a GPU say so and do nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle", nargs="?", default="mini")
    parser.add_argument("--graphs", nargs="*", default=[])
    parser.add_argument("--contenders", nargs="*", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--rounds", type=int, default=40, help=f"of {PER_TURN} runs each")
    parser.add_argument("--seconds", type=float, default=280, help="for everything; torch.compile gets half")
    parser.add_argument("--programs", type=Path, help="folder of exported programs, for torch")
    parser.add_argument("--commit", help="what was measured, where git does not know")
    parser.add_argument("--output", type=Path, default=RECORD)
    given = parser.parse_args()
    device = find_device()
    if device is None:
        print("make gpu: skipped, this machine has no NVIDIA GPU or no driver")  # noqa: T201
        return 0
    bundle = find_bundle(given.bundle)
    entry = measure(bundle, given, time.monotonic() + given.seconds)
    entry["gpu"] = describe(device)
    name = f"{bundle.spec.name} {bundle.spec.diffusion.image_size} {bundle.manifest.precision}, {device.name}"
    add_entry(given.output, name, entry, gpu=device.name, commit=given.commit)
    return 0 if any(of["contenders"] for of in entry["graphs"].values()) else 1


def measure(bundle: Bundle, given: argparse.Namespace, deadline: float) -> dict[str, Any]:
    """Open everything at once, then compare and time graph by graph."""
    graphs = given.graphs or list(bundle.manifest.graphs)
    workers = start_workers(bundle.path, graphs, given)
    for worker in workers:
        for graph in worker.graphs:
            worker.ask("open", graph)
    found: dict[str, Any] = {graph: {"contenders": {}, "failures": {}} for graph in graphs}
    able: dict[str, list[Worker]] = {graph: [] for graph in graphs}
    opening_ends = time.monotonic() + 0.5 * (deadline - time.monotonic())
    for worker in workers:
        for graph in worker.graphs:
            take_opened(worker, graph, opening_ends, found, able)
    for done, graph in enumerate(graphs):
        compare(bundle, graph, able[graph], found)
        now = time.monotonic()
        take_times(graph, able[graph], found, given.rounds, now + (deadline - now) / (len(graphs) - done))
    for worker in workers:
        worker.stop()
    return {
        "clock": "time.perf_counter around a run that waits for the device; contenders in turns, each in its "
        "own process",
        "host": "numpy arrays in, numpy arrays out",
        "device": "inputs and outputs stay on the device",
        "runs_per_turn": PER_TURN,
        "graphs": found,
    }


def take_opened(
    worker: Worker, graph: str, ends: float, found: dict[str, Any], able: dict[str, list[Worker]]
) -> None:
    """Keep the workers that could open a graph."""
    try:
        opened = worker.answer(ends - time.monotonic())
    except WorkerError as error:
        note(found, graph, worker, error)
    else:
        say(f"{graph} {worker.name}: {opened}")
        found[graph]["contenders"][worker.name] = {"opened": opened}
        able[graph].append(worker)


def start_workers(folder: Path, graphs: list[str], given: argparse.Namespace) -> list[Worker]:
    """Start one worker per contender; torch.compile gets one per graph, because compiling takes long."""
    workers = []
    for name in given.contenders:
        shares = [[graph] for graph in graphs] if name == "torch-compile" else [list(graphs)]
        workers += [Worker(name, folder, given.programs, share) for share in shares]
    return workers


def compare(bundle: Bundle, graph: str, able: list[Worker], found: dict[str, Any]) -> None:
    """Compare each contender's outputs with the golden record, made by torch on a CPU in fp32."""
    recorded, precision = bundle.golden()[graph][1], bundle.manifest.graphs[graph].precision
    limits = graph_tolerance(precision, graph)

    def judged(worker: Worker) -> None:
        outputs = worker.answer(60)
        measures = [
            measure_parity(select_recorded(outputs[name], record), record)
            for name, record in recorded.items()
        ]
        error, correlation = max(m.error for m in measures), min(m.correlation for m in measures)
        found[graph]["contenders"][worker.name] |= {
            "error": float(f"{error:.3g}") if np.isfinite(error) else None,
            "correlation": round(float(correlation), 7),
            "within_gates": bool(error <= limits.error and correlation >= limits.correlation),
        }
        say(f"{graph} {worker.name}: error {error:.3g}, at most {limits.error:g}")

    each(able, "run", graph, 1, judged, found)


def take_times(graph: str, able: list[Worker], found: dict[str, Any], rounds: int, ends: float) -> None:
    """Run in turns; record what was measured when the time is up."""
    taken: dict[str, dict[str, list[float]]] = {w.name: {"host": [], "device": []} for w in able}
    for _ in range(rounds):
        if time.monotonic() > ends:
            break
        for way in ("host", "device"):

            def keep(worker: Worker, way: str = way) -> None:
                taken[worker.name][way] += worker.answer(60)

            each(able, way, graph, PER_TURN, keep, found)
    for worker in able:
        for way, values in taken[worker.name].items():
            found[graph]["contenders"][worker.name][f"{way}_ms"] = summary(values)
            say(f"{graph} {worker.name} {way}: {summary(values)}")


def each(
    able: list[Worker],
    verb: str,
    graph: str,
    times: int,
    take: Callable[[Worker], None],
    found: dict[str, Any],
) -> None:
    """Ask one contender after the other, never two at once; who fails is out for this graph."""
    for worker in list(able):
        worker.ask(verb, graph, times)
        error = failure(take, worker)
        if error is not None:
            note(found, graph, worker, error)
            able.remove(worker)


def failure(take: Callable[[Worker], None], worker: Worker) -> WorkerError | None:
    """Return the error, if there was one."""
    try:
        take(worker)
    except WorkerError as error:
        return error
    return None


def note(found: dict[str, Any], graph: str, worker: Worker, error: WorkerError) -> None:
    """Write a failure to the record and the terminal."""
    found[graph]["failures"][worker.name] = str(error)
    say(f"{graph} {worker.name} FAILED: {error}")


def summary(values: list[float]) -> dict[str, Any]:
    """Percentiles of milliseconds."""
    if not values:
        return {"n": 0}
    figures = np.percentile(values, PERCENTILES)
    return {"n": len(values)} | {
        f"p{p}": round(float(v), 4) for p, v in zip(PERCENTILES, figures, strict=True)
    }


def describe(device: Device) -> dict[str, Any]:
    """Return the GPU, its driver, clocks and power limit."""
    command = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        answer = None
    return {
        "name": device.name,
        "compute_capability": device.compute_capability,
        "memory_bytes": device.memory_bytes,
        "driver_cuda": device.driver_cuda,
        "driver, clock, power": answer,
    }


def say(line: str) -> None:
    """Progress."""
    print(line, flush=True)  # noqa: T201 - what a benchmark is for


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RefdiffError as error:
        say(f"error: {error}")
        sys.exit(error.exit_code)
