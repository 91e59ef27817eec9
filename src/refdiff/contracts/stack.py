"""A loaded torch model stack: what the exporter and the reference are given.

The torch types are named for readers and type checkers alone; this module imports none of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from refdiff.contracts.spec import ModelSpec

if TYPE_CHECKING:
    import open_clip
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from segment_anything.modeling import Sam
    from transformers import CLIPTextModel


@dataclass(frozen=True, kw_only=True)
class ModelStack:
    """The original modules, in eval mode and float32 on the CPU, with their sizes."""

    spec: ModelSpec
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    sam: Sam
    clip: open_clip.CLIP
    tokenizer_json: str
    """CLIP's byte-pair encoding as the `tokenizers` library's JSON; the same for both text encoders."""
    sources: Mapping[str, str]
    """Component -> sha256 of the weights it was loaded from."""
