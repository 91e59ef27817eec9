"""A SAM written in a layout of the wild is sized up, loaded, and computes what its source does."""

import copy
import re
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
from tests.support.small_sam import SMALL, SOURCE, assert_equal, random_sam, saved_by, transformers_sam


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
