"""`doctor`: examine this machine, what can run on it, and how to fix the rest.

Each back-end is tried on a bundle in a process of its own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from refdiff.contracts.bundle import Bundle, Manifest, open_bundle, read_manifest
from refdiff.contracts.inspection import bundle_path
from refdiff.contracts.optional import install_line
from refdiff.contracts.progress import Progress, silent
from refdiff.diagnostics.checks import check_machine, check_packages
from refdiff.diagnostics.facts import Diagnosis, Machine, State, format_size
from refdiff.diagnostics.gather import gather
from refdiff.diagnostics.known_bad import check_known_bad
from refdiff.diagnostics.smoke_test import SmokeTest
from refdiff.diagnostics.sources import Run, Sources, this_machine
from refdiff.engines.cuda_forms import stored_forms
from refdiff.engines.trt.open import TENSORRT
from refdiff.engines.trt.plan_store import plans_folder
from refdiff.engines.trt.plans import has_plans, plan_bytes
from refdiff.errors import BundleError
from refdiff.reports.table import Cell, Column, Table, Tone

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
        *_form_lines(bundle),
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


def _form_lines(bundle: Bundle) -> Iterator[Diagnosis]:
    """Report on the forms for ort-cuda, if the bundle has any."""
    forms = stored_forms(bundle)
    if not forms:
        return
    found = f"{sum(forms.values())} of {len(bundle.manifest.graphs)} graphs have one that is intact and fits"
    unfit = ", ".join(graph for graph, fits in forms.items() if not fits)
    if not unfit:
        yield _line("forms for ort-cuda", "ok", found)
        return
    cure = f"refdiff build {bundle.path} --flavour ort-cuda, or leave it to the next load"
    yield _line("forms for ort-cuda", "warn", f"{found}; not that of {unfit}", cure)


_bundle_line = partial(Diagnosis, "bundle")
_verdict_line = partial(Diagnosis, "verdict", "verdict")


@dataclass(frozen=True, kw_only=True)
class DoctorReport:
    """Result of `doctor`."""

    bundle: Path | None
    """The examined bundle; None if the machine alone was examined."""
    findings: tuple[Diagnosis, ...]
    runs_with: tuple[str, ...]
    """Back-ends that ran a graph of the bundle, or of the built-in one."""
    machine: Machine

    @property
    def passed(self) -> bool:
        """True if the bundle runs here; without a bundle, if anything runs here."""
        return all(finding.state != "fail" for finding in self.findings)

    @property
    def verdict(self) -> Diagnosis:
        """The last line, which summarizes the others."""
        return self.findings[-1]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "bundle": None if self.bundle is None else str(self.bundle),
            "passed": self.passed,
            "runs_with": list(self.runs_with),
            "findings": [finding.to_json() for finding in self.findings],
            "machine": self.machine.to_json(),
        }


def doctor(
    bundle: Path | str | None = None, *, sources: Sources | None = None, progress: Progress = silent
) -> DoctorReport:
    """Examine this machine and, if one is named, whether a bundle runs on it.

    Args:
        bundle: a bundle's folder, or "mini"; None: the machine alone, with the built-in bundle.
        sources: where facts come from; None: this machine.
        progress: receives one line for each step.

    Raises:
        BundleError: there is no bundle at the path, its manifest cannot be read, or it is of another format.
    """
    path = bundle_path("mini" if bundle is None else bundle)
    manifest = read_manifest(path)
    where = this_machine() if sources is None else sources
    progress("examining this machine")
    # Plans are all that refdiff writes: in the bundle or, for the built-in one, in a cache.
    machine = gather(where, {"plans": plans_folder(Bundle(path=path, manifest=manifest))})
    progress("verifying the bundle's files")
    opened, integrity = _open(path, manifest)
    if opened is None:
        results = BackendResults(findings=(), runs_with=(), can_build=())
        verdict = _verdict_line("fail", f"{path} cannot run here: it is damaged", "see its files above")
    else:
        results = try_backends(opened, machine, where.run, progress)
        verdict = _verdict(results, path) if bundle is not None else _verdict_without_bundle(results)
    about_bundle = integrity if bundle is not None or opened is None else []
    return DoctorReport(
        bundle=None if bundle is None else path,
        findings=(
            *check_machine(machine),
            *check_packages(machine),
            *check_known_bad(machine),
            *about_bundle,
            *results.findings,
            verdict,
        ),
        runs_with=results.runs_with,
        machine=machine,
    )


def _open(path: Path, manifest: Manifest) -> tuple[Bundle | None, list[Diagnosis]]:
    """Return the bundle if its files match the manifest, and lines about it."""
    try:
        bundle = open_bundle(path)
    except BundleError as error:
        found, _, cure = str(error).partition("; ")
        return None, [_bundle_line("files", "fail", found, cure)]
    size = sum(record.size_bytes for record in manifest.files.values())
    about = f"{path}: {manifest.spec.name}, {manifest.precision}, {len(manifest.graphs)} graphs"
    lines = [_bundle_line("files", "ok", f"{about}, {format_size(size)}; every file matches the manifest")]
    if manifest.random_seed is not None:
        found = f"random, seed {manifest.random_seed}: its masks mean nothing"
        cure = "export trained weights, or measure with --allow-random-weights"
        lines.append(_bundle_line("weights", "warn", found, cure))
    return bundle, lines


def _verdict(results: BackendResults, path: Path) -> Diagnosis:
    if results.runs_with:
        return _verdict_line("ok", f"runs here with {', '.join(results.runs_with)}")
    if results.can_build:
        cure = f"refdiff build {path} --flavour {results.can_build[0]}"
        return _verdict_line("fail", f"{path} cannot run here: it has no plans that fit", cure)
    return _verdict_line("fail", f"{path} cannot run here", "see the lines above, back-ends first")


def _verdict_without_bundle(results: BackendResults) -> Diagnosis:
    if results.runs_with:
        return _verdict_line("ok", f"bundles run here with {', '.join(results.runs_with)}")
    if results.can_build:
        found = f"plans can be built and run here with {', '.join(results.can_build)}"
        return _verdict_line("ok", found, "refdiff build BUNDLE")
    cure = f"install a back-end: {install_line('cpu')}, or see the lines above"
    return _verdict_line("fail", "no back-end can run anything here", cure)


_TONES: dict[State, Tone] = {"ok": "good", "warn": "warn", "fail": "bad"}


def doctor_table(report: DoctorReport) -> Table:
    """Lay out a block of rows per section: state, what was checked, what was found, and the cure."""
    rows: list[tuple[Cell | str, ...]] = []
    for section, findings in groupby(report.findings, key=lambda finding: finding.section):
        rows.append(("", section.upper()))
        rows += [
            (_state(each), each.name, f"{each.found}\nfix: {each.cure}" if each.cure else each.found)
            for each in findings
        ]
    return Table(columns=(Column(), Column(wrap=True), Column(wrap=True)), rows=rows)


def _state(finding: Diagnosis) -> Cell:
    """Return the state as a cell; what is well although it lacks something is optional."""
    if finding.state == "ok" and finding.cure:
        return Cell("–")
    return Cell(finding.state, _TONES[finding.state])
