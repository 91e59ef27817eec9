"""Large attentions in ONNX Runtime's fused kernel compute what the exported nodes compute."""

from pathlib import Path

import numpy as np
import pytest

onnx_ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from refdiff.contracts.bundle import open_bundle
from refdiff.contracts.graphs import graph_contract
from refdiff.contracts.parity import relative_error
from refdiff.contracts.recipe import GraphRecipe
from refdiff.engines.check_session import CheckSession
from refdiff.passes.convert import convert_graph
from refdiff.passes.fuse_attention import MIN_BYTES, FuseAttention
from refdiff.passes.graph_files import load_typed
from refdiff.passes.keep_fp32 import default_fp32_nodes
from refdiff.passes.round_half import rounded_model


@pytest.fixture
def unet(tiny_bundle: Path) -> Path:
    return tiny_bundle / "unet.onnx"


def feeds_of_unet(unet: Path) -> dict[str, np.ndarray]:
    rng, spec = np.random.default_rng(0), open_bundle(unet.parent).spec
    diffusion = spec.diffusion
    latent = (2, diffusion.latent_channels, diffusion.latent_size, diffusion.latent_size)
    return {
        "latent": rng.standard_normal(latent, dtype=np.float32),
        "timestep": np.full(2, 51, np.float32),
        "context": rng.standard_normal((2, spec.context_length, diffusion.context_width), dtype=np.float32),
    }


def operators(path: Path, batch: int, min_bytes: int = MIN_BYTES) -> list[str]:
    """The graph's operators once its large attentions are fused."""
    fuse = FuseAttention(batch=batch, min_bytes=min_bytes)
    return [node.op_type for node in fuse(load_typed(path)).graph]


def test_a_small_attention_is_left_as_it_is(unet: Path) -> None:
    assert operators(unet, 2) == [node.op_type for node in onnx_ir.load(unet).graph]


def test_a_large_attention_is_replaced_and_agrees(unet: Path) -> None:
    feeds, expected = feeds_of_unet(unet), CheckSession(unet).run(feeds_of_unet(unet))
    attentions = operators(unet, 2).count("Softmax")
    kinds = operators(unet, 2, min_bytes=0)
    assert kinds.count("MultiHeadAttention") == attentions > 0
    assert "Softmax" not in kinds
    got = CheckSession(rounded_model(unet, fuse=FuseAttention(batch=2, min_bytes=0)), folder=unet.parent).run(
        feeds
    )
    assert got.keys() == expected.keys()
    for name, theirs in expected.items():
        assert relative_error(got[name], theirs) < 1e-5


def test_the_vae_s_attention_whose_q_is_scaled_late_is_replaced_and_agrees(
    tiny_bundle: Path,
) -> None:
    graph = graph_contract(open_bundle(tiny_bundle).spec)["vae_encoder"]
    path = tiny_bundle / "vae_encoder.onnx"
    image = np.random.default_rng(0).standard_normal(graph.inputs[0].shape, dtype=np.float32)
    expected = CheckSession(path).run({"image": image})["moments"]
    assert operators(path, 1, min_bytes=0).count("MultiHeadAttention") == 1
    got = CheckSession(rounded_model(path, fuse=FuseAttention(batch=1, min_bytes=0)), folder=tiny_bundle).run(
        {"image": image}
    )["moments"]
    assert relative_error(got, expected) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("half", ["fp16", "bf16"])
@pytest.mark.parametrize("softmax_in_fp32", [True, False])
def test_in_half_precision_it_is_as_exact_and_rounded_elsewhere(
    unet: Path, tmp_path: Path, half: str, softmax_in_fp32: bool
) -> None:
    fp32 = default_fp32_nodes(onnx_ir.load(unet).graph, half)
    if not softmax_in_fp32:
        fp32 = tuple(rule for rule in fp32 if "softmax" not in rule.because)
    path = tmp_path / "unet.onnx"
    convert_graph(unet, path, GraphRecipe(half=half, fp32=fp32))
    feeds, exact = feeds_of_unet(unet), CheckSession(unet).run(feeds_of_unet(unet))
    every = CheckSession(rounded_model(path), folder=tmp_path).run(feeds)
    assert "Softmax" not in operators(path, 2, min_bytes=0)
    bounded = CheckSession(
        rounded_model(path, fuse=FuseAttention(batch=2, min_bytes=0)), folder=tmp_path
    ).run(feeds)
    for name, theirs in exact.items():
        error = relative_error(bounded[name], theirs)
        assert 0.2 * relative_error(every[name], theirs) < error < 1.5 * relative_error(every[name], theirs)


def test_only_what_is_beyond_the_limit_is_replaced(unet: Path) -> None:
    shapes = [node.inputs[0].shape for node in onnx_ir.load(unet).graph if node.op_type == "Softmax"]
    sizes = sorted({4 * 2 * int(np.prod([int(size) for size in list(shape)[1:]])) for shape in shapes})
    assert len(sizes) > 1
    kinds = operators(unet, 2, min_bytes=sizes[-1])
    assert 0 < kinds.count("MultiHeadAttention") < len(shapes)
    assert kinds.count("Softmax") == len(shapes) - kinds.count("MultiHeadAttention")
