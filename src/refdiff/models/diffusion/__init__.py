"""Stable Diffusion's checkpoints: diffusers folders, and single files in the original layout."""

from refdiff.models.diffusion.loading import load_diffusion
from refdiff.models.diffusion.sizes import (
    SD15,
    SD21,
    DiffusionConfigs,
    build_text_encoder,
    build_unet,
    build_vae,
)
from refdiff.models.diffusion.taps import diffusion_spec

__all__ = [
    "SD15",
    "SD21",
    "DiffusionConfigs",
    "build_text_encoder",
    "build_unet",
    "build_vae",
    "diffusion_spec",
    "load_diffusion",
]
