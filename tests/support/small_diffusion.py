"""Stable Diffusion's three generations of architecture at toy width, with random weights in every tensor.

    from tests.support.small_diffusion import SMALL, small_model

Widths are multiples of 32, the number of groups that no tensor shows. Needs torch and the `export` extra.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

ROWS = 120
"""Of the token table."""

CROSS_DOWN, CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"


@dataclass(frozen=True)
class Small:
    """What differs between the generations."""

    unet: dict[str, Any]
    text_width: int
    activation: str
    padding_word: str
    prediction: str


SMALL = {
    "sd1": Small(
        unet={
            "block_out_channels": (32, 64, 64, 64),
            "layers_per_block": 2,
            "down_block_types": (CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, "DownBlock2D"),
            "up_block_types": ("UpBlock2D", CROSS_UP, CROSS_UP, CROSS_UP),
            "attention_head_dim": 8,
        },
        text_width=64,
        activation="quick_gelu",
        padding_word="<|endoftext|>",
        prediction="epsilon",
    ),
    "sd2": Small(
        unet={
            "block_out_channels": (64, 128, 128, 128),
            "layers_per_block": 2,
            "down_block_types": (CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, "DownBlock2D"),
            "up_block_types": ("UpBlock2D", CROSS_UP, CROSS_UP, CROSS_UP),
            "attention_head_dim": (1, 2, 2, 2),
            "use_linear_projection": True,
        },
        text_width=128,
        activation="gelu",
        padding_word="!",
        prediction="v_prediction",
    ),
    "tiny": Small(
        unet={
            "block_out_channels": (32, 64, 64),
            "layers_per_block": 1,
            "down_block_types": (CROSS_DOWN,) * 3,
            "mid_block_type": None,
            "up_block_types": (CROSS_UP,) * 3,
            "attention_head_dim": 8,
        },
        text_width=64,
        activation="quick_gelu",
        padding_word="<|endoftext|>",
        prediction="epsilon",
    ),
}


@functools.cache
def small_model(name: str) -> dict[str, Any]:
    """Component -> module of one of `SMALL`, built once per process; leave them as they are."""
    sizes = SMALL[name]
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(3)
        modules = {
            "text_encoder": CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=ROWS,
                    hidden_size=sizes.text_width,
                    intermediate_size=2 * sizes.text_width,
                    num_hidden_layers=2,
                    num_attention_heads=sizes.text_width // 64,
                    hidden_act=sizes.activation,
                    bos_token_id=ROWS - 2,
                    eos_token_id=ROWS - 1,
                )
            ),
            "vae": AutoencoderKL(
                block_out_channels=(32, 32, 64, 64),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=1,
            ),
            "unet": UNet2DConditionModel(sample_size=64, cross_attention_dim=sizes.text_width, **sizes.unet),
        }
        for module in modules.values():
            for parameter in module.parameters():
                parameter.data += 0.05 * torch.randn(parameter.shape)  # no two norms stay alike
            module.requires_grad_(requires_grad=False).eval()
    return modules


def answers(modules: dict[str, Any]) -> dict[str, torch.Tensor]:
    """One forward pass of each module: text states, posterior moments, the UNet's output."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, ROWS, (2, 77), generator=generator)
    image = torch.randn(1, 3, 64, 64, generator=generator)
    latent = torch.randn(2, 4, 8, 8, generator=generator)
    with torch.no_grad():
        states = modules["text_encoder"](ids).last_hidden_state
        posterior = modules["vae"].encode(image).latent_dist
        return {
            "text_encoder": states,
            "vae": posterior.parameters,
            "unet": modules["unet"](latent, 51, encoder_hidden_states=states).sample,
        }


def write_folder(name, folder, *, modules=None, **saving):
    """A pipeline's folder, as diffusers saves it."""
    tokens = ("!", "a</w>", "<|startoftext|>", "<|endoftext|>")
    pipeline = StableDiffusionPipeline(
        **(modules or small_model(name)),
        tokenizer=CLIPTokenizer(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[],
            pad_token=SMALL[name].padding_word,
        ),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type=SMALL[name].prediction,
            steps_offset=1,
            clip_sample=False,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, **saving)
    return folder
