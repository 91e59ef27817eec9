"""Stage `vae`: reconstruct image crops through a 4-channel latent, then scale the latents to unit deviation.

Loss: MSE + L1 + L1 of the gradients (keeps edges) + a small KL term.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from refdiff.miniature.architecture import MINIATURE
from refdiff.miniature.training.loop import Loss
from refdiff.miniature.training.store import SceneStore, TrainingScene

BATCH, CROP = 16, 64
KL_WEIGHT = 1e-4
MSE_WEIGHT = 4.0
"""MSE gives the few strongly coloured pixels of the objects more weight than the large table."""


def square_image(scene: TrainingScene) -> Tensor:
    """Pad the image to a square as the pipeline does: [3, S, S] in -1..1."""
    height, width = scene.labels.shape
    side = max(height, width)
    canvas = Image.new("RGB", (side, side))
    canvas.paste(Image.fromarray(scene.image), ((side - width) // 2, (side - height) // 2))
    size = MINIATURE.diffusion.image_size
    pixels = np.asarray(canvas.resize((size, size), Image.Resampling.LANCZOS), np.float32)
    return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)


def vae_loss(vae: AutoencoderKL, store: SceneStore) -> Loss:
    """Return the loss function of a random batch."""

    def loss(rng: np.random.Generator, _share: float) -> tuple[Tensor, dict[str, float]]:
        images = torch.stack(
            [_crop(square_image(store[int(i)]), rng) for i in rng.integers(len(store), size=BATCH)]
        )
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            posterior = vae.encode(images).latent_dist
            rebuilt = vae.decode(posterior.sample()).sample.float()
        l1 = (rebuilt - images).abs().mean()
        edges = sum((rebuilt.diff(dim=d) - images.diff(dim=d)).abs().mean() for d in (-1, -2))
        mse = F.mse_loss(rebuilt, images)
        kl = posterior.kl().float().mean() / images[0].numel()
        return 0.5 * l1 + 0.5 * edges + MSE_WEIGHT * mse + KL_WEIGHT * kl, {
            "mse": float(mse.detach()),
            "l1": float(l1.detach()),
            "kl": float(kl.detach()),
        }

    return loss


def _crop(image: Tensor, rng: np.random.Generator) -> Tensor:
    top, left = (int(rng.integers(side - CROP + 1)) for side in image.shape[1:])
    return image[:, top : top + CROP, left : left + CROP]


@torch.no_grad()
def scale_latents(vae: AutoencoderKL, store: SceneStore, count: int = 256) -> float:
    """Fold a factor into the quantization convolutions, so that scaling_factor x latent has unit deviation.

    Returns:
        The factor.
    """
    means = torch.stack([vae.encode(square_image(store[i])[None]).latent_dist.mean[0] for i in range(count)])
    factor = float(1 / (MINIATURE.diffusion.scaling_factor * means.std()))
    channels = MINIATURE.diffusion.latent_channels
    vae.quant_conv.weight[:channels] *= factor
    vae.quant_conv.bias[:channels] *= factor
    vae.quant_conv.bias[channels:] += 2 * float(np.log(factor))
    vae.post_quant_conv.weight /= factor
    return factor
