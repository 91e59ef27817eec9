"""A bundle of made-up files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from refdiff.contracts.bundle import (
    BundleWriter,
    GraphRecord,
    Manifest,
)
from refdiff.contracts.graphs import graph_contract
from refdiff.contracts.manifest import manifest_sha256
from refdiff.contracts.spec import ClipSpec, DiffusionSpec, ModelSpec, SamSpec

SPEC = ModelSpec(
    name="paper doll",
    diffusion=DiffusionSpec(
        image_size=8,
        vae_factor=2,
        latent_channels=1,
        scaling_factor=1.0,
        context_width=2,
        tapped_layers=("mid_block",),
        tap_size=2,
        cut_after="mid_block",
    ),
    sam=SamSpec(image_size=8, embed_channels=2, embed_size=2),
    clip=ClipSpec(image_size=4, patch_size=2, width=3, embed_dim=2),
)

POSITIONS = np.arange(12, dtype=np.float32).reshape(4, 3)
GOLDEN = {"sd_text": ({"ids": np.arange(3, dtype=np.int32)}, {"context": np.ones((1, 2), np.float32)})}


def fill(writer: BundleWriter, *, weights: bytes = b"weights") -> Manifest:
    graph = graph_contract(SPEC)["sd_text"]
    (writer.path / "sd_text.onnx").write_bytes(b"graph")
    (writer.path / "sd_text.onnx.data").write_bytes(weights)
    writer.write_tokenizer('{"model": "é"}')
    writer.write_clip_positions(POSITIONS)
    writer.write_golden(GOLDEN)
    record = GraphRecord(
        files=("sd_text.onnx", "sd_text.onnx.data"),
        precision="fp32",
        inputs=graph.inputs,
        outputs=graph.outputs,
    )
    return writer.describe(
        spec=SPEC,
        precision="fp32",
        sources={"unet": "ab"},
        versions={"torch": "2.9"},
        graphs={"sd_text": record},
    )


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps({**document, "sha256": manifest_sha256(document)}))
