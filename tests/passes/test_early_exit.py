"""Where a UNet is cut: what runs after the last tapped block, by the names of its nodes."""

from pathlib import Path

import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")
pytest.importorskip("torch")

from onnx import TensorProto, helper

from refdiff.contracts.graphs import GraphSpec, TensorSpec
from refdiff.errors import InputError
from refdiff.passes.early_exit import cut_taps

pytestmark = pytest.mark.needs_torch

CHILDREN = (
    "conv_in",
    "down_blocks.0",
    "down_blocks.2",
    "mid_block",
    "up_blocks.0",
    "up_blocks.1",
    "conv_norm_out",
)
"""In the order of execution."""

CUT = GraphSpec(
    "unet_taps",
    (TensorSpec("latent", "float32", (2, 3)),),
    (TensorSpec("taps", "float32", (2, 3)),),
)


def unet_tapped_in(child: str, folder: Path) -> Path:
    """A chain of one node per child; the taps are what `child` makes."""
    values = ["latent", *(f"after {name}" for name in CHILDREN[:-1]), "eps"]
    nodes = [
        helper.make_node("Relu", [before], [after], name=f"unet.{name}.attentions.0/Relu")
        for name, before, after in zip(CHILDREN, values, values[1:], strict=False)
    ]
    nodes.append(helper.make_node("Neg", [values[CHILDREN.index(child) + 1]], ["taps"], name="taps/Neg"))
    tensors = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3])
        for name in ("latent", "eps", "taps")
    }
    graph = helper.make_graph(nodes, "unet", [tensors["latent"]], [tensors["eps"], tensors["taps"]])
    path = folder / "unet.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


@pytest.mark.parametrize("cut_after", ["down_blocks.2", "mid_block", "up_blocks.0", "up_blocks.1"])
def test_the_cut_keeps_what_the_taps_need_and_nothing_that_runs_later(cut_after: str, tmp_path: Path) -> None:
    path = cut_taps(unet_tapped_in(cut_after, tmp_path), CUT, cut_after=cut_after)
    kept = [node.name for node in onnx.load(path).graph.node]
    count = CHILDREN.index(cut_after) + 1
    assert kept == [*(f"unet.{child}.attentions.0/Relu" for child in CHILDREN[:count]), "taps/Neg"]


@pytest.mark.parametrize(
    ("tapped", "cut_after", "late"),
    [
        ("down_blocks.2", "down_blocks.0", "down_blocks.2"),
        ("mid_block", "down_blocks.2", "mid_block"),
        ("up_blocks.0", "mid_block", "up_blocks.0"),
        ("up_blocks.1", "down_blocks.2", "mid_block"),
        ("up_blocks.1", "up_blocks.0", "up_blocks.1"),
        ("conv_norm_out", "up_blocks.1", "conv_norm_out"),
    ],
)
def test_taps_behind_the_cut_are_refused_with_the_first_late_node(
    tapped: str, cut_after: str, late: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"still needs 'unet.{late}.*runs after {cut_after}"):
        cut_taps(unet_tapped_in(tapped, tmp_path), CUT, cut_after=cut_after)


def test_a_cut_after_something_no_unet_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"got 'decoder.1' to cut after, expected one of down_blocks"):
        cut_taps(unet_tapped_in("mid_block", tmp_path), CUT, cut_after="decoder.1")
