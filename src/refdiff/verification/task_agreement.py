"""The questions on which runtime and reference differ most, kept while many are asked.

The task-level half of `check`: torch reference and runtime are asked the same questions.

The reference is asked twice, with two seeds: how well it agrees with itself is the noise floor, below which a
difference between runtime and reference says nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from refdiff.accuracy.agreement import Agreement, compare, summarise
from refdiff.accuracy.tolerances import Verdict, judge
from refdiff.contracts.bundle import Bundle
from refdiff.contracts.optional import require_export
from refdiff.contracts.options import Options
from refdiff.contracts.progress import Progress
from refdiff.contracts.results import Segmentation
from refdiff.contracts.session import SessionFactory
from refdiff.data.synthetic import questions
from refdiff.errors import EngineError, InputError, MissingDependencyError
from refdiff.loading import segmenter_of
from refdiff.models.choice import MINIATURE, load_miniature

if TYPE_CHECKING:
    from refdiff.contracts.stack import ModelStack

MOST_CASES = 4


@dataclass(frozen=True, kw_only=True)
class Case:
    """One question, answered twice."""

    variant: str
    seed: int
    """Of the scene."""
    image: NDArray[np.uint8]
    """[y, x, 3] RGB."""
    reference: Segmentation
    runtime: Segmentation
    agreement: Agreement

    @property
    def heat_difference(self) -> float | None:
        """Largest difference between the attention maps, 0..1; None in a mode without one."""
        one, other = self.reference.heat, self.runtime.heat
        return None if one is None or other is None else float(np.abs(one - other).max())

    @property
    def badness(self) -> tuple[float, float]:
        """Larger is worse: the answer first, the map after it."""
        return 1.0 - self.agreement.mask_iou, self.heat_difference or 0.0


class WorstCases:
    """Keeps the worst of all it is shown."""

    def __init__(self, most: int = MOST_CASES) -> None:
        self._most = most
        self._kept: list[Case] = []

    def add(self, case: Case) -> None:
        """Look at one more."""
        self._kept = sorted([*self._kept, case], key=lambda each: each.badness, reverse=True)[: self._most]

    @property
    def cases(self) -> tuple[Case, ...]:
        """Worst first."""
        return tuple(self._kept)


PURPOSE = "the comparison with the torch reference"

OTHER_SEED = 1
"""Added to the seed of the reference for its second answer."""


@dataclass(frozen=True, kw_only=True)
class TaskAgreement:
    """What the comparison measured."""

    count: int = 0
    """Questions that were asked under each variant; not every scene has one."""
    verdicts: Mapping[str, tuple[Verdict, ...]] = field(default_factory=dict)
    """Per variant: the agreement of runtime and reference, beside its limits."""
    noise_floor: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Per variant: the agreement of the reference with itself under another seed."""
    worst: tuple[Case, ...] = ()
    """The questions on which runtime and reference differ most, worst first."""
    unanswered: str | None = None
    """How the runtime failed at a question, which ended the comparison; None when it answered all."""


def compare_with_reference(
    bundle: Bundle,
    sessions: SessionFactory,
    stack: ModelStack,
    variants: Mapping[str, Options],
    seeds: Sequence[int],
    progress: Progress,
) -> TaskAgreement:
    """Ask reference and runtime the same questions, under each variant.

    Args:
        bundle: whose graphs the sessions open.
        sessions: of the runtime.
        stack: the torch modules the bundle was exported from.
        variants: name -> options.
        seeds: of the scenes.
        progress: told one line for each scene.

    Raises:
        InputError: none of the scenes has a question.
    """
    with require_export(PURPOSE):
        from refdiff.reference.pipeline import Reference
    every = tuple(questions(seeds))
    if not every:
        raise InputError(
            f"no object of the {len(seeds)} scenes from {seeds[0]} on can be told from the others; "
            "ask for more scenes (--count), or other ones (--seed)"
        )
    verdicts: dict[str, tuple[Verdict, ...]] = {}
    floor: dict[str, dict[str, float]] = {}
    worst = WorstCases()
    for name, options in variants.items():
        reference = Reference(stack=stack, options=options)
        reseeded = dataclasses.replace(options, seed=options.seed + OTHER_SEED)
        again = Reference(stack=stack, options=reseeded)
        runtime = segmenter_of(bundle, sessions, options)
        agreements, own = list[Agreement](), list[Agreement]()
        for number, asked in enumerate(every, start=1):
            progress(f"{name}: scene {number}/{len(every)}")
            try:
                ours = runtime.segment(runtime.encode(asked.image), asked.phrase)
            except EngineError as error:
                what = str(error).partition(";")[0]
                unanswered = f"“{asked.phrase}” on scene {asked.seed} in variant {name}: {what}"
                return TaskAgreement(unanswered=unanswered)
            scene = reference.encode(asked.image)  # the seed changes no proposal: both answers use it
            theirs = reference.segment_scene(scene, asked.phrase)
            own.append(compare(theirs, again.segment_scene(scene, asked.phrase)))
            agreements.append(compare(theirs, ours))
            worst.add(
                Case(
                    variant=name,
                    seed=asked.seed,
                    image=asked.image,
                    reference=theirs,
                    runtime=ours,
                    agreement=agreements[-1],
                )
            )
        verdicts[name] = judge("agreement", bundle.manifest.precision, summarise(agreements))
        floor[name] = summarise(own)
    return TaskAgreement(count=len(every), verdicts=verdicts, noise_floor=floor, worst=worst.cases)


def reference_of(bundle: Bundle, given: ModelStack | None) -> tuple[ModelStack | None, str | None]:
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
