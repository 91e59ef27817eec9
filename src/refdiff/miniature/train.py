"""Train the miniatures: `python -m refdiff.miniature.train --folder runs/miniature`.

Stages, in order: scenes, vae, sam, clip, diffusion, pack, then edge-vae, edge-sam, edge-clip, edge-unet and
edge-pack, which distil the small counterparts from the packed weights. Each resumes from its last checkpoint;
`--stage` runs single ones. Stages that do not depend on each other (sam, clip | vae, diffusion; edge-sam,
edge-clip | edge-vae, edge-unet) may run at the same time. `pack` and `edge-pack` write the half-precision
weights that the package ships.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from refdiff.miniature import architecture
from refdiff.miniature.stack import (
    WEIGHTS,
    load_miniature,
    miniature_tokenizer_json,
    save_weights,
    vocabulary_size,
)
from refdiff.miniature.training.contrastive import clip_loss
from refdiff.miniature.training.distillation import (
    embed_store,
    embedding_loss,
    inherit,
    latent_loss,
    map_loss,
    tiny_latents,
    vector_loss,
)
from refdiff.miniature.training.grounding import encode_store, grounding_loss
from refdiff.miniature.training.image_models import sam_loss, scale_latents, vae_loss
from refdiff.miniature.training.loop import Loss, Task, averaged_weights, last_log, train
from refdiff.miniature.training.store import PhraseEncoder, SceneStore, render_shard

SHARDS, SHARD_SCENES = 20, 1000
LATENT_SCENES = 12_000
"""Scenes of the diffusion stage, whose latents are kept in memory."""

DISTILLED_SCENES = 6_000
"""Scenes of the stages `edge-*`, whose embeddings are kept in memory."""

MINUTES = {"vae": 10.0, "sam": 46.0, "clip": 40.0, "diffusion": 60.0}
EDGE_MINUTES = {"edge-vae": 7.0, "edge-sam": 32.0, "edge-clip": 9.0, "edge-unet": 26.0}
STAGES = ("scenes", *MINUTES, "pack", *EDGE_MINUTES, "edge-pack")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Train the miniature on rendered scenes.")
    parser.add_argument("--folder", type=Path, default=Path("runs/miniature"))
    parser.add_argument("--stage", choices=STAGES, action="append", help="run only this stage (repeatable)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scale-minutes", type=float, default=1.0, help="multiply every stage's time budget")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder that `pack` writes to")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    for stage in arguments.stage or STAGES:
        if stage == "scenes":
            _render_scenes(arguments.folder, arguments.threads)
        elif stage in _PACKS:
            _PACKS[stage](arguments.folder, arguments.weights)
        else:
            minutes = (MINUTES | EDGE_MINUTES)[stage] * arguments.scale_minutes
            _STAGES[stage](arguments.folder, minutes)


def pack(folder: Path, weights: Path) -> None:
    """Write the shipped weights from the averaged weights of the stages, finished or not."""
    averaged = {name: averaged_weights(folder, name) for name in ("sam", "clip", "diffusion")}
    parts = {
        "vae": torch.load(folder / "vae-scaled.pt", weights_only=True),
        **{
            part: {
                k.removeprefix(f"{part}."): v for k, v in averaged[stage].items() if k.startswith(f"{part}.")
            }
            for part, stage in (
                ("sam", "sam"),
                ("clip", "clip"),
                ("text", "diffusion"),
                ("unet", "diffusion"),
            )
        },
    }
    save_weights(parts, weights)
    record = {name: last_log(folder, name) for name in MINUTES}
    (weights / "training.json").write_text(json.dumps(record, indent=1) + "\n")


def pack_edge(folder: Path, weights: Path) -> None:
    """Write the shipped weights of the small counterparts, finished or not."""
    parts = {}
    for part in ("vae", "sam", "clip", "unet"):
        averaged = averaged_weights(folder, f"edge-{part}")
        parts[f"edge-{part}"] = {k.removeprefix(f"{part}."): v for k, v in averaged.items()}
    save_weights(parts, weights)
    record = {name: last_log(folder, name) for name in EDGE_MINUTES}
    (weights / "edge-training.json").write_text(json.dumps(record, indent=1) + "\n")


def _render_scenes(folder: Path, processes: int) -> None:
    with ProcessPoolExecutor(processes) as pool:
        shards = [
            pool.submit(render_shard, folder / "scenes", n, n * SHARD_SCENES, SHARD_SCENES)
            for n in range(SHARDS)
        ]
        for shard in shards:
            shard.result()


def _run_stage(name: str, modules: dict[str, nn.Module], loss: Loss, folder: Path, minutes: float) -> None:
    train(Task(name=name, modules=nn.ModuleDict(modules), loss=loss, minutes=minutes), folder)


def _train_vae(folder: Path, minutes: float) -> None:
    store = SceneStore(folder / "scenes")
    vae = architecture.autoencoder().to(memory_format=torch.channels_last)
    _run_stage("vae", {"vae": vae}, vae_loss(vae, store), folder, minutes)
    scale_latents(vae, store)
    torch.save(vae.state_dict(), folder / "vae-scaled.pt")


def _train_sam(folder: Path, minutes: float) -> None:
    sam = architecture.sam()
    _run_stage("sam", {"sam": sam}, sam_loss(sam, SceneStore(folder / "scenes")), folder, minutes)


def _train_clip(folder: Path, minutes: float) -> None:
    clip = architecture.clip(vocabulary_size())
    loss = clip_loss(clip, SceneStore(folder / "scenes"), PhraseEncoder(miniature_tokenizer_json()))
    _run_stage("clip", {"clip": clip}, loss, folder, minutes)


def _train_diffusion(folder: Path, minutes: float) -> None:
    store = SceneStore(folder / "scenes").first(LATENT_SCENES)
    vae = architecture.autoencoder()
    vae.load_state_dict(torch.load(folder / "vae-scaled.pt", weights_only=True))
    text, unet = architecture.text_encoder(vocabulary_size()), architecture.unet()
    cache = folder / "latents.pt"
    if not cache.exists():
        torch.save(encode_store(vae.to(memory_format=torch.channels_last), store), cache)
    latents = torch.load(cache, weights_only=True)
    unet.to(memory_format=torch.channels_last)
    loss = grounding_loss(text, unet, store, PhraseEncoder(miniature_tokenizer_json()), latents)
    _run_stage("diffusion", {"text": text, "unet": unet}, loss, folder, minutes)


def _distilled_scenes(folder: Path) -> SceneStore:
    return SceneStore(folder / "scenes").first(DISTILLED_SCENES)


def _cached(path: Path, compute: Callable[[], Any]) -> Any:
    if not path.exists():
        torch.save(compute(), path)
    return torch.load(path, weights_only=True)


def _edge_latents(folder: Path) -> tuple[Tensor, Tensor]:
    store = _distilled_scenes(folder)
    latents: tuple[Tensor, Tensor] = _cached(
        folder / "edge-latents.pt", lambda: encode_store(load_miniature().vae, store)
    )
    return latents


def _train_edge_vae(folder: Path, minutes: float) -> None:
    vae = architecture.tiny_autoencoder()
    vae.encoder.to(memory_format=torch.channels_last)
    loss = latent_loss(vae, _distilled_scenes(folder), _edge_latents(folder)[0])
    _run_stage("edge-vae", {"vae": vae}, loss, folder, minutes)


def _train_edge_sam(folder: Path, minutes: float) -> None:
    store, teacher, sam = _distilled_scenes(folder), load_miniature().sam, architecture.tiny_sam()
    embeddings = _cached(folder / "edge-embeddings.pt", lambda: embed_store(teacher, store))
    inherit(sam, teacher.state_dict())
    sam.image_encoder.to(memory_format=torch.channels_last)
    _run_stage("edge-sam", {"sam": sam}, embedding_loss(sam, store, embeddings), folder, minutes)


def _train_edge_clip(folder: Path, minutes: float) -> None:
    teacher = load_miniature().clip
    clip = architecture.small_clip(vocabulary_size())
    last = "visual.transformer.resblocks.3."
    inherit(
        clip, {k.replace(last, "visual.transformer.resblocks.1."): v for k, v in teacher.state_dict().items()}
    )
    clip.requires_grad_(requires_grad=False).visual.requires_grad_()
    loss = vector_loss(clip, teacher, _distilled_scenes(folder), PhraseEncoder(miniature_tokenizer_json()))
    _run_stage("edge-clip", {"clip": clip}, loss, folder, minutes)


def _train_edge_unet(folder: Path, minutes: float) -> None:
    store, stack, unet = _distilled_scenes(folder), load_miniature(), architecture.small_unet()
    vae = architecture.tiny_autoencoder()
    vae.load_state_dict({k.removeprefix("vae."): v for k, v in averaged_weights(folder, "edge-vae").items()})
    latents = (*_edge_latents(folder), tiny_latents(vae.eval(), store))
    inherit(unet, stack.unet.state_dict())
    for each in (stack.unet, unet):
        each.to(memory_format=torch.channels_last)
    encoder = PhraseEncoder(miniature_tokenizer_json())
    loss = map_loss(stack.text_encoder, (stack.unet, unet), store, encoder, latents)
    _run_stage("edge-unet", {"unet": unet}, loss, folder, minutes)


_PACKS = {"pack": pack, "edge-pack": pack_edge}
_STAGES: dict[str, Callable[[Path, float], None]] = {
    "vae": _train_vae,
    "sam": _train_sam,
    "clip": _train_clip,
    "diffusion": _train_diffusion,
    "edge-vae": _train_edge_vae,
    "edge-sam": _train_edge_sam,
    "edge-clip": _train_edge_clip,
    "edge-unet": _train_edge_unet,
}


if __name__ == "__main__":
    main()
