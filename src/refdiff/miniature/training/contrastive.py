"""Stage `clip`: image and text vectors, trained on the two views that the method takes (METHOD §5, §6).

For each scene the hard crops of all candidates and their masked-attention vectors are compared with its
phrases: softmax over the candidates of the scene for each view and for the released mixture, plus CLIP's
usual softmax over the whole batch. The logit scale is fixed at CLIP's 100. One distractor per scene (two
objects as one mask, or the table) teaches that not every mask is an object.

Axes: b = crops or scenes, p = patches, c = class tokens, t = c + p, e = embedding, n = phrases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from refdiff.contracts.graphs import BLOCKED
from refdiff.miniature.architecture import CLIP_LOGIT_SCALE, MINIATURE
from refdiff.miniature.training.loop import Loss
from refdiff.miniature.training.store import EncodedPhrase, PhraseEncoder, SceneStore, TrainingScene
from refdiff.runtime.clip_inputs import (
    candidate_attention_mask,
    interpolate_positions,
    letterbox,
    masked_crop,
    open_attention_masks,
    patch_grid,
    resize_shorter_side,
    sample_on_grid,
    to_patches,
)
from refdiff.runtime.masks import boxes
from refdiff.runtime.spatial import Direction, ramp

BATCH = 10
PHRASES = 4
LONGEST_ASPECT = 2.6
LETTERBOXED = 0.6
BATCH_SOFTMAX_WEIGHT = 0.1
HARD_SHARE, SOFT_SHARE, ROOT_SHARE = 0.7, 0.3, 0.5


@dataclass(frozen=True)
class View:
    """An image as the image encoder takes it."""

    patches: NDArray[np.float32]
    """[p, 3PP]."""
    grid_yx: tuple[int, int]
    square: bool
    """The image is square, which selects how positions are interpolated."""
    mask: NDArray[np.float32]
    """[t, t], additive attention mask."""


def candidate_masks(scene: TrainingScene, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return masks [n + 1, y, x]: the objects, and a distractor."""
    masks = [scene.mask(i) for i in range(len(scene.objects))]
    first, second = rng.choice(len(masks), size=2, replace=False)
    distractor = masks[first] | masks[second] if rng.random() < 0.5 else scene.labels == 0
    return np.stack([*masks, distractor])


def soft_view(scene: TrainingScene, masks: NDArray[np.bool_]) -> View:
    """Return the whole image with one class token per mask."""
    grid = patch_grid(scene.labels.shape, MINIATURE.clip.patch_size)
    return View(
        to_patches(scene.image, MINIATURE.clip),
        grid,
        scene.labels.shape[0] == scene.labels.shape[1],
        candidate_attention_mask(sample_on_grid(masks, grid)),
    )


def hard_views(
    scene: TrainingScene, masks: NDArray[np.bool_], direction: Direction, *, square: bool
) -> list[View]:
    """Return one crop per mask, letterboxed or with the shorter side at CLIP's size."""
    weights = ramp(direction, scene.image.shape[1])
    side = MINIATURE.clip.image_size
    views = []
    for mask, box in zip(masks, boxes(masks), strict=True):
        crop = masked_crop(scene.image, mask, box, weights)
        aspect = max(crop.shape[:2]) / min(crop.shape[:2])
        small = (
            letterbox(crop, side) if square or aspect > LONGEST_ASPECT else resize_shorter_side(crop, side)
        )
        grid = patch_grid(small.shape[:2], MINIATURE.clip.patch_size)
        views.append(
            View(
                to_patches(small, MINIATURE.clip),
                grid,
                small.shape[0] == small.shape[1],
                open_attention_masks([grid[0] * grid[1]], grid[0] * grid[1])[0],
            )
        )
    return views


def encode_views(visual: open_clip.transformer.VisionTransformer, views: Sequence[View]) -> list[Tensor]:
    """Return unit vectors [c, e] of each view, computed as one padded batch."""
    table = visual.positional_embedding
    classes = [len(view.mask) - len(view.patches) for view in views]
    most_classes, most_patches = max(classes), max(len(view.patches) for view in views)
    tokens = most_classes + most_patches
    patches = torch.zeros(len(views), most_patches, views[0].patches.shape[1])
    positions = torch.zeros(len(views), most_patches, table.shape[1])
    mask = torch.full((len(views), tokens, tokens), BLOCKED)
    mask.diagonal(dim1=1, dim2=2).zero_()
    for i, (view, c) in enumerate(zip(views, classes, strict=True)):
        p = len(view.patches)
        patches[i, :p] = torch.from_numpy(view.patches)
        positions[i, :p] = _position_matrix(view.grid_yx, square=view.square) @ table[1:]
        rows = torch.cat([torch.arange(c), most_classes + torch.arange(p)])
        mask[i, rows[:, None], rows[None]] = torch.from_numpy(view.mask)
    weight = visual.conv1.weight.flatten(1)  # [w, 3PP]
    embedded = patches @ weight.T + positions
    class_token = (visual.class_embedding + table[0]).expand(len(views), most_classes, -1)
    x = visual.ln_pre(torch.cat([class_token, embedded], dim=1))
    heads = visual.transformer.resblocks[0].attn.num_heads
    blocked = mask.to(torch.bfloat16).repeat_interleave(heads, dim=0) if bool(mask.any()) else None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for block in visual.transformer.resblocks:
            x = block(x, attn_mask=blocked)
    vectors = F.normalize(visual.ln_post(x[:, :most_classes].float()) @ visual.proj, dim=-1)
    return [v[:c] for v, c in zip(vectors, classes, strict=True)]


_POSITION_MATRICES: dict[tuple[tuple[int, int], bool], Tensor] = {}


def _position_matrix(grid_yx: tuple[int, int], *, square: bool) -> Tensor:
    """Return the interpolation of the position table as a matrix [p, g*g], for gradients to pass through."""
    key = (grid_yx, square)
    if key not in _POSITION_MATRICES:
        identity = np.eye(MINIATURE.clip.grid**2, dtype=np.float32)
        _POSITION_MATRICES[key] = torch.from_numpy(
            np.ascontiguousarray(interpolate_positions(identity, grid_yx, square=square))
        )
    return _POSITION_MATRICES[key]


def encode_texts(clip: open_clip.CLIP, words: Sequence[EncodedPhrase]) -> Tensor:
    """Return unit vectors [n, e]; tokens behind the last end token are dropped: exact, as text is causal."""
    length = max(word.clip_end for word in words) + 1
    ids = torch.stack([torch.from_numpy(word.clip_ids[:length]) for word in words]).long()
    x = clip.token_embedding(ids) + clip.positional_embedding[:length]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = clip.transformer(x, attn_mask=clip.attn_mask[:length, :length].to(torch.bfloat16)).float()
    ends = torch.tensor([word.clip_end for word in words])
    return F.normalize(clip.ln_final(x)[torch.arange(len(words)), ends] @ clip.text_projection, dim=-1)


def clip_loss(clip: open_clip.CLIP, store: SceneStore, encoder: PhraseEncoder) -> Loss:
    """Return the loss function of a random batch of scenes."""

    def loss(rng: np.random.Generator, _share: float) -> tuple[Tensor, dict[str, float]]:
        scenes = [store[int(i)] for i in rng.integers(len(store), size=BATCH)]
        masks = [candidate_masks(scene, rng) for scene in scenes]
        chosen = [_draw_phrases(scene, encoder, rng) for scene in scenes]
        square = bool(rng.random() < LETTERBOXED)
        hard_in = [
            hard_views(s, m, phrases[0][0].direction, square=square)
            for s, m, phrases in zip(scenes, masks, chosen, strict=True)
        ]
        hard_flat = torch.cat(encode_views(clip.visual, [view for views in hard_in for view in views]))
        hard = hard_flat.split([len(views) for views in hard_in])
        soft = encode_views(clip.visual, [soft_view(s, m) for s, m in zip(scenes, masks, strict=True)])
        words = [word for phrases in chosen for word, _ in phrases]
        texts = encode_texts(clip, [*words, *(encoder.encode(word.root) for word in words)])
        whole, root = texts[: len(words)], texts[len(words) :]
        mixed = (1 - ROOT_SHARE) * whole + ROOT_SHARE * root
        losses, hits, row = [], [], 0
        for phrases, h, o in zip(chosen, hard, soft, strict=True):
            targets = torch.tensor([target for _, target in phrases])
            end = row + len(phrases)
            by_crop, by_place = whole[row:end] @ h.T, mixed[row:end] @ o.T
            both = HARD_SHARE * by_crop + SOFT_SHARE * by_place
            parts = [F.cross_entropy(CLIP_LOGIT_SCALE * s, targets) for s in (by_crop, by_place, both)]
            losses.append(0.5 * parts[0] + 0.5 * parts[1] + parts[2])
            hits.append([float((s.argmax(1) == targets).float().mean()) for s in (by_crop, by_place, both)])
            row = end
        everywhere = _batch_softmax(whole, hard_flat, chosen, [len(views) for views in hard_in])
        figures = dict(zip(("hit_hard", "hit_soft", "hit_both"), np.mean(hits, axis=0).tolist(), strict=True))
        return torch.stack(losses).mean() + BATCH_SOFTMAX_WEIGHT * everywhere, figures

    return loss


def _draw_phrases(
    scene: TrainingScene, encoder: PhraseEncoder, rng: np.random.Generator
) -> list[tuple[EncodedPhrase, int]]:
    """Draw up to PHRASES phrases of one direction: the crops depend on it, so a scene has one ramp."""
    order = rng.permutation(len(scene.phrases))
    encoded = [(encoder.encode(scene.phrases[i][0]), scene.phrases[i][1]) for i in order]
    sided = [pair for pair in encoded if pair[0].direction is not None]
    lead = sided[0] if sided and rng.random() < 0.6 else encoded[0]
    return [pair for pair in encoded if pair[0].direction == lead[0].direction][:PHRASES]


def _batch_softmax(
    whole: Tensor, hard: Tensor, chosen: Sequence[Sequence[tuple[EncodedPhrase, int]]], counts: Sequence[int]
) -> Tensor:
    """Compute CLIP's own loss, text to image, over all crops of the batch."""
    starts = np.cumsum([0, *counts[:-1]])
    rows = [
        int(start) + target for start, phrases in zip(starts, chosen, strict=True) for _, target in phrases
    ]
    return F.cross_entropy(CLIP_LOGIT_SCALE * whole @ hard.T, torch.tensor(rows))
