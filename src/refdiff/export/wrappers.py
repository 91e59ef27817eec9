"""One torch module per graph of the contract, inputs and outputs in the contract's order."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from refdiff.contracts.graphs import GRAPHS
from refdiff.errors import InputError
from refdiff.export.clip_graphs import ClipImage, ClipText
from refdiff.export.diffusion_graphs import SdText, Unet, UnetTaps, VaeEncoder
from refdiff.export.sam_graphs import SamDecoder, SamEncoder, SamMasks

if TYPE_CHECKING:
    from torch import nn

    from refdiff.contracts.session import Float
    from refdiff.contracts.stack import ModelStack

_BUILDERS: dict[str, Callable[[ModelStack], nn.Module]] = {
    "sd_text": lambda stack: SdText(stack.text_encoder),
    "vae_encoder": lambda stack: VaeEncoder(stack.vae),
    "unet": lambda stack: Unet(stack.unet, stack.spec.diffusion.tapped_layers),
    "unet_taps": lambda stack: UnetTaps(stack.unet, stack.spec.diffusion.tapped_layers),
    "sam_encoder": lambda stack: SamEncoder(stack.sam),
    "sam_decoder": lambda stack: SamDecoder(stack.sam),
    "sam_masks": lambda stack: SamMasks(stack.sam),
    "clip_text": lambda stack: ClipText(stack.clip),
    "clip_image": lambda stack: ClipImage(stack.clip),
}


def wrap(stack: ModelStack, name: str) -> nn.Module:
    """The module of graph `name`, sharing the stack's weights, in eval mode.

    Raises:
        InputError: no such graph, or the stack's module cannot be exported.
    """
    if name not in _BUILDERS:
        raise InputError(f"unknown graph {name!r}; choose one of: {', '.join(GRAPHS)}")
    return _BUILDERS[name](stack).eval()


def clip_positions(stack: ModelStack) -> Float:
    """[grid*grid, width]: CLIP's patch positions, without the class token's row.

    Raises:
        InputError: the table is not of the size the spec names.
    """
    table: Float = stack.clip.visual.positional_embedding.detach()[1:].cpu().numpy().astype(np.float32)
    clip = stack.spec.clip
    if table.shape != (clip.grid**2, clip.width):
        raise InputError(f"CLIP's positions are {table.shape}, the spec says {(clip.grid**2, clip.width)}")
    return table
