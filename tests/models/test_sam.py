"""A SAM written in a layout of the wild is sized up, loaded, and computes what its source does."""

import copy
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.needs_torch
torch = pytest.importorskip("torch")
pytest.importorskip("segment_anything")

import segment_anything
from accelerate import init_empty_weights
from safetensors.torch import load_file, save_file
from transformers import (
    SamConfig,
    SamMaskDecoderConfig,
    SamModel,
    SamPromptEncoderConfig,
    SamVisionConfig,
)

from refdiff.contracts.spec import SamSpec
from refdiff.errors import InputError
from refdiff.models.sam import (
    VIT_B,
    VIT_H,
    VIT_L,
    SamSizes,
    build_sam,
    infer_sam_sizes,
    load_sam,
    sam_spec,
)

SMALL = SamSizes(
    width=64,
    depth=3,
    heads=4,
    mlp_dim=200,  # no whole multiple of the width, as in pruned SAMs
    global_blocks=(1,),
    window_size=3,  # does not divide the grid: windows are padded, as in the real one
    image_size=256,
    embed_channels=64,
    mask_channels=8,
    decoder_mlp_dim=96,
    iou_width=48,
)
"""Every size that the tensors show is unlike the published one, but for the patches'."""

POINTS = ([[[30.0, 200.0]], [[120.0, 64.0]]], [[1], [0]])
"""Two prompts of one point each: x, y in pixels; one inside, one outside."""


def random_sam(sizes: SamSizes = SMALL) -> Any:
    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.manual_seed(7)
        sam = build_sam(sizes)
        for parameter in sam.parameters():  # a fresh SAM's position tables are zero, its norms one
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return sam.eval()


SOURCE = random_sam()


def outputs(sam: Any) -> tuple[Any, ...]:
    """Image embedding, then mask logits and predicted IoU for points, for a box and for a mask."""
    generator = torch.Generator().manual_seed(3)
    side = sam.image_encoder.img_size
    image = torch.randn(1, 3, side, side, generator=generator)
    mask = torch.randn(1, 1, side // 4, side // 4, generator=generator)
    points = (torch.tensor(POINTS[0]), torch.tensor(POINTS[1]))
    prompts: list[dict[str, Any]] = [
        {"points": points, "boxes": None, "masks": None},
        {"points": None, "boxes": torch.tensor([[20.0, 30.0, 180.0, 90.0]]), "masks": mask},
    ]
    with torch.no_grad():
        embedding = sam.image_encoder(sam.preprocess(image * 50 + 120))
        found = [embedding]
        for prompt in prompts:
            sparse, dense = sam.prompt_encoder(**prompt)
            found += sam.mask_decoder(
                image_embeddings=embedding,
                image_pe=sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
            )
    return tuple(found)


def assert_equal(sam: Any, source: Any) -> None:
    """To the last bit, tensors and outputs.

    The outputs are those of a copy: in a mapped file tensors begin where they please, and matrix products
    round differently (2e-7 of the largest value here) where memory is not aligned to 64 bytes.
    """
    for name, tensor in source.state_dict().items():
        assert torch.equal(sam.state_dict()[name], tensor), name
    for got, expected in zip(outputs(copy.deepcopy(sam)), outputs(source), strict=True):
        assert torch.equal(got, expected)
    assert not sam.training
    assert not any(parameter.requires_grad for parameter in sam.parameters())


def save_old(tensors: Any, file: Path) -> None:
    torch.save(tensors, file, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("zip.pth", torch.save),
        ("old.pth", save_old),
        ("plain.safetensors", save_file),
        ("nested.pt", lambda tensors, file: torch.save({"model": tensors, "epoch": 3}, file)),
        ("twice.ckpt", lambda tensors, file: torch.save({"state_dict": {"model": tensors}}, file)),
    ],
)
def test_what_was_written_computes_the_same(
    tmp_path: Path, name: str, save: Callable[[Any, Path], None]
) -> None:
    save(SOURCE.state_dict(), tmp_path / name)
    part = load_sam(tmp_path / name)
    assert part.spec == SamSpec(image_size=256, embed_channels=64, embed_size=16)
    assert part.vocabulary is None
    assert len(part.sources["sam"]) == 64
    assert_equal(part.loaders["sam"](), SOURCE)


@pytest.mark.parametrize("name", ["half.pth", "half.safetensors"])
def test_half_precision_is_the_source_rounded_once(tmp_path: Path, name: str) -> None:
    tensors = {key: tensor.half() for key, tensor in SOURCE.state_dict().items()}
    constants = {"pixel_mean": SOURCE.pixel_mean.half()}
    (save_file if name.endswith("safetensors") else torch.save)(tensors | constants, tmp_path / name)
    rounded = copy.deepcopy(SOURCE)
    rounded.load_state_dict({key: tensor.float() for key, tensor in tensors.items()})
    loaded = load_sam(tmp_path / name).loaders["sam"]()
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}
    assert_equal(loaded, rounded)


def test_pictures_constants_saved_with_the_weights_are_checked_and_dropped(tmp_path: Path) -> None:
    constants = {"pixel_mean": SOURCE.pixel_mean, "pixel_std": SOURCE.pixel_std}
    save_file(SOURCE.state_dict() | constants, tmp_path / "old.safetensors")
    assert_equal(load_sam(tmp_path / "old.safetensors").loaders["sam"](), SOURCE)
    save_file(SOURCE.state_dict() | {"pixel_std": torch.ones(3, 1, 1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"other\.safetensors: tensor pixel_std is not SAM's \[58\.395"):
        load_sam(tmp_path / "other.safetensors")


def test_loading_again_gives_another_module_and_leaves_random_numbers_alone(tmp_path: Path) -> None:
    torch.save(SOURCE.state_dict(), tmp_path / "sam.pth")
    before = torch.get_rng_state()
    load = load_sam(tmp_path / "sam.pth").loaders["sam"]
    first, second = load(), load()
    assert first is not second
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "sizes",
    [
        SMALL,
        replace(SMALL, absolute_positions=False),
        replace(SMALL, global_blocks=(0, 1, 2), window_size=0),
        replace(SMALL, window_size=20),  # wider than the grid of 16: one padded window
        replace(SMALL, patch_size=8, decoder_depth=1, decoder_downsampling=1, iou_depth=4),
        replace(SMALL, iou_depth=1, iou_width=4),
        replace(SMALL, width=56, heads=2, mlp_dim=149),
    ],
)
def test_sizes_are_read_off_the_tensors(sizes: SamSizes) -> None:
    with torch.device("meta"):
        tensors = build_sam(sizes).state_dict()
    assert infer_sam_sizes(tensors, Path("sam.pth")) == sizes


@pytest.mark.parametrize(("name", "sizes"), [("vit_b", VIT_B), ("vit_l", VIT_L), ("vit_h", VIT_H)])
def test_published_sizes_are_those_that_segment_anything_builds(name: str, sizes: SamSizes) -> None:
    with init_empty_weights():
        original = segment_anything.sam_model_registry[name]()
        ours = build_sam(sizes)
    tensors = original.state_dict()
    assert infer_sam_sizes(tensors, Path("sam.pth")) == sizes
    assert sam_spec(sizes) == SamSpec(image_size=1024, embed_channels=256, embed_size=64)
    assert {key: value.shape for key, value in ours.state_dict().items()} == {
        key: value.shape for key, value in tensors.items()
    }
    # What no tensor shows: windows, heads, the norms' epsilon, the pictures' constants.
    assert repr(ours) == repr(original)
    assert [block.window_size for block in ours.image_encoder.blocks] == [
        block.window_size for block in original.image_encoder.blocks
    ]
    assert ours.image_encoder.blocks[0].attn.num_heads == original.image_encoder.blocks[0].attn.num_heads
    assert ours.mask_decoder.transformer.num_heads == original.mask_decoder.transformer.num_heads
    assert torch.equal(ours.pixel_mean, original.pixel_mean)
    assert torch.equal(ours.pixel_std, original.pixel_std)
    assert ours.pixel_mean.flatten().tolist() == torch.tensor(SamSpec.pixel_mean).tolist()
    assert ours.pixel_std.flatten().tolist() == torch.tensor(SamSpec.pixel_std).tolist()


# --- transformers' layout


def transformers_sam(*, heads: int = 8, iou_depth: int = 3, norm_epsilon: float = 1e-5) -> Any:
    """transformers' own model with random weights, of SMALL's sizes.

    Its decoder's norms are given segment_anything's epsilon, so that nothing but names can differ.
    """
    config = SamConfig(
        vision_config=SamVisionConfig(
            hidden_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=256,
            window_size=3,
            global_attn_indexes=[1],
            output_channels=64,
            num_pos_feats=32,
            mlp_dim=200,
        ),
        prompt_encoder_config=SamPromptEncoderConfig(hidden_size=64, image_size=256, mask_input_channels=8),
        mask_decoder_config=SamMaskDecoderConfig(
            hidden_size=64,
            mlp_dim=96,
            num_attention_heads=heads,
            iou_head_hidden_dim=48,
            iou_head_depth=iou_depth,
            layer_norm_eps=norm_epsilon,
        ),
    )
    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.manual_seed(13)
        model = SamModel(config).eval()
        for parameter in model.parameters():
            parameter.copy_(parameter.clip(-1, 1) + torch.randn_like(parameter) * 0.1)
    return model


def saved_by(model: Any, folder: Path, **options: Any) -> Path:
    """Saved as the published ones are, which state another epsilon for the decoder than SAM's code has."""
    model.save_pretrained(folder, **options)
    file = folder / "config.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    document["mask_decoder_config"]["layer_norm_eps"] = 1e-6
    file.write_text(json.dumps(document), encoding="utf-8")
    return folder


def difference_to_transformers(sam: Any, model: Any) -> float:
    """The largest difference of embedding, masks and IoU, each as a part of its range."""
    image = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(5))
    points, labels = torch.tensor(POINTS[0]), torch.tensor(POINTS[1])
    with torch.no_grad():
        theirs = model(pixel_values=image, input_points=points[None], input_labels=labels[None])
        embedding = sam.image_encoder(image)
        sparse, dense = sam.prompt_encoder(points=(points, labels), boxes=None, masks=None)
        masks, iou = sam.mask_decoder(
            image_embeddings=embedding,
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )
        pairs = [
            (embedding, model.get_image_embeddings(image)),
            (masks, theirs.pred_masks[0]),
            (iou, theirs.iou_scores[0]),
        ]
    return max(float((a - b).abs().max() / (b.max() - b.min())) for a, b in pairs)


@pytest.mark.parametrize(("heads", "iou_depth"), [(8, 3), (4, 3), (8, 5)])
def test_a_folder_of_transformers_computes_what_transformers_does(
    tmp_path: Path, heads: int, iou_depth: int
) -> None:
    model = transformers_sam(heads=heads, iou_depth=iou_depth)
    part = load_sam(saved_by(model, tmp_path / "sam"))
    assert part.spec == SamSpec(image_size=256, embed_channels=64, embed_size=16)
    assert difference_to_transformers(part.loaders["sam"](), model) < 1e-5


def test_transformers_own_epsilon_is_a_difference_of_rounding(tmp_path: Path) -> None:
    model = transformers_sam(norm_epsilon=1e-6)
    saved_by(model, tmp_path / "sam")
    assert difference_to_transformers(load_sam(tmp_path / "sam").loaders["sam"](), model) < 1e-4


def test_the_published_epsilons_are_taken(tmp_path: Path) -> None:
    transformers_sam(norm_epsilon=1e-6).save_pretrained(tmp_path)
    document = json.loads((tmp_path / "config.json").read_text())
    assert document["mask_decoder_config"]["layer_norm_eps"] == 1e-6
    assert document["vision_config"]["layer_norm_eps"] == 1e-6
    assert load_sam(tmp_path).spec.embed_channels == 64


def test_shards_and_old_files_of_transformers_load_like_one_file(tmp_path: Path) -> None:
    model = transformers_sam()
    saved_by(model, tmp_path / "one")
    saved_by(model, tmp_path / "shards", max_shard_size="200KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    # Old files are pickles and hold the frequencies of the positions twice.
    (tmp_path / "old").mkdir()
    shutil.copy(tmp_path / "one" / "config.json", tmp_path / "old")
    tensors = load_file(tmp_path / "one" / "model.safetensors")
    shared = tensors["shared_image_embedding.positional_embedding"]
    torch.save(
        tensors | {"prompt_encoder.shared_embedding.positional_embedding": shared.clone()},
        tmp_path / "old" / "pytorch_model.bin",
    )
    expected = copy.deepcopy(load_sam(tmp_path / "one").loaders["sam"]())
    for path in ("shards", "old", "one/model.safetensors", "shards/model.safetensors.index.json"):
        assert_equal(load_sam(tmp_path / path).loaders["sam"](), expected)


def rewritten(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A folder of transformers whose tensors went through `change`."""
    saved_by(transformers_sam(), folder)
    file = folder / "model.safetensors"
    # Copied out of the file, which is mapped and about to be written.
    tensors = {key: tensor.clone() for key, tensor in load_file(file).items()}
    change(tensors)
    file.unlink()
    save_file(tensors, file)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("vision_encoder.neck.conv2.weight"),
            r"vision_encoder\.neck\.conv2\.weight is missing",
        ),
        (
            lambda t: t.pop("vision_encoder.layers.2.attn.rel_pos_h"),
            r"vision_encoder\.layers\.2\.attn\.rel_pos_h is missing",
        ),
        (
            lambda t: t.pop("mask_decoder.output_hypernetworks_mlps.1.layers.0.bias"),
            r"mask_decoder\.output_hypernetworks_mlps\.1\.layers\.0\.bias is missing",
        ),
        (
            lambda t: t.pop("mask_decoder.transformer.layer_norm_final_attn.bias"),
            r"mask_decoder\.transformer\.layer_norm_final_attn\.bias is missing",
        ),
        (lambda t: t.update({"extra.weight": torch.ones(2)}), r"extra\.weight is not part"),
        (
            lambda t: t.update({"image_encoder.pos_embed": torch.ones(2)}),
            r"(vision|image)_encoder\.pos_embed and (vision|image)_encoder\.pos_embed are one",
        ),
        (
            lambda t: t.update({"prompt_encoder.shared_embedding.positional_embedding": torch.ones(2, 32)}),
            r"prompt_encoder\.shared_embedding\.positional_embedding is not equal to shared_image",
        ),
    ],
)
def test_a_wrong_tensor_of_transformers_is_named_as_the_file_names_it(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    folder = rewritten(tmp_path / "sam", change)
    with pytest.raises(InputError, match=r"model\.safetensors: tensors? " + message):
        load_sam(folder).loaders["sam"]()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"vision_config": {"hidden_act": "relu"}}', r"vision_config\.hidden_act is 'relu', expected"),
        ('{"mask_decoder_config": {"num_attention_heads": "8"}}', r"num_attention_heads is '8'"),
        ('{"mask_decoder_config": {"num_attention_heads": 5}}', r"final_attn.*q_proj\.weight .* 5 heads"),
        ('{"mask_decoder_config": {"num_attention_heads": true}}', r"num_attention_heads is True"),
        ('{"vision_config": {"layer_norm_eps": 1e-5}}', r"vision_config\.layer_norm_eps is 1e-05, expected"),
        ('{"mask_decoder_config": {"layer_norm_eps": 1e-5}}', r"mask_decoder_config\.layer_norm_eps is 1e-0"),
        ('{"prompt_encoder_config": {"layer_norm_eps": "z"}}', r"prompt_encoder_config\.layer_norm_eps is"),
        ('{"vision_config": {"hidden_act": {}}}', r"vision_config\.hidden_act is \{\}"),
        ('{"vision_config": [5]}', r"vision_config is \[5\], expected an object"),
        ("[1, 2]", "holds a list, expected an object"),
        ("{", "is not readable as JSON"),
        ('{"x": ' * 100_000 + "1" + "}" * 100_000, "is not readable as JSON|nested"),
    ],
    ids=str.__len__,
)
def test_a_configuration_that_cannot_be_computed_is_refused(tmp_path: Path, text: str, message: str) -> None:
    transformers_sam().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        load_sam(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_configuration_without_the_decoder_means_the_published_one(tmp_path: Path) -> None:
    model = transformers_sam()
    saved_by(model, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam"}), encoding="utf-8")
    assert difference_to_transformers(load_sam(tmp_path).loaders["sam"](), model) < 1e-5


def test_a_folder_without_weights_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"no SAM weights, expected one of model\.safetensors, .*; name a file"
    ):
        load_sam(tmp_path)


# --- other files


def changed(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    tensors = dict(SOURCE.state_dict())
    change(tensors)
    torch.save(tensors, tmp_path / "sam.pth")
    return tmp_path / "sam.pth"


REL_POS = "image_encoder.blocks.2.attn.rel_pos_h"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("image_encoder.neck.0.weight"), r"image_encoder\.neck\.0\.weight is missing"),
        (lambda t: t.pop("mask_decoder.mask_tokens.weight"), r"mask_decoder\.mask_tokens\.weight is missing"),
        (lambda t: t.pop("image_encoder.blocks.0.attn.qkv.bias"), r"blocks\.0\.attn\.qkv\.bias is missing"),
        (lambda t: t.pop(REL_POS), r"blocks\.2\.attn\.rel_pos_h is missing"),
        (
            lambda t: [t.pop(key) for key in list(t) if ".blocks." in key],
            r"blocks\.0\.attn\.rel_pos_h is missing",
        ),
        (lambda t: t.update({"head.weight": torch.ones(2)}), r"head\.weight is not part"),
        (
            lambda t: t.update({"image_encoder.neck.0.weight": torch.ones(64, 32, 1, 1)}),
            r"image_encoder\.neck\.0\.weight has shape \[64, 32, 1, 1\], expected \[64, 64, 1, 1\]",
        ),
        (lambda t: t.update({REL_POS: torch.ones(13, 16)}), r"rel_pos_h does not determine which blocks"),
        (lambda t: t.update({REL_POS: torch.ones(0, 16)}), r"rel_pos_h has shape \[0, 16\]"),
        (lambda t: t.update({REL_POS: torch.ones(5)}), r"rel_pos_h has shape \[5\], expected 2 axes"),
        (
            lambda t: t.update({"image_encoder.blocks.0.attn.rel_pos_h": torch.ones(5, 30)}),
            r"rel_pos_h is 30 wide: no whole number of heads in 64",
        ),
        (
            lambda t: t.update({"image_encoder.neck.2.weight": torch.full((64, 64, 3, 3), float("nan"))}),
            r"image_encoder\.neck\.2\.weight holds NaN",
        ),
        (
            lambda t: t.update({"mask_decoder.iou_token.weight": torch.ones(1, 64, dtype=torch.int8)}),
            r"mask_decoder\.iou_token\.weight is torch\.int8, expected torch\.float32",
        ),
        (lambda t: t.update({"mask_decoder.hf_token.weight": torch.ones(1, 64)}), r"hf_token.* HQ-SAM"),
        (lambda t: t.update({"mask_decoder.hq_token.weight": torch.ones(1, 64)}), r"hq_token.* HQ-SAM"),
        (
            lambda t: t.update({"image_encoder.trunk.pos_embed": torch.ones(1)}),
            r"image_encoder\.trunk\.pos_embed belongs to SAM 2",
        ),
        (
            lambda t: t.update({"mask_decoder.mask_tokens.weight": torch.ones(6, 64)}),
            r"mask_decoder\.mask_tokens\.weight has 6 rows, expected 4",
        ),
        (
            lambda t: t.update({"mask_decoder.iou_token.weight": torch.ones(1, 64).to_sparse()}),
            r"mask_decoder\.iou_token\.weight is stored by torch\._utils\._rebuild_sparse_tensor",
        ),
        (
            lambda t: t.update({"mask_decoder.iou_token.weight": torch.ones(1, 64).to(torch.float8_e5m2)}),
            r"mask_decoder\.iou_token\.weight is torch\.float8_e5m2, expected",
        ),
        (
            lambda t: t.update({"sam_mask_decoder.iou_token.weight": torch.ones(1)}),
            r"sam_mask_decoder\.iou_token\.weight belongs to SAM 2",
        ),
    ],
)
def test_a_wrong_tensor_is_named_with_its_file(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    file = changed(tmp_path, change)
    with pytest.raises(InputError, match=re.escape(str(file)) + ": tensor .*" + message) as caught:
        load_sam(file).loaders["sam"]()
    assert "\n" not in str(caught.value)


def test_a_sam_with_another_number_of_masks_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    torch.save(random_sam(replace(SMALL, masks=5)).state_dict(), tmp_path / "sam.pth")
    with pytest.raises(InputError, match=r"sam\.pth: tensor mask_decoder\.mask_tokens\.weight has 6 rows"):
        load_sam(tmp_path / "sam.pth")


def behind_module(tensors: dict[str, Any]) -> dict[str, Any]:
    """As torch's data-parallel training names them."""
    return {f"module.{key}": tensor for key, tensor in tensors.items()}


def test_a_trainers_prefix_is_taken_off(tmp_path: Path) -> None:
    constants = {"pixel_mean": SOURCE.pixel_mean}
    torch.save({"model": behind_module(SOURCE.state_dict() | constants)}, tmp_path / "sam.pth")
    assert_equal(load_sam(tmp_path / "sam.pth").loaders["sam"](), SOURCE)


def test_a_trainers_prefix_is_taken_off_transformers_names_too(tmp_path: Path) -> None:
    saved_by(transformers_sam(), tmp_path / "plain")
    tensors = load_file(tmp_path / "plain" / "model.safetensors")
    save_file(behind_module(tensors), tmp_path / "sam.safetensors")
    expected = copy.deepcopy(load_sam(tmp_path / "plain").loaders["sam"]())
    assert_equal(load_sam(tmp_path / "sam.safetensors").loaders["sam"](), expected)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("image_encoder.neck.0.weight", lambda t, key: t.pop(key)),
        ("mask_decoder.mask_tokens.weight", lambda t, key: t.pop(key)),
        ("mask_decoder.hf_token.weight", lambda t, key: t.update({key: torch.ones(1)})),
        ("extra.weight", lambda t, key: t.update({key: torch.ones(1)})),
        ("pixel_mean", lambda t, key: t.update({key: torch.ones(3)})),
    ],
)
def test_a_wrong_tensor_is_named_with_the_trainers_prefix(
    tmp_path: Path, name: str, change: Callable[[dict[str, Any], str], object]
) -> None:
    tensors = behind_module(dict(SOURCE.state_dict()))
    change(tensors, f"module.{name}")
    torch.save(tensors, tmp_path / "sam.pth")
    with pytest.raises(InputError, match=rf"tensor module\.{re.escape(name)} "):
        load_sam(tmp_path / "sam.pth").loaders["sam"]()


def test_a_clip_given_as_sam_is_refused_by_file_and_tensor(tmp_path: Path) -> None:
    save_file({"visual.proj": torch.ones(4, 4), "logit_scale": torch.ones(1)}, tmp_path / "clip.safetensors")
    with pytest.raises(
        InputError, match=r"clip\.safetensors is no SAM checkpoint: it holds \S+ and no image_enc"
    ):
        load_sam(tmp_path / "clip.safetensors")


def test_a_file_that_changed_before_it_was_loaded_is_refused(tmp_path: Path) -> None:
    torch.save(SOURCE.state_dict(), tmp_path / "sam.pth")
    part = load_sam(tmp_path / "sam.pth")
    changed(tmp_path, lambda tensors: tensors.pop("image_encoder.neck.0.weight"))
    with pytest.raises(InputError, match=r"image_encoder\.neck\.0\.weight is missing"):
        part.loaders["sam"]()
