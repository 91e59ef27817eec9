"""CLIP checkpoints: written in each original format, read back, and the same to the last bit."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install '.[export]'")

import open_clip
import safetensors.torch
import torch
from accelerate import init_empty_weights
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from refdiff.contracts.spec import ClipSpec
from refdiff.errors import InputError
from refdiff.export.clip_graphs import ClipImage, ClipText
from refdiff.models.clip import load_clip
from refdiff.models.clip.configs import read_open_clip_config
from refdiff.models.clip.loading import to_open_clip, written_by_transformers
from refdiff.models.clip.sizes import VIT_B_16, VIT_B_32, VIT_L_14, ClipSizes, build_clip, infer_clip_sizes
from refdiff.models.fitting import Part
from refdiff.models.hub.names import FOLDER_WEIGHTS, choose_files
from tests.support.tiny_stack import tiny_stack

pytestmark = pytest.mark.needs_torch

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
