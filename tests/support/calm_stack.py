"""The tiny stack with a SAM decoder that does not amplify rounding.

`tiny_stack` sharpens its decoder so that masks differ by prompt: its weights are 20 times a fresh decoder's,
and a relative change of 1e-7 in the embedding moves its logits by 3e-3 of their range. Nothing can be
compared through that; this stack's decoder is a fresh one. Its UNet outputs every map.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import replace

import torch

from refdiff.contracts.spec import MAP_NAMES
from refdiff.contracts.stack import COMPONENTS, ModelStack
from tests.support.tiny_stack import tiny_stack


@functools.cache
def calm_stack() -> ModelStack:
    """The stack, built once per process; leave its modules as they are."""
    stack = tiny_stack()
    sam = copy.deepcopy(stack.sam)
    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.manual_seed(11)
        for module in sam.mask_decoder.modules():
            reset = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()
    modules = {name: getattr(stack, name) for name in COMPONENTS} | {"sam": sam}
    spec = replace(stack.spec, diffusion=stack.spec.diffusion.with_maps(MAP_NAMES))
    return ModelStack.of(
        spec=spec, tokenizer_json=stack.tokenizer_json, sources=stack.sources, modules=modules
    )
