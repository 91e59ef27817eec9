"""Sizes of small models in the published formats, and how they are exported."""

from pathlib import Path
from typing import Any

import pytest

from refdiff.cli import main
from refdiff.contracts.stack import ModelStack

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("onnxruntime")


from refdiff.export.bundle_export import GraphExporter, export_bundle
from refdiff.export.pipeline_feeds import PipelineFeeds
from refdiff.models.clip import ClipSizes
from refdiff.models.sam import SamSizes
from refdiff.models.stacks import VOCABULARY
from tests.support.small_diffusion import CROSS_DOWN, CROSS_UP

PHRASE = "the left mug"

SAM = SamSizes(
    width=64,
    depth=2,
    heads=2,
    mlp_dim=128,
    global_blocks=(1,),
    window_size=3,
    image_size=256,
    embed_channels=64,
    mask_channels=8,
    decoder_mlp_dim=96,
    iou_width=48,
)
CLIP = ClipSizes(
    embed_dim=32,
    image_size=32,
    patch_size=8,
    vision_width=64,
    vision_layers=2,
    vision_heads=1,
    vision_mlp=256,
    text_width=64,
    text_layers=1,
    text_heads=1,
    text_mlp=256,
    vocabulary=VOCABULARY,
    quick_gelu=True,
)
LEVELS: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "DownBlock2D", CROSS_DOWN),
    "mid_block_type": None,
    "up_block_types": (CROSS_UP, "UpBlock2D", "UpBlock2D"),
    "block_out_channels": (64,) * 3,
    "layers_per_block": 1,
}
"""Of a UNet with one layer per level, and attention where it is read: tracing takes as long as its layers."""


def write(stack: ModelStack, output: Path, exporter: GraphExporter) -> None:
    feeds = PipelineFeeds.rendered(stack, thorough=False)
    export_bundle(stack, output, feeds=feeds, progress=lambda line: None, exporter=exporter)


def refusal(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line in which a command is refused."""
    assert main(arguments) == code
    said = capsys.readouterr().err.splitlines()
    assert [line.startswith("error: ") for line in said].count(True) == 1
    assert said[-1].startswith("error: ")
    return said[-1]
