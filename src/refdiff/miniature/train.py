"""Train the miniature: `python -m refdiff.miniature.train --folder runs/miniature`.

Stages, in order: scenes, vae, sam, clip, diffusion. Each resumes from its last checkpoint; run one alone with
`--stage`. Stages that do not depend on each other (sam, clip | vae, diffusion) may run at the same time.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import nn

from refdiff.miniature import architecture
from refdiff.miniature.training.autoencoder import scale_latents, vae_loss
from refdiff.miniature.training.loop import Task, averaged_weights, train
from refdiff.miniature.training.proposals import sam_loss
from refdiff.miniature.training.store import SceneStore, render_shard

SHARDS, SHARD_SCENES = 20, 1000
MINUTES = {"vae": 5.0, "sam": 30.0, "clip": 35.0, "diffusion": 60.0}
STAGES = ("scenes", *MINUTES)


def main() -> None:
    """Parse the command line and run the stages."""
    parser = argparse.ArgumentParser(description="Train the miniature on rendered scenes.")
    parser.add_argument("--folder", type=Path, default=Path("runs/miniature"))
    parser.add_argument("--stage", choices=STAGES, action="append", help="run only this stage (repeatable)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scale-minutes", type=float, default=1.0, help="multiply every stage's time budget")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    for stage in arguments.stage or STAGES:
        run_stage(stage, arguments.folder, arguments.threads, MINUTES.get(stage, 0.0) * arguments.scale_minutes)


def run_stage(stage: str, folder: Path, threads: int, minutes: float) -> None:
    """Run one stage to its end."""
    scenes = folder / "scenes"
    if stage == "scenes":
        with ProcessPoolExecutor(threads) as pool:
            starts = [pool.submit(render_shard, scenes, n, n * SHARD_SCENES, SHARD_SCENES) for n in range(SHARDS)]
            for start in starts:
                start.result()
        return
    store = SceneStore(scenes)
    if stage == "vae":
        vae = architecture.autoencoder().to(memory_format=torch.channels_last)
        train(Task(name="vae", modules=nn.ModuleDict({"vae": vae}), loss=vae_loss(vae, store), minutes=minutes), folder)
        factor = scale_latents(vae, store)
        torch.save({"factor": factor, "vae": vae.state_dict()}, folder / "vae-scaled.pt")
    elif stage == "sam":
        sam = architecture.sam()
        train(Task(name="sam", modules=nn.ModuleDict({"sam": sam}), loss=sam_loss(sam, store), minutes=minutes), folder)


if __name__ == "__main__":
    main()
