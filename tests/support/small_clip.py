"""A small CLIP, and files of it in each format."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install '.[export]'")

import open_clip
import safetensors.torch
import torch
from transformers import CLIPConfig, CLIPModel

from refdiff.contracts.spec import ClipSpec
from refdiff.errors import InputError
from refdiff.models.clip import load_clip
from refdiff.models.clip.sizes import ClipSizes, build_clip
from refdiff.models.fitting import Part

SMALL = ClipSizes(
    embed_dim=32,
    image_size=32,
    patch_size=8,
    vision_width=128,
    vision_layers=3,
    vision_heads=2,
    vision_mlp=512,
    text_width=64,
    text_layers=2,
    text_heads=1,
    text_mlp=256,
    vocabulary=300,
    quick_gelu=True,
)
MODEL_CFG: Mapping[str, Any] = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 128, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 300, "width": 64, "heads": 1, "layers": 2},
}
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
GELU_CFG = {**MODEL_CFG, "quick_gelu": False}

Weights = dict[str, torch.Tensor]


def random_clip(sizes: ClipSizes = SMALL) -> open_clip.CLIP:
    """Every tensor random: a bias or a norm that is mixed up shows."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(3)
        model = build_clip(sizes)
        for parameter in model.parameters():
            parameter.requires_grad_(requires_grad=False).normal_(std=0.2)
    return model.eval()


@functools.cache
def small() -> open_clip.CLIP:
    """Leave it as it is."""
    return random_clip()


def weights() -> Weights:
    return dict(small().state_dict())


def pictures(size: int = 32) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def phrases() -> torch.Tensor:
    """Two phrases of SMALL's vocabulary: start, words, end, zeros."""
    ids = torch.zeros(2, 77, dtype=torch.int64)
    ids[0, :5] = torch.tensor([298, 17, 250, 3, 299])
    ids[1, :8] = torch.tensor([298, 1, 120, 0, 77, 256, 31, 299])
    return ids


def loaded(part: Part[ClipSpec]) -> open_clip.CLIP:
    return part.loaders["clip"]()


def assert_same(ours: open_clip.CLIP, source: open_clip.CLIP) -> None:
    assert not ours.training
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in ours.parameters())
    with torch.no_grad():
        assert torch.equal(ours.encode_image(pictures()), source.encode_image(pictures()))
        assert torch.equal(ours.encode_text(phrases()), source.encode_text(phrases()))
    assert torch.equal(ours.logit_scale, source.logit_scale)


def write_config(folder: Path, model_cfg: Mapping[str, Any] = MODEL_CFG, **more: Any) -> Path:
    path = folder / "open_clip_config.json"
    path.write_text(json.dumps({"model_cfg": model_cfg, **more}))
    return path


def with_openai_entries(tensors: Weights) -> Weights:
    entries = {"input_resolution": 32, "context_length": 77, "vocab_size": 300}
    return {**tensors, **{name: torch.tensor(value) for name, value in entries.items()}}


def transformers_config(**changes: Any) -> CLIPConfig:
    """SMALL's, with changes to both towers."""
    text = {
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "bos_token_id": 298,
        "eos_token_id": 299,
    }
    vision = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    return CLIPConfig(text_config=text | changes, vision_config=vision | changes, projection_dim=32)


def transformers_clip(**changes: Any) -> CLIPModel:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(4)
        model = CLIPModel(transformers_config(**changes)).eval().requires_grad_(requires_grad=False)
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


def write_transformers(
    folder: Path, tensors: Mapping[str, torch.Tensor] | None = None, **config: Any
) -> None:
    """config.json and model.safetensors, each changed as asked."""
    document = transformers_config().to_dict() | config
    (folder / "config.json").write_text(json.dumps(document))
    state = tensors if tensors is not None else transformers_clip().state_dict()
    safetensors.torch.save_file(dict(state), folder / "model.safetensors")


def refusal(source: Path, activation: str | None = "quick_gelu") -> str:
    """What load_clip says against a file."""
    with pytest.raises(InputError) as caught:
        load_clip(source, activation=activation)
    message = str(caught.value)
    assert "\n" not in message
    return message


def saved(path: Path, tensors: Mapping[str, torch.Tensor]) -> Path:
    torch.save(dict(tensors), path)
    return path
