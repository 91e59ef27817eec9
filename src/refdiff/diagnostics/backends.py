"""What can run a bundle here: each back-end is tried, in a process of its own, and says why not.

In: a bundle, facts, a way to run a command. Out: lines, and the names of the back-ends that run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from refdiff.contracts.bundle import Bundle
from refdiff.diagnostics.facts import Diagnosis, Machine, State, readable
from refdiff.diagnostics.smoke_test import SmokeTest
from refdiff.diagnostics.sources import Run
from refdiff.engines.trt.open import TENSORRT
from refdiff.engines.trt.plans import has_plans, plan_bytes

SECTION = "back-ends"

TRIED = ("tensorrt", "tensorrt-rtx", "ort-tensorrt", "ort-cuda", "ort-cpu")
"""The fastest first, as `auto` prefers them; `auto` does not take ort-tensorrt."""

TRIAL = (sys.executable, "-m", "refdiff.diagnostics.smoke_test")

_TRIAL_SECONDS = 120.0
"""ort-tensorrt compiles the graph; a slow card takes a while to load."""

_HASHED_PER_SECOND = 10e6
"""Bytes of plans that a slow memory card and processor hash."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """All back-ends on one bundle."""

    findings: tuple[Diagnosis, ...]
    runs_with: tuple[str, ...]
    """Back-ends that ran a graph."""
    can_build: tuple[str, ...]
    """Back-ends that lack nothing but plans."""


def try_backends(bundle: Bundle, machine: Machine, run: Run, tell: Callable[[str], None]) -> Tried:
    """Try each back-end.

    Args:
        bundle: a verified one.
        machine: its facts.
        run: runs a command; see `sources`.
        tell: called with a line of progress.
    """
    trials: dict[str, SmokeTest] = {}
    for backend in TRIED:
        tell(f"trying {backend}")
        lacking = _lacking_memory(bundle, machine, backend)
        trials[backend] = lacking or _tried(bundle, backend, run)
    findings = [
        *(_backend_line(backend, trial) for backend, trial in trials.items()),
        *(line for backend in TENSORRT for line in _plan_lines(bundle, machine, backend, trials[backend])),
    ]
    return Tried(
        findings=tuple(findings),
        runs_with=tuple(name for name, trial in trials.items() if trial.runs),
        can_build=tuple(name for name, trial in trials.items() if trial.can_build),
    )


def _tried(bundle: Bundle, backend: str, run: Run) -> SmokeTest:
    hashing = plan_bytes(bundle, backend) / _HASHED_PER_SECOND if backend in TENSORRT else 0.0
    ran = run((*TRIAL, str(bundle.path.resolve()), backend), _TRIAL_SECONDS + hashing)
    if ran.fault is not None:
        return SmokeTest(runs=False, said=f"the trial failed: {ran.fault}")
    document = json.loads(ran.output.splitlines()[-1])
    return SmokeTest(**{**document, "fitting": tuple(document["fitting"])})


def _lacking_memory(bundle: Bundle, machine: Machine, backend: str) -> SmokeTest | None:
    """Where not even the weights of all graphs fit, ONNX Runtime is not tried."""
    if backend in TENSORRT:  # the trial asks the memory planner
        return None
    files = {name for graph in bundle.manifest.graphs.values() for name in graph.files}  # some are shared
    needed = sum(bundle.manifest.files[name].size_bytes for name in files)
    free = _free(machine, backend)
    if free is None or needed <= free:
        return None
    said = (
        f"the weights alone take {readable(needed)} and {readable(free)} are free; "
        "end other programs, or export a smaller precision (fp16, int8)"
    )
    return SmokeTest(runs=False, said=said)


def _free(machine: Machine, backend: str) -> int | None:
    if backend != "ort-cpu":
        return machine.gpus.memory_free
    free = machine.host.memory_free
    return None if free is None else free + machine.host.swap_free


def _backend_line(backend: str, trial: SmokeTest) -> Diagnosis:
    found, _, cure = trial.said.partition("; ")
    state: State = "ok" if trial.runs else "warn"
    return Diagnosis(section=SECTION, name=backend, state=state, found=found, cure=cure)


def _plan_lines(bundle: Bundle, machine: Machine, backend: str, trial: SmokeTest) -> Iterator[Diagnosis]:
    """Of a flavour that the bundle has plans for."""
    if not has_plans(bundle, backend):
        return
    name = f"plans for {backend}"
    if not trial.fitting and not trial.refused:
        found, cure = "there are some, and nobody here can say whether they fit", f"see {backend} above"
        yield Diagnosis(section=SECTION, name=name, state="warn", found=found, cure=cure)
        return
    found = f"{len(trial.fitting)} of {len(bundle.manifest.graphs)} graphs have one that is intact and fits"
    if machine.gpus.first is None:
        found += " the TensorRT here (there is no GPU to compare with)"
    why, _, cure = next(iter(trial.refused.values()), "").partition("; ")
    if trial.refused:
        found = f"{found}; {why}"
    yield Diagnosis(section=SECTION, name=name, state="warn" if why else "ok", found=found, cure=cure)
