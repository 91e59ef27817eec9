"""The calibration of a bundle: a small logistic model from named features to the probability of a right mask.

    confidence.json   terms with their weights, words, thresholds, and what it was fitted on; for reading
    confidence.npz    vectors of the words, and mean and covariance of the candidates' vectors

Both are files of the bundle like any other. A model belongs to one variant and mode.
Axes: e = CLIP embedding, k = words.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from refdiff.contracts.json_fields import as_list, as_number, as_table, as_text, missing_or_wrong
from refdiff.contracts.session import Array, Float
from refdiff.errors import BundleError

CONFIDENCE_NAME, CONFIDENCE_ARRAYS_NAME = "confidence.json", "confidence.npz"

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Term:
    """One summand: weight * (min(feature, cap) - mean) / scale, where the condition holds."""

    feature: str
    weight: float
    mean: float
    scale: float
    cap: float | None = None
    """Larger values count as this one; None: no cap."""
    when: str | None = None
    """A feature that is 0 or 1; where it is 0, so is the value before it is scaled. None: always."""

    def value(self, features: Mapping[str, float]) -> float:
        """Return the summand."""
        return self.weight * (raw_value(features, self.feature, self.cap, self.when) - self.mean) / self.scale


def raw_value(features: Mapping[str, float], name: str, cap: float | None, when: str | None) -> float:
    """Return a term's value before it is scaled and weighted."""
    value = features[name] if cap is None else min(features[name], cap)
    return value if when is None else value * features[when]


@dataclass(frozen=True, kw_only=True, eq=False)
class ConfidenceModel:
    """A fitted model of one variant and mode."""

    bias: float
    terms: tuple[Term, ...]
    nouns: tuple[str, ...]
    """Head words of the fit, which compete with each other; others get no confidence."""
    attributes: tuple[str, ...]
    """Words, such as colors, that compete with each other."""
    noun_vectors: Float
    """[k, e], of unit length."""
    attribute_vectors: Float
    """[k, e], of unit length."""
    crop_mean: Float
    """[e], mean vector of the crops of candidates (METHOD §5)."""
    crop_covariance: Float
    """[e, e]."""
    context_mean: Float
    """[e], mean vector of the candidates under masked attention (METHOD §6)."""
    context_covariance: Float
    """[e, e]."""
    fitted_on: Mapping[str, Any]
    """Data, counts, and the accuracy by cross-validation; JSON-ready."""

    def probability(self, features: Mapping[str, float]) -> float:
        """Return the probability that the mask is right, 0..1.

        Args:
            features: name -> value, at least those of the terms.
        """
        logit = self.bias + math.fsum(term.value(features) for term in self.terms)
        return 1 / (1 + math.exp(-min(max(logit, -30.0), 30.0)))


_ARRAYS = (
    "noun_vectors",
    "attribute_vectors",
    "crop_mean",
    "crop_covariance",
    "context_mean",
    "context_covariance",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """The models of a bundle by variant and mode, such as "edge/full"."""

    models: Mapping[str, ConfidenceModel]

    def to_files(self) -> tuple[str, dict[str, Array]]:
        """Return the text of confidence.json and the arrays of confidence.npz."""
        document = {
            "format": FORMAT,
            "models": {
                key: {
                    "bias": model.bias,
                    "terms": [
                        {
                            name: getattr(term, name)
                            for name in ("feature", "cap", "when", "weight", "mean", "scale")
                        }
                        for term in model.terms
                    ],
                    "nouns": list(model.nouns),
                    "attributes": list(model.attributes),
                    "fitted_on": dict(model.fitted_on),
                }
                for key, model in self.models.items()
            },
        }
        arrays = {
            f"{key}/{name}": np.asarray(getattr(model, name), dtype=np.float32)
            for key, model in self.models.items()
            for name in _ARRAYS
        }
        return json.dumps(document, indent=1, allow_nan=False) + "\n", arrays

    @classmethod
    def from_files(
        cls, document: object, arrays: Mapping[str, Array], *, embed_dim: int, where: str
    ) -> Calibration:
        """Read what `to_files` wrote.

        Args:
            document: the decoded JSON.
            arrays: of the npz file.
            embed_dim: size of CLIP's embedding.
            where: the file's path, for messages.

        Raises:
            BundleError: it has another format, or a field is missing, of another kind or out of range.
        """
        try:
            models = {
                key: _read_model(as_table(entry, key), key, arrays, embed_dim)
                for key, entry in _entries(as_table(document, "the document")).items()
            }
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"{where} is no calibration refdiff wrote ({missing_or_wrong(error)}); fit it again with: "
                "refdiff eval BUNDLE --fit-confidence"
            ) from error
        return cls(models=models)


def _entries(document: Mapping[str, Any]) -> dict[str, Any]:
    if document.get("format") != FORMAT:
        raise ValueError(f"format is {document.get('format')!r}, expected {FORMAT}")
    return as_table(document["models"], "models")


def _read_model(
    entry: Mapping[str, Any], key: str, arrays: Mapping[str, Array], embed_dim: int
) -> ConfidenceModel:
    nouns = tuple(as_text(each, "a noun") for each in as_list(entry["nouns"], "nouns"))
    attributes = tuple(as_text(each, "an attribute") for each in as_list(entry["attributes"], "attributes"))
    shapes = {
        "noun_vectors": (len(nouns), embed_dim),
        "attribute_vectors": (len(attributes), embed_dim),
        "crop_mean": (embed_dim,),
        "crop_covariance": (embed_dim, embed_dim),
        "context_mean": (embed_dim,),
        "context_covariance": (embed_dim, embed_dim),
    }
    values: dict[str, Float] = {}
    for name, shape in shapes.items():
        array = arrays[f"{key}/{name}"]
        if array.dtype != np.float32 or array.shape != shape or not np.isfinite(array).all():
            raise ValueError(f"{key}/{name} is {array.dtype} {array.shape}, expected finite float32 {shape}")
        values[name] = array
    return ConfidenceModel(
        bias=_finite(entry["bias"], "bias"),
        terms=tuple(_read_term(as_table(each, "a term")) for each in as_list(entry["terms"], "terms")),
        nouns=nouns,
        attributes=attributes,
        fitted_on=as_table(entry["fitted_on"], "fitted_on"),
        **values,
    )


def _read_term(entry: Mapping[str, Any]) -> Term:
    scale = _finite(entry["scale"], "scale")
    if scale <= 0:
        raise ValueError(f"scale is {scale}, expected more than 0")
    return Term(
        feature=as_text(entry["feature"], "feature"),
        cap=None if entry["cap"] is None else _finite(entry["cap"], "cap"),
        when=None if entry["when"] is None else as_text(entry["when"], "when"),
        weight=_finite(entry["weight"], "weight"),
        mean=_finite(entry["mean"], "mean"),
        scale=scale,
    )


def _finite(value: object, name: str) -> float:
    number = as_number(value, name)
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}, expected a finite number")
    return number
