"""A whole model stack: three models from checkpoints or with random weights, and CLIP's tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from open_clip.tokenizer import SimpleTokenizer
from segment_anything.modeling import Sam
from torch import nn

from refdiff.contracts.spec import ClipSpec, DiffusionSpec, ModelSpec, SamSpec
from refdiff.contracts.stack import ModelStack
from refdiff.errors import InputError
from refdiff.models.clip import VIT_B_16, VIT_B_32, VIT_L_14, ClipSizes, build_clip, clip_spec
from refdiff.models.diffusion import (
    BK_SDM_BASE,
    BK_SDM_SMALL,
    BK_SDM_TINY,
    SD15,
    SD21,
    TAESD,
    DiffusionConfigs,
    TapPaths,
    build_text_encoder,
    build_unet,
    build_vae,
    diffusion_spec,
)
from refdiff.models.fitting import Part
from refdiff.models.sam import (
    EFFICIENT_SAM_L0,
    EFFICIENT_SAM_XL0,
    MOBILE_SAM,
    VIT_B,
    VIT_H,
    VIT_L,
    AnySamSizes,
    build_sam,
    sam_spec,
)
from refdiff.runtime.tokenizer import END, START, build_tokenizer_json

VOCABULARY = 49_408
"""Tokens of CLIP: 256 bytes, 256 bytes that end a word, 48,894 merges, start and end. Source: openai/CLIP."""


def clip_tokenizer_json() -> str:
    """Return CLIP's tokenizer, from open_clip's vocabulary file, as the `tokenizers` library's JSON."""
    theirs = SimpleTokenizer()
    ranks: dict[tuple[str, str], int] = theirs.bpe_ranks
    letters = list(theirs.byte_encoder.values())
    merges = sorted(ranks, key=ranks.__getitem__)
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges), START, END]
    return build_tokenizer_json({token: index for index, token in enumerate(tokens)}, merges)


def check_vocabulary(*rows: int) -> None:
    """Refuse text towers that were trained with another tokenizer.

    Args:
        rows: of each tower's token table.

    Raises:
        InputError: a table does not have one row per token of CLIP's vocabulary.
    """
    for found in rows:
        if found != VOCABULARY:
            raise InputError(
                f"got a text tower with {found} rows in its token table, expected {VOCABULARY}, the tokens "
                "of CLIP's vocabulary; use a checkpoint trained with CLIP's tokenizer"
            )


DIFFUSIONS: Mapping[str, DiffusionConfigs] = MappingProxyType(
    {
        "sd15": SD15,
        "sd21": SD21,
        "bk_sdm_base": BK_SDM_BASE,
        "bk_sdm_small": BK_SDM_SMALL,
        "bk_sdm_tiny": BK_SDM_TINY,
    }
)
VAES: Mapping[str, Mapping[str, Any]] = MappingProxyType({"kl": SD15.vae, "taesd": TAESD})
SAMS: Mapping[str, AnySamSizes] = MappingProxyType(
    {
        "vit_b": VIT_B,
        "vit_l": VIT_L,
        "vit_h": VIT_H,
        "mobile_sam": MOBILE_SAM,
        "efficientvit_sam_l0": EFFICIENT_SAM_L0,
        "efficientvit_sam_xl0": EFFICIENT_SAM_XL0,
    }
)
CLIPS: Mapping[str, ClipSizes] = MappingProxyType(
    {"vit_b_32": VIT_B_32, "vit_b_16": VIT_B_16, "vit_l_14": VIT_L_14}
)


def random_stack(
    name: str,
    *,
    diffusion: str | DiffusionConfigs,
    sam: str | AnySamSizes,
    clip: str | ClipSizes,
    image_size: int,
    seed: int,
    vae: str | None = None,
    taps: TapPaths = "all",
) -> ModelStack:
    """Make a stack of published architectures, or of those of other sizes, with random weights.

    Args:
        name: of the stack.
        diffusion: one of `DIFFUSIONS`, or its settings.
        sam: one of `SAMS`, or its sizes.
        clip: one of `CLIPS`, or its sizes.
        image_size: side in px of the image that Stable Diffusion encodes.
        seed: of the weights.
        vae: one of `VAES`; None for the diffusion model's own.
        taps: see `diffusion_spec`.

    Raises:
        InputError: no such architecture.
    """
    configs = _choose("diffusion", diffusion, DIFFUSIONS)
    if vae is not None:
        configs = replace(configs, vae=_choose("VAE", vae, VAES))
    sam_sizes, clip_sizes = _choose("sam", sam, SAMS), _choose("clip", clip, CLIPS)
    parts = (
        _random_part(
            diffusion_spec(configs, image_size, taps=taps),
            seed,
            text_encoder=partial(build_text_encoder, configs),
            vae=partial(build_vae, configs),
            unet=partial(build_unet, configs),
        ),
        _random_part(sam_spec(sam_sizes), seed, sam=partial(build_sam, sam_sizes), finish=scatter_masks),
        _random_part(clip_spec(clip_sizes), seed, clip=partial(build_clip, clip_sizes)),
    )
    return make_stack(name, *parts, random_seed=seed)


def _unchanged(module: Any) -> Any:
    return module


def make_stack(
    name: str,
    diffusion: Part[DiffusionSpec],
    sam: Part[SamSpec],
    clip: Part[ClipSpec],
    *,
    random_seed: int | None = None,
) -> ModelStack:
    """Make a stack of its parts; weights are read when they are needed.

    Raises:
        InputError: a text tower was trained with another tokenizer.
    """
    check_vocabulary(*(rows for rows in (diffusion.vocabulary, clip.vocabulary) if rows is not None))
    return ModelStack(
        spec=ModelSpec(name=name, diffusion=diffusion.spec, sam=sam.spec, clip=clip.spec),
        tokenizer_json=clip_tokenizer_json(),
        sources={**diffusion.sources, **sam.sources, **clip.sources},
        loaders={**diffusion.loaders, **sam.loaders, **clip.loaders},
        random_seed=random_seed,
    )


def _random_part(
    spec: Any, seed: int, *, finish: Callable[[Any], Any] = _unchanged, **builders: Callable[[], Any]
) -> Part[Any]:
    """Make a part with random weights; `finish` may change a module afterwards."""

    def load(build: Callable[[], Any], name: str) -> Any:
        return finish(random_module(build, seed=seed, name=name))

    return Part(
        spec=spec,
        loaders={name: partial(load, build, name) for name, build in builders.items()},
        sources=dict.fromkeys(builders, f"random, seed {seed}"),
    )


def _choose(part: str, name: Any, known: Mapping[str, Any]) -> Any:
    if not isinstance(name, str):
        return name
    if name not in known:
        raise InputError(
            f"unknown {part} architecture {name!r} for random weights; choose one of: {', '.join(known)}"
        )
    return known[name]


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
