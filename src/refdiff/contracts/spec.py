"""The sizes of a model stack: everything that differs between the miniature and SD 1.5 + SAM ViT-H + CLIP.

A spec is part of the bundle's manifest; the reference, the exporter and the runtime read the same one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from refdiff.contracts.json_fields import (
    as_list,
    as_number,
    as_plain_text,
    as_table,
    as_whole,
    missing_or_wrong,
    shown,
)
from refdiff.errors import InputError

Prediction = Literal["epsilon", "v_prediction"]
"""Prediction that a UNet was trained for, by diffusers' names; the weights do not show it."""

Padding = Literal["end", "zero"]
"""Padding of a prompt to its length: the end token (SD 1.x) or token 0 (SD 2.x)."""


MapName = Literal["coarse", "self"]
"""More of the UNet's attention that a bundle may output: that of its coarsest level to the text (METHOD
§10.11), and that of the tapped layers to themselves (METHOD §10.12)."""
MAP_NAMES: tuple[str, ...] = get_args(MapName)

COARSE_LAYER = "mid_block.attentions.0"
"""The transformer block of the coarsest level, with half of the tapped grid's cells per side."""

CONTEXT_LENGTH = 77
"""Tokens per prompt of every published CLIP text tower, start and end included."""


def check_maps(names: Sequence[str]) -> None:
    """Raise InputError for a name that is not one of `MAP_NAMES`."""
    if unknown := [name for name in names if name not in MAP_NAMES]:
        raise InputError(f"got the map {unknown[0]!r}, expected {' or '.join(MAP_NAMES)}")


@dataclass(frozen=True, kw_only=True)
class DiffusionSpec:
    """Stable Diffusion's sizes (METHOD §4)."""

    image_size: int
    """Side in px of the square image that the VAE encodes (1024 in the release)."""
    vae_factor: int
    """Pixels per latent cell (8 in SD 1.5)."""
    latent_channels: int
    scaling_factor: float
    """Latents = this x posterior sample (0.18215 in SD 1.5)."""
    context_width: int
    """Width of the text states the UNet attends to (768 in SD 1.5)."""
    tapped_layers: tuple[str, ...]
    """Names of the transformer blocks whose `attn2` is tapped, in the UNet's order of execution."""
    tap_size: int
    """Side of the tapped query grid (latent / 4 in SD 1.5)."""
    cut_after: str
    """The last child of the UNet that must run for all taps (`up_blocks.1` in SD 1.5)."""
    beta_start: float = 0.00085
    beta_end: float = 0.0120
    train_timesteps: int = 1000
    prediction: Prediction = "epsilon"
    padding: Padding = "end"
    maps: tuple[MapName, ...] = ()
    """Outputs of the UNet besides `taps`; left out of the document where there are none."""

    def with_maps(self, names: Sequence[str]) -> DiffusionSpec:
        """Return the sizes of an export with these outputs.

        Raises:
            InputError: an unknown name, or the UNet has no level below the tapped one.
        """
        check_maps(names)
        wanted = tuple(name for name in MAP_NAMES if name in names)
        if "coarse" in wanted and COARSE_LAYER in self.tapped_layers:
            raise InputError(
                f"this UNet has no level below its taps: {COARSE_LAYER} is one of them; leave out coarse"
            )
        cut = self.cut_after
        if "coarse" in wanted and cut.startswith("down_blocks"):
            cut = "mid_block"
        return dataclasses.replace(self, maps=wanted, cut_after=cut)  # type: ignore[arg-type]

    @property
    def coarse_size(self) -> int:
        """Side of the coarsest level's query grid."""
        return self.tap_size // 2

    @property
    def latent_size(self) -> int:
        """Side of the square latent."""
        return self.image_size // self.vae_factor


@dataclass(frozen=True, kw_only=True)
class SamSpec:
    """SAM's sizes, and the automatic-mode settings that belong to its weights (METHOD §2)."""

    image_size: int
    """Longest side in px of the image, and side of the padded square that the encoder reads (1024)."""
    embed_channels: int
    """Channels of the image embedding (256)."""
    embed_size: int
    """Side of the image embedding grid (64)."""
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    points_per_side: int = 32
    pred_iou_threshold: float = 0.88
    stability_threshold: float = 0.95
    edge_points_per_side: int = 8
    edge_pred_iou_threshold: float = 0.7
    edge_stability_threshold: float = 0.7

    @property
    def low_res_size(self) -> int:
        """Side of the decoder's mask logits (256)."""
        return 4 * self.embed_size


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """CLIP's sizes (METHOD §5, §6)."""

    image_size: int
    """Side in px of the square training image (224)."""
    patch_size: int
    width: int
    """Width of the vision tower's tokens (768)."""
    embed_dim: int
    """Width of the joint embedding (512)."""
    pixel_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    pixel_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @property
    def grid(self) -> int:
        """Patches per side at the training size (14 for ViT-B/16)."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One stack of models."""

    name: str
    diffusion: DiffusionSpec
    sam: SamSpec
    clip: ClipSpec
    context_length: int = CONTEXT_LENGTH
    """Tokens per prompt, start and end included; the same for both text encoders."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        document = dataclasses.asdict(self)
        if not self.diffusion.maps:
            del document["diffusion"]["maps"]
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> ModelSpec:
        """Read what `to_json` wrote.

        Raises:
            InputError: a field is missing, unknown, of another kind or out of range, or sizes contradict each
                other.
        """
        try:
            values = _read_fields(cls, document, "spec")
            spec = cls(**values)
            _check_sizes(spec)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(missing_or_wrong(error)) from error
        return spec


def _read_fields(kind: Any, document: object, where: str) -> dict[str, Any]:
    """Return all fields of one dataclass; only those of `_OPTIONAL` may be missing."""
    given = as_table(document, where)
    known = {field.name: str(field.type) for field in dataclasses.fields(kind)}
    for name in given:
        if name not in known:
            raise ValueError(f"{where}.{name} is unknown, expected only: {', '.join(known)}")
    for name in known:
        if name not in given and f"{where}.{name}" not in _OPTIONAL:
            raise KeyError(f"{where}.{name}")
    return {name: _read_field(f"{where}.{name}", known[name], value) for name, value in given.items()}


def _read_field(where: str, kind: str, value: object) -> Any:
    if kind in _PARTS:
        return _PARTS[kind](**_read_fields(_PARTS[kind], value, where))
    if kind in _CHOICES:
        if value not in _CHOICES[kind]:
            raise ValueError(f"{where} is {shown(value)}, expected one of {', '.join(_CHOICES[kind])}")
        return value
    if kind in _NAMES:
        return _read_names(where, value, _NAMES[kind])
    if kind.startswith("tuple[float"):
        numbers = as_list(value, where)
        if len(numbers) != kind.count("float"):
            raise ValueError(f"{where} is {shown(value)}, expected {kind.count('float')} numbers")
        return tuple(_in_range(each, where, whole=False) for each in numbers)
    return as_plain_text(value, where) if kind == "str" else _in_range(value, where, whole=kind == "int")


def _read_names(where: str, value: object, known: Sequence[str]) -> tuple[str, ...]:
    """Return one name or more, each once; `known`: those that are allowed, empty for any."""
    names = tuple(as_plain_text(each, where) for each in as_list(value, where))
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{where} is {shown(value)}, expected one or more names, each once")
    if known and not set(names) <= set(known):
        raise ValueError(f"{where} is {shown(value)}, expected names of {', '.join(known)}")
    return names


def _in_range(value: Any, where: str, *, whole: bool) -> Any:
    number = as_whole(value, where) if whole else as_number(value, where)
    low, high = _RANGES.get(where.removeprefix("spec."), _SIZES)
    if not low <= number <= high:
        raise ValueError(f"{where} is {shown(value)}, expected {low:g} to {high:g}")
    return value


_PARTS: Mapping[str, Any] = {each.__name__: each for each in (DiffusionSpec, SamSpec, ClipSpec)}
_NAMES: Mapping[str, Sequence[str]] = {"tuple[str, ...]": (), "tuple[MapName, ...]": MAP_NAMES}
_OPTIONAL = ("spec.diffusion.maps",)
_CHOICES = {"Prediction": get_args(Prediction), "Padding": get_args(Padding)}
_SIZES = (1, 1 << 16)
_SHARE = (0.0, 1.0)
_RANGES: Mapping[str, tuple[float, float]] = {
    "context_length": (3, 4096),
    "diffusion.scaling_factor": (1e-3, 1e2),
    "diffusion.beta_start": (1e-6, 0.5),
    "diffusion.beta_end": (1e-6, 0.5),
    "diffusion.train_timesteps": (102, 100_000),
    "sam.pixel_mean": (0.0, 255.0),
    "sam.pixel_std": (1.0, 255.0),
    "sam.points_per_side": (1, 256),
    "sam.pred_iou_threshold": _SHARE,
    "sam.stability_threshold": _SHARE,
    "sam.edge_points_per_side": (1, 256),
    "sam.edge_pred_iou_threshold": _SHARE,
    "sam.edge_stability_threshold": _SHARE,
    "clip.pixel_mean": _SHARE,
    "clip.pixel_std": (0.01, 1.0),
}
"""Field -> its least and largest plausible value, where that is not a size of `_SIZES`. SAM's means are of
values 0..255, CLIP's of values 0..1; `official` reads level 101 of the noise schedule."""


def _check_sizes(spec: ModelSpec) -> None:
    """Refuse sizes that contradict each other; the graphs' shapes are compared by the manifest."""
    wholes = (
        ("diffusion.image_size", spec.diffusion.image_size, "vae_factor", spec.diffusion.vae_factor),
        ("sam.image_size", spec.sam.image_size, "embed_size", spec.sam.embed_size),
        ("clip.image_size", spec.clip.image_size, "patch_size", spec.clip.patch_size),
    )
    for name, size, divisor, part in wholes:
        if size % part:
            raise ValueError(f"spec.{name} is {size}, expected a multiple of its {divisor}, {part}")
    diffusion = spec.diffusion
    if diffusion.tap_size > diffusion.latent_size:
        raise ValueError(
            f"spec.diffusion.tap_size is {diffusion.tap_size}, expected at most {diffusion.latent_size}"
        )
    if diffusion.beta_start > diffusion.beta_end:
        raise ValueError(
            f"spec.diffusion.beta_start is {diffusion.beta_start}, expected at most {diffusion.beta_end}"
        )
