"""Random weights: to measure, build and time engines before any download.

Every tensor is drawn from a generator seeded by the seed and the tensor's name, so that a module has the same
weights whatever was drawn before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import init_empty_weights
from segment_anything.modeling import Sam
from torch import nn

Module = TypeVar("Module", bound=nn.Module)

_TABLES = ("embed", "positional", "_token", "rel_pos", "class_")
"""Parts of the names of tensors that are added to states, not multiplied with them."""


def random_module(build: Callable[[], Module], *, seed: int, name: str) -> Module:
    """Build a module with random weights that roughly preserve the variance of its activations.

    Norms are the identity, matrices and kernels have a variance of 1 / inputs, biases and tables are small.

    Args:
        build: makes the module; its initial weights take no memory.
        seed: of all tensors.
        name: of the component, so that two components of the same shape differ.

    Returns:
        The module in eval mode, float32, without gradients.
    """
    with torch.random.fork_rng(devices=()), init_empty_weights(include_buffers=False):
        torch.manual_seed(_mix(seed, name))  # some buffers are random by design, such as SAM's frequencies
        module = build()
    empty = {key: value for key, value in module.state_dict().items() if value.is_meta}
    module.load_state_dict(
        {key: _draw(key, value.shape, _mix(seed, f"{name}.{key}")) for key, value in empty.items()},
        assign=True,
        strict=False,  # the buffers that `build` filled stay
    )
    return module.eval().requires_grad_(requires_grad=False)


def _draw(key: str, shape: torch.Size, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if key.endswith("logit_scale"):
        return torch.full(shape, 100.0).log()  # CLIP's trained value
    if len(shape) == 1 and key.endswith("weight"):
        return torch.ones(shape)
    if len(shape) < 2 or any(part in key for part in _TABLES):
        return torch.empty(shape).normal_(std=0.02, generator=generator)
    return torch.empty(shape).normal_(std=shape[1:].numel() ** -0.5, generator=generator)


def _mix(seed: int, name: str) -> int:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:7], "little")


_GAIN = 60.0
"""Makes the logits as steep as trained ones: the mask's border is thin, its stability high."""

_LEVEL = 1.875
"""Subtracted from every logit by the constant feature, before the gain: 2.5 times 0.75, the spread of the
logits of a random ViT-B."""


@torch.no_grad()
def scatter_masks(sam: Sam) -> Sam:
    """Change the mask decoder of a random SAM so that its automatic mode finds many small masks.

    Masks of random weights each cover about half of the image: all boxes equal the image's, and duplicate
    removal keeps one. Here one feature of the upscaled embedding is constant and lowers all logits, so that
    only the peaks of the others remain.

    Returns:
        The same module, changed in place.
    """
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
