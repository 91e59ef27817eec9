"""The sizes of a model stack: everything that differs between the miniature and SD 1.5 + SAM ViT-H + CLIP.

A spec is part of the bundle's manifest; the reference, the exporter and the runtime read the same one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from refdiff.errors import InputError

Prediction = Literal["epsilon", "v_prediction"]
"""Prediction that a UNet was trained for, by diffusers' names; the weights do not show it."""

Padding = Literal["end", "zero"]
"""Padding of a prompt to its length: the end token (SD 1.x) or token 0 (SD 2.x)."""


CONTEXT_LENGTH = 77
"""Tokens per prompt of every published CLIP text tower, start and end included."""


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
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> ModelSpec:
        """Read what `to_json` wrote.

        Raises:
            InputError: a field is missing or unknown.
        """
        try:
            fields = dict(document)
            return cls(
                diffusion=_part(DiffusionSpec, fields.pop("diffusion")),
                sam=_part(SamSpec, fields.pop("sam")),
                clip=_part(ClipSpec, fields.pop("clip")),
                **fields,
            )
        except (KeyError, TypeError) as error:
            raise InputError(f"model spec has a missing or unknown field: {error}") from error


def _part(kind: Any, document: Mapping[str, Any]) -> Any:
    """Build one dataclass, with JSON's lists turned back into tuples."""
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in document.items()})
