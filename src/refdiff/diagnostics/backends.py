"""Try each back-end on a bundle, in a separate process, and report which run and why others do not.

In: a bundle, facts, a function that runs a command. Out: lines, and the names of the back-ends that run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from refdiff.contracts.bundle import Bundle
from refdiff.contracts.progress import Progress
from refdiff.diagnostics.facts import Diagnosis, Machine, State, format_size
from refdiff.diagnostics.smoke_test import SmokeTest
from refdiff.diagnostics.sources import Run
from refdiff.engines.trt.open import TENSORRT
from refdiff.engines.trt.plans import has_plans, plan_bytes

_line = partial(Diagnosis, "back-ends")

TRIED = ("tensorrt", "tensorrt-rtx", "ort-tensorrt", "ort-rtx", "ort-cuda", "ort-cpu")
"""In the order of `auto`, which takes neither ort-tensorrt nor ort-rtx."""

SMOKE_TEST = (sys.executable, "-m", "refdiff.diagnostics.smoke_test")

_TEST_SECONDS = 120.0
"""Time limit of a test; ort-tensorrt and ort-rtx compile the graph, and a slow memory card loads slowly."""

_HASHED_PER_SECOND = 10e6
"""Bytes of plans per second that a slow memory card and processor can hash."""


@dataclass(frozen=True, kw_only=True)
class BackendResults:
    """Results of all back-ends on one bundle."""

    findings: tuple[Diagnosis, ...]
    runs_with: tuple[str, ...]
    """Back-ends that ran a graph."""
    can_build: tuple[str, ...]
    """Back-ends that lack only plans."""


def try_backends(bundle: Bundle, machine: Machine, run: Run, progress: Progress) -> BackendResults:
    """Try each back-end.

    Args:
        bundle: a verified one.
        machine: its facts.
        run: runs a command; see `sources`.
        progress: receives one line for each back-end.
    """
    tests: dict[str, SmokeTest] = {}
    for backend in TRIED:
        progress(f"trying {backend}")
        tests[backend] = _lack_of_memory(bundle, machine, backend) or _try(bundle, backend, run)
    findings = [
        *(_backend_line(backend, test) for backend, test in tests.items()),
        *(line for backend in TENSORRT for line in _plan_lines(bundle, machine, backend, tests[backend])),
    ]
    return BackendResults(
        findings=tuple(findings),
        runs_with=tuple(name for name, test in tests.items() if test.runs),
        can_build=tuple(name for name, test in tests.items() if test.can_build),
    )


def _try(bundle: Bundle, backend: str, run: Run) -> SmokeTest:
    hashing = plan_bytes(bundle, backend) / _HASHED_PER_SECOND if backend in TENSORRT else 0.0
    ran = run((*SMOKE_TEST, str(bundle.path.resolve()), backend), _TEST_SECONDS + hashing)
    if ran.fault is not None:
        return SmokeTest(runs=False, said=f"the test failed: {ran.fault}")
    document = json.loads(ran.output.splitlines()[-1])
    return SmokeTest(**{**document, "fitting": tuple(document["fitting"])})


def _lack_of_memory(bundle: Bundle, machine: Machine, backend: str) -> SmokeTest | None:
    """Return the reason not to try ONNX Runtime, if not even the weights of all graphs fit."""
    if backend in TENSORRT:  # the test uses the memory planner
        return None
    files = {name for graph in bundle.manifest.graphs.values() for name in graph.files}  # some are shared
    needed = sum(bundle.manifest.files[name].size_bytes for name in files)
    free = _free_bytes(machine, backend)
    if free is None or needed <= free:
        return None
    said = (
        f"the weights alone take {format_size(needed)} and {format_size(free)} are free; "
        "end other programs, or export a smaller precision (fp16, int8)"
    )
    return SmokeTest(runs=False, said=said)


def _free_bytes(machine: Machine, backend: str) -> int | None:
    if backend != "ort-cpu":
        return machine.gpus.memory_free
    free = machine.host.memory_free
    return None if free is None else free + machine.host.swap_free


def _backend_line(backend: str, test: SmokeTest) -> Diagnosis:
    found, _, cure = test.said.partition("; ")
    state: State = "ok" if test.runs else "warn"
    return _line(backend, state, found, cure)


def _plan_lines(bundle: Bundle, machine: Machine, backend: str, test: SmokeTest) -> Iterator[Diagnosis]:
    """Report on the plans of a flavour, if the bundle has any."""
    if not has_plans(bundle, backend):
        return
    name = f"plans for {backend}"
    if not test.fitting and not test.refused:
        yield _line(name, "warn", "they exist, but cannot be checked here", f"see {backend} above")
        return
    found = f"{len(test.fitting)} of {len(bundle.manifest.graphs)} graphs have one that is intact and fits"
    if machine.gpus.first is None:
        found += " the TensorRT here (there is no GPU to compare with)"
    why, _, cure = next(iter(test.refused.values()), "").partition("; ")
    if test.refused:
        found = f"{found}; {why}"
    yield _line(name, "warn" if why else "ok", found, cure)
