"""CLIP checkpoints that are damaged or incomplete: refused, with the file and the tensor or the field."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install '.[export]'")

import safetensors.torch
import torch

from refdiff.contracts.spec import ClipSpec
from refdiff.models.clip import load_clip
from refdiff.models.hub.names import FOLDER_WEIGHTS, choose_files
from tests.support.small_clip import (
    MEAN,
    MODEL_CFG,
    STD,
    Weights,
    loaded,
    refusal,
    saved,
    transformers_clip,
    weights,
    write_config,
    write_transformers,
)

pytestmark = pytest.mark.needs_torch


# Damage


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda w: w.pop("visual.transformer.resblocks.1.ln_2.bias"), id="in-a-block"),
        pytest.param(lambda w: w.pop("visual.conv1.weight"), id="read-for-its-size"),
        pytest.param(lambda w: w.pop("positional_embedding"), id="of-the-text-tower"),
    ],
)
def test_a_missing_tensor_is_named(tmp_path: Path, change: Callable[[Weights], torch.Tensor]) -> None:
    tensors = weights()
    lost = change(tensors)
    name = next(name for name, tensor in weights().items() if tensor is lost or torch.equal(tensor, lost))
    message = refusal(saved(tmp_path / "clip.pt", tensors))
    assert name in message
    assert "missing" in message
    assert "clip.pt" in message


def test_a_missing_block_is_named_by_its_index(tmp_path: Path) -> None:
    block = "visual.transformer.resblocks.1."
    rest = {name: tensor for name, tensor in weights().items() if not name.startswith(block)}
    message = refusal(saved(tmp_path / "clip.pt", rest))
    assert block in message
    assert "missing" in message


def test_a_surplus_tensor_is_named(tmp_path: Path) -> None:
    key = "visual.transformer.resblocks.0.ls_1.gamma"
    assert key in refusal(saved(tmp_path / "clip.pt", {**weights(), key: torch.ones(128)}))


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("visual.ln_post.weight", (127,)),
        ("visual.conv1.weight", (128, 3, 8)),
        ("visual.conv1.weight", (128, 3, 0, 0)),
        ("visual.conv1.weight", (128, 4, 8, 8)),
        ("visual.positional_embedding", (16, 128)),
        ("positional_embedding", (64, 64)),
        ("transformer.resblocks.1.mlp.c_fc.weight", (255, 64)),
    ],
)
def test_a_misshapen_tensor_is_named(tmp_path: Path, key: str, shape: tuple[int, ...]) -> None:
    message = refusal(saved(tmp_path / "clip.pt", {**weights(), key: torch.zeros(shape)}))
    assert key in message
    assert "expected" in message


def test_a_prompt_of_another_length_is_refused(tmp_path: Path) -> None:
    short = {**weights(), "positional_embedding": torch.zeros(32, 64)}
    assert "positional_embedding has 32 rows, expected 77" in refusal(saved(tmp_path / "clip.pt", short))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("text_model.encoder.layers.1.self_attn.k_proj.bias", "gone"),
        ("text_model.encoder.layers.1.self_attn.q_proj.bias", "gone"),
        ("vision_model.pre_layrnorm.weight", "gone"),
        ("vision_model.encoder.layers.2.mlp.fc1.bias", "misshapen"),
        ("vision_model.encoder.layers.0.self_attn.v_proj.weight", "misshapen"),
        ("text_projection.weight", "misshapen"),
        ("text_model.prompt.weight", "surplus"),
    ],
)
def test_damage_in_a_transformers_file_is_named_by_transformers_names(
    tmp_path: Path, name: str, change: str
) -> None:
    state = dict(transformers_clip().state_dict())
    if change == "gone":
        del state[name]
    else:
        state[name] = torch.zeros(7, 7)
    write_transformers(tmp_path, state)
    message = refusal(tmp_path)
    assert "model.safetensors" in message
    assert name in message


def test_a_config_of_another_size_than_the_tensors_is_refused(tmp_path: Path) -> None:
    write_config(tmp_path, {**MODEL_CFG, "embed_dim": 64})
    safetensors.torch.save_file(weights(), tmp_path / "open_clip_model.safetensors")
    assert "says embed_dim 64, the tensors of open_clip_model.safetensors say 32" in refusal(tmp_path)


DEEP = '{"x": ' * 100_000 + "1" + "}" * 100_000


@pytest.mark.parametrize("text", ["{", "[]", '{"model_cfg": 3}', "{}", DEEP])
def test_an_unreadable_config_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "open_clip_config.json").write_text(text)
    safetensors.torch.save_file(weights(), tmp_path / "open_clip_model.safetensors")
    assert "open_clip_config.json" in refusal(tmp_path)


NO_STATISTICS: list[tuple[str, object]] = [
    ("mean", [0.5]),
    ("mean", [0.5, 0.5, "x"]),
    ("mean", [0.5, True, 0.5]),
    ("mean", [0.5, float("nan"), 0.5]),
    ("mean", [0.5, 10**400, 0.5]),
    ("std", [0.2, float("nan"), 0.2]),
    ("std", [0.2, float("inf"), 0.2]),
    ("std", [0.2, 0, 0.2]),
    ("std", [0.2, -0.2, 0.2]),
]


@pytest.mark.parametrize(("name", "value"), NO_STATISTICS)
def test_pixel_statistics_that_are_no_colours_are_refused(tmp_path: Path, name: str, value: object) -> None:
    write_config(tmp_path, preprocess_cfg={name: value})
    safetensors.torch.save_file(weights(), tmp_path / "open_clip_model.safetensors")
    message = refusal(tmp_path)
    assert "expected three" in message
    assert f"open_clip_config.json: {name} is" in message


@pytest.mark.parametrize(("name", "value"), NO_STATISTICS)
def test_a_preprocessor_without_colours_is_refused_by_its_own_name(
    tmp_path: Path, name: str, value: object
) -> None:
    write_transformers(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({f"image_{name}": value}))
    assert f"{tmp_path / 'preprocessor_config.json'}: image_{name} is" in refusal(tmp_path)


@pytest.mark.parametrize(
    "files",
    [
        {"processor_config.json": {"processor_class": "CLIPProcessor"}},
        {"preprocessor_config.json": {"processor_class": "CLIPProcessor"}},
        {"processor_config.json": {"image_processor": None}},
    ],
)
def test_a_processor_that_states_nothing_means_the_published_statistics(
    tmp_path: Path, files: Mapping[str, Any]
) -> None:
    write_transformers(tmp_path)
    for name, document in files.items():
        (tmp_path / name).write_text(json.dumps(document))
    spec = load_clip(tmp_path).spec
    assert (spec.pixel_mean, spec.pixel_std) == (ClipSpec.pixel_mean, ClipSpec.pixel_std)


def test_a_processor_that_states_nothing_leaves_the_word_to_the_other(tmp_path: Path) -> None:
    write_transformers(tmp_path)
    silent, speaks = {"processor_class": "CLIPProcessor"}, {"image_mean": MEAN, "image_std": STD}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(silent))
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": speaks}))
    assert load_clip(tmp_path).spec.pixel_std == tuple(STD)


def test_a_processor_that_is_no_object_is_refused(tmp_path: Path) -> None:
    write_transformers(tmp_path)
    (tmp_path / "processor_config.json").write_text('{"image_processor": 5}')
    assert "processor_config.json: image_processor is 5" in refusal(tmp_path)


def test_safetensors_are_preferred_over_pickles_of_either_layout(tmp_path: Path) -> None:
    write_transformers(tmp_path)
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(b"not read")
    (tmp_path / "pytorch_model.bin").write_bytes(b"not read")
    assert load_clip(tmp_path).spec.embed_dim == 32


def test_a_folder_is_read_by_the_file_that_is_fetched_from_the_hub() -> None:
    for first in FOLDER_WEIGHTS:
        for second in FOLDER_WEIGHTS:
            chosen = min(first, second, key=FOLDER_WEIGHTS.index)
            assert choose_files({first, second}, "a/b") == (chosen,)


@pytest.mark.parametrize("kind", ["float8", "sparse"])
@pytest.mark.parametrize("layout", ["open_clip", "transformers"])
def test_weights_of_a_kind_that_is_not_read_are_refused_by_their_key(
    tmp_path: Path, kind: str, layout: str
) -> None:
    ours = layout == "open_clip"
    tensors = weights() if ours else dict(transformers_clip().state_dict())
    key = "ln_final.weight" if ours else "text_model.encoder.layers.1.self_attn.q_proj.bias"
    tensors[key] = tensors[key].to(torch.float8_e4m3fn) if kind == "float8" else tensors[key].to_sparse()
    message = refusal(saved(tmp_path / "clip.pt", tensors))
    assert f"clip.pt: tensor {key}" in message
    assert kind in message


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole.pt", weights()).read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    assert "cut.pt" in refusal(tmp_path / "cut.pt")


def test_a_folder_without_weights_says_which_files_it_may_hold(tmp_path: Path) -> None:
    assert "open_clip_model.safetensors" in refusal(tmp_path)


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.pt")


@pytest.mark.parametrize(("activation", "quick"), [(None, False), ("quick_gelu", True), ("gelu", False)])
def test_a_config_that_says_nothing_of_the_activation_is_no_contradiction(
    tmp_path: Path, activation: str | None, quick: bool
) -> None:
    silent = {key: value for key, value in MODEL_CFG.items() if key != "quick_gelu"}
    safetensors.torch.save_file(weights(), tmp_path / "open_clip_model.safetensors")
    write_config(tmp_path, silent)
    model = loaded(load_clip(tmp_path, activation=activation))
    kinds = {type(module).__name__ for module in model.modules()}
    assert ("QuickGELU" in kinds) == quick
