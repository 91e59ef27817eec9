"""Give a bundle's golden answer, and compare it with the recorded one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refdiff.contracts.golden_answer import PARTS, GoldenAnswer
from refdiff.contracts.options import options_for
from refdiff.contracts.parity import correlation
from refdiff.contracts.prompt_vectors import PromptVectors
from refdiff.contracts.session import Bool, Float, ImageArray, SessionFactory
from refdiff.contracts.spec import ModelSpec
from refdiff.runtime.pipeline import Segmenter
from refdiff.runtime.segmentation import Segmentation
from refdiff.runtime.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class AnswerParity:
    """Distance of an answer from the recorded one."""

    same_tokens: bool
    heat_correlation: float
    """Pearson's correlation of the heatmaps, -1..1."""
    mask_iou: float
    """Intersection over union of the chosen masks; 1 if both are empty."""
    candidate_iou: float
    """The same of the recorded mask and the candidate that is closest to it."""
    score_error: float
    """Largest difference of a part of the score, of that candidate from the recorded mask's."""


def give_answer(
    sessions: SessionFactory,
    spec: ModelSpec,
    *,
    tokenizer_json: str,
    positions: Float,
    prompts: PromptVectors,
    image: ImageArray,
    phrase: str,
    variant: str = "edge",
) -> tuple[GoldenAnswer, Segmentation]:
    """Segment one image over the given sessions, which are closed.

    Returns:
        What is recorded, and the whole answer.

    Raises:
        InputError: the tokenizer, a table or the phrase cannot be used.
        EngineError: a graph failed.
    """
    tokenizer = Tokenizer(tokenizer_json, spec.context_length)
    options = options_for(spec, variant=variant)
    with Segmenter(
        sessions=sessions,
        spec=spec,
        options=options,
        tokenizer=tokenizer,
        positions=positions,
        prompts=prompts,
    ) as segmenter:
        answer = segmenter.segment(segmenter.encode(image), phrase)
    heat = np.zeros(answer.mask.shape, np.float32) if answer.heat is None else answer.heat
    recorded = GoldenAnswer(
        image=image,
        phrase=phrase,
        variant=variant,
        ids=tokenizer.diffusion_ids(phrase),
        mask=answer.mask,
        heat=heat.astype(np.float16).astype(np.float32),
        parts=_parts(answer, answer.index),
    )
    return recorded, answer


def compare_answers(got: GoldenAnswer, answer: Segmentation, recorded: GoldenAnswer) -> AnswerParity:
    """Compare an answer with the recorded one to the same image and phrase."""
    closest, overlap = _closest_candidate(answer, recorded)
    return AnswerParity(
        same_tokens=np.array_equal(got.ids, recorded.ids),
        heat_correlation=correlation(got.heat, recorded.heat),
        mask_iou=_overlap(got.mask, recorded.mask),
        candidate_iou=overlap,
        score_error=float(np.abs(_parts(answer, closest) - recorded.parts).max()),
    )


def _closest_candidate(answer: Segmentation, recorded: GoldenAnswer) -> tuple[int | None, float]:
    if not recorded.mask.any():
        return answer.index, _overlap(answer.mask, recorded.mask)
    overlaps = [_overlap(mask, recorded.mask) for mask in answer.candidates.masks]
    if not overlaps:
        return None, 0.0
    closest = int(np.argmax(overlaps))
    return closest, overlaps[closest]


def _parts(answer: Segmentation, index: int | None) -> Float:
    values = [0.0 if index is None else float(getattr(answer.scores, name)[index]) for name in PARTS]
    return np.array(values, np.float32)


def _overlap(one: Bool, other: Bool) -> float:
    either = int((one | other).sum())
    return int((one & other).sum()) / either if either else 1.0
