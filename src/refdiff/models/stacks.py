"""A whole model stack: three models from checkpoints or with random weights, and CLIP's tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from open_clip.tokenizer import SimpleTokenizer

from refdiff.contracts.spec import ClipSpec, DiffusionSpec, ModelSpec, SamSpec
from refdiff.contracts.stack import ModelStack
from refdiff.errors import InputError
from refdiff.models.clip import VIT_B_16, VIT_B_32, VIT_L_14, ClipSizes, build_clip, clip_spec, load_clip
from refdiff.models.diffusion import (
    SD15,
    SD21,
    DiffusionConfigs,
    build_text_encoder,
    build_unet,
    build_vae,
    diffusion_spec,
    load_diffusion,
)
from refdiff.models.fitting import Part
from refdiff.models.random_weights import random_module, scatter_masks
from refdiff.models.sam import VIT_B, VIT_H, VIT_L, SamSizes, build_sam, load_sam, sam_spec
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


DIFFUSIONS: Mapping[str, DiffusionConfigs] = MappingProxyType({"sd15": SD15, "sd21": SD21})
SAMS: Mapping[str, SamSizes] = MappingProxyType({"vit_b": VIT_B, "vit_l": VIT_L, "vit_h": VIT_H})
CLIPS: Mapping[str, ClipSizes] = MappingProxyType(
    {"vit_b_32": VIT_B_32, "vit_b_16": VIT_B_16, "vit_l_14": VIT_L_14}
)


def checkpoint_stack(
    name: str,
    *,
    diffusion: Path,
    sam: Path,
    clip: Path,
    image_size: int,
    prediction: str | None = None,
    activation: str | None = None,
) -> ModelStack:
    """Make a stack of trained models; weights are read when they are needed.

    Args:
        name: of the stack.
        diffusion: see `diffusion.load_diffusion`.
        sam: see `sam.load_sam`.
        clip: see `clip.load_clip`.
        image_size: side in px of the image that Stable Diffusion encodes.
        prediction: of the UNet, if its checkpoint does not state it.
        activation: of CLIP, if its checkpoint does not state it.

    Raises:
        InputError: a checkpoint cannot be used.
    """
    parts = (
        load_diffusion(diffusion, image_size=image_size, prediction=prediction),
        load_sam(sam),
        load_clip(clip, activation=activation),
    )
    return _stack(name, *parts)


def random_stack(name: str, *, diffusion: str, sam: str, clip: str, image_size: int, seed: int) -> ModelStack:
    """Make a stack of full-size architectures with random weights.

    Args:
        name: of the stack.
        diffusion: one of `DIFFUSIONS`.
        sam: one of `SAMS`.
        clip: one of `CLIPS`.
        image_size: side in px of the image that Stable Diffusion encodes.
        seed: of the weights.

    Raises:
        InputError: no such architecture.
    """
    configs = _choose("diffusion", diffusion, DIFFUSIONS)
    sam_sizes, clip_sizes = _choose("sam", sam, SAMS), _choose("clip", clip, CLIPS)
    parts = (
        _random_part(
            diffusion_spec(configs, image_size),
            seed,
            text_encoder=partial(build_text_encoder, configs),
            vae=partial(build_vae, configs),
            unet=partial(build_unet, configs),
        ),
        _random_part(sam_spec(sam_sizes), seed, sam=partial(build_sam, sam_sizes), finish=scatter_masks),
        _random_part(clip_spec(clip_sizes), seed, clip=partial(build_clip, clip_sizes)),
    )
    return _stack(name, *parts, random_seed=seed)


def _unchanged(module: Any) -> Any:
    return module


def _stack(
    name: str,
    diffusion: Part[DiffusionSpec],
    sam: Part[SamSpec],
    clip: Part[ClipSpec],
    *,
    random_seed: int | None = None,
) -> ModelStack:
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


def _choose(part: str, name: str, known: Mapping[str, Any]) -> Any:
    if name not in known:
        raise InputError(
            f"unknown {part} architecture {name!r} for random weights; choose one of: {', '.join(known)}"
        )
    return known[name]
