"""A SAM whose image encoder is an ONNX file, as NanoSAM is published."""

import warnings
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.needs_torch
torch = pytest.importorskip("torch")

import onnx
import onnx.parser
import timm
from torch import nn

from refdiff.contracts.atomic_io import hash_file
from refdiff.errors import InputError
from refdiff.export.sam_graphs import SamEncoder
from refdiff.models.sam import SamSizes, build_sam, load_sam
from refdiff.models.stacks import random_module

SIZES = SamSizes(
    width=24,
    depth=1,
    heads=2,
    mlp_dim=32,
    global_blocks=(0,),
    window_size=0,
    image_size=128,
    embed_channels=16,
)
"""Of a SAM with an embedding of 8 x 8: a NanoSAM for an image of 128 px."""


class NanoSam(nn.Module):
    """NanoSAM's architecture: a ResNet's features, upsampled once. Source: nanosam, timm_image_encoder.py."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.backbone = timm.create_model("resnet18", features_only=True, pretrained=False)
        last = self.backbone.feature_info.channels()[-1]
        self.up_1 = nn.Sequential(
            nn.Conv2d(last, channels, 3, padding=1),
            nn.GELU(),
            nn.ConvTranspose2d(channels, channels, 3, 2, 1, 1),
            nn.GELU(),
        )
        self.proj = nn.Conv2d(channels, channels, 1)
        self.pos_embedding = nn.Parameter(torch.randn(1, channels, 8, 8))

    def forward(self, image: Any) -> Any:
        return self.proj(self.up_1(self.backbone(image)[-1])) + self.pos_embedding


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder with sam.pth and encoder.onnx, and the encoder's module."""
    folder = tmp_path_factory.mktemp("nanosam")
    sam = random_module(lambda: build_sam(SIZES), seed=0, name="sam")
    torch.save(sam.state_dict(), folder / "sam.pth")
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(2)
        encoder = NanoSam(SIZES.embed_channels).eval()
    with warnings.catch_warnings():  # the exporter that the published files were written by is deprecated
        warnings.simplefilter("ignore")
        torch.onnx.export(encoder, (image(),), folder / "encoder.onnx", opset_version=16, dynamo=False)
    return folder, encoder


def image() -> Any:
    return torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_an_encoder_in_an_onnx_file_computes_what_was_exported(made: tuple[Path, Any]) -> None:
    folder, encoder = made
    part = load_sam(folder / "sam.pth", folder / "encoder.onnx")
    plain = load_sam(folder / "sam.pth")
    assert part.spec == plain.spec
    assert part.sources["sam"] == f"{plain.sources['sam']}, encoder {hash_file(folder / 'encoder.onnx')}"
    sam = part.loaders["sam"]()
    expected = encoder(image())
    assert (sam.image_encoder(image()) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (SamEncoder(sam)(image()) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert torch.equal(
        sam.mask_decoder.iou_token.weight, plain.loaders["sam"]().mask_decoder.iou_token.weight
    )


def refused(folder: Path, encoder: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_sam(folder / "sam.pth", encoder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_no_encoder_of_this_sam_is_refused_in_one_line(
    made: tuple[Path, Any], tmp_path: Path
) -> None:
    folder, _ = made
    assert "is not a file" in refused(folder, tmp_path / "nowhere.onnx")
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    assert "is no ONNX file with its weights" in refused(folder, tmp_path / "junk.onnx")
    cases = {
        "the embedding of another SAM": (
            "(float[1,3,128,128] x) => (float[1,3,64,64] y) {"
            " y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x) }",
            r"makes an embedding of [1, 3, 64, 64], expected [1, 16, 8, 8]",
        ),
        "an unknown operator": (
            "(float[1,3,128,128] x) => (float[1,3,128,128] y) { y = Softmax(x) }",
            "is Softmax, expected one of Add, BatchNormalization",
        ),
        "a decoder": (
            "(float[1,16,8,8] x, float[1,2] p) => (float[1,16,8,8] y) { y = Relu(x) }",
            "has 2 inputs and 1 outputs, expected one image and its embedding",
        ),
        "padding that depends on the image": (
            "(float[1,3,128,128] x) => (float[1,3,64,64] y) {"
            ' y = MaxPool<auto_pad="SAME_UPPER", kernel_shape=[2,2]>(x) }',
            "has auto_pad 'SAME_UPPER', expected numbers",
        ),
    }
    for text, message in cases.values():
        path = tmp_path / "encoder.onnx"
        model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 16]> g {text}')
        onnx.save(model, path)
        assert message in refused(folder, path)
