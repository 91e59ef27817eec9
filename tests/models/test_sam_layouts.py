"""SAM in transformers' layout: computes what transformers does, and is refused by its own names."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.needs_torch
torch = pytest.importorskip("torch")
pytest.importorskip("segment_anything")

from safetensors.torch import load_file, save_file

from refdiff.contracts.spec import SamSpec
from refdiff.errors import InputError
from refdiff.models.sam import (
    load_sam,
)
from tests.support.small_sam import POINTS, assert_equal, saved_by, transformers_sam


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
