"""Named models: the repositories on the hub that their parts come from, and the files of each.

Hashes are not listed here, and sizes only roughly: the hub states both when files are fetched.
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
    """The files of the repository that the loader reads; none: those that it chooses from the hub's list."""
    licence: str
    """The licence that the repository's card names."""
    architecture: str
    """Name of this architecture for random weights."""
    about_bytes: Mapping[str, int]
    """Approximate sizes of the large files: four bytes per parameter."""
    activation: str | None = None
    """CLIP's activation, "gelu" or "quick_gelu", if the files do not state it."""
    has_both: bool = False
    """The repository holds the UNet's weights averaged and not averaged."""

    def files_of(self, *, non_ema: bool = False) -> tuple[str, ...]:
        """Return the files to fetch; with `non_ema` the UNet's weights that are not averaged."""
        return tuple(NON_EMA_UNET if non_ema and name == _UNET else name for name in self.files)


_UNET = "unet/diffusion_pytorch_model.safetensors"
NON_EMA_UNET = "unet/diffusion_pytorch_model.non_ema.safetensors"
"""SD 1.5's UNet as in v1-5-pruned.ckpt, which the paper's release runs; the other file is averaged (EMA)."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named stack."""

    name: str
    diffusion: Source
    sam: Source
    clip: Source
    vae: Source | None = None
    """None: the diffusion model's own."""

    @property
    def sources(self) -> tuple[Source, ...]:
        """The parts, in the order in which they are fetched."""
        own_vae = () if self.vae is None else (self.vae,)
        return (self.diffusion, *own_vae, self.sam, self.clip)


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
        _UNET,
    ),
    licence="creativeml-openrail-m",
    architecture="sd15",
    about_bytes=MappingProxyType(
        {
            "text_encoder/model.safetensors": 492_000_000,
            "vae/diffusion_pytorch_model.safetensors": 335_000_000,
            _UNET: 3_438_000_000,
            NON_EMA_UNET: 3_438_000_000,
        }
    ),
    has_both=True,
)
"""A mirror of runwayml/stable-diffusion-v1-5, which its owner removed from the hub."""

BK_SDM_SMALL = Source(
    repo="nota-ai/bk-sdm-small",
    files=(),
    licence="creativeml-openrail-m",
    architecture="bk_sdm_small",
    about_bytes=MappingProxyType({}),
)
"""SD 1.4 without its middle block and with fewer residual blocks, distilled."""

TAESD = Source(
    repo="madebyollin/taesd",
    files=("config.json", "diffusion_pytorch_model.safetensors"),
    licence="mit",
    architecture="taesd",
    about_bytes=MappingProxyType({"diffusion_pytorch_model.safetensors": 9_800_000}),
)


def _segment_anything(size: str, architecture: str, about_bytes: int) -> Source:
    return Source(
        repo=f"facebook/sam-vit-{size}",
        files=("config.json", "model.safetensors"),
        licence="apache-2.0",
        architecture=architecture,
        about_bytes=MappingProxyType({"model.safetensors": about_bytes}),
    )


SAM_VIT_H = _segment_anything("huge", "vit_h", 2_564_000_000)
SAM_VIT_B = _segment_anything("base", "vit_b", 375_000_000)

MOBILE_SAM = Source(
    repo="dhkim2810/MobileSAM",
    files=("mobile_sam.pt",),
    licence="apache-2.0",
    architecture="mobile_sam",
    about_bytes=MappingProxyType({"mobile_sam.pt": 40_700_000}),
)
"""A mirror by one of the authors; the original is in their repository, ChaoningZhang/MobileSAM."""


def _openai_clip(patch_size: int, about_bytes: int) -> Source:
    """Return OpenAI's weights and their activation. Source: open_clip, pretrained.py, "openai"."""
    return Source(
        repo=f"timm/vit_base_patch{patch_size}_clip_224.openai",
        files=("open_clip_config.json", "open_clip_model.safetensors"),
        licence="apache-2.0",
        architecture=f"vit_b_{patch_size}",
        about_bytes=MappingProxyType({"open_clip_model.safetensors": about_bytes}),
        activation="quick_gelu",
    )


CLIP_VIT_B_16 = _openai_clip(16, 599_000_000)
CLIP_VIT_B_32 = _openai_clip(32, 605_000_000)

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
            Preset(
                name="refdiff-edge",
                diffusion=BK_SDM_SMALL,
                vae=TAESD,
                sam=MOBILE_SAM,
                clip=CLIP_VIT_B_32,
            ),
        )
    }
)
"""Name -> stack. `refdiff` is the paper's; `refdiff-edge` takes a small published model for every part."""


def known_source(repo: str) -> Source | None:
    """Return the source with this repository in a preset; None if no preset names it."""
    sources = (source for preset in PRESETS.values() for source in preset.sources)
    return next((source for source in sources if source.repo == repo), None)
