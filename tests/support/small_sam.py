"""A small SAM with random weights."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("segment_anything")

from transformers import (
    SamConfig,
    SamMaskDecoderConfig,
    SamModel,
    SamPromptEncoderConfig,
    SamVisionConfig,
)

from refdiff.models.sam import (
    SamSizes,
    build_sam,
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
