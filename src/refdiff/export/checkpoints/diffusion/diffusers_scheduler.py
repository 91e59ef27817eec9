"""What a diffusers scheduler_config.json says of a model: its noise levels, and what its UNet predicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast, get_args

from refdiff.contracts.options import AttentionOptions
from refdiff.contracts.spec import Prediction
from refdiff.errors import InputError
from refdiff.export.checkpoints.configs import is_whole, positive, read_json

_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "num_train_timesteps": 1000}
)
"""Of all of diffusers' schedulers that Stable Diffusion was published with (PNDM, DDIM, Euler, LMS)."""

_SCHEDULE = "scaled_linear"
_OTHER_LEVELS = ("trained_betas", "rescale_betas_zero_snr")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A scaled-linear schedule."""

    beta_start: float
    beta_end: float
    train_timesteps: int
    prediction: Prediction | None
    """None where the file does not say."""


def read_schedule(path: Path) -> Schedule:
    """Read a scheduler's config.

    Raises:
        InputError: it is missing or damaged, or of a schedule or prediction the method does not know.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist, expected the model's noise schedule; fetch the whole model")
    document = {**_DEFAULTS, **read_json(path)}
    if document["beta_schedule"] != _SCHEDULE:
        raise InputError(
            f"{path}: beta_schedule is {document['beta_schedule']!r}, expected {_SCHEDULE!r}, that of Stable "
            "Diffusion 1.x and 2.x; use one of those"
        )
    for field in _OTHER_LEVELS:
        if document.get(field):
            raise InputError(f"{path} sets {field}, expected the plain schedule; use another checkpoint")
    prediction = document.get("prediction_type")
    if prediction is not None and prediction not in get_args(Prediction):
        raise InputError(
            f"{path}: prediction_type is {prediction!r}, expected one of {', '.join(get_args(Prediction))}"
        )
    return Schedule(
        beta_start=_beta(document, "beta_start", path),
        beta_end=_beta(document, "beta_end", path),
        train_timesteps=_timesteps(document["num_train_timesteps"], path),
        prediction=cast("Prediction | None", prediction),
    )


def _beta(document: Mapping[str, Any], field: str, path: Path) -> float:
    """A variance of the noise that one step adds."""
    beta = positive(document[field], field, path)
    if beta >= 1:
        raise InputError(f"{path}: {field} is {beta!r}, expected a variance below 1")
    return beta


def _timesteps(value: Any, path: Path) -> int:
    if not is_whole(value) or value <= AttentionOptions.start_level:
        raise InputError(
            f"{path}: num_train_timesteps is {value!r}, expected a whole number above "
            f"{AttentionOptions.start_level}, the level the method starts on"
        )
    return value
