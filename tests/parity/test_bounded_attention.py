"""The copy of a graph that runs large attentions in ONNX Runtime's fused kernel computes the same."""

from pathlib import Path

import numpy as np
import pytest

pytestmark = [pytest.mark.needs_torch]
pytest.importorskip("torch")
onnx_ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from refdiff.contracts.closeness import relative_error  # noqa: E402 - after the check that torch is here
from refdiff.contracts.graphs import graph_contract  # noqa: E402
from refdiff.engines.lean import LeanSession  # noqa: E402
from refdiff.export import bounded_attention  # noqa: E402
from refdiff.export.bounded_attention import bounded_copy  # noqa: E402
from refdiff.export.onnx_export import export_graph  # noqa: E402
from refdiff.export.wrappers import wrap  # noqa: E402
from tests.parity.calm_stack import calm_stack  # noqa: E402


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unet")
    return export_graph(wrap(calm_stack(), "unet"), graph_contract(calm_stack().spec)["unet"], folder)


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx_ir.load(path).graph]


def test_a_small_attention_is_left_as_it_is(unet: Path) -> None:
    with bounded_copy(unet, batch=2) as path:
        assert path == unet


def test_a_large_attention_is_replaced_and_agrees(unet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, spec = np.random.default_rng(0), calm_stack().spec
    diffusion = spec.diffusion
    latent = (2, diffusion.latent_channels, diffusion.latent_size, diffusion.latent_size)
    feeds = {
        "latent": rng.standard_normal(latent, dtype=np.float32),
        "timestep": np.full(2, 51, np.float32),
        "context": rng.standard_normal((2, spec.context_length, diffusion.context_width), dtype=np.float32),
    }
    expected = LeanSession(unet).run(feeds)
    attentions = operators(unet).count("Softmax")
    monkeypatch.setattr(bounded_attention, "BYTES", 0)
    with bounded_copy(unet, batch=2) as path:
        assert path != unet
        assert operators(path).count("MultiHeadAttention") == attentions > 0
        assert "Softmax" not in operators(path)
        got = LeanSession(path).run(feeds)
    assert got.keys() == expected.keys()
    for name, theirs in expected.items():
        assert relative_error(got[name], theirs) < 1e-5


def test_the_vae_s_attention_whose_q_is_scaled_late_is_replaced_and_agrees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = graph_contract(calm_stack().spec)["vae_encoder"]
    path = export_graph(wrap(calm_stack(), "vae_encoder"), graph, tmp_path)
    image = np.random.default_rng(0).standard_normal(graph.inputs[0].shape, dtype=np.float32)
    expected = LeanSession(path).run({"image": image})["moments"]
    monkeypatch.setattr(bounded_attention, "BYTES", 0)
    with bounded_copy(path, batch=1) as copy:
        assert operators(copy).count("MultiHeadAttention") == 1
        got = LeanSession(copy).run({"image": image})["moments"]
    assert relative_error(got, expected) < 1e-5


def test_only_what_is_beyond_the_limit_is_replaced(unet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [node.inputs[0].shape for node in onnx_ir.load(unet).graph if node.op_type == "Softmax"]
    sizes = sorted({4 * 2 * int(np.prod([int(size) for size in list(shape)[1:]])) for shape in shapes})
    assert len(sizes) > 1
    monkeypatch.setattr(bounded_attention, "BYTES", sizes[-1])
    with bounded_copy(unet, batch=2) as path:
        kinds = operators(path)
    assert 0 < kinds.count("MultiHeadAttention") < len(shapes)
    assert kinds.count("Softmax") == len(shapes) - kinds.count("MultiHeadAttention")


def test_the_copy_is_gone_afterwards(unet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(unet.parent.iterdir())
    monkeypatch.setattr(bounded_attention, "BYTES", 0)
    with pytest.raises(KeyboardInterrupt), bounded_copy(unet, batch=1) as path:
        assert path.exists()
        raise KeyboardInterrupt
    assert sorted(unet.parent.iterdir()) == before
