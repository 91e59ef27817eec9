"""What a diffusers scheduler_config.json says of a model: its noise levels, and what its UNet predicts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast, get_args

from refdiff.contracts.spec import Prediction
from refdiff.errors import InputError

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
    try:
        return Schedule(
            beta_start=float(document["beta_start"]),
            beta_end=float(document["beta_end"]),
            train_timesteps=int(document["num_train_timesteps"]),
            prediction=cast("Prediction | None", prediction),
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} has a level that is no number ({error}); fetch it again") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable as JSON ({error}); fetch it again") from error
    if not isinstance(document, dict):
        raise InputError(f"{path} holds a {type(document).__name__}, expected an object; fetch it again")
    return document
