"""Configs in a diffusers folder, of the modules and the scheduler, as diffusers and transformers read them.

In: a config.json. Out: arguments of the module's class: a field that the file leaves out has the class's
default, and one that it states has the type of that default. In: a scheduler_config.json. Out: the noise
levels, and what the UNet predicts.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast, get_args

from transformers import CLIPTextConfig
from transformers.activations import ACT2FN

from refdiff.contracts.options import AttentionOptions
from refdiff.contracts.spec import Prediction
from refdiff.errors import InputError
from refdiff.models.configs import is_number, is_whole, one_line, positive, positive_whole, read_json
from refdiff.models.diffusion.sizes import TEXT_FIELDS, UNUSED_IDS, Config

_WITHOUT_EFFECT = ("sample_size", "force_upcast", "upcast_attention", "scaling_factor", "dropout")
"""Fields that change neither a shape nor a result in float32; the scaling factor is read separately."""

_MAY_BE_NULL = ("mid_block_type",)
"""Fields whose null is a choice, not a default."""


def module_config(kind: Any, document: Mapping[str, Any], always: Iterable[str], file: Path) -> Config:
    """Return a diffusers config: the named fields, and those that differ from the class's defaults.

    Args:
        kind: class of the module.
        document: content of the file.
        always: fields that are returned even at their defaults; their numbers are counts.
        file: for messages.

    Raises:
        InputError: a field is unknown, or its value has another type than its default.
    """
    parameters = inspect.signature(kind.__init__).parameters
    defaults = {name: item.default for name, item in parameters.items() if name != "self"}
    given = {
        key: _tuples(value)
        for key, value in document.items()
        if not key.startswith("_") and key not in _WITHOUT_EFFECT
    }
    unknown = [key for key, value in given.items() if key not in defaults and value]
    if unknown:
        raise InputError(
            f"{file} sets {unknown[0]!r}, which this version of diffusers does not know; install a newer one"
        )
    known = {key: value for key, value in given.items() if key in defaults}
    fields = {key: known.get(key, defaults[key]) for key in always}
    for key, value in known.items():
        if value is not None or key not in _MAY_BE_NULL:
            _check(value, defaults[key], counts=key in fields, where=f"{file}: {key}")
    return fields | {key: value for key, value in known.items() if value != defaults[key]}


def text_config(document: Mapping[str, Any], file: Path) -> Config:
    """Return the `TEXT_FIELDS` of CLIPTextConfig.

    Raises:
        InputError: a field has another type than in the class, or the fields contradict each other.
    """
    defaults = CLIPTextConfig()
    fields = {key: document.get(key, getattr(defaults, key)) for key in TEXT_FIELDS}
    for key, value in fields.items():
        if key == "layer_norm_eps":
            positive(value, key, file)
        elif key == "hidden_act":
            if not isinstance(value, str) or value not in ACT2FN:
                raise InputError(f"{file}: {key} is {value!r}, expected the name of an activation, as 'gelu'")
        else:
            positive_whole(value, key, file)
    if fields["hidden_size"] % fields["num_attention_heads"]:
        raise InputError(
            f"{file}: num_attention_heads is {fields['num_attention_heads']}, expected a divisor of "
            f"hidden_size, {fields['hidden_size']}"
        )
    try:
        CLIPTextConfig(**fields, **UNUSED_IDS)
    except Exception as error:  # its class differs between releases
        raise InputError(f"{file} is not a CLIP text config ({one_line(error)}); fetch it again") from error
    return fields


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _check(value: Any, default: Any, *, counts: bool, where: str) -> None:
    """Refuse a value of another type than the default; a list has one value per level."""
    if isinstance(default, tuple) and not isinstance(value, tuple):
        raise InputError(f"{where} is {value!r}, expected a list with one entry per level")
    kind = default[0] if isinstance(default, tuple) else default
    for entry in value if isinstance(value, tuple) else (value,):
        expected = _unmet(entry, kind, counts=counts)
        if expected is not None:
            raise InputError(f"{where} is {value!r}, expected {expected}")


def _unmet(value: Any, kind: Any, *, counts: bool) -> str | None:
    """Return what a value of this type must be; None if it is."""
    if kind is None:
        return None
    if isinstance(kind, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(kind, str):
        return None if isinstance(value, str) else "a name"
    if counts:
        return None if is_whole(value) else "a whole number above 0"
    sound = is_number(value) and (value > 0 or kind <= 0)
    return None if sound else f"a finite number like {kind!r}"


_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "num_train_timesteps": 1000}
)
"""Defaults of diffusers' schedulers that Stable Diffusion was published with (PNDM, DDIM, Euler, LMS)."""

_SCHEDULE = "scaled_linear"
_OTHER_LEVELS = ("trained_betas", "rescale_betas_zero_snr")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A scaled-linear schedule."""

    beta_start: float
    beta_end: float
    train_timesteps: int
    prediction: Prediction | None
    """None if the file does not state it."""


def read_schedule(path: Path) -> Schedule:
    """Read a scheduler's config.

    Raises:
        InputError: it is missing or damaged, or the method does not support its schedule or prediction.
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
    """Return a variance of the noise that one step adds, 0..1."""
    beta = positive(document[field], field, path)
    if beta >= 1:
        raise InputError(f"{path}: {field} is {beta!r}, expected a variance below 1")
    return beta


def _timesteps(value: Any, path: Path) -> int:
    if not is_whole(value) or value <= AttentionOptions.start_level:
        raise InputError(
            f"{path}: num_train_timesteps is {value!r}, expected a whole number above "
            f"{AttentionOptions.start_level}, the level the method starts at"
        )
    return value
