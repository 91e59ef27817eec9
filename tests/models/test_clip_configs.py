"""What a CLIP's files say about its activation, sizes and architecture, and which of it is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install '.[export]'")

import open_clip
import safetensors.torch
import torch
from transformers import SiglipConfig, SiglipModel

from refdiff.models.clip import load_clip
from tests.support.small_clip import (
    GELU_CFG,
    MODEL_CFG,
    assert_same,
    loaded,
    refusal,
    saved,
    small,
    transformers_config,
    weights,
    with_openai_entries,
    write_config,
    write_transformers,
)
from tests.support.tiny_stack import tiny_stack

pytestmark = pytest.mark.needs_torch


# Activation


def test_a_bare_state_dict_without_an_activation_is_refused(tmp_path: Path) -> None:
    file = saved(tmp_path / "clip.pt", weights())
    assert "--clip-activation" in refusal(file, activation=None)


def test_transformers_config_does_not_speak_for_open_clips_file(tmp_path: Path) -> None:
    write_transformers(tmp_path)
    assert "--clip-activation" in refusal(saved(tmp_path / "clip.pt", weights()), activation=None)


@pytest.mark.parametrize("file", ["archive", "config", "both"])
def test_a_contradicted_activation_is_refused(tmp_path: Path, file: str) -> None:
    tensors = weights() if file == "config" else with_openai_entries(weights())
    path = saved(tmp_path / "clip.pt", tensors)
    if file == "config":
        write_config(tmp_path)
    elif file == "both":
        write_config(tmp_path, GELU_CFG)
    message = refusal(path, activation=None if file == "both" else "gelu")
    assert "says quick_gelu" in message
    assert "says gelu" in message


def test_an_unknown_activation_is_refused(tmp_path: Path) -> None:
    assert "expected gelu or quick_gelu" in refusal(tmp_path, activation="relu")


# Other architectures


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("visual.layer1.0.conv1.weight", "ResNet"),
        ("visual.attnpool.positional_embedding", "ResNet"),
        ("visual.trunk.patch_embed.proj.weight", "timm"),
        ("visual.blocks.0.attn.q_bias", "EVA"),
        ("visual.attn_pool.query", "attentional pooling"),
        ("text_decoder.text_projection", "CoCa"),
        ("logit_bias", "SigLIP"),
        ("text.positional_embedding", "custom_text"),
    ],
)
def test_a_relative_of_clip_is_refused_by_name(tmp_path: Path, key: str, what: str) -> None:
    file = saved(tmp_path / "clip.pt", {**weights(), key: torch.zeros(2)})
    message = refusal(file)
    assert str(file) in message
    assert key in message
    assert what in message


def test_a_real_resnet_clip_is_refused(tmp_path: Path) -> None:
    model = open_clip.CLIP(
        32, {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}, MODEL_CFG["text_cfg"]
    )
    assert "ResNet" in refusal(saved(tmp_path / "rn.pt", model.state_dict()))


def test_a_siglip_of_transformers_is_refused(tmp_path: Path) -> None:
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**tower, "image_size": 32, "patch_size": 8}
    SiglipModel(SiglipConfig(text_config={**tower, "vocab_size": 50}, vision_config=vision)).save_pretrained(
        tmp_path
    )
    assert "SigLIP" in refusal(tmp_path)


def test_a_sam_file_is_refused_as_a_clip(tmp_path: Path) -> None:
    file = saved(tmp_path / "sam.pth", tiny_stack().sam.state_dict())
    message = refusal(file)
    assert "image_encoder." in message
    assert "Segment Anything" in message


@pytest.mark.parametrize(
    ("part", "setting", "value"),
    [
        ("vision_cfg", "pool_type", "avg"),
        ("vision_cfg", "attentional_pool", True),
        ("vision_cfg", "timm_model_name", "vit_base"),
        ("vision_cfg", "no_ln_pre", True),
        ("vision_cfg", "norm_kwargs", {"eps": 1e-6}),
        ("vision_cfg", "act_kwargs", {"approximate": "tanh"}),
        ("vision_cfg", "layers", [1, 1, 1, 1]),
        ("vision_cfg", "image_size", [32, 64]),
        ("text_cfg", "pool_type", "last"),
        ("text_cfg", "no_causal_mask", True),
        ("text_cfg", "hf_model_name", "roberta-base"),
        ("text_cfg", "tokenizer_kwargs", {"clean": "canonicalize"}),
        ("text_cfg", "embed_cls", True),
        ("text_cfg", "heads", 3),
        ("", "custom_text", True),
        ("", "multimodal_cfg", {"width": 64}),
        ("", "init_logit_bias", -10),
        ("", "quick_gelu", "yes"),
    ],
)
def test_a_config_of_another_computation_is_refused(
    tmp_path: Path, part: str, setting: str, value: object
) -> None:
    model_cfg = copy.deepcopy(dict(MODEL_CFG))
    (model_cfg[part] if part else model_cfg)[setting] = value
    write_config(tmp_path, model_cfg)
    safetensors.torch.save_file(weights(), tmp_path / "open_clip_model.safetensors")
    message = refusal(tmp_path, activation=None)
    assert "open_clip_config.json" in message
    assert setting in message


def test_settings_at_their_defaults_and_of_training_are_read_over(tmp_path: Path) -> None:
    vision = {**MODEL_CFG["vision_cfg"], "pool_type": "tok", "ls_init_value": None, "patch_dropout": 0.5}
    write_config(tmp_path, {**MODEL_CFG, "vision_cfg": vision, "custom_text": False})
    safetensors.torch.save_file(weights(), tmp_path / "open_clip_model.safetensors")
    assert_same(loaded(load_clip(tmp_path)), small())


@pytest.mark.parametrize(
    ("tower", "setting", "value"),
    [
        ("text_config", "hidden_act", "gelu_new"),
        ("text_config", "hidden_act", "gelu"),
        ("vision_config", "layer_norm_eps", 1e-6),
        ("text_config", "eos_token_id", 7),
        ("vision_config", "image_size", 64),
        ("vision_config", "hidden_size", "wide"),
        ("vision_config", "hidden_act", {}),
        ("text_config", "layer_norm_eps", "z"),
        ("", "model_type", "siglip"),
        ("", "text_config", [1]),
    ],
)
def test_a_transformers_config_of_another_computation_is_refused(
    tmp_path: Path, tower: str, setting: str, value: object
) -> None:
    document = transformers_config().to_dict()
    (document[tower] if tower else document)[setting] = value
    write_transformers(tmp_path, **document)
    message = refusal(tmp_path, activation=None)
    assert "config.json" in message
    assert setting in message
