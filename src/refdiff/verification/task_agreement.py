"""The task-level half of `check`: the torch reference and the runtime segment the same samples.

The reference runs twice, with two seeds: how well it agrees with itself is the noise floor, below which a
difference between runtime and reference says nothing. The samples on which runtime and reference differ most
are kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from refdiff.accuracy.agreement import Agreement, compare, parts, summarize
from refdiff.accuracy.tolerances import Verdict, judge_samples
from refdiff.contracts.bundle import Bundle
from refdiff.contracts.inspection import MINIATURES
from refdiff.contracts.optional import require_export
from refdiff.contracts.options import Options
from refdiff.contracts.progress import Progress, Step
from refdiff.contracts.session import SessionFactory
from refdiff.data.sample import Sample
from refdiff.errors import EngineError, MissingDependencyError
from refdiff.loading import segmenter_of
from refdiff.models.choice import load_miniature
from refdiff.runtime.segmentation import Segmentation

if TYPE_CHECKING:
    from refdiff.contracts.stack import ModelStack

MOST_CASES = 4


@dataclass(frozen=True, kw_only=True)
class ComparedSample:
    """A sample, segmented by the reference and by the runtime."""

    variant: str
    sample: Sample
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
        """Sort key, larger is worse: the mask first, the map after it."""
        return 1.0 - self.agreement.mask_iou, self.heat_difference or 0.0


class WorstCases:
    """Keeps the samples on which reference and runtime differ most."""

    def __init__(self, most: int = MOST_CASES) -> None:
        self._most = most
        self._kept: list[ComparedSample] = []

    def add(self, case: ComparedSample) -> None:
        """Keep the case if it is among the worst."""
        self._kept = sorted([*self._kept, case], key=lambda each: each.badness, reverse=True)[: self._most]

    @property
    def cases(self) -> tuple[ComparedSample, ...]:
        """Worst first."""
        return tuple(self._kept)


PURPOSE = "the comparison with the torch reference"

OTHER_SEED = 1
"""Added to the seed of the reference for its second answer."""


@dataclass(frozen=True, kw_only=True)
class TaskAgreement:
    """The result of the comparison."""

    count: int = 0
    """Samples that were segmented under each variant."""
    verdicts: Mapping[str, tuple[Verdict, ...]] = field(default_factory=dict)
    """Per variant: the agreement of runtime and reference, with its limits."""
    noise_floor: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Per variant: the agreement of the reference with itself under another seed."""
    worst: tuple[ComparedSample, ...] = ()
    """The samples on which runtime and reference differ most, worst first."""
    unanswered: str | None = None
    """Error of the runtime at a sample, which ended the comparison; None if it segmented all of them."""


def compare_with_reference(
    bundle: Bundle,
    sessions: SessionFactory,
    stack: ModelStack,
    variants: Mapping[str, Options],
    samples: Sequence[Sample],
    progress: Progress,
) -> TaskAgreement:
    """Segment the same samples with reference and runtime, under each variant.

    Args:
        bundle: the one whose graphs the sessions open.
        sessions: the runtime's.
        stack: the torch modules the bundle was exported from.
        variants: name -> options.
        samples: images and phrases.
        progress: called with one line for each sample.
    """
    with require_export(PURPOSE):
        from refdiff.reference.pipeline import Reference
    verdicts: dict[str, tuple[Verdict, ...]] = {}
    floor: dict[str, dict[str, float]] = {}
    worst = WorstCases()
    for name, options in variants.items():
        reference = Reference(stack=stack, options=options)
        reseeded = dataclasses.replace(options, seed=options.seed + OTHER_SEED)
        again = Reference(stack=stack, options=reseeded)
        runtime = segmenter_of(bundle, sessions, options)
        agreements, own = list[Agreement](), list[Agreement]()
        for number, sample in enumerate(samples, start=1):
            line = f"{name}: scene {number}/{len(samples)}"
            progress(Step(line, done=number - 1, total=len(samples), unit=name))
            image = sample.read()
            try:
                ours = runtime.segment(runtime.encode(image), sample.phrase)
            except EngineError as error:
                what = str(error).partition(";")[0]
                unanswered = f"“{sample.phrase}” on {sample.id} in variant {name}: {what}"
                return TaskAgreement(unanswered=unanswered)
            encoded = reference.encode(image)  # the seed changes no proposal: both answers use it
            theirs = reference.segment_encoded(encoded, sample.phrase)
            own.append(compare(theirs, again.segment_encoded(encoded, sample.phrase)))
            agreements.append(compare(theirs, ours))
            worst.add(
                ComparedSample(
                    variant=name,
                    sample=sample,
                    reference=theirs,
                    runtime=ours,
                    agreement=agreements[-1],
                )
            )
        verdicts[name] = judge_samples(bundle.manifest.precision, parts(agreements))
        floor[name] = summarize(own)
    return TaskAgreement(count=len(samples), verdicts=verdicts, noise_floor=floor, worst=worst.cases)


def reference_of(bundle: Bundle, given: ModelStack | None) -> tuple[ModelStack | None, str | None]:
    """Return the modules to compare with, or why there are none."""
    if given is not None:
        return given, None
    model = bundle.spec.name
    if model not in MINIATURES:
        return None, f"the checkpoints of {model!r} are not in the bundle"
    try:
        stack = load_miniature(PURPOSE, model)
    except MissingDependencyError as error:
        return None, str(error)
    if dict(stack.sources) != dict(bundle.manifest.sources):
        return None, f"the bundle was exported from other weights of {model!r} than are installed here"
    return stack, None
