"""The form for ONNX Runtime's CUDA provider: what is rewritten, and that it computes the same."""

import pytest

pytest.importorskip("onnx")
onnx_ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from pathlib import Path

from refdiff.contracts.bundle import open_bundle
from refdiff.contracts.parity import relative_error
from refdiff.engines.check_session import CheckSession
from refdiff.passes.cuda_form import Rewritten, cuda_form, rewrite
from refdiff.passes.graph_files import load_graph, serialized
from refdiff.passes.round_half import RoundHalf, rounded_model
from tests.support.plain_group_norms import with_plain_group_norms
from tests.support.small_graphs import BUNDLE

EDGE = BUNDLE.parent / "bundle-edge"

NOTHING = (0, 0, 0)

COUNTS = {
    BUNDLE: {
        "clip_image": (0, 0, 4),
        "clip_text": (0, 0, 2),
        "sam_decoder": (0, 0, 5),
        "sam_encoder": (0, 2, 5),
        "sam_masks": NOTHING,
        "sd_text": (0, 0, 2),
        "unet": (27, 0, 8),
        "unet_taps": (22, 0, 7),
        "vae_encoder": (12, 0, 1),
    },
    EDGE: {
        "clip_image": (0, 0, 2),
        "clip_text": (0, 0, 2),
        "sam_decoder": (0, 0, 3),
        "sam_encoder": (0, 2, 4),
        "sam_masks": NOTHING,
        "sd_text": (0, 0, 2),
        "unet": (16, 0, 6),
        "unet_taps": (11, 0, 5),
        "vae_encoder": NOTHING,
    },
}
"""Group norms, channel norms and attentions of each graph; SAM's decoder has two attentions more (one in
`mini-edge`), whose softmax is over an axis that the operator does not have."""

GRAPHS = [(folder, name) for folder, counts in COUNTS.items() for name in counts]


def expected(folder: Path, name: str) -> Rewritten:
    group_norms, channel_norms, attentions = COUNTS[folder][name]
    return Rewritten(group_norms=group_norms, channel_norms=channel_norms, attentions=attentions)


def kinds(model: object) -> set[str]:
    return {node.op_type for node in model.graph}


@pytest.mark.parametrize(("folder", "name"), GRAPHS, ids=lambda value: getattr(value, "stem", value))
def test_every_norm_and_attention_is_found_and_the_outputs_stay(folder, name):
    path = folder / f"{name}.onnx"
    model, rewritten = rewrite(load_graph(path))
    assert rewritten == expected(folder, name)
    assert "InstanceNormalization" not in kinds(model)
    assert rewritten.group_norms == sum(node.op_type == "GroupNorm" for node in model.graph)
    feeds, _ = open_bundle(folder, verify="size").golden()[name]
    exact = CheckSession(path).run(feeds)
    got = CheckSession(serialized(with_plain_group_norms(model), folder), folder=folder).run(feeds)
    assert got.keys() == exact.keys()
    for output, values in exact.items():
        assert relative_error(got[output], values) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS[BUNDLE])
def test_in_half_precision_it_finds_the_same(name, mini_in):
    model, rewritten = rewrite(load_graph(mini_in("fp16") / f"{name}.onnx"))
    assert rewritten == expected(BUNDLE, name)
    norms = [node for node in model.graph if node.op_type == "GroupNorm"]
    assert {node.inputs[0].dtype for node in norms} <= {onnx_ir.DataType.FLOAT16}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet", "vae_encoder", "sam_encoder", "sam_decoder", "clip_image"])
def test_in_half_precision_it_is_as_exact(name, mini_in):
    folder = mini_in("fp16")
    path = folder / f"{name}.onnx"
    form = RoundHalf()(with_plain_group_norms(rewrite(load_graph(path))[0]))
    feeds, _ = open_bundle(BUNDLE, verify="size").golden()[name]
    before = CheckSession(rounded_model(path), folder=folder).run(feeds)
    after = CheckSession(serialized(form, folder), folder=folder).run(feeds)
    for output, values in CheckSession(BUNDLE / path.name).run(feeds).items():
        assert relative_error(after[output], values) < 1.5 * relative_error(before[output], values) + 1e-6


def test_the_form_reads_the_data_file_of_the_graph_and_names_it_relatively():
    data, rewritten = cuda_form(BUNDLE / "sam_encoder.onnx")
    assert rewritten.attentions == 5
    feeds, _ = open_bundle(BUNDLE, verify="size").golden()["sam_encoder"]
    session = CheckSession(data, folder=BUNDLE)
    (output,) = session.output_names
    exact = CheckSession(BUNDLE / "sam_encoder.onnx").run(feeds)[output]
    assert relative_error(session.run(feeds)[output], exact) < 1e-5
    assert str(BUNDLE).encode() not in data


def test_the_same_graph_gives_the_same_bytes():
    assert cuda_form(BUNDLE / "sd_text.onnx") == cuda_form(BUNDLE / "sd_text.onnx")
