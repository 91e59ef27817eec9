"""CLIP checkpoints: written in each original format, read back, and the same to the last bit."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install '.[export]'")

import open_clip
import safetensors.torch
import torch
from accelerate import init_empty_weights
from transformers import CLIPConfig, CLIPModel

from refdiff.contracts.spec import ClipSpec
from refdiff.errors import InputError
from refdiff.export.clip_graphs import ClipImage, ClipText
from refdiff.models.clip import load_clip
from refdiff.models.clip.configs import read_open_clip_config
from refdiff.models.clip.loading import to_open_clip, written_by_transformers
from refdiff.models.clip.sizes import VIT_B_16, VIT_B_32, VIT_L_14, ClipSizes, build_clip, infer_clip_sizes
from tests.support.small_clip import (
    GELU_CFG,
    MEAN,
    MODEL_CFG,
    SMALL,
    STD,
    Weights,
    assert_same,
    loaded,
    phrases,
    pictures,
    random_clip,
    refusal,
    saved,
    small,
    transformers_clip,
    transformers_config,
    weights,
    with_openai_entries,
    write_config,
    write_transformers,
)

pytestmark = pytest.mark.needs_torch


def write_openai_archive(path: Path) -> open_clip.CLIP:
    """A traced module in OpenAI's mixed precision with OpenAI's extra entries; returns it in float32."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(3)
        source = build_clip(SMALL).eval().requires_grad_(requires_grad=False)
    for parameter in source.parameters():
        parameter.copy_(parameter.half())
    archived = open_clip.CLIP(**MODEL_CFG, cast_dtype=torch.float16).eval()
    archived.load_state_dict(source.state_dict())
    archived.requires_grad_(requires_grad=False)
    open_clip.model.convert_weights_to_lp(archived)
    mask = archived.attn_mask
    del archived.attn_mask, archived.context_length, archived.vocab_size
    archived.attn_mask = mask  # a constant of the trace, no buffer
    for name, value in (("input_resolution", 32), ("context_length", 77), ("vocab_size", 300)):
        archived.register_buffer(name, torch.tensor(value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates writing these
        traced = torch.jit.trace(archived, (pictures().half(), phrases()), check_trace=False)
        traced.save(str(path))
    assert any(tensor.dtype == torch.float16 for tensor in archived.state_dict().values())
    return source


# Formats


def test_an_openai_archive_in_half_precision_loads_exactly(tmp_path: Path) -> None:
    source = write_openai_archive(tmp_path / "ViT.pt")
    part = load_clip(tmp_path / "ViT.pt")
    assert_same(loaded(part), source)
    assert part.spec == ClipSpec(image_size=32, patch_size=8, width=128, embed_dim=32)


def test_an_archive_traced_by_open_clip_loads_exactly_once_the_activation_is_named(tmp_path: Path) -> None:
    source = random_clip()
    source.visual.image_size = 32  # trace_model wants one side, the constructor stores two
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates writing these
        open_clip.trace_model(source, batch_size=2).save(str(tmp_path / "traced.pt"))
    assert "--clip-activation" in refusal(tmp_path / "traced.pt", activation=None)
    assert_same(loaded(load_clip(tmp_path / "traced.pt", activation="quick_gelu")), small())


def test_an_openai_state_dict_loads_exactly_and_with_quick_gelu(tmp_path: Path) -> None:
    part = load_clip(saved(tmp_path / "clip.pt", with_openai_entries(weights())))
    assert_same(loaded(part), small())
    assert part.vocabulary == 300


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_an_open_clip_folder_loads_exactly_with_what_its_config_says(tmp_path: Path, name: str) -> None:
    source = random_clip(dataclasses.replace(SMALL, quick_gelu=False))
    write_config(tmp_path, GELU_CFG, preprocess_cfg={"mean": MEAN, "std": STD})
    save = safetensors.torch.save_file if name.endswith("safetensors") else torch.save
    save(dict(source.state_dict()), tmp_path / name)
    part = load_clip(tmp_path)
    assert_same(loaded(part), source)
    assert (part.spec.pixel_mean, part.spec.pixel_std) == (tuple(MEAN), tuple(STD))


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_a_bare_state_dict_loads_exactly_once_the_activation_is_named(
    tmp_path: Path, activation: str
) -> None:
    source = random_clip(dataclasses.replace(SMALL, quick_gelu=activation == "quick_gelu"))
    safetensors.torch.save_file(source.state_dict(), tmp_path / "clip.safetensors")
    assert_same(loaded(load_clip(tmp_path / "clip.safetensors", activation=activation)), source)


def test_the_two_activations_answer_differently_on_the_same_weights(tmp_path: Path) -> None:
    file = saved(tmp_path / "clip.pt", weights())
    quick, plain = (loaded(load_clip(file, activation=name)) for name in ("quick_gelu", "gelu"))
    assert (quick.encode_text(phrases()) - plain.encode_text(phrases())).abs().max() > 1e-3
    assert (quick.encode_image(pictures()) - plain.encode_image(pictures())).abs().max() > 1e-3


def test_a_trainers_file_with_its_wrapping_and_prefix_loads_exactly(tmp_path: Path) -> None:
    wrapped = {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in weights().items()}}
    torch.save(wrapped, tmp_path / "epoch_3.pt")
    assert_same(loaded(load_clip(tmp_path / "epoch_3.pt", activation="quick_gelu")), small())


def tiny_clip(tensors: Weights) -> Weights:
    """The names of the original TinyCLIP files, written by several processes."""

    def written(name: str) -> str:
        if name == "logit_scale":
            return "module._logit_scale.logit_scale"
        return f"module.{'_image' if name.startswith('visual.') else '_text'}_encoder.{name}"

    return {written(name): tensor for name, tensor in tensors.items()}


def test_an_original_tiny_clip_file_loads_exactly_and_its_own_names_are_in_messages(tmp_path: Path) -> None:
    tensors = tiny_clip(weights())
    torch.save({"epoch": 3, "state_dict": tensors}, tmp_path / "TinyCLIP.pt")
    assert_same(loaded(load_clip(tmp_path / "TinyCLIP.pt", activation="quick_gelu")), small())
    del tensors["module._text_encoder.ln_final.bias"]
    said = refusal(saved(tmp_path / "less.pt", tensors))
    assert "module._text_encoder.ln_final.bias" in said


def test_a_tiny_clip_with_layers_of_different_widths_is_refused(tmp_path: Path) -> None:
    """Those that were pruned automatically ("auto") have their own number of heads in each layer."""
    tensors = tiny_clip(weights())
    prefix = "module._image_encoder.visual.transformer.resblocks.1.attn."
    for name in ("in_proj_weight", "in_proj_bias"):
        tensors[prefix + name] = tensors[prefix + name][: 3 * 64].clone()
    tensors[prefix + "out_proj.weight"] = tensors[prefix + "out_proj.weight"][:, :64].clone()
    assert "resblocks.1.attn." in refusal(saved(tmp_path / "auto.pt", tensors))


@pytest.mark.slow
def test_clips_of_tiny_clip_s_published_sizes_are_known(tmp_path: Path) -> None:
    """TinyCLIP-ViT-8M-16-Text-3M, as on the hub; its towers have different widths and depths."""
    text = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 3, "num_attention_heads": 4}
    vision = {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 10,
        "num_attention_heads": 4,
        "image_size": 224,
        "patch_size": 16,
    }
    config = CLIPConfig(
        text_config={"vocab_size": 300, "bos_token_id": 298, "eos_token_id": 299, **text},
        vision_config=vision,
        projection_dim=512,
    )
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    source = CLIPModel(config).eval()
    safetensors.torch.save_file(dict(source.state_dict()), tmp_path / "model.safetensors")
    part = load_clip(tmp_path)
    assert part.spec == ClipSpec(image_size=224, patch_size=16, width=256, embed_dim=512)
    ours = loaded(part)
    with torch.no_grad():
        vectors = ours.encode_image(pictures(224)).numpy()
        theirs = source.visual_projection(source.vision_model(pictures(224)).pooler_output).numpy()
    assert abs(vectors - theirs).max() < 1e-5


def test_odd_head_and_mlp_widths_are_taken_from_the_config_and_the_tensors(tmp_path: Path) -> None:
    # As ViT-g-14: heads 88 wide, and an MLP that is no whole multiple of the width.
    vision = {
        "image_size": 32,
        "layers": 1,
        "width": 176,
        "head_width": 88,
        "patch_size": 8,
        "mlp_ratio": 4.3637,
    }
    model_cfg = {**MODEL_CFG, "vision_cfg": vision}
    source = open_clip.CLIP(**model_cfg).eval().requires_grad_(requires_grad=False)
    write_config(tmp_path, model_cfg)
    torch.save(source.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    ours = loaded(load_clip(tmp_path))
    assert ours.visual.transformer.resblocks[0].attn.num_heads == 2
    assert_same(ours, source)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("shards", [False, True])
def test_a_transformers_folder_answers_as_transformers_does(
    tmp_path: Path, activation: str, *, shards: bool
) -> None:
    theirs = transformers_clip(hidden_act=activation)
    theirs.save_pretrained(tmp_path, max_shard_size="100KB" if shards else "1GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == shards
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
    part = load_clip(tmp_path)
    ours = loaded(part)
    with torch.no_grad():
        answer = theirs(input_ids=phrases(), pixel_values=pictures())
        images = torch.nn.functional.normalize(ours.encode_image(pictures()), dim=-1)
        texts = torch.nn.functional.normalize(ours.encode_text(phrases()), dim=-1)
    torch.testing.assert_close(images, answer.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(texts, answer.text_embeds, atol=1e-5, rtol=0)
    assert (part.spec.pixel_mean, part.spec.pixel_std) == (tuple(MEAN), tuple(STD))
    assert part.vocabulary == 300


def test_an_older_transformers_file_with_stored_positions_loads_the_same(tmp_path: Path) -> None:
    state = dict(transformers_clip().state_dict())
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    state["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    (tmp_path / "config.json").write_text(json.dumps(transformers_config().to_dict()))
    saved(tmp_path / "pytorch_model.bin", state)
    processor = {"image_processor": {"image_mean": MEAN, "image_std": STD}}
    (tmp_path / "processor_config.json").write_text(json.dumps(processor))
    part = load_clip(tmp_path)
    assert part.spec.pixel_mean == tuple(MEAN)
    expected = to_open_clip(transformers_clip().state_dict(), tmp_path)
    found = loaded(part).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_folder_with_both_layouts_is_read_by_open_clips(tmp_path: Path) -> None:
    write_transformers(tmp_path)
    write_config(tmp_path)
    safetensors.torch.save_file(weights(), tmp_path / "open_clip_model.safetensors")
    assert_same(loaded(load_clip(tmp_path)), small())


def test_every_tensor_of_open_clips_has_a_name_in_transformers() -> None:
    theirs = transformers_clip().state_dict()
    named = {written_by_transformers(name) for name in weights()}
    assert named <= theirs.keys()
    packed = {name for name in theirs if ".k_proj." in name or ".v_proj." in name}
    assert theirs.keys() - named == packed


# Lateness, sources, what the exporter takes


def test_weights_are_read_when_the_loader_is_called_and_not_before(tmp_path: Path) -> None:
    file = saved(tmp_path / "clip.pt", weights())
    part = load_clip(file, activation="quick_gelu")
    other = {name: tensor + 1 for name, tensor in weights().items()}
    saved(file, other)
    assert torch.equal(loaded(part).visual.proj, other["visual.proj"])


def test_the_source_is_the_files_hash(tmp_path: Path) -> None:
    one = load_clip(saved(tmp_path / "a.pt", weights()), activation="gelu").sources["clip"]
    changed = weights() | {"logit_scale": torch.tensor(1.0)}
    two = load_clip(saved(tmp_path / "b.pt", changed), activation="gelu").sources["clip"]
    assert len(one) == 64
    assert one != two


def test_the_exporters_graphs_answer_as_the_loaded_module(tmp_path: Path) -> None:
    clip = loaded(load_clip(saved(tmp_path / "clip.pt", with_openai_entries(weights()))))
    with torch.no_grad():
        end = phrases().argmax(dim=1).int()
        text = ClipText(clip)(phrases().int(), end)
        patches = torch.nn.functional.unfold(pictures(), 8, stride=8).transpose(1, 2)  # [b, p, 3*8*8]
        positions = clip.visual.positional_embedding[None, 1:].expand(2, -1, -1)
        image = ClipImage(clip)(patches, positions, torch.zeros(2, 1, 1), torch.zeros(2, 17, 17))
        torch.testing.assert_close(text, clip.encode_text(phrases()), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(image[:, 0], clip.encode_image(pictures()), atol=1e-4, rtol=1e-4)


# Sizes


@pytest.mark.parametrize(
    ("name", "expected"),
    [("ViT-B-32-quickgelu", VIT_B_32), ("ViT-B-16-quickgelu", VIT_B_16), ("ViT-L-14-quickgelu", VIT_L_14)],
)
def test_the_sizes_of_openais_models_are_inferred_from_the_shapes_alone(
    tmp_path: Path, name: str, expected: ClipSizes
) -> None:
    model_cfg = open_clip.get_model_config(name)
    with init_empty_weights(include_buffers=False):
        tensors = open_clip.CLIP(**model_cfg).state_dict()
    assert infer_clip_sizes(tensors, tmp_path, quick_gelu=True) == expected
    config = read_open_clip_config(write_config(tmp_path, model_cfg))
    assert infer_clip_sizes(tensors, tmp_path, quick_gelu=config.quick_gelu, config=config) == expected


def test_a_huge_tower_needs_its_config_because_its_heads_are_wider(tmp_path: Path) -> None:
    model_cfg = open_clip.get_model_config("ViT-H-14")
    model_cfg["vision_cfg"]["layers"] = 1
    model_cfg["text_cfg"]["layers"] = 1
    with init_empty_weights(include_buffers=False):
        tensors = open_clip.CLIP(**model_cfg).state_dict()
    with pytest.raises(InputError, match=r"heads of an image tower 1280 wide .* open_clip_config\.json"):
        infer_clip_sizes(tensors, tmp_path, quick_gelu=False)
    config = read_open_clip_config(write_config(tmp_path, model_cfg))
    assert infer_clip_sizes(tensors, tmp_path, quick_gelu=False, config=config).vision_heads == 16
