"""`check`: is a bundle still the reference? Golden tensors everywhere, the torch reference where torch is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refdiff.accuracy.agreement import Agreement, compare, graph_error, summarise
from refdiff.accuracy.gates import Verdict, judge
from refdiff.api.bundles import find_bundle, segmenter_of
from refdiff.api.extras import import_torch_room, load_miniature
from refdiff.api.models import MINIATURE
from refdiff.api.progress import Progress, silent
from refdiff.contracts.bundle import Bundle
from refdiff.contracts.closeness import recorded_part
from refdiff.contracts.graphs import GRAPHS
from refdiff.contracts.options import Options, options_for
from refdiff.contracts.session import SessionFactory
from refdiff.engines.factory import open_sessions
from refdiff.errors import BundleError, GateError, InputError, MissingDependencyError
from refdiff.miniature.questions import HELD_OUT_FROM, questions

if TYPE_CHECKING:
    from refdiff.contracts.stack import ModelStack

CHECKED_PROFILES = ("official", "edge")

PURPOSE = "the comparison with the torch reference"


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What was measured, beside its limits."""

    bundle: Path
    model: str
    precision: str
    backend: str
    golden: tuple[Verdict, ...]
    """Per graph: the error on the bundle's recorded tensors."""
    reference: dict[str, tuple[Verdict, ...]]
    """Per profile: agreement with the torch reference; empty when that was not run."""
    count: int
    """Scenes per profile the reference was asked about."""
    not_run: str | None
    """Why the comparison with the reference was not run; None when it was."""

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """All of them."""
        return self.golden + tuple(verdict for each in self.reference.values() for verdict in each)

    @property
    def passed(self) -> bool:
        """Every value that was measured is within its limit."""
        return all(verdict.passed for verdict in self.verdicts)

    @property
    def failure(self) -> str | None:
        """One line that names the failed gates; None when all passed."""
        failed = [str(verdict) for verdict in self.verdicts if not verdict.passed]
        return f"{len(failed)} of {len(self.verdicts)} gates failed: {'; '.join(failed)}" if failed else None

    def require(self) -> None:
        """Refuse a report with a failed gate.

        Raises:
            GateError: names the failed gates.
        """
        if self.failure is not None:
            raise GateError(self.failure)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "bundle": str(self.bundle),
            "model": self.model,
            "precision": self.precision,
            "backend": self.backend,
            "passed": self.passed,
            "golden": [verdict.to_json() for verdict in self.golden],
            "reference": {name: [each.to_json() for each in part] for name, part in self.reference.items()},
            "reference_count": self.count,
            "reference_not_run": self.not_run,
        }


def check(
    bundle: Path | str,
    *,
    count: int = 8,
    seed: int = HELD_OUT_FROM,
    profiles: Sequence[str] = CHECKED_PROFILES,
    mode: str = "full",
    backend: str = "auto",
    threads: int | None = None,
    golden_only: bool = False,
    stack: ModelStack | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Measure a bundle against its golden tensors, and against the torch reference where that is installed.

    Args:
        bundle: its folder, or "mini" for the built-in one.
        count: held-out scenes per profile.
        seed: of the first scene.
        profiles: which to compare.
        mode: as in `load`.
        backend: as in `load`.
        threads: as in `load`.
        golden_only: leave the reference out; needs no torch.
        stack: the torch modules to compare with; None takes those of the bundle's model, where they are
            installed and are the weights it was exported from.
        progress: told one line at each step.

    Raises:
        BundleError: the bundle is missing, damaged or newer.
        InputError: an unknown option, or a precision without gates.
        EngineError: a graph failed.
    """
    if count < 1:
        raise InputError(f"got {count} scenes, expected 1 or more")
    tell, opened = progress or silent, find_bundle(bundle)
    per_profile = {name: options_for(opened.spec, profile=name, mode=mode) for name in profiles}
    sessions = open_sessions(opened, backend=backend, threads=threads)
    try:
        golden = judge("graph_error", opened.manifest.precision, dict(_replay(opened, sessions, tell)))
        modules, not_run = (None, "left out on request") if golden_only else _reference_of(opened, stack)
        seeds = range(seed, seed + count)
        reference = {
            name: _agreement(opened, sessions, modules, options, seeds, tell)
            for name, options in per_profile.items()
            if modules is not None
        }
    finally:
        sessions.close()
    return CheckReport(
        bundle=opened.path,
        model=opened.spec.name,
        precision=opened.manifest.precision,
        backend=sessions.backend,
        golden=golden,
        reference=reference,
        count=count if reference else 0,
        not_run=not_run,
    )


def _replay(bundle: Bundle, sessions: SessionFactory, tell: Progress) -> Iterator[tuple[str, float]]:
    """Graph -> error on its recorded tensors."""
    golden = bundle.golden()
    for name in GRAPHS:
        if name not in golden or name not in bundle.manifest.graphs:
            raise BundleError(f"{bundle.path}: graph {name} or its golden record is missing; export again")
        tell(f"replaying {name}")
        feeds, expected = golden[name]
        results = sessions.open(name).run(feeds)
        kept = {key: recorded_part(results[key], record) for key, record in expected.items()}
        yield name, graph_error(kept, expected)


def _reference_of(bundle: Bundle, given: ModelStack | None) -> tuple[ModelStack | None, str | None]:
    """The modules to compare with, or why there are none."""
    if given is not None:
        return given, None
    model = bundle.spec.name
    if model != MINIATURE:
        return None, f"the checkpoints of {model!r} are not in the bundle"
    try:
        stack = load_miniature(PURPOSE)
    except MissingDependencyError as error:
        return None, str(error)
    if dict(stack.sources) != dict(bundle.manifest.sources):
        return None, f"the bundle was exported from other weights of {model!r} than are installed here"
    return stack, None


def _agreement(
    bundle: Bundle,
    sessions: SessionFactory,
    stack: ModelStack,
    options: Options,
    seeds: Sequence[int],
    tell: Progress,
) -> tuple[Verdict, ...]:
    """Ask reference and runtime the same questions, under one profile."""
    module = import_torch_room("refdiff.reference.pipeline", PURPOSE)
    reference = module.Reference(stack=stack, options=options)
    runtime = segmenter_of(bundle, sessions, options)
    agreements: list[Agreement] = []
    for asked in questions(seeds):
        tell(f"{options.profile}: scene {asked.seed - seeds[0] + 1}/{len(seeds)}")
        theirs = reference.segment(asked.image, asked.phrase)
        agreements.append(compare(theirs, runtime.segment(runtime.encode(asked.image), asked.phrase)))
    return judge("agreement", bundle.manifest.precision, summarise(agreements))
