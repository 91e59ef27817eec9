"""Stages `vae` and `sam`: the losses of the two models that see images alone.

`vae` reconstructs image crops through a 4-channel latent (MSE + L1 + L1 of the gradients, which keeps edges,
plus a small KL term), then scales the latents to unit deviation. `sam` learns masks and predicted IoU from
single points (Kirillov et al. 2023, section 5 and appendix A).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from segment_anything.modeling import Sam
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


SAM_BATCH = 6
POINTS = 12
TABLE_SHARE = 0.25
IOU_WEIGHT = 2.0


def sam_image(scene: TrainingScene) -> tuple[Tensor, Tensor]:
    """Return the encoder input [3, S, S] (resized, normalized, padded) and its labels [S, S] (padding 0)."""
    spec = MINIATURE.sam
    height, width = scene.labels.shape
    scale = spec.image_size / max(height, width)
    new_wh = (int(width * scale + 0.5), int(height * scale + 0.5))
    pixels = np.asarray(Image.fromarray(scene.image).resize(new_wh, Image.Resampling.BILINEAR), np.float32)
    labels = np.asarray(Image.fromarray(scene.labels).resize(new_wh, Image.Resampling.NEAREST))
    normal = (pixels - np.array(spec.pixel_mean, np.float32)) / np.array(spec.pixel_std, np.float32)
    pad = (0, spec.image_size - new_wh[0], 0, spec.image_size - new_wh[1])
    return (
        F.pad(torch.from_numpy(normal).permute(2, 0, 1), pad),
        F.pad(torch.from_numpy(labels.astype(np.int64)), pad),
    )


def _draw_points(labels: Tensor, objects: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Draw POINTS points (x, y) [n, 2], and the label that each must segment [n] (0 = table)."""
    table = rng.random(POINTS) < TABLE_SHARE
    wanted = np.where(table, 0, rng.integers(1, objects + 1, size=POINTS))
    points = np.empty((POINTS, 2), np.float32)
    for i, label in enumerate(wanted):
        ys, xs = np.nonzero(labels.numpy() == label)
        pick = rng.integers(len(ys)) if len(ys) else 0
        points[i] = (xs[pick], ys[pick]) if len(ys) else (0, 0)
    return torch.from_numpy(points), torch.from_numpy(wanted)


def _decode(sam: Sam, embedding: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    sparse, dense = sam.prompt_encoder(
        points=(points[:, None], torch.ones(len(points), 1, dtype=torch.int)), boxes=None, masks=None
    )
    low_res, iou = sam.mask_decoder(
        image_embeddings=embedding[None],
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
    )
    return low_res, iou


def sam_loss(sam: Sam, store: SceneStore) -> Loss:
    """Return the loss function of a random batch."""

    def loss(rng: np.random.Generator, _share: float) -> tuple[Tensor, dict[str, float]]:
        scenes = [store[int(i)] for i in rng.integers(len(store), size=SAM_BATCH)]
        images, labels = zip(*(sam_image(scene) for scene in scenes), strict=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            embeddings = sam.image_encoder(torch.stack(images)).float()
        return decoded_loss(sam, embeddings, scenes, labels, rng)

    return loss


def decoded_loss(
    sam: Sam,
    embeddings: Tensor,
    scenes: Sequence[TrainingScene],
    labels: Sequence[Tensor],
    rng: np.random.Generator,
) -> tuple[Tensor, dict[str, float]]:
    """Compute the loss of what random points give, for embeddings [b, c, s, s] and labels [S, S]."""
    prompts = [_draw_points(lab, len(s.objects), rng) for lab, s in zip(labels, scenes, strict=True)]
    decoded = [_decode(sam, e, points) for e, (points, _) in zip(embeddings, prompts, strict=True)]
    low_res = torch.cat([d[0] for d in decoded])  # [n, 3, l, l]
    iou = torch.cat([d[1] for d in decoded])  # [n, 3]
    wanted = torch.cat([w for _, w in prompts])
    targets = torch.cat(
        [(lab[None] == w[:, None, None]) for lab, (_, w) in zip(labels, prompts, strict=True)]
    )  # [n, S, S]
    return _point_loss(low_res, iou, targets, wanted > 0)


def _point_loss(
    low_res: Tensor, iou: Tensor, targets: Tensor, on_object: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Compute the loss of all prompts; `targets` are at the input resolution of the encoder."""
    size = targets.shape[-1]
    logits = F.interpolate(low_res[on_object], (size, size), mode="bilinear", align_corners=False)
    truth = targets[on_object][:, None].float().expand_as(logits)
    bce = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    share = truth.mean((-1, -2), keepdim=True)
    bce = (bce * (1 + truth * (0.15 / (share + 0.01)))).mean((-1, -2))
    soft = logits.sigmoid()
    dice = 1 - (2 * (soft * truth).sum((-1, -2)) + 1) / (soft.sum((-1, -2)) + truth.sum((-1, -2)) + 1)
    best = (2 * bce + dice).min(dim=1).values.mean()
    with torch.no_grad():
        hard, real = logits > 0, truth > 0
        actual = (hard & real).sum((-1, -2)) / (hard | real).sum((-1, -2)).clamp(min=1)
    iou_loss = F.mse_loss(iou[on_object], actual) + 0.5 * F.mse_loss(iou[~on_object], iou[~on_object] * 0)
    figures = {"best_iou": float(actual.max(dim=1).values.mean()), "iou_mse": float(iou_loss.detach())}
    return best + IOU_WEIGHT * iou_loss, figures
