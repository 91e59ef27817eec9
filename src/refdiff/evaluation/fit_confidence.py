"""Fit the confidence of a bundle on samples with and without a target (`refdiff eval --fit-confidence`).

A logistic model with a ridge penalty, fitted by Newton's method. The penalty is chosen by cross-validation
over images, which also gives the accuracy that is reported. Axes: s = samples, t = terms, e = CLIP embedding.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from refdiff.accuracy.logistic import (
    FOLDS,
    auroc,
    calibration_error,
    coverage,
    cross_validate,
    log_loss,
    solve,
)
from refdiff.contracts.bundle_writer import add_calibration
from refdiff.contracts.confidence import Calibration, ConfidenceModel, Term, raw_value
from refdiff.contracts.inspection import BUILT_IN, check_trained, find_bundle
from refdiff.contracts.options import DEFAULT_BACKEND, DEFAULT_RUN, BackendOptions, RunOptions
from refdiff.contracts.progress import Progress, Step, silent
from refdiff.contracts.session import Float
from refdiff.data.sample import Dataset
from refdiff.errors import InputError
from refdiff.evaluation.records import COLORS, records_of
from refdiff.loading import open_backend, segmenter_of
from refdiff.reports.page import Section
from refdiff.reports.table import facts_table
from refdiff.runtime.confidence import Evidence, mask_features, text_features

_CAPPED = (
    "text_crop",
    "text_context",
    "noun_crop",
    "noun_context",
    "attribute_crop",
    "attribute_context",
    "heat_contrast",
    "heat_inside",
    "total_margin",
    "place",
    "place_gap",
)
"""Features that also enter with caps: what a bad value costs, a good one does not repay."""

_PLAIN = (
    *_CAPPED,
    "head_crop",
    "head_context",
    "heat_share",
    "heat_margin",
    "predicted_iou",
    "has_attribute",
    "has_place",
    "has_relation",
)
_CONDITIONAL = ("text_crop", "heat_contrast", "place", "place_gap")
"""Features that also enter for phrases with a place, and for those with a relation, alone."""

_CAPS_AT = (0.2, 0.5, 0.8)
"""Quantiles of a feature at which it is capped."""

_PENALTIES = (1.0, 10.0, 100.0, 1000.0)
_MOST_WORDS = 1000
_LEAST_SAMPLES = 100
_RIGHT = 0.5
_LEAST_DEVIATION = 1e-6


@dataclass(frozen=True, kw_only=True)
class ConfidenceReport:
    """A fitted confidence and its accuracy by cross-validation over images."""

    key: str
    """Variant and mode, such as "edge/full"."""
    samples: int
    images: int
    right: float
    """Share of right answers."""
    auroc: float
    """Probability that a right answer has a higher confidence than a wrong one."""
    auroc_of_score: float
    """The same of the plain score."""
    calibration_error: float
    """Expected calibration error with ten bins."""
    coverage_at_95: float
    """Largest share of the right answers whose precision is at least 95 %."""
    coverage_of_score_at_95: float
    manifest_sha256: str
    """Hash of the bundle with its new calibration."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def confidence_section(report: ConfidenceReport) -> Section:
    """Build the table of a fit."""
    facts = [
        ("fitted for", report.key),
        ("samples", f"{report.samples} on {report.images} images, {report.right:.1%} right"),
        ("AUROC", f"{report.auroc:.3f}, of the plain score {report.auroc_of_score:.3f}"),
        ("calibration error", f"{report.calibration_error:.3f}"),
        (
            "coverage at 95 % precision",
            f"{report.coverage_at_95:.1%}, of the plain score {report.coverage_of_score_at_95:.1%}",
        ),
        ("bundle", f"sha256 {report.manifest_sha256}"),
    ]
    note = "all figures by cross-validation over images; judge the confidence on samples it has not seen"
    return Section(tables=[facts_table(facts, footnotes=(note,))])


@dataclass(frozen=True, kw_only=True, eq=False)
class _Observed:
    """What the fit needs of one answer: not its masks, which would not fit into memory."""

    picture: str
    right: bool
    score: float
    fixed: dict[str, float]
    """The features that need no model."""
    evidence: Evidence
    """With the chosen candidate's vectors only, without masks and heatmap."""


@dataclass
class _Background:
    """Vectors of the kept candidates of all images."""

    crops: list[Float]
    contexts: list[Float]
    """[n, e] of each image."""


def fit_confidence(
    bundle: Path | str,
    dataset: Dataset,
    *,
    options: RunOptions = DEFAULT_RUN,
    backend: BackendOptions = DEFAULT_BACKEND,
    progress: Progress | None = None,
) -> ConfidenceReport:
    """Fit the confidence of one variant and mode, and put it into the bundle.

    Args:
        bundle: its folder; the calibrations of other variants and modes stay.
        dataset: samples with true masks; an empty one says that the phrase refers to nothing in the image.
            A confidence knows absence only if there are such samples.
        options: variant and mode; a minimum confidence is ignored.
        backend: where and how the graphs run.
        progress: called with the number of samples done.

    Raises:
        InputError: too few samples, answers that are all right or all wrong, or a mode without CLIP or
            without a heatmap.
        BundleError: the bundle is missing, damaged or newer.
        EngineError: a graph failed.
    """
    if str(bundle) in BUILT_IN:
        raise InputError(
            f"got the built-in bundle {bundle}, whose files belong to the package; name a bundle's folder"
        )
    opened = find_bundle(bundle, expect=options.expect)
    check_trained(opened, allow_random_weights=options.allow_random_weights)
    pipeline = options.pipeline_options(opened.spec)
    if pipeline.mode != "full":
        raise InputError(f"a confidence is fitted for mode full, got {pipeline.mode}; leave --mode out")
    seen: list[Evidence] = []
    observed: list[_Observed] = []
    background = _Background(crops=[], contexts=[])
    digest, done, report = hashlib.sha256(), 0, progress or silent
    with ExitStack() as stack:
        sessions = open_backend(opened, backend)
        segmenter = stack.enter_context(segmenter_of(opened, sessions, pipeline, probe=seen.append))
        for picture, group in groupby(dataset, key=lambda sample: sample.picture or sample.id):
            samples = tuple(group)
            answers = segmenter.segment_each(samples[0].read(), [sample.phrase for sample in samples])
            for sample, answer in zip(samples, answers, strict=True):
                digest.update(f"{sample.id}\n{sample.phrase}\n".encode())
                if answer.index is not None:
                    record = records_of((sample,), (answer,))[0]
                    right = record.has_target and record.iou >= _RIGHT
                    observed.append(_observe(picture, seen[-1], right=right))
            if seen:
                background.crops.append(seen[0].crops)
                background.contexts.append(seen[0].contexts)
            seen.clear()
            done += len(samples)
            report(Step(f"{done} of {len(dataset)} samples", done=done, total=len(dataset), unit="samples"))
        _check(observed)
        nouns, attributes = _words(observed)
        model = _blank_model(
            nouns,
            attributes,
            segmenter.text_vectors(nouns),
            segmenter.text_vectors([f"{word} thing" for word in attributes]),
            background,
        )
    features = [{**each.fixed, **text_features(each.evidence, model)} for each in observed]
    fitted, judged = _fit(model, observed, features)
    data = {**dataset.fingerprint, "sha256": digest.hexdigest(), **judged}
    key = pipeline.key
    models = {**opened.calibration().models, key: replace(fitted, fitted_on=data)}
    manifest = add_calibration(opened, Calibration(models=models))
    return ConfidenceReport(key=key, manifest_sha256=manifest.sha256, **judged)


def _observe(picture: str, evidence: Evidence, *, right: bool) -> _Observed:
    at = evidence.position
    alone = np.zeros(1, dtype=np.bool_)
    light = replace(
        evidence,
        crops=evidence.crops[at : at + 1],
        contexts=evidence.contexts[at : at + 1],
        heat=np.zeros((0, 0), dtype=np.float32),
        candidates=replace(evidence.candidates, masks=np.zeros((1, 0, 0), dtype=np.bool_), kept=~alone),
        index=0,
    )
    return _Observed(
        picture=picture,
        right=right,
        score=float(evidence.scores.total[evidence.index]),
        fixed=mask_features(evidence),
        evidence=light,
    )


def _check(observed: Sequence[_Observed]) -> None:
    right = sum(each.right for each in observed)
    if len(observed) < _LEAST_SAMPLES or right in (0, len(observed)):
        raise InputError(
            f"got {len(observed)} answers, {right} of them right, expected {_LEAST_SAMPLES} or more, "
            "some right and some wrong; add samples, also of phrases that refer to nothing in their image"
        )


def _words(observed: Sequence[_Observed]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the most frequent head words, and the colors that occur in phrases."""
    heads = Counter(each.evidence.phrase.root for each in observed)
    words = Counter(word for each in observed for word in each.evidence.phrase.text.lower().split())
    nouns = sorted(word for word, _ in heads.most_common(_MOST_WORDS))
    return tuple(nouns), tuple(sorted(color for color in COLORS if words[color]))


def _blank_model(
    nouns: Sequence[str],
    attributes: Sequence[str],
    noun_vectors: Float,
    attribute_vectors: Float,
    background: _Background,
) -> ConfidenceModel:
    """Return a model without terms that knows the words and the candidates."""
    crops, contexts = (np.concatenate(each) for each in (background.crops, background.contexts))
    mean, covariance = contexts.mean(axis=0), np.cov(contexts.T).astype(np.float32)
    return ConfidenceModel(
        bias=0.0,
        terms=(),
        nouns=tuple(nouns),
        attributes=tuple(attributes),
        noun_vectors=noun_vectors,
        attribute_vectors=attribute_vectors,
        crop_mean=crops.mean(axis=0),
        crop_covariance=np.cov(crops.T).astype(np.float32),
        context_mean=mean,
        context_covariance=covariance,
        fitted_on={},
    )


def _terms(features: Sequence[Mapping[str, float]]) -> list[Term]:
    """Return the candidate terms, standardized over the samples, with weight 0."""
    forms: list[tuple[str, float | None, str | None]] = [(name, None, None) for name in _PLAIN]
    for name in _CAPPED:
        levels = np.quantile([each[name] for each in features], _CAPS_AT)
        forms += [(name, round(float(level), 4), None) for level in levels]
    forms += [(name, None, when) for name in _CONDITIONAL for when in ("has_place", "has_relation")]
    terms = []
    for name, cap, when in forms:
        values = np.array([raw_value(each, name, cap, when) for each in features])
        if values.std() > _LEAST_DEVIATION:
            terms.append(
                Term(
                    feature=name,
                    cap=cap,
                    when=when,
                    weight=0.0,
                    mean=float(values.mean()),
                    scale=float(values.std()),
                )
            )
    return terms


def _fit(
    model: ConfidenceModel, observed: Sequence[_Observed], features: Sequence[Mapping[str, float]]
) -> tuple[ConfidenceModel, dict[str, Any]]:
    """Return the fitted model, and its accuracy by cross-validation over images."""
    terms = _terms(features)
    design = np.array(
        [[(raw_value(each, t.feature, t.cap, t.when) - t.mean) / t.scale for t in terms] for each in features]
    )  # [s, t]
    right = np.array([each.right for each in observed])
    numbers = {name: at for at, name in enumerate(dict.fromkeys(each.picture for each in observed))}
    fold = np.array([numbers[each.picture] % FOLDS for each in observed])
    held_out = {penalty: cross_validate(design, right, fold, penalty) for penalty in _PENALTIES}
    penalty = min(held_out, key=lambda each: log_loss(held_out[each], right))
    weights = solve(design, right, penalty)
    fitted = replace(
        model,
        bias=float(weights[0]),
        terms=tuple(
            replace(term, weight=float(weight)) for term, weight in zip(terms, weights[1:], strict=True)
        ),
    )
    probability = held_out[penalty]
    score = np.array([each.score for each in observed])
    return fitted, {
        "samples": len(observed),
        "images": len(numbers),
        "right": float(right.mean()),
        "auroc": auroc(probability, right),
        "auroc_of_score": auroc(score, right),
        "calibration_error": calibration_error(probability, right),
        "coverage_at_95": coverage(probability, right, precision=0.95),
        "coverage_of_score_at_95": coverage(score, right, precision=0.95),
    }
