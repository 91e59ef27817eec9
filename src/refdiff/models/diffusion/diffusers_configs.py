"""The config.json of a module of Stable Diffusion, as diffusers and transformers read it.

In: the document. Out: arguments of the module's class that can be computed with: what the document leaves out
has the class's default, and what it states is of the default's kind.

What a diffusers scheduler_config.json says of a model: its noise levels, and what its UNet predicts.
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
from refdiff.models.configs import is_number, is_whole, one_line, positive, read_json
from refdiff.models.diffusion.sizes import TEXT_FIELDS, UNUSED_IDS, Config

_WITHOUT_EFFECT = ("sample_size", "force_upcast", "upcast_attention", "scaling_factor", "dropout")
"""Fields of a config that change neither a shape nor a result in float32; the scaling is read by itself."""

_MAY_BE_NULL = ("mid_block_type",)
"""Null stands for a choice here, not for a default."""


def module_config(kind: Any, document: Mapping[str, Any], always: Iterable[str], file: Path) -> Config:
    """A diffusers config: the named fields, and whatever differs from the class's defaults.

    Args:
        kind: class of the module.
        document: as the file holds it.
        always: fields that are there even at their defaults; their numbers count something.
        file: for messages.

    Raises:
        InputError: a field is unknown, or its value is of another kind than its default.
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
    """Of CLIPTextConfig: `TEXT_FIELDS`.

    Raises:
        InputError: a field is of another kind than the class has it, or the fields do not go together.
    """
    defaults = CLIPTextConfig()
    fields = {key: document.get(key, getattr(defaults, key)) for key in TEXT_FIELDS}
    for key, value in fields.items():
        if key == "layer_norm_eps":
            positive(value, key, file)
        elif key == "hidden_act":
            if not isinstance(value, str) or value not in ACT2FN:
                raise InputError(f"{file}: {key} is {value!r}, expected the name of an activation, as 'gelu'")
        elif not is_whole(value):
            raise InputError(f"{file}: {key} is {value!r}, expected a whole number above 0")
    if fields["hidden_size"] % fields["num_attention_heads"]:
        raise InputError(
            f"{file}: num_attention_heads is {fields['num_attention_heads']}, expected a divisor of "
            f"hidden_size, {fields['hidden_size']}"
        )
    try:
        CLIPTextConfig(**fields, **UNUSED_IDS)
    except Exception as error:  # whose class differs from release to release
        raise InputError(f"{file} is not a CLIP text config ({one_line(error)}); fetch it again") from error
    return fields


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _check(value: Any, default: Any, *, counts: bool, where: str) -> None:
    """Refuse what is not of the default's kind; a list stands for one value per level."""
    if isinstance(default, tuple) and not isinstance(value, tuple):
        raise InputError(f"{where} is {value!r}, expected a list with one entry per level")
    kind = default[0] if isinstance(default, tuple) else default
    for entry in value if isinstance(value, tuple) else (value,):
        expected = _unmet(entry, kind, counts=counts)
        if expected is not None:
            raise InputError(f"{where} is {value!r}, expected {expected}")


def _unmet(value: Any, kind: Any, *, counts: bool) -> str | None:
    """What a value of this kind has to be, if it is not."""
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
