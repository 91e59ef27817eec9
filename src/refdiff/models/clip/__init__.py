"""CLIP's checkpoints: OpenAI's, open_clip's and transformers' layouts."""

from refdiff.models.clip.loading import ACTIVATIONS, load_clip
from refdiff.models.clip.sizes import (
    VIT_B_16,
    VIT_B_32,
    VIT_L_14,
    ClipSizes,
    build_clip,
    clip_spec,
    infer_clip_sizes,
)

__all__ = [
    "ACTIVATIONS",
    "VIT_B_16",
    "VIT_B_32",
    "VIT_L_14",
    "ClipSizes",
    "build_clip",
    "clip_spec",
    "infer_clip_sizes",
    "load_clip",
]
