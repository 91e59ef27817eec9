"""Stable Diffusion's attention to a phrase, as a heatmap over the image (METHOD §4).

In: an image [y, x, 3] uint8 RGB and a parsed phrase. Out: heatmap [y, x] float32, 0..1.

Axes: b = branch (0 unconditional, 1 conditional), m = maps (passes times layers), g = side of the tap grid,
t = text tokens, k = columns of the phrase's focus, c = latent channels, y/x = rows/columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from refdiff.contracts.options import AttentionOptions, Options
from refdiff.contracts.session import Float
from refdiff.contracts.spec import COARSE_LAYER, DiffusionSpec, Prediction
from refdiff.contracts.stack import ModelStack
from refdiff.errors import InputError
from refdiff.reference.taps import SELF_ATTENTION, tapped
from refdiff.runtime.diffusion import draw_noise
from refdiff.runtime.phrase import Phrase
from refdiff.runtime.tokenizer import Tokenizer

FLAT = 1e-8
"""The epsilon of every min-max: a flat map becomes all zero instead of NaN (METHOD §9)."""


@dataclass(frozen=True, kw_only=True)
class GenerativeMap:
    """The heatmap, and the maps it is the mean of, for tracing."""

    heatmap: Float
    """[y, x], 0..1, on the image."""
    maps: Float
    """[m, g, g], 0..1: one map for every pass and tapped layer, passes first, then those of the coarsest
    level."""


@dataclass(frozen=True, kw_only=True)
class Attended:
    """The attention of all passes."""

    logits: torch.Tensor
    """[m, g*g, t], guided, of the tapped layers; passes first."""
    coarse: torch.Tensor | None = None
    """[p, (g/2)**2, t], guided, of the coarsest level; None where the options do not read it."""
    cells: torch.Tensor | None = None
    """[g*g, g*g] float64, the mean self-attention, rows sum to 1; None as above."""


@torch.no_grad()
def generative_map(
    stack: ModelStack, options: Options, tokenizer: Tokenizer, image: NDArray[np.uint8], phrase: Phrase
) -> GenerativeMap:
    """Compute the heatmap of the phrase's focus from the tapped cross-attentions.

    Raises:
        InputError: the options read the logits as METHOD §10.8 to §10.10.
    """
    attention = options.attention
    if attention.rescale or attention.end_token or attention.layer_weights:
        raise InputError(
            "the torch reference has no rescaled maps, end token or layer weights; use the exported graphs"
        )
    latent = encode_image(stack, options, image)
    context = encode_prompts(stack, tokenizer, phrase.text)
    attended = attend(stack, attention, latent, context)
    columns, side = tokenizer.focus_indices(phrase, attention.focus), stack.spec.diffusion.tap_size
    maps = focus_maps(attended.logits, columns, side)  # [m, g, g]
    weights = [1.0] * len(maps)
    if attended.coarse is not None:  # METHOD §10.11
        small = focus_maps(attended.coarse, columns, side // 2)
        large = F.interpolate(small[:, None], (side, side), mode="bilinear")[:, 0]
        maps = torch.cat([maps, _spread(large.flatten(1)).reshape(-1, side, side)])
        weights += [attention.coarse] * len(small)
    mean = _mean_map(maps, weights, attention)
    if attended.cells is not None:  # METHOD §10.12
        column = torch.linalg.matrix_power(attended.cells, attention.propagate) @ mean.double().flatten()
        mean = _spread(column[None]).reshape(side, side).to(mean.dtype)
    heatmap = heatmap_on_image(mean, image.shape[:2], attention)
    return GenerativeMap(heatmap=heatmap, maps=maps.cpu().numpy())


def encode_image(stack: ModelStack, options: Options, image: NDArray[np.uint8]) -> torch.Tensor:
    """Encode the image as a latent, noised to the first pass's level: [1, c, y, x] (METHOD §4.1 to §4.3)."""
    spec = stack.spec.diffusion
    vae: Any = stack.vae  # diffusers hides its models' methods from type checkers; so below
    square = Image.fromarray(pad_to_square(image))
    resized = square.resize((spec.image_size, spec.image_size), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.asarray(resized, dtype=np.float32) / 255.0 * 2.0 - 1.0)  # [y, x, 3]
    encoded: Any = vae.encode(pixels.permute(2, 0, 1)[None].to(vae.device))
    shape = (1, spec.latent_channels, spec.latent_size, spec.latent_size)
    posterior_draw, noise = (torch.from_numpy(d).to(vae.device) for d in draw_noise(options.seed, shape))
    if hasattr(encoded, "latents"):  # an AutoencoderTiny has no posterior, and its own factor
        clean: torch.Tensor = vae.config.scaling_factor * encoded.latents
    else:
        sample = encoded.latent_dist.mean
        if options.attention.sample_posterior:
            sample = sample + encoded.latent_dist.std * posterior_draw
        clean = spec.scaling_factor * sample
    level = alphas_cumprod(spec)[options.attention.start_level]
    return math.sqrt(level) * clean + math.sqrt(1.0 - level) * noise


def encode_prompts(stack: ModelStack, tokenizer: Tokenizer, text: str) -> torch.Tensor:
    """Return the UNet's contexts of "" and of the phrase with ", " appended, as released: [b=2, t, width]."""
    padding = stack.spec.diffusion.padding
    ids = np.stack([tokenizer.diffusion_ids(prompt, padding) for prompt in ("", text + ", ")])
    encoder = stack.text_encoder
    states: torch.Tensor = encoder(torch.from_numpy(ids).long().to(encoder.device)).last_hidden_state
    return states


def attend(
    stack: ModelStack, options: AttentionOptions, latent: torch.Tensor, context: torch.Tensor
) -> Attended:
    """Run the passes and return the tapped logits, guided as the noise is.

    The release is off by one: the first latent is noised to `start_level`, but the UNet is fed the first of
    `timesteps`, and the step uses the level of that timestep (METHOD §4.3). Nothing follows the last pass.
    """
    spec = stack.spec.diffusion
    unet: Any = stack.unet
    alphas = alphas_cumprod(spec)
    timesteps = options.timesteps
    layers = spec.tapped_layers
    coarse, itself = (COARSE_LAYER,) if options.coarse else (), layers if options.propagate else ()
    with (
        tapped(stack.unet, layers, softmax=options.softmax) as taps,
        tapped(stack.unet, coarse, softmax=options.softmax) as coarse_taps,
        tapped(stack.unet, itself, softmax=options.softmax, attention=SELF_ATTENTION) as self_taps,
    ):
        for now, following in zip(timesteps, (*timesteps[1:], None), strict=True):
            both = latent.expand(2, -1, -1, -1)  # [b, c, y, x]
            predicted = unet(both, now, encoder_hidden_states=context).sample
            eps_u, eps_c = noise_of(predicted, both, alphas[now], spec.prediction).chunk(2)
            if following is not None:
                eps = eps_u + options.guidance * (eps_c - eps_u)
                latent = ddim_step(latent, eps, alphas[now], alphas[following])
    passes = len(timesteps)
    return Attended(
        logits=_guided(taps.stacked(passes=passes), options),
        coarse=_guided(coarse_taps.stacked(passes=passes), options) if coarse else None,
        cells=_cells(self_taps.stacked(passes=passes), options) if itself else None,
    )


def _guided(attention: torch.Tensor, options: AttentionOptions) -> torch.Tensor:
    """Return the guided logits of all passes [pass, layer, b, q, t]: [m, q, t]."""
    unconditional, conditional = attention.unbind(dim=2)
    guided = unconditional + options.guidance * (conditional - unconditional)
    return guided.flatten(0, 1)


def _cells(attention: torch.Tensor, options: AttentionOptions) -> torch.Tensor:
    """Return the conditional branch's mean self-attention [pass, layer, b, q, q]: [q, q]."""
    conditional = attention[:, :, 1].double()
    probabilities = conditional if options.softmax else conditional.softmax(dim=-1)
    return probabilities.mean(dim=(0, 1))


def noise_of(output: torch.Tensor, x: torch.Tensor, alpha: float, prediction: Prediction) -> torch.Tensor:
    """Return the noise in x at level `alpha`, of a UNet that predicts it or the velocity.

    v = sqrt(alpha)·eps - sqrt(1 - alpha)·x0  (Salimans & Ho 2022, arXiv 2202.00512, section 4).
    """
    if prediction == "epsilon":
        return output
    return math.sqrt(alpha) * output + math.sqrt(1.0 - alpha) * x


def ddim_step(x: torch.Tensor, eps: torch.Tensor, alpha: float, alpha_next: float) -> torch.Tensor:
    """Take one deterministic DDIM step (eta = 0) from the level `alpha` to the cleaner `alpha_next`."""
    clean = (x - math.sqrt(1.0 - alpha) * eps) / math.sqrt(alpha)
    return math.sqrt(alpha_next) * clean + math.sqrt(1.0 - alpha_next) * eps


def alphas_cumprod(spec: DiffusionSpec) -> list[float]:
    """Return the levels of the scaled-linear schedule: the running product of 1 - beta, by timestep."""
    start, end = math.sqrt(spec.beta_start), math.sqrt(spec.beta_end)
    betas = torch.linspace(start, end, spec.train_timesteps, dtype=torch.float64) ** 2
    alphas: list[float] = torch.cumprod(1.0 - betas, dim=0).tolist()
    return alphas


def focus_maps(logits: torch.Tensor, columns: Sequence[int], side: int) -> torch.Tensor:
    """Return the mean of the focus columns, each map scaled to 0..1: [m, g, g], rows = y."""
    return _spread(logits[:, :, list(columns)].mean(dim=2)).reshape(-1, side, side)


def _spread(columns: torch.Tensor) -> torch.Tensor:
    """Scale each row of [m, g*g] to 0..1."""
    low, high = columns.amin(dim=1, keepdim=True), columns.amax(dim=1, keepdim=True)
    return (columns - low) / (high - low + FLAT)


def _mean_map(maps: torch.Tensor, weights: Sequence[float], options: AttentionOptions) -> torch.Tensor:
    """Return the weighted mean of maps [m, g, g]: in float64 where it is truncated to 8 bits, as released."""
    if len(set(weights)) == 1:
        return maps.double().mean(dim=0) if options.uint8_lanczos else maps.mean(dim=0)
    factors = torch.tensor(weights, dtype=torch.float64, device=maps.device)
    mean = torch.einsum("m,mij->ij", factors / factors.sum(), maps.double())
    return mean if options.uint8_lanczos else mean.float()


def heatmap_on_image(mean_map: torch.Tensor, size_yx: Sequence[int], options: AttentionOptions) -> Float:
    """Resize the mean map [g, g] to the padded square, cut the padding off, scale to 0..1: [y, x]."""
    height, width = size_yx
    side = max(height, width)
    if options.uint8_lanczos:
        levels = Image.fromarray((mean_map.cpu().numpy() * 255).astype(np.uint8))
        square = np.asarray(levels.resize((side, side), Image.Resampling.LANCZOS)) / 255
    else:
        bilinear = F.interpolate(mean_map[None, None], (side, side), mode="bilinear")
        square = bilinear[0, 0].cpu().numpy()
    top, left = (side - height) // 2, (side - width) // 2
    inside = square[top : top + height, left : left + width]
    heatmap: Float = ((inside - inside.min()) / (inside.max() - inside.min() + FLAT)).astype(np.float32)
    return heatmap


def pad_to_square(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Center the image on a black square of its longer side: [s, s, 3]."""
    height, width, _ = image.shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = np.zeros((side, side, 3), dtype=np.uint8)
    square[top : top + height, left : left + width] = image
    return square
