"""Compare SAM's decoder in two rearranged graphs with the original modules in one.

    .venv/bin/python -m benchmarks.sam_decoder mini --rounds 20
    .venv/bin/python -m benchmarks.sam_decoder full --rounds 3

Both are exported by the same exporter and run in ONNX Runtime on one thread, in turns, on the same feeds: 64
prompts on one image. `full` has the decoder of all original SAMs, its weights drawn. Masks are drawn of
26 of the 64 prompts in the two graphs, about what passes the predicted-IoU filter, and of all in the one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.records import RESULTS, add_entry
from refdiff.contracts.graphs import (
    MASKS_PER_POINT,
    POINT_TOKENS,
    POINTS_PER_BATCH,
    POINTS_PER_DRAWING,
    GraphSpec,
    TensorSpec,
    graph_contract,
)
from refdiff.contracts.spec import SamSpec
from refdiff.engines.factory import import_ort
from refdiff.engines.ort import OrtSession
from refdiff.export.onnx_export import export_graph
from refdiff.export.sam_graphs import SamDecoder, SamMasks, prompt_vectors
from refdiff.miniature.architecture import MINIATURE
from refdiff.miniature.stack import load_miniature
from refdiff.profiling.macs import count_macs
from refdiff.runtime.prompt import point_tokens

RECORD = RESULTS / "sam-decoder.json"
DRAWN = 26


class OneGraph(SamDecoder):
    """The original transformer, upscaling and heads, all prompts through all of them."""

    def __init__(self, sam: Any) -> None:
        super().__init__(sam)
        self.original = sam.mask_decoder.transformer
        self.upscaling = sam.mask_decoder.output_upscaling
        self.hypernetworks = torch.nn.ModuleList(sam.mask_decoder.output_hypernetworks_mlps[1:])

    def forward(  # type: ignore[override]  # one graph in place of two: it returns the masks as well
        self, embedding: torch.Tensor, prompts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predicted IoU and all logits."""
        tokens = torch.cat([self.output_tokens.expand(len(prompts), -1, -1), prompts], dim=1)
        image = embedding + self.dense.transpose(1, 2).unsqueeze(3)
        positions = self.image_positions.transpose(1, 2).reshape(image.shape)
        tokens, pixels = self.original(image, positions, tokens)
        pixels = pixels.transpose(1, 2).reshape(-1, *embedding.shape[1:])
        weights = torch.stack([mlp(tokens[:, 2 + i]) for i, mlp in enumerate(self.hypernetworks)], dim=1)
        side = 4 * embedding.shape[2]
        low_res = (weights @ self.upscaling(pixels).flatten(2)).reshape(-1, MASKS_PER_POINT, side, side)
        return self.iou_head(tokens[:, 0])[:, 1:], low_res


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=("mini", "full"))
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args()
    sam, spec = _sam(given.model)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        add_entry(RECORD, given.model, _measured(sam.eval(), spec, Path(folder), given.rounds))


def _sam(model: str) -> tuple[Any, SamSpec]:
    if model == "mini":
        return load_miniature().sam, MINIATURE.sam
    from segment_anything import sam_model_registry

    torch.manual_seed(0)
    return sam_model_registry["vit_b"](), SamSpec(image_size=1024, embed_channels=256, embed_size=64)


def _measured(sam: Any, spec: SamSpec, folder: Path, rounds: int) -> dict[str, Any]:
    from dataclasses import replace

    contract = graph_contract(replace(MINIATURE, sam=spec))
    decoder, masks = contract["sam_decoder"], contract["sam_masks"]
    low_res = TensorSpec("low_res", "float32", ("n", *masks.outputs[0].shape[1:]))
    one = GraphSpec("one_graph", decoder.inputs, (decoder.outputs[0], low_res))
    modules = {"one_graph": OneGraph(sam), "sam_decoder": SamDecoder(sam), "sam_masks": SamMasks(sam)}
    graphs = {"one_graph": one, "sam_decoder": decoder, "sam_masks": masks}
    paths = {name: export_graph(modules[name].eval(), graphs[name], folder) for name in graphs}
    sessions = {name: OrtSession(paths[name], graphs[name], threads=1) for name in graphs}
    rng, side = np.random.default_rng(0), spec.embed_size
    feeds = {
        "embedding": rng.standard_normal((1, spec.embed_channels, side, side), dtype=np.float32),
        "prompts": point_tokens(
            prompt_vectors(sam), rng.random((POINTS_PER_BATCH, 2), dtype=np.float32) * spec.image_size
        ),
    }
    chosen = np.sort(rng.permutation(POINTS_PER_BATCH)[:DRAWN]).astype(np.int32)
    seconds: dict[str, list[float]] = {name: [] for name in graphs}
    for turn in range(rounds + 1):
        started = time.process_time()
        whole = sessions["one_graph"].run(feeds)
        split = time.process_time()
        decoded = sessions["sam_decoder"].run(feeds)
        middle = time.process_time()
        iou = decoded.pop("iou")
        drawn = [
            sessions["sam_masks"].run({**decoded, "chosen": chosen[start : start + POINTS_PER_DRAWING]})
            for start in range(0, DRAWN, POINTS_PER_DRAWING)
        ]
        ended = time.process_time()
        if turn:  # the first turn warms up
            spent = (split - started, middle - split, ended - middle)
            for name, value in zip(graphs, spent, strict=True):
                seconds[name].append(value)
    logits = np.concatenate([each["low_res"] for each in drawn])
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    sizes = {"n": POINTS_PER_BATCH, "q": POINT_TOKENS, "k": DRAWN}
    return {
        "rounds": rounds,
        "prompts": POINTS_PER_BATCH,
        "drawn": DRAWN,
        "onnxruntime": import_ort("ort-cpu").ort.__version__,
        "median_seconds": {name: round(value, 4) for name, value in medians.items()},
        "speed_up": round(medians["one_graph"] / (medians["sam_decoder"] + medians["sam_masks"]), 2),
        "multiply_adds": {name: count_macs(path, sizes) for name, path in paths.items()},
        "largest_difference_over_range": {
            "iou": float(np.abs(iou - whole["iou"]).max() / np.ptp(whole["iou"])),
            "low_res": float(np.abs(logits - whole["low_res"][chosen]).max() / np.ptp(whole["low_res"])),
        },
    }


if __name__ == "__main__":
    main()
