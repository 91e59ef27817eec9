"""The task-level half of `check`: the torch reference and the runtime segment the same samples.

The reference runs twice, with two seeds: how well it agrees with itself is the noise floor, below which a
difference between runtime and reference says nothing. The samples on which runtime and reference differ most
are kept.

Axes: n/m = candidates of the reference/the runtime, y/x = image rows/columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from refdiff.accuracy.metrics import iou, pairwise_iou
from refdiff.accuracy.tolerances import Verdict, judge_samples
from refdiff.contracts.bundle import Bundle
from refdiff.contracts.inspection import MINIATURES
from refdiff.contracts.optional import require_export
from refdiff.contracts.options import Options
from refdiff.contracts.parity import correlation
from refdiff.contracts.progress import Progress, Step
from refdiff.contracts.session import Float, SessionFactory
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


SAME_CANDIDATE = 0.9
"""IoU from which two candidates are one: well above the 0.7 at which SAM merges boxes."""

TIE = 1e-4
"""Scores of the reference closer than this are a tie: either order of them agrees."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement on one sample; a part is None where the mode or the image has nothing to compare."""

    heat_correlation: float | None
    """Pearson correlation over the image's pixels."""
    candidate_recall: float
    """Share of the reference's candidates that the runtime found too, one to one."""
    rank_agreement: float | None
    """Share of pairs of common candidates that both put in the same order."""
    mask_iou: float
    """IoU of the two answers."""
    argmax_agreement: float
    """1 when both chose the same candidate, or both none; else 0.

    The same candidate is, of all the runtime found, the one nearest to the reference's choice, where their
    IoU is `SAME_CANDIDATE` or more. How well edges agree is `mask_iou`'s to say: in fewer bits every one
    moves a little.
    """


def compare(reference: Segmentation, runtime: Segmentation) -> Agreement:
    """Compare two answers to one phrase on one image."""
    ious = pairwise_iou(np.asarray(reference.candidates.masks), np.asarray(runtime.candidates.masks))
    pairs = match_candidates(ious)
    answers = iou(reference.mask, runtime.mask)
    return Agreement(
        heat_correlation=_heat_correlation(reference.heat, runtime.heat),
        candidate_recall=len(pairs) / len(reference.candidates) if len(reference.candidates) else 1.0,
        rank_agreement=_rank_agreement(reference, runtime, pairs),
        mask_iou=answers,
        argmax_agreement=float(_same_choice(reference.index, runtime.index, ious)),
    )


def parts(agreements: Sequence[Agreement]) -> dict[str, tuple[float, ...]]:
    """Return the values of every part over the samples that have it; a part that none has is omitted."""
    values = {
        field.name: tuple(
            float(value) for each in agreements if (value := getattr(each, field.name)) is not None
        )
        for field in dataclasses.fields(Agreement)
    }
    return {name: each for name, each in values.items() if each}


def summarize(agreements: Sequence[Agreement]) -> dict[str, float]:
    """Return the mean of every part over the samples that have it; a part that none has is omitted."""
    return {name: float(np.mean(values)) for name, values in parts(agreements).items()}


def match_candidates(ious: Float, at_least: float = SAME_CANDIDATE) -> list[tuple[int, int]]:
    """Pair rows with columns of [n, m], best IoU first, each used once."""
    pairs: list[tuple[int, int]] = []
    rows, columns = set[int](), set[int]()
    for flat in np.argsort(-ious, axis=None, kind="stable"):
        row, column = divmod(int(flat), ious.shape[1])
        if ious[row, column] < at_least:
            break
        if row not in rows and column not in columns:
            pairs.append((row, column))
            rows.add(row)
            columns.add(column)
    return pairs


def order_agreement(first: NDArray[np.floating], second: NDArray[np.floating]) -> float | None:
    """Return the share of pairs (i, j) that both arrays [k] order equally; None if there is no pair."""
    upper = np.triu_indices(len(first), k=1)
    one, other = ((each[:, None] - each[None, :])[upper] for each in (first, second))
    if not one.size:
        return None
    return float(((np.abs(one) <= TIE) | (np.sign(one) == np.sign(other))).mean())


def _same_choice(reference: int | None, runtime: int | None, ious: Float) -> bool:
    """Return whether `ious` [n, m] pairs both choices; any of equally near candidates is accepted."""
    if reference is None or runtime is None:
        return reference is None and runtime is None
    return bool(ious[reference, runtime] >= max(SAME_CANDIDATE, ious[reference].max()))


def _heat_correlation(first: Float | None, second: Float | None) -> float | None:
    return None if first is None or second is None else correlation(first, second)


def _rank_agreement(
    reference: Segmentation, runtime: Segmentation, pairs: Sequence[tuple[int, int]]
) -> float | None:
    """Return the agreement over candidates that both found and that can win in both."""
    one = np.array([reference.scores.total[row] for row, _ in pairs], dtype=np.float64)
    other = np.array([runtime.scores.total[column] for _, column in pairs], dtype=np.float64)
    usable = np.isfinite(one) & np.isfinite(other)
    return order_agreement(one[usable], other[usable])
