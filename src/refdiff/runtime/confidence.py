"""Confidence of an answer: features of the chosen candidate, and the model that weighs them.

CLIP's cosines are not comparable between texts, because each text has its own mean over all kinds of
candidates. Features are therefore standardized: (cosine - its mean) / its deviation, both over the candidates
that the model was fitted on, computed from their mean vector and covariance for any text.

Axes: n = kept candidates, e = CLIP embedding, k = words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from refdiff.contracts.confidence import ConfidenceModel
from refdiff.contracts.results import Candidates, Masks, Scores
from refdiff.contracts.session import Bool, Float
from refdiff.runtime.clip_branch import ClipBranch, ClipViews, Texts
from refdiff.runtime.head import words_of
from refdiff.runtime.phrase import Phrase
from refdiff.runtime.segmentation import NOT_CALIBRATED, Segmentation

FEATURES = {
    "text_crop": "standardized cosine of the phrase and the crop",
    "text_context": "standardized cosine of the phrase and the candidate in its surroundings",
    "head_crop": "the same of the head word and the crop",
    "head_context": "the same of the head word and the candidate in its surroundings",
    "noun_crop": "head_crop minus that of the best competing noun",
    "noun_context": "head_context minus that of the best competing noun",
    "attribute_crop": "the same margin of the phrase's attribute among the attributes; 0 without one",
    "attribute_context": "the same in its surroundings",
    "heat_contrast": "the generative score",
    "heat_inside": "mean heat inside the mask",
    "heat_share": "heat_inside over that of the hottest candidate",
    "heat_margin": "heat_inside minus that of the best candidate elsewhere",
    "total_margin": "total score minus that of the best candidate elsewhere",
    "place": "fit to the place that the phrase names",
    "place_gap": "place minus that of the best candidate",
    "predicted_iou": "SAM's own estimate",
    "has_attribute": "1 if the phrase has an attribute that the model knows",
    "has_place": "1 if the phrase names a place or a superlative",
    "has_relation": "1 if the phrase names a relation",
}
"""Feature -> its meaning."""

Probe = Callable[["Evidence"], None]
"""Receives the evidence of every answer; fitting a model listens here."""

_ELSEWHERE = 0.5
"""IoU below which another candidate is a competitor and not the same object."""

_SAME_WORD = 1 - 1e-3
"""Cosine of two texts from which they count as the same word."""

_EPS = 1e-9


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """What the features of an answer are computed from."""

    phrase: Phrase
    text: Float
    """[e], the phrase's vector."""
    head: Float
    """[e], the head word's vector."""
    crops: Float
    """[n, e], vectors of the kept candidates' crops."""
    contexts: Float
    """[n, e], vectors of the kept candidates under masked attention."""
    heat: Float
    """[y, x]."""
    candidates: Candidates
    scores: Scores
    index: int
    """Of the chosen candidate among all."""

    @property
    def position(self) -> int:
        """Index of the chosen candidate among the kept ones."""
        return int(np.count_nonzero(self.candidates.kept[: self.index]))


class ConfidenceJudge:
    """Adds the confidence to answers, and withholds masks whose confidence is too low.

    Args:
        clip: the segmenter's CLIP branch, whose vectors are reused; no graph runs.
        model: fitted for the segmenter's variant and mode; None: answers have no confidence.
        min_confidence: 0..1; None withholds nothing.
        probe: called with the evidence of every answer.
    """

    def __init__(
        self,
        clip: ClipBranch,
        model: ConfidenceModel | None,
        min_confidence: float | None,
        probe: Probe | None = None,
    ) -> None:
        self._clip, self._model = clip, model
        self._min_confidence, self._probe = min_confidence, probe

    def judge(
        self, answer: Segmentation, phrase: Phrase, views: ClipViews | None, texts: Texts
    ) -> Segmentation:
        """Return the answer with its confidence and the cautions that follow from it."""
        if answer.index is None:
            return answer
        if views is not None and answer.heat is not None and (self._model or self._probe):
            crops, contexts = self._clip.vectors_of_kept(views, phrase)
            evidence = Evidence(
                phrase=phrase,
                text=texts[phrase.text],
                head=texts[phrase.root],
                crops=crops,
                contexts=contexts,
                heat=answer.heat,
                candidates=answer.candidates,
                scores=answer.scores,
                index=answer.index,
            )
            answer = self._estimate(answer, evidence)
        return withhold(answer, self._min_confidence)

    def _estimate(self, answer: Segmentation, evidence: Evidence) -> Segmentation:
        if self._probe is not None:
            self._probe(evidence)
        model = self._model
        if model is None:
            return answer
        others = tuple(each for each in answer.cautions if each != NOT_CALIBRATED)
        if _similar(model, evidence.head).max(initial=-1.0) < _SAME_WORD:
            caution = (
                f"confidence: none, as {answer.root!r} is not among the {len(model.nouns)} words that it was "
                "fitted on; the best candidate is returned even if nothing in the image fits the phrase"
            )
            return replace(answer, cautions=(*others, caution))
        return replace(answer, confidence=model.probability(features_of(evidence, model)), cautions=others)


def features_of(evidence: Evidence, model: ConfidenceModel) -> dict[str, float]:
    """Return the features of `FEATURES`."""
    return {**mask_features(evidence), **text_features(evidence, model)}


def mask_features(evidence: Evidence) -> dict[str, float]:
    """Return the features that need no model: of scores, heatmap and masks."""
    kept, at = evidence.candidates.kept, evidence.position
    masks = evidence.candidates.masks[kept]
    elsewhere = _overlaps(masks, at) < _ELSEWHERE  # [n]
    inside = np.array([evidence.heat[mask].mean() if mask.any() else 0.0 for mask in masks])
    total, place = evidence.scores.total[kept], evidence.scores.place[kept]
    return {
        "heat_contrast": float(evidence.scores.generative[evidence.index]),
        "heat_inside": float(inside[at]),
        "heat_share": float(inside[at] / max(float(inside.max()), 1e-6)),
        "heat_margin": _margin(inside, at, elsewhere),
        "total_margin": _margin(total, at, elsewhere),
        "place": float(place[at]),
        "place_gap": float(place[at] - place.max()),
        "predicted_iou": float(evidence.candidates.predicted_iou[evidence.index]),
        "has_place": float(evidence.phrase.place is not None or evidence.phrase.superlative is not None),
        "has_relation": float(evidence.phrase.relation is not None),
    }


def text_features(evidence: Evidence, model: ConfidenceModel) -> dict[str, float]:
    """Return the features that compare the chosen candidate with the phrase and with the model's words."""
    at = evidence.position
    attribute = own_attribute(evidence.phrase, model.attributes)
    values = {"has_attribute": float(attribute is not None)}
    views = {
        "crop": (evidence.crops[at], model.crop_mean, model.crop_covariance),
        "context": (evidence.contexts[at], model.context_mean, model.context_covariance),
    }
    for name, view in views.items():
        values[f"text_{name}"] = float(standardized(evidence.text[None], *view)[0])
        head = float(standardized(evidence.head[None], *view)[0])
        others = model.noun_vectors[_similar(model, evidence.head) < _SAME_WORD]
        values[f"head_{name}"] = head
        values[f"noun_{name}"] = head - _largest(standardized(others, *view), default=head)
        values[f"attribute_{name}"] = 0.0
        if attribute is not None:
            levels = standardized(model.attribute_vectors, *view)
            rest = np.delete(levels, attribute)
            values[f"attribute_{name}"] = float(levels[attribute]) - _largest(rest, default=0.0)
    return values


def _similar(model: ConfidenceModel, head: Float) -> Float:
    """Return the cosine of the head word and each noun of the model: [k]."""
    return np.asarray(np.einsum("ke,e->k", model.noun_vectors, head), dtype=np.float32)


def own_attribute(phrase: Phrase, attributes: tuple[str, ...]) -> int | None:
    """Return the index of the first attribute that the phrase gives its head word; None without one."""
    for word in words_of(phrase.text[: phrase.root_end]):
        if word.text in attributes:
            return attributes.index(word.text)
    return None


def standardized(texts: Float, vector: Float, mean: Float, covariance: Float) -> Float:
    """Return (cosine - its mean) / its deviation of a vector [e] and texts [k, e]: [k]."""
    deviations = np.sqrt(np.einsum("ke,ef,kf->k", texts, covariance, texts) + _EPS)
    return np.asarray(np.einsum("ke,e->k", texts, vector - mean) / deviations, dtype=np.float32)


def _overlaps(masks: Masks, at: int) -> Float:
    """Return the IoU of each mask [n, y, x] with one of them: [n]."""
    chosen = masks[at]
    shared = np.array([np.count_nonzero(mask & chosen) for mask in masks])
    union = np.array([np.count_nonzero(mask | chosen) for mask in masks])
    return np.asarray(shared / np.maximum(union, 1), dtype=np.float32)


def _margin(values: Float, at: int, elsewhere: Bool) -> float:
    """Return a candidate's value minus the largest one elsewhere, or the smallest of all without any."""
    others = values[elsewhere]
    return float(values[at] - (others.max() if len(others) else values.min()))


def _largest(values: Float, *, default: float) -> float:
    return float(values.max()) if len(values) else default


def withhold(answer: Segmentation, min_confidence: float | None) -> Segmentation:
    """Return the answer without its mask, and with the reason, if its confidence is too low.

    Args:
        answer: of a segmenter.
        min_confidence: 0..1; None withholds nothing. An answer without a confidence is withheld.
    """
    if answer.index is None or min_confidence is None:
        return answer
    if answer.confidence is not None and answer.confidence >= min_confidence:
        return answer
    had = "there is no confidence" if answer.confidence is None else f"confidence {answer.confidence:.2f}"
    return replace(
        answer,
        mask=np.zeros_like(answer.mask),
        index=None,
        score=float("-inf"),
        reason=f"{had}, at least {min_confidence:.2f} was asked for",
    )
