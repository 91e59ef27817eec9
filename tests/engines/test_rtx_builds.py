"""NVIDIA's own parser and builder on every graph, in every run, without a GPU: TensorRT-RTX itself."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tensorrt_rtx")
onnx = pytest.importorskip("onnx")

import numpy as np

from refdiff.contracts.bundle import open_bundle
from refdiff.contracts.graphs import GRAPHS
from refdiff.engines import build, lint
from refdiff.engines.lint import find_risks
from refdiff.engines.trt.building import BuildTask, build_plan
from refdiff.engines.trt.flavour import load_flavour
from refdiff.engines.trt.monitor import Watch, make_log
from refdiff.engines.trt.options import BuildOptions
from refdiff.engines.trt.parsing import parse
from refdiff.engines.trt.plan_store import plans_folder
from refdiff.engines.trt.shapes import ShapeRange
from refdiff.engines.trt.validation import check_plan
from refdiff.errors import EngineError
from tests.support.plans import BUNDLE, MINIATURE, fitting_profile

RTX = load_flavour("tensorrt-rtx")


SAME_AS_IN_FP16 = ("sam_decoder", "sam_masks")
"""Graphs that an int8 bundle holds in their fp16 form."""

BUILT = {
    "fp32": tuple(name for name in GRAPHS if name not in ("unet", "unet_taps", "sam_decoder")),
    "fp16": tuple(name for name in GRAPHS if name != "unet_taps"),
    "int8": tuple(name for name in GRAPHS if name not in ("unet_taps", *SAME_AS_IN_FP16)),
    "mini-edge": tuple(name for name in GRAPHS if name not in ("sd_text", "clip_text")),
}
"""Precision, or the small counterpart in fp16 -> graphs that are built. `unet_taps` has nodes of `unet` only,
and is built once; in fp32 the parser reads both, and every kind of their layers is built as part of another
graph. SAM's decoder is in fp32 in every bundle. The text encoders of the two models are the same."""


@pytest.fixture(scope="module", params=["fp32", "fp16", "int8", "mini-edge"])
def bundle(request, mini_in, tmp_path_factory) -> Path:
    """A copy of the miniature in each precision, so that plans lie next to its graphs."""
    source = BUNDLE
    if request.param != "fp32":
        source = mini_in("fp16", "mini-edge") if request.param == "mini-edge" else mini_in(request.param)
    folder = tmp_path_factory.mktemp("rtx") / request.param
    shutil.copytree(source, folder)  # no hard links: onnx_ir refuses weights that have two names
    return folder


@pytest.mark.slow
def test_every_graph_becomes_a_plan_that_its_metadata_describes(bundle):
    graphs = BUILT[bundle.name]
    report = build.build(bundle, flavour="tensorrt-rtx", graphs=graphs)
    opened = open_bundle(bundle)
    assert [each.metadata.identity.graph for each in report.graphs] == list(graphs)
    golden = opened.golden()
    for built in report.graphs:
        name = built.metadata.identity.graph
        metadata = check_plan(built.plan, opened, name, RTX, None)
        assert metadata == built.metadata
        assert metadata.identity.precision == opened.manifest.graphs[name].precision
        assert metadata.identity.version == RTX.version
        assert metadata.activation_bytes
        assert built.plan.read_bytes()[:4] == b"vtrt"  # TensorRT-RTX's own first bytes
        shapes = {key: array.shape for key, array in golden[name][0].items()}
        assert fitting_profile(metadata.identity.shapes, shapes) is not None
        assert_fused_where_expected(opened.spec.name, name, metadata.identity.precision, metadata.attention)
        assert "Total Activation Memory" in built.plan.with_suffix(".log").read_text()
    again = build.build(bundle, flavour="tensorrt-rtx", graphs=graphs)
    assert all(each.reused for each in again.graphs)
    assert [each.metadata for each in again.graphs] == [each.metadata for each in report.graphs]


SOFTMAXES = {
    "sd_text": {"mini": 2},
    "vae_encoder": {"mini": 1, "mini-edge": 0},
    "unet": {"mini": 8, "mini-edge": 6},
    "unet_taps": {"mini": 7, "mini-edge": 5},
    "sam_encoder": {"mini": 5, "mini-edge": 4},
    "sam_decoder": {"mini": 7, "mini-edge": 4},
    "sam_masks": {"mini": 0, "mini-edge": 0},
    "clip_text": {"mini": 2},
    "clip_image": {"mini": 4, "mini-edge": 2},
}


def assert_fused_where_expected(model, name, precision, blocks):
    """In half precision all attentions are fused but the VAE's and those of the decoder, which is in fp32."""
    assert len(blocks) == SOFTMAXES[name][model]
    assert not any("output" in each or "read by" in each for block in blocks for each in block.obstacles)
    assert all(block.fused is not None for block in blocks)
    assert not any(block.fused and block.obstacles for block in blocks)
    if precision == "fp16" and name not in ("vae_encoder", "sam_decoder"):
        assert all(block.fused for block in blocks)


@pytest.mark.slow
def test_attentions_built_as_operators_are_one_kernel_each(mini_in, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(mini_in("fp16", "mini-edge"), folder)
    options = BuildOptions(attention_op=True)
    graphs = ("vae_encoder", "unet_taps", "sam_encoder")
    report = build.build(folder, flavour="tensorrt-rtx", graphs=graphs, options=options)
    opened = open_bundle(folder)
    for built in report.graphs:
        identity, attention = built.metadata.identity, built.metadata.attention
        assert check_plan(built.plan, opened, identity.graph, RTX, None) == built.metadata
        assert identity.flags["attention_op"] is True
        assert len(attention) == SOFTMAXES[identity.graph]["mini-edge"]
        assert all(each.product == each.softmax == each.mixing for each in attention)
        assert all(each.fused and "mha" in each.kernel for each in attention)
    assert not build.build(folder, flavour="tensorrt-rtx", graphs=["vae_encoder"]).graphs[0].reused
    (linted,) = lint.lint(folder, flavour="tensorrt-rtx", graphs=["sam_encoder"], attention_op=True).graphs
    assert linted.findings == linted.refusals == ()
    assert [each.softmax for each in linted.attention] == [
        each.softmax for each in report.graphs[2].metadata.attention
    ]


def test_an_attention_operator_without_a_kernel_is_a_build_error(tmp_path):
    text = """(float[2,4,9,16] q, float[2,4,7,16] k, float[2,4,7,16] v) => (float[2,4,9,16] y) {
        y = Attention<scale = 1.0>(q, k, v)
    }"""
    path = graph(tmp_path, text, opset=23)
    shapes = {name: (2, 4, size, 16) for name, size in (("q", 9), ("k", 7), ("v", 7))}
    profile = {name: ShapeRange(least=each, usual=each, most=each) for name, each in shapes.items()}
    task = BuildTask(graph="graph", onnx=path, shapes=(profile,), options=BuildOptions())
    with pytest.raises(EngineError, match=r"cannot build graph: .*Attention"):
        build_plan(RTX, task, tmp_path / "plan", make_log(RTX), Watch("graph", lambda line: None))


@pytest.mark.slow
def test_the_parser_takes_every_graph_and_no_risk_is_in_any(bundle):
    report = lint.lint(bundle, flavour="tensorrt-rtx")
    assert report.passed
    assert {each.graph: each.findings for each in report.graphs} == dict.fromkeys(GRAPHS, ())
    assert all(each.layers > 40 for each in report.graphs)


@pytest.mark.slow
def test_a_plan_for_named_gpus_and_a_portable_one_lie_side_by_side(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    portable = build.build("mini", flavour="tensorrt-rtx", graphs=["sd_text"]).graphs[0]
    options = BuildOptions(compute_capabilities=("8.6", "8.9"), workspace_bytes=1 << 30)
    named = build.build("mini", flavour="tensorrt-rtx", graphs=["sd_text"], options=options).graphs[0]
    assert portable.plan.parent.name == "tensorrt-rtx-portable"
    assert named.plan.parent.name == "tensorrt-rtx-sm86-sm89"
    assert portable.metadata.identity.key != named.metadata.identity.key


def graph(folder, text, weights=(), opset=18):
    """An ONNX file from ONNX's text form; a node is named after its first output."""
    header = f'<ir_version: 10, opset_import: ["" : {opset}]>'
    model = onnx.parser.parse_model(f"{header} g {text}")
    for node in model.graph.node:
        node.name = f"/{node.output[0]}"
    for name, array in weights:
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, folder / "graph.onnx")
    return folder / "graph.onnx"


def parsed(path):
    return parse(RTX, path, make_log(RTX))


@pytest.mark.parametrize(
    ("text", "node", "operator", "cure"),
    [
        (
            "(float[1,4] x) => (int64[2,n] y) { y = NonZero(x) }",
            "/y",
            "NonZero",
            "its output's size depends on values",
        ),
        ("(float[1,4] x) => (float[1,4] y) { y = Foo(x) }", "/y", "Foo", "replace the operator"),
        (
            "(float[1,4] x, float16[1,4] z) => (float[1,4] y) { y = Add(x, z) }",
            "/y",
            "Add",
            "the graph mixes types",
        ),
    ],
)
def test_what_the_parser_refuses_is_reported_by_node_and_operator(tmp_path, text, node, operator, cure):
    (refusal,) = parsed(graph(tmp_path, text)).refusals
    assert (refusal.node, refusal.operator) == (node, operator)
    assert cure in refusal.cure
    assert "\n" not in str(refusal)
    assert "driver" not in str(refusal)


def test_a_file_that_is_no_graph_and_one_without_its_weights_are_named(tmp_path):
    (tmp_path / "junk.onnx").write_bytes(b"not a graph")
    assert "no ONNX file" in parsed(tmp_path / "junk.onnx").refusals[0].cure
    (tmp_path / "sd_text.onnx").write_bytes((BUNDLE / "sd_text.onnx").read_bytes())
    assert "weights file is missing" in parsed(tmp_path / "sd_text.onnx").refusals[0].cure
    assert "file is missing" in parsed(tmp_path / "nowhere.onnx").refusals[0].cure


def test_risks_are_found_in_real_networks(tmp_path):
    text = """(float16[1,4,8,8] x) => (float16[1,4,8,8] p, float16[1,4,16,16] r) {
        n = InstanceNormalization(x, s, s)
        p = Softmax(n)
        r = Resize<mode = "cubic">(x, , scales)
    }"""
    ones = np.ones(4, np.float16)
    path = graph(tmp_path, text, [("s", ones), ("scales", np.array([1, 1, 2, 2], np.float32))])
    found = parsed(path)
    assert found.refusals == ()
    assert sorted((each.rule, each.layer) for each in find_risks(RTX, found.network)) == [
        ("attention is an output", "p"),
        ("cubic resize", "/r"),
        ("half-precision norm", "/n"),
        ("half-precision softmax", "/p"),
    ]


LISTENING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit it ignored
from refdiff.cli import main
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_ends_soon_and_leaves_nothing(tmp_path, monkeypatch, sent):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    arguments = ["build", "mini", "--flavour", "tensorrt-rtx", "--graph", "unet", "--json"]
    with subprocess.Popen(
        [sys.executable, "-c", LISTENING, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr.readline() == "unet: Building engine\n"
        process.send_signal(sent)
        out, _ = process.communicate(timeout=120)
    assert process.returncode == (130 if sent == signal.SIGINT else 128 + sent)
    if sent == signal.SIGINT:
        assert json.loads(out)["error"]["kind"] == "Interrupted"
    left = [path.name for path in plans_folder(MINIATURE).rglob("*") if path.is_file()]
    assert left == [".lock"]
