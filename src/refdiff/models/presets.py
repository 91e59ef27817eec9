"""Named models: the repositories on the hub that their parts come from, and the files of each.

Sizes and hashes are not listed here: the hub states them when files are fetched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class Source:
    """One trained model on the hub."""

    repo: str
    """owner/name."""
    files: tuple[str, ...]
    """The files of the repository that the loader reads."""
    licence: str
    """The licence that the repository's card names."""
    architecture: str
    """Name of this architecture for random weights."""
    activation: str | None = None
    """CLIP's activation, "gelu" or "quick_gelu", if the files do not state it."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named stack."""

    name: str
    diffusion: Source
    sam: Source
    clip: Source

    @property
    def sources(self) -> tuple[Source, ...]:
        """The parts, in the order in which they are fetched."""
        return self.diffusion, self.sam, self.clip


SD_15 = Source(
    repo="stable-diffusion-v1-5/stable-diffusion-v1-5",
    files=(
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ),
    licence="creativeml-openrail-m",
    architecture="sd15",
)
"""A mirror of runwayml/stable-diffusion-v1-5, which its owner removed from the hub."""

_SAM_FILES = ("config.json", "model.safetensors")

SAM_VIT_H = Source(repo="facebook/sam-vit-huge", files=_SAM_FILES, licence="apache-2.0", architecture="vit_h")
SAM_VIT_B = Source(repo="facebook/sam-vit-base", files=_SAM_FILES, licence="apache-2.0", architecture="vit_b")

CLIP_VIT_B_16 = Source(
    repo="timm/vit_base_patch16_clip_224.openai",
    files=("open_clip_config.json", "open_clip_model.safetensors"),
    licence="apache-2.0",
    architecture="vit_b_16",
    activation="quick_gelu",
)
"""OpenAI's weights and their activation. Source: open_clip, pretrained.py, ViT-B-16, "openai"."""

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            Preset(
                name="refdiff",
                diffusion=SD_15,
                sam=SAM_VIT_H,
                clip=CLIP_VIT_B_16,
            ),
            Preset(
                name="refdiff-vitb",
                diffusion=SD_15,
                sam=SAM_VIT_B,
                clip=CLIP_VIT_B_16,
            ),
        )
    }
)
"""Name -> stack. `refdiff` is the paper's."""


def known_source(repo: str) -> Source | None:
    """Return the source with this repository in a preset; None if no preset names it."""
    sources = (source for preset in PRESETS.values() for source in preset.sources)
    return next((source for source in sources if source.repo == repo), None)
