"""Stage `diffusion`: denoise latents, and train the tapped attention to point at the object of the phrase.

A model of this size does not learn to ground by denoising alone, so a grounding term is added, as the model
card of the miniature says: the tapped logits of the root token and of the last token follow the object's
mask, the mean over the object is highest among the objects of the scene, and the unconditional logits stay
flat, since the method reads 9 L_c - 8 L_u.

Axes: b = batch, l = tapped layers, q = tap cells (16x16, rows = y), n = objects.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor
from transformers import CLIPTextModel

from refdiff.miniature.architecture import MINIATURE
from refdiff.miniature.training.image_models import square_image
from refdiff.miniature.training.loop import Loss
from refdiff.miniature.training.store import EncodedPhrase, PhraseEncoder, SceneStore, TrainingScene

BATCH = 24
MOST_OBJECTS = 6
DROP_TEXT = 0.12
LOW_NOISE_SHARE, LOW_NOISE = 0.65, 130
DENOISING_WEIGHT = 0.3
CHOICE_WEIGHT = 1.0
ROOT_WEIGHT, LAST_WEIGHT = 0.7, 1.0
FLATTEN_FROM = 0.6
MAP_WEIGHTS = ((1.0, 2.0), (0.2, 8.0))
"""Weights of cross-entropy and MSE, before and after `FLATTEN_FROM`: cross-entropy finds the object fast but
spreads the logits; MSE then makes object and table flat, as level sets need them."""
LAYER_WEIGHTS = (0.5, 1.0, 1.0)
OBJECT_LOGIT = 4.0
"""Target of the tapped logit in an object's cell; that of the table is 0."""


class RecordingProcessor(AttnProcessor2_0):  # type: ignore[misc]
    """Attends as usual and keeps the head-mean pre-softmax logits (METHOD §4.7)."""

    def __init__(self) -> None:
        super().__init__()
        self.logits: Tensor | None = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        *args: object,
        **kwargs: object,
    ) -> Tensor:
        """Attend from `hidden_states` [b, q, w] to `encoder_hidden_states` [b, t, d]."""
        with torch.autocast("cpu", enabled=False):
            query = attn.to_q(hidden_states.float())
            key = attn.to_k(encoder_hidden_states.float())
            width = query.shape[-1]
            self.logits = query @ key.mT / (attn.heads * (width / attn.heads) ** 0.5)  # [b, q, t]
        attended: Tensor = super().__call__(attn, hidden_states, encoder_hidden_states, *args, **kwargs)
        return attended


def record_tapped_layers(
    unet: UNet2DConditionModel, layers: Sequence[str] = MINIATURE.diffusion.tapped_layers
) -> list[RecordingProcessor]:
    """Give each tapped layer a recording processor, for the whole training."""
    processors = []
    for name in layers:
        processor = RecordingProcessor()
        unet.get_submodule(f"{name}.transformer_blocks.0.attn2").set_processor(processor)
        processors.append(processor)
    return processors


@torch.no_grad()
def encode_store(vae: AutoencoderKL, store: SceneStore) -> tuple[Tensor, Tensor]:
    """Return all latents, scaled, [scenes, 4, 32, 32], and their posterior deviations, in half precision."""
    means, deviations = [], []
    for start in range(0, len(store), 64):
        images = torch.stack([square_image(store[i]) for i in range(start, min(start + 64, len(store)))])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            posterior = vae.encode(images).latent_dist
        means.append((posterior.mean.float() * MINIATURE.diffusion.scaling_factor).half())
        deviations.append((posterior.std.float() * MINIATURE.diffusion.scaling_factor).half())
    return torch.cat(means), torch.cat(deviations)


def cell_shares(scene: TrainingScene) -> Tensor:
    """Return the share of each object in each tap cell of the padded square: [n, q]."""
    height, width = scene.labels.shape
    side = max(height, width)
    masks = torch.from_numpy(
        scene.labels[None] == np.arange(1, len(scene.objects) + 1)[:, None, None]
    ).float()
    top, left = (side - height) // 2, (side - width) // 2
    square = F.pad(masks, (left, side - width - left, top, side - height - top))
    return F.adaptive_avg_pool2d(square[None], MINIATURE.diffusion.tap_size)[0].flatten(1)


def noise_levels() -> Tensor:
    """Return the cumulative alpha of each timestep."""
    spec = MINIATURE.diffusion
    start, end = spec.beta_start**0.5, spec.beta_end**0.5
    betas = torch.linspace(start, end, spec.train_timesteps, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()


def grounding_loss(
    text_encoder: CLIPTextModel,
    unet: UNet2DConditionModel,
    store: SceneStore,
    encoder: PhraseEncoder,
    latents: tuple[Tensor, Tensor],
) -> Loss:
    """Return the loss function of a random batch."""
    processors = record_tapped_layers(unet)
    alphas = noise_levels()
    empty = torch.from_numpy(encoder.empty_ids())

    def loss(rng: np.random.Generator, share: float) -> tuple[Tensor, dict[str, float]]:
        torch.manual_seed(int(rng.integers(2**31)))
        indices = rng.integers(len(store), size=BATCH)
        scenes = [store[int(i)] for i in indices]
        chosen = [scene.phrases[rng.integers(len(scene.phrases))] for scene in scenes]
        words = [encoder.encode(text) for text, _ in chosen]
        dropped = torch.from_numpy(rng.random(BATCH) < DROP_TEXT)
        ids = torch.stack([torch.from_numpy(word.diffusion_ids) for word in words])
        ids = torch.where(dropped[:, None], empty, ids)
        low = rng.random(BATCH) < LOW_NOISE_SHARE
        steps = torch.from_numpy(
            np.where(low, rng.integers(LOW_NOISE, size=BATCH), rng.integers(1000, size=BATCH))
        )
        mean, deviation = (part[indices].float() for part in latents)
        clean = mean + deviation * torch.randn_like(mean)
        noise = torch.randn_like(clean)
        alpha = alphas[steps][:, None, None, None]
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        with torch.autocast("cpu", dtype=torch.bfloat16):
            context = text_encoder(input_ids=ids.long()).last_hidden_state
            predicted = unet(noisy, steps, context).sample.float()
        denoising = F.mse_loss(predicted, noise)
        logits = (
            torch.stack([p.logits for p in processors if p.logits is not None], dim=1) / OBJECT_LOGIT
        )  # [b, l, q, t]
        trust = alphas[steps] ** 4
        grounding, choice, picked = _pointing_losses(
            logits, scenes, chosen, words, dropped, trust, MAP_WEIGHTS[share >= FLATTEN_FROM]
        )
        flat = _flatness_loss(logits[dropped], rng)
        total = grounding + CHOICE_WEIGHT * choice + flat + DENOISING_WEIGHT * denoising
        figures = {
            "denoise": float(denoising.detach()),
            "ground": float(grounding.detach()),
            "flat": float(flat.detach()),
        }
        return total, figures | {"picked_root": picked[0], "picked_last": picked[1]}

    return loss


def _pointing_losses(
    logits: Tensor,
    scenes: Sequence[TrainingScene],
    chosen: Sequence[tuple[str, int]],
    words: Sequence[EncodedPhrase],
    dropped: Tensor,
    trust: Tensor,
    map_weights: tuple[float, float],
) -> tuple[Tensor, Tensor, tuple[float, float]]:
    """Return map loss, choice loss, and how often low-noise maps pick the right object (root, last)."""
    batch, cells = len(scenes), logits.shape[2]
    shares = torch.zeros(batch, MOST_OBJECTS, cells)
    absent = torch.ones(batch, MOST_OBJECTS, dtype=torch.bool)
    for i, scene in enumerate(scenes):
        shares[i, : len(scene.objects)] = cell_shares(scene)
        absent[i, : len(scene.objects)] = False
    targets = torch.tensor([target for _, target in chosen])
    truth = shares[torch.arange(batch), targets][:, None]  # [b, 1, q]
    weight = trust * ~dropped  # [b]
    inside = shares / shares.sum(-1, keepdim=True).clamp(min=1e-3)
    layer_weights = torch.tensor(LAYER_WEIGHTS)[None, :, None]
    mapping, choosing, picked = logits.new_zeros(()), logits.new_zeros(()), []
    for importance, indices in (
        (ROOT_WEIGHT, [w.root_index for w in words]),
        (LAST_WEIGHT, [w.last_index for w in words]),
    ):
        maps = logits[torch.arange(batch), :, :, torch.tensor(indices)]  # [b, l, q]
        goal = truth.expand_as(maps)
        bce = F.binary_cross_entropy_with_logits(8 * (maps - 0.5), goal, reduction="none")
        errors = map_weights[0] * bce + map_weights[1] * (maps - goal) ** 2
        per_map = (errors * (1 + 3 * goal) * layer_weights).mean((1, 2))
        scores = torch.einsum("bnq,bq->bn", inside, maps.mean(1)).masked_fill(absent, -1e4)
        choice = F.cross_entropy(8 * scores, targets, reduction="none")
        mapping = mapping + importance * (per_map * weight).sum() / weight.sum()
        choosing = choosing + importance * (choice * weight).sum() / weight.sum()
        sure = weight > 0.5
        picked.append(float((scores.argmax(1) == targets)[sure].float().mean()) if bool(sure.any()) else 0.0)
    return mapping, choosing, (picked[0], picked[1])


def _flatness_loss(unconditional: Tensor, rng: np.random.Generator) -> Tensor:
    """Return the mean squared logits of the empty prompt at indices of a phrase: [d, l, q, t] -> []."""
    if not len(unconditional):
        return unconditional.new_zeros(())
    index = torch.from_numpy(rng.integers(1, 12, size=4))
    return (unconditional[..., index] ** 2).mean()
