"""Stages `edge-*`: the small counterparts, trained to answer as the miniature's own models do.

The VAE's counterpart learns its latents, SAM's encoder its embeddings (and, from `MASKS_FROM` on, masks with
its shorter decoder), the UNet the tapped logits and the noise at the timesteps that the method uses, CLIP's
image encoder the vectors of both views and the choice among a scene's candidates.

Axes: b = batch, c = channels, l = tapped layers, q = tap cells, t = tokens, n = candidates, e = embedding.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, UNet2DConditionModel
from segment_anything.modeling import Sam
from torch import Tensor, nn
from transformers import CLIPTextModel

from refdiff.miniature.architecture import CLIP_LOGIT_SCALE, MINIATURE_EDGE
from refdiff.miniature.training.contrastive import (
    candidate_masks,
    encode_texts,
    encode_views,
    hard_views,
    soft_view,
)
from refdiff.miniature.training.grounding import OBJECT_LOGIT, noise_levels, record_tapped_layers
from refdiff.miniature.training.image_models import decoded_loss, sam_image, square_image
from refdiff.miniature.training.loop import Loss
from refdiff.miniature.training.store import PhraseEncoder, SceneStore

LATENT_BATCH = 16


def inherit(student: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load those of the teacher's weights that have a name and a shape of the student's."""
    own = student.state_dict()
    same = {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}
    student.load_state_dict(own | same)


def latent_loss(vae: AutoencoderTiny, store: SceneStore, latents: Tensor) -> Loss:
    """Return the loss of the latents [scenes, c, y, x], scaled: their squared errors and absolute errors."""

    def loss(rng: np.random.Generator, _share: float) -> tuple[Tensor, dict[str, float]]:
        indices = rng.integers(len(store), size=LATENT_BATCH)
        images = torch.stack([square_image(store[int(i)]) for i in indices])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            predicted = vae.encode(images.contiguous(memory_format=torch.channels_last)).latents.float()
        target = latents[indices].float()
        mse = F.mse_loss(predicted, target)
        return mse + 0.5 * (predicted - target).abs().mean(), {"mse": float(mse.detach())}

    return loss


@torch.no_grad()
def tiny_latents(vae: AutoencoderTiny, store: SceneStore) -> Tensor:
    """Return the latents of all scenes, scaled, [scenes, c, y, x], in half precision."""
    latents = []
    for start in range(0, len(store), 64):
        images = torch.stack([square_image(store[i]) for i in range(start, min(start + 64, len(store)))])
        latents.append(vae.encode(images).latents.half())
    return torch.cat(latents)


@torch.no_grad()
def embed_store(sam: Sam, store: SceneStore) -> Tensor:
    """Return the image embeddings of all scenes, [scenes, c, s, s], in half precision."""
    embeddings = []
    for start in range(0, len(store), 16):
        images = torch.stack([sam_image(store[i])[0] for i in range(start, min(start + 16, len(store)))])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            embeddings.append(sam.image_encoder(images).half())
    return torch.cat(embeddings)


EMBEDDING_BATCH = 12
MASKS_FROM = 0.4
MASK_SCENES = 4
"""Scenes of a batch whose masks are decoded, from the share `MASKS_FROM` of the budget on."""
MASK_WEIGHT = 0.5


def embedding_loss(sam: Sam, store: SceneStore, embeddings: Tensor) -> Loss:
    """Return the loss of the embeddings [scenes, c, s, s], and of masks once they are close."""

    def loss(rng: np.random.Generator, share: float) -> tuple[Tensor, dict[str, float]]:
        indices = rng.integers(len(store), size=EMBEDDING_BATCH)
        scenes = [store[int(i)] for i in indices]
        images, labels = zip(*(sam_image(scene) for scene in scenes), strict=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            predicted = sam.image_encoder(torch.stack(images)).float()
        target = embeddings[indices].float()
        distance = F.mse_loss(predicted, target) / target.var()
        figures = {"distance": float(distance.detach())}
        if share < MASKS_FROM:
            return distance, figures
        few = slice(MASK_SCENES)
        masks, found = decoded_loss(sam, predicted[few], scenes[few], labels[few], rng)
        return distance + MASK_WEIGHT * masks, figures | found

    return loss


MAP_BATCH = 16
LATEST = 130
"""The method feeds the UNet timesteps up to 51, noised to level 101 at most (METHOD §4.3)."""
EMPTY = 0.1
TOKENS = slice(1, 14)
"""Places of a phrase's tokens and of the first end tokens."""
FOCUS_WEIGHT = 4.0
NOISE_WEIGHT = 0.1


def map_loss(
    text: CLIPTextModel,
    unets: tuple[UNet2DConditionModel, UNet2DConditionModel],
    store: SceneStore,
    encoder: PhraseEncoder,
    latents: tuple[Tensor, Tensor, Tensor],
) -> Loss:
    """Return the loss of the tapped logits and of the predicted noise.

    Args:
        text: the text encoder, which both UNets share.
        unets: teacher and student.
        store: the scenes.
        encoder: of their phrases.
        latents: means and deviations of the VAE, and the means of its counterpart, [scenes, c, y, x]; the
            student learns from both, and the teacher's maps of the first are the aim of both.
    """
    teacher, student = unets
    aims = record_tapped_layers(teacher)
    taps = record_tapped_layers(student, MINIATURE_EDGE.diffusion.tapped_layers)
    alphas = noise_levels()
    empty = torch.from_numpy(encoder.empty_ids())

    def loss(rng: np.random.Generator, _share: float) -> tuple[Tensor, dict[str, float]]:
        torch.manual_seed(int(rng.integers(2**31)))
        indices = rng.integers(len(store), size=MAP_BATCH)
        phrases = [store[int(i)].phrases for i in indices]
        words = [encoder.encode(each[rng.integers(len(each))][0]) for each in phrases]
        ids = torch.stack([torch.from_numpy(word.diffusion_ids) for word in words])
        ids = torch.where(torch.from_numpy(rng.random(MAP_BATCH) < EMPTY)[:, None], empty, ids)
        steps = torch.from_numpy(
            np.where(rng.random(MAP_BATCH) < 0.4, 51, rng.integers(LATEST, size=MAP_BATCH))
        )
        mean, deviation, other = (part[indices].float() for part in latents)
        swapped = torch.from_numpy(rng.random(MAP_BATCH) < 0.5)[:, None, None, None]
        alpha = alphas[steps][:, None, None, None]
        noise = (1 - alpha).sqrt() * torch.randn_like(mean)
        clean = mean + deviation * torch.randn_like(mean)
        noisy = alpha.sqrt() * clean + noise
        given = alpha.sqrt() * torch.where(swapped, other, clean) + noise
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.no_grad():
                context = text(input_ids=ids.long()).last_hidden_state
                aimed_noise = teacher(noisy, steps, context).sample.float()
            predicted = student(given, steps, context).sample.float()
        aim, maps = (
            torch.stack([p.logits for p in each if p.logits is not None], dim=1) / OBJECT_LOGIT
            for each in (aims, taps)
        )  # [b, l, q, t]
        errors = (maps - aim.detach()) ** 2
        row = torch.arange(MAP_BATCH)
        focus = torch.stack(
            [
                errors[row, :, :, torch.tensor(places)].mean()
                for places in ([w.root_index for w in words], [w.last_index for w in words])
            ]
        ).sum()
        everywhere = errors[..., TOKENS].mean()
        denoising = F.mse_loss(predicted, aimed_noise)
        total = everywhere + FOCUS_WEIGHT * focus + NOISE_WEIGHT * denoising
        parts = {"focus": focus, "tokens": everywhere, "noise": denoising}
        return total, {name: float(part.detach()) for name, part in parts.items()}

    return loss


VECTOR_BATCH = 6
PHRASES = 4
LETTERBOXED = 0.6
VECTOR_WEIGHT = 10.0


def vector_loss(
    clip: open_clip.CLIP, teacher: open_clip.CLIP, store: SceneStore, encoder: PhraseEncoder
) -> Loss:
    """Return the loss of the image vectors of both views: their cosine, and the choice for each phrase."""

    def loss(rng: np.random.Generator, _share: float) -> tuple[Tensor, dict[str, float]]:
        scenes = [store[int(i)] for i in rng.integers(len(store), size=VECTOR_BATCH)]
        masks = [candidate_masks(scene, rng) for scene in scenes]
        words = [
            [encoder.encode(scene.phrases[i][0]) for i in rng.permutation(len(scene.phrases))[:PHRASES]]
            for scene in scenes
        ]
        square = bool(rng.random() < LETTERBOXED)
        crops = [
            hard_views(s, m, queries[0].direction, square=square)
            for s, m, queries in zip(scenes, masks, words, strict=True)
        ]
        wholes = [soft_view(s, m) for s, m in zip(scenes, masks, strict=True)]
        counts = [len(m) for m in masks]
        with torch.no_grad():
            texts = encode_texts(teacher, [word for queries in words for word in queries])
            texts_of = texts.split([len(queries) for queries in words])
        parts = []
        for views in ([view for scene in crops for view in scene], wholes):
            with torch.no_grad():
                aim = torch.cat(encode_views(teacher.visual, views))  # [n, e]
            vectors = torch.cat(encode_views(clip.visual, views))
            distance = 1 - (vectors * aim).sum(-1).mean()
            chosen = [
                _choice(t @ v.T, t @ a.T)
                for t, v, a in zip(texts_of, vectors.split(counts), aim.split(counts), strict=True)
            ]
            parts.append((distance, torch.stack(chosen).mean()))
        distance, choice = (torch.stack(each).mean() for each in zip(*parts, strict=True))
        figures = {"distance": float(distance.detach()), "choice": float(choice.detach())}
        return VECTOR_WEIGHT * distance + choice, figures

    return loss


def _choice(scores: Tensor, aim: Tensor) -> Tensor:
    """Return the divergence of the choice by cosines [phrases, n] from the teacher's."""
    logs, aims = ((CLIP_LOGIT_SCALE * each).log_softmax(-1) for each in (scores, aim))
    return F.kl_div(logs, aims, reduction="batchmean", log_target=True)
