"""A model stack of the real classes at toy size with random weights: enough to compare two computations.

    from tests.support.tiny_stack import tiny_stack

It means nothing and answers nonsense, the same nonsense every time. Needs torch and the `export` extra.
"""

from __future__ import annotations

import functools
import gzip
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from numpy.typing import NDArray
from open_clip.tokenizer import bytes_to_unicode, default_bpe
from PIL import Image
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from transformers import CLIPTextConfig, CLIPTextModel

from refdiff.contracts.spec import ClipSpec, DiffusionSpec, ModelSpec, SamSpec
from refdiff.contracts.stack import ModelStack
from refdiff.runtime.tokenizer import END, START, build_tokenizer_json

MERGES = 600
"""How many of CLIP's merges are kept; "left", "the" and "man" are among them, "mug" is two pieces."""

TINY = ModelSpec(
    name="tiny",
    diffusion=DiffusionSpec(
        image_size=64,
        vae_factor=4,
        latent_channels=4,
        scaling_factor=0.18215,
        context_width=32,
        tapped_layers=("down_blocks.1.attentions.0", "up_blocks.1.attentions.0", "up_blocks.1.attentions.1"),
        tap_size=8,
        cut_after="up_blocks.1",
    ),
    # The thresholds keep some, not all, of what the random decoder draws.
    sam=SamSpec(
        image_size=64,
        embed_channels=32,
        embed_size=8,
        points_per_side=4,
        pred_iou_threshold=0.55,
        stability_threshold=0.2,
        edge_points_per_side=3,
        edge_pred_iou_threshold=0.5,
        edge_stability_threshold=0.1,
    ),
    clip=ClipSpec(image_size=32, patch_size=8, width=32, embed_dim=16),
)


def tiny_picture() -> NDArray[np.uint8]:
    """A wide image of soft colours, [48, 72, 3], in which the random SAM finds several candidates."""
    colours = np.random.default_rng(2).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(colours).resize((72, 48), Image.Resampling.BICUBIC))


@functools.cache
def tiny_stack() -> ModelStack:
    """The stack, built once per process; leave its modules as they are."""
    tokenizer_json, vocabulary = tiny_tokenizer()
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(5)
        modules = {
            "text_encoder": _text_encoder(vocabulary),
            "vae": _autoencoder(),
            "unet": _unet(),
            "sam": _sam(),
            "clip": _clip(vocabulary),
        }
        for module in modules.values():
            _fill_zeros(module.requires_grad_(False).eval())
        _sharpen(modules["sam"].mask_decoder)
    sources = dict.fromkeys(modules, "0" * 64)
    return ModelStack.of(spec=TINY, tokenizer_json=tokenizer_json, sources=sources, modules=modules)


@functools.cache
def tiny_tokenizer() -> tuple[str, int]:
    """CLIP's byte-pair encoding cut to its first merges, and the size of its vocabulary."""
    lines = gzip.decompress(Path(default_bpe()).read_bytes()).decode("utf-8").split("\n")
    merges = [(first, second) for first, second in (line.split() for line in lines[1 : MERGES + 1])]
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges), START, END]
    return build_tokenizer_json({token: i for i, token in enumerate(tokens)}, merges), len(tokens)


def _fill_zeros(module: torch.nn.Module) -> None:
    """Random values where a trained model has some: zero-initialised biases, positions, projections."""
    for parameter in module.parameters():
        if not parameter.any():
            parameter.normal_(std=0.1)


def _text_encoder(vocabulary: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=TINY.diffusion.context_width,
            intermediate_size=64,
            projection_dim=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=TINY.context_length,
            hidden_act="quick_gelu",
            initializer_factor=10.0,  # else all tokens look alike, and so do all maps
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    )


def _autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        latent_channels=TINY.diffusion.latent_channels,
        norm_num_groups=4,
        sample_size=TINY.diffusion.image_size,
        scaling_factor=TINY.diffusion.scaling_factor,
    )


def _unet() -> UNet2DConditionModel:
    """16x16, 8x8 and 4x4 cells; cross-attention at 8x8 and in the middle."""
    return UNet2DConditionModel(
        sample_size=TINY.diffusion.latent_size,
        in_channels=TINY.diffusion.latent_channels,
        out_channels=TINY.diffusion.latent_channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        cross_attention_dim=TINY.diffusion.context_width,
        attention_head_dim=2,  # the number of heads, by diffusers' historical name
        norm_num_groups=4,
    )


def _sam() -> Sam:
    spec = TINY.sam
    grid, square = (spec.embed_size,) * 2, (spec.image_size,) * 2
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=spec.image_size,
            patch_size=spec.image_size // spec.embed_size,
            embed_dim=32,
            depth=2,
            num_heads=2,
            out_chans=spec.embed_channels,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=3,  # does not divide the grid: windows are padded, as in the real one
            global_attn_indexes=(1,),
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=spec.embed_channels, image_embedding_size=grid, input_image_size=square, mask_in_chans=4
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=spec.embed_channels,
            transformer=TwoWayTransformer(
                depth=2, embedding_dim=spec.embed_channels, num_heads=2, mlp_dim=64
            ),
            iou_head_hidden_dim=32,
        ),
        pixel_mean=list(spec.pixel_mean),
        pixel_std=list(spec.pixel_std),
    )


@torch.no_grad()
def _sharpen(decoder: MaskDecoder) -> None:
    """Blobs here and there, by prompt, where a fresh decoder draws one flat mask for all prompts."""
    for module in decoder.transformer.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight *= 20.0
    for network in decoder.output_hypernetworks_mlps:
        network.layers[-1].weight *= 400.0
        network.layers[-1].bias *= 400.0
        # Feature 0 is made constant and weighs against every mask, else all of them fill the image.
        network.layers[-1].weight[0] = 0.0
        network.layers[-1].bias[0] = -14.0
    decoder.output_upscaling[3].weight[:, 0] = 0.0
    decoder.output_upscaling[3].bias[0] = 1.0
    decoder.iou_prediction_head.layers[-1].bias += 0.8  # around the thresholds


def _clip(vocabulary: int) -> open_clip.CLIP:
    spec = TINY.clip
    vision = {"image_size": spec.image_size, "patch_size": spec.patch_size, "width": spec.width}
    text = {"context_length": TINY.context_length, "vocab_size": vocabulary, "width": 32}
    return open_clip.CLIP(
        embed_dim=spec.embed_dim,
        vision_cfg={**vision, "layers": 3, "head_width": 16},
        text_cfg={**text, "layers": 2, "heads": 2},
        quick_gelu=True,
    )
