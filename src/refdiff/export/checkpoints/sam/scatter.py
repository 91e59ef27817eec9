"""Random SAM weights whose automatic mode has something to do.

A freshly drawn decoder's masks each cover about half of the picture: all boxes are the picture's own, and
duplicate removal leaves one. Here one feature of the upscaled embedding is made constant and weighs against
every mask, so that only peaks of the others remain: small masks, many, at different places.
"""

from __future__ import annotations

import torch
from segment_anything.modeling import Sam

_GAIN = 60.0
"""Makes the logits steep, as trained ones are: the mask's border is thin, its stability high."""

_LEVEL = 1.875
"""What the constant feature takes from every logit, before the gain: 2.5 times the 0.75 by which the logits
of a drawn ViT-B vary."""


@torch.no_grad()
def scatter_masks(sam: Sam) -> Sam:
    """Change a drawn SAM's mask decoder in place, and return it."""
    decoder = sam.mask_decoder
    upscaled = decoder.output_upscaling[3]
    upscaled.weight[:, 0] = 0.0
    upscaled.bias[0] = 1.0  # before the last GELU
    constant = torch.nn.functional.gelu(torch.ones(())).item()
    for network in decoder.output_hypernetworks_mlps:
        last = network.layers[-1]
        last.weight *= _GAIN
        last.bias *= _GAIN
        last.weight[0] = 0.0
        last.bias[0] = -_LEVEL * _GAIN / constant
    return sam
