"""MobileSAM and EfficientViT-SAM from their published files, compared with the authors' packages."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.needs_torch
torch = pytest.importorskip("torch")

from safetensors.torch import save_file

from refdiff.contracts.graphs import graph_contract
from refdiff.errors import InputError
from refdiff.models.configs import Shapes
from refdiff.models.sam import (
    EFFICIENT_SAM_L0,
    EFFICIENT_SAM_XL0,
    MOBILE_SAM,
    build_sam,
    load_sam,
    sam_spec,
)
from refdiff.models.sam.layouts import find_small
from refdiff.models.stacks import random_module
from tests.support.tiny_stack import TINY

with warnings.catch_warnings():  # of names that timm has moved, and models that it has registered
    warnings.simplefilter("ignore")
    mobile_sam = pytest.importorskip("mobile_sam")
    zoo = pytest.importorskip("efficientsam.sam_model_zoo")


def drawn(module: Any, seed: int = 1) -> Any:
    """The module with random numbers in every tensor: in fresh norms and biases all are alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if name.endswith(("running_var", "bn.weight", "norm.weight")):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith(("bias", "attention_biases", "running_mean")):
                tensor.normal_(std=0.3, generator=generator)
    module.train()
    return module.eval()  # MobileSAM's makes its tables of biases here


def draw(*shape: int) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def decoded(sam: Any, side: int) -> tuple[Any, ...]:
    """Masks and predicted IoU of one point on a drawn embedding; the decoder alone."""
    points = (torch.tensor([[[0.4 * side, 0.7 * side]]]), torch.ones(1, 1, dtype=torch.int))
    sparse, dense = sam.prompt_encoder(points=points, boxes=None, masks=None)
    masks, iou = sam.mask_decoder(
        image_embeddings=draw(1, 256, 64, 64),
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
    )
    return masks, iou


def assert_close(got: Any, expected: Any) -> None:
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("wrapped", [False, True])
@torch.no_grad()
def test_a_published_mobile_sam_computes_what_the_authors_package_does(tmp_path: Path, wrapped: bool) -> None:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(1)
        source = drawn(mobile_sam.sam_model_registry["vit_t"]())
    state = source.state_dict()
    assert any(key.startswith("image_encoder.head.") for key in state)  # in the published file too
    torch.save({"model": state} if wrapped else state, tmp_path / "mobile_sam.pt")
    part = load_sam(tmp_path / "mobile_sam.pt")
    assert part.spec == sam_spec(MOBILE_SAM)
    contract = graph_contract(replace(TINY, sam=part.spec))
    assert tuple(contract["sam_encoder"].outputs[0].shape) == (1, 256, 64, 64)
    loaded = part.loaders["sam"]()
    for got, expected in zip(decoded(loaded, 1024), decoded(source, 1024), strict=True):
        assert_close(got, expected)
    if not wrapped:
        image = draw(1, 3, 1024, 1024)
        assert_close(loaded.image_encoder(image), source.image_encoder(image))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "expected_sizes"), [("l0", EFFICIENT_SAM_L0), ("xl0", EFFICIENT_SAM_XL0)])
@torch.no_grad()
def test_a_published_efficient_vit_sam_computes_what_the_authors_package_does(
    tmp_path: Path, name: str, expected_sizes: Any
) -> None:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(1)
        source = drawn(zoo.create_efficientvit_sam_model(f"efficientvit-sam-{name}", pretrained=False))
    torch.save({"state_dict": source.state_dict()}, tmp_path / "efficientvit_sam.pt")
    part = load_sam(tmp_path / "efficientvit_sam.pt")
    assert (part.spec.image_size, part.spec.embed_size) == (source.image_size[1], 64)
    assert part.spec == sam_spec(expected_sizes)
    loaded = part.loaders["sam"]()
    image = draw(1, 3, 128, 128)  # its stages take any side
    assert_close(loaded.image_encoder(image), source.image_encoder(image))
    # The authors place prompts on an image of 1024 px, and count half of one of its pixels more.
    side = part.spec.image_size
    for got, expected in zip(decoded(loaded, side), decoded(source, 1024), strict=True):
        assert (got - expected).abs().max() <= (1e-5 if side == 1024 else 1e-2) * expected.abs().max()


@pytest.mark.parametrize("name", ["l1", "l2", "xl1"])
def test_a_deeper_efficient_vit_sam_has_the_tensors_of_the_authors(name: str) -> None:
    """L1 and L2 compute as L0 does, and XL1 as XL0, in more blocks: their sizes are read from the file."""
    with torch.device("meta"):
        source = zoo.create_efficientvit_sam_model(f"efficientvit-sam-{name}", pretrained=False)
    written = source.state_dict()
    layout = find_small(written)
    assert layout is not None
    sizes = layout.infer_sizes(Shapes(Path("sam.pt"), written, str))
    with torch.device("meta"):
        module = build_sam(sizes)
    assert sam_spec(sizes).image_size == source.image_size[1]
    ours = {layout.written_as(key): tensor.shape for key, tensor in module.state_dict().items()}
    assert ours == {key: tensor.shape for key, tensor in written.items() if layout.is_read(key)}


@pytest.mark.parametrize("sizes", [MOBILE_SAM, EFFICIENT_SAM_L0, EFFICIENT_SAM_XL0])
def test_every_tensor_of_the_module_has_its_own_name_in_the_file(sizes: Any) -> None:
    with torch.device("meta"):
        names = list(build_sam(sizes).state_dict())
    layout = find_small({"image_encoder.patch_embed.seq.0.c.weight": 1})
    if sizes is not MOBILE_SAM:
        layout = find_small({"image_encoder.backbone.stages.0.op_list.0.conv.weight": 1})
    assert layout is not None
    written = [layout.written_as(name) for name in names]
    assert len(set(written)) == len(names)
    assert layout.mark in written
    assert all(layout.is_read(key) for key in written)


def mobile_file(folder: Path, **changes: Any) -> Path:
    """A MobileSAM's file with some tensors changed; None removes one."""
    sam = random_module(lambda: build_sam(MOBILE_SAM), seed=0, name="sam")
    layout = find_small({"image_encoder.patch_embed.seq.0.c.weight": 1})
    assert layout is not None
    state = {layout.written_as(name): tensor for name, tensor in sam.state_dict().items()} | changes
    save_file(
        {key: tensor for key, tensor in state.items() if tensor is not None},
        folder / "mobile_sam.safetensors",
    )
    return folder / "mobile_sam.safetensors"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"mask_decoder.hf_token.weight": torch.ones(1, 256)},
            r"tensor mask_decoder\.hf_token\.weight belongs to HQ-SAM, which is not supported",
            id="a light HQ-SAM",
        ),
        pytest.param(
            {"image_encoder.trunk.patch_embed.proj.weight": torch.ones(96, 3, 7, 7)},
            r"image_encoder\.trunk\.patch_embed\.proj\.weight belongs to SAM 2",
            id="SAM 2",
        ),
        pytest.param(
            {"image_encoder.layers.2.blocks.0.attn.attention_biases": torch.ones(5, 190)},
            r"attention_biases has shape \[5, 190\], expected heads of 160 channels, and a square number",
            id="a window that is no square",
        ),
        pytest.param(
            {"image_encoder.layers.4.blocks.0.conv1.c.weight": torch.ones(1)},
            r"belongs to an encoder of 5 stages, expected MobileSAM's 4",
            id="a stage too many",
        ),
        pytest.param(
            {"image_encoder.layers.2.downsample.conv2.c.weight": None},
            r"tensor image_encoder\.layers\.2\.downsample\.conv2\.c\.weight is missing",
            id="a tensor too few",
        ),
        pytest.param(
            {"image_encoder.layers.1.blocks.0.extra": torch.ones(1)},
            r"tensor image_encoder\.layers\.1\.blocks\.0\.extra is not part of a known architecture",
            id="a tensor too many",
        ),
    ],
)
def test_a_file_that_is_no_mobile_sam_is_refused_by_tensor(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = mobile_file(tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        load_sam(path).loaders["sam"]()
