"""A stack becomes a bundle whose graphs ONNX Runtime runs as torch does, or no bundle at all."""

import copy
import gc
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytestmark = [pytest.mark.needs_torch, pytest.mark.slow]
torch = pytest.importorskip("torch")
onnx_ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from refdiff.contracts.bundle import open_bundle
from refdiff.contracts.graphs import GRAPHS, TAP_OUTPUTS, GraphSpec, TensorSpec, graph_contract
from refdiff.contracts.parity import relative_error, select_recorded
from refdiff.contracts.session import Array, SessionFactory
from refdiff.engines.factory import open_sessions
from refdiff.engines.ort import OrtSession
from refdiff.errors import GateError, InputError
from refdiff.export.bundle_export import export_bundle
from refdiff.export.onnx_export import export_graph
from refdiff.export.pipeline_feeds import STAGES
from refdiff.export.sam_graphs import SamEncoder
from refdiff.export.torch_records import Recorder, error_limit, round_coarsely
from refdiff.export.wrappers import TorchSessions, wrap
from refdiff.models.sam import SamSizes, build_sam, sam_spec
from refdiff.models.stacks import random_module
from refdiff.passes.cuda_form import rewrite
from refdiff.passes.early_exit import cut_taps
from refdiff.passes.graph_files import check_contract, load_graph
from refdiff.runtime.golden_answer import compare_answers, give_answer
from tests.support.calm_stack import calm_stack
from tests.support.copied_graphs import copying


def make_examples(*, seed: int = 0) -> dict[str, dict[str, Array]]:
    """Feeds of every graph, with named dimensions unlike those the export traced with."""
    rng = np.random.default_rng(seed)
    sizes = {"b": 1, "p": 12, "c": 4, "t": 16, "n": 6, "q": 5, "k": 2}
    examples: dict[str, dict[str, Array]] = {}
    for name, graph in graph_contract(calm_stack().spec).items():
        examples[name] = {}
        for tensor in graph.inputs:
            shape = [sizes[size] if isinstance(size, str) else size for size in tensor.shape]
            below = sizes["n"] if tensor.name == "chosen" else 50
            drawn = rng.integers(0, below, shape) if tensor.dtype == "int32" else rng.standard_normal(shape)
            examples[name][tensor.name] = drawn.astype(tensor.dtype)
        if "slots" in examples[name]:
            examples[name]["slots"][:] = 0.0
    return examples


class ExampleFeeds:
    """Runs every graph once on given feeds."""

    def __init__(self, examples: dict[str, dict[str, Array]]) -> None:
        self._examples = examples

    def run_stage(self, name: str, sessions: SessionFactory) -> None:
        stage = next(stage for stage in STAGES if stage.name == name)
        for graph in stage.graph_names:
            if graph in self._examples:
                sessions.open(graph).run(self._examples[graph])


def test_a_bundle_holds_every_graph_and_opens(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    assert tuple(bundle.manifest.graphs) == GRAPHS
    assert bundle.spec == calm_stack().spec
    assert bundle.tokenizer_json() == calm_stack().tokenizer_json
    assert bundle.manifest.sources == calm_stack().sources
    assert bundle.manifest.versions["torch"] == torch.__version__.split("+")[0]


def test_a_bundle_repeats_its_golden_answer(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    recorded = bundle.golden_answer()
    given, answer = give_answer(
        open_sessions(bundle, backend="ort-cpu"),
        bundle.spec,
        tokenizer_json=bundle.tokenizer_json(),
        positions=bundle.clip_positions(),
        prompts=bundle.prompt_vectors(),
        image=recorded.image,
        phrase=recorded.phrase,
    )
    parity = compare_answers(given, answer, recorded)
    assert parity.same_tokens
    assert parity.heat_correlation > 0.9999
    assert parity.mask_iou > 0.99


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_repeats_its_golden_record(tiny_bundle: Path, name: str) -> None:
    bundle = open_bundle(tiny_bundle)
    inputs, outputs = bundle.golden()[name]
    session = OrtSession(bundle.graph_path(name), graph_contract(bundle.spec)[name], threads=1)
    results = session.run(inputs)
    for output, expected in outputs.items():
        kept = select_recorded(results[output], expected)
        assert relative_error(kept, expected) < error_limit(name)


def test_named_dimensions_take_other_sizes_than_the_traced_ones(tiny_bundle: Path) -> None:
    bundle, rng = open_bundle(tiny_bundle), np.random.default_rng(3)
    graph = graph_contract(bundle.spec)["clip_image"]
    batch, slots, patches = 3, 1, 20
    feeds = {
        "patches": rng.standard_normal(
            (batch, patches, 3 * bundle.spec.clip.patch_size**2), dtype=np.float32
        ),
        "positions": rng.standard_normal((batch, patches, bundle.spec.clip.width), dtype=np.float32),
        "slots": np.zeros((batch, slots, 1), np.float32),
        "mask": np.zeros((batch, slots + patches, slots + patches), np.float32),
    }
    got = OrtSession(bundle.graph_path("clip_image"), graph, threads=1).run(feeds)
    expected = TorchSessions(calm_stack()).open("clip_image").run(feeds)
    assert relative_error(got["vectors"], expected["vectors"]) < 1e-5


def test_the_early_exit_shares_the_unets_weights_and_holds_fewer(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    full, cut = bundle.manifest.graphs["unet"], bundle.manifest.graphs["unet_taps"]
    assert cut.files == ("unet_taps.onnx", "unet.onnx.data")
    assert full.files[1] == cut.files[1]
    assert not (bundle.path / "unet_taps.onnx.data").exists()
    weights = [
        sum(
            value.const_value.size
            for value in onnx_ir.load(bundle.path / record.files[0]).graph.initializers.values()
        )
        for record in (full, cut)
    ]
    assert weights[1] < 0.9 * weights[0]


def test_the_early_exit_agrees_with_the_full_pass(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    contract, feeds = graph_contract(bundle.spec), make_examples()["unet"]
    full, cut = (OrtSession(bundle.graph_path(n), contract[n], threads=1) for n in ("unet", "unet_taps"))
    # The same nodes; ONNX Runtime fuses them differently where fewer outputs are asked for.
    for name in TAP_OUTPUTS:
        assert relative_error(cut.run(feeds)[name], full.run(feeds, [name])[name]) < 1e-6


def test_a_cut_that_would_keep_later_blocks_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    for name in ("unet.onnx", "unet.onnx.data"):
        (tmp_path / name).symlink_to(tiny_bundle / name)
    graph = graph_contract(calm_stack().spec)["unet_taps"]
    with pytest.raises(InputError, match=r"runs after up_blocks\.0"):
        cut_taps(tmp_path / "unet.onnx", graph, cut_after="up_blocks.0")


def test_nodes_carry_the_names_of_their_modules_and_no_path_of_this_machine(
    tiny_bundle: Path,
) -> None:
    graph = onnx_ir.load(tiny_bundle / "unet.onnx").graph
    names = {node.name for node in graph}
    layer = calm_stack().spec.diffusion.tapped_layers[0]
    assert f"unet.{layer}.transformer_blocks.0.attn2.to_q/MatMul" in names
    assert b"site-packages" not in (tiny_bundle / "unet.onnx").read_bytes()


@pytest.mark.parametrize("forbidden", ["Shape", "NonZero", "OneHot", "Tile", "If", "Loop"])
def test_the_decoder_and_the_unet_compute_no_shapes(tiny_bundle: Path, forbidden: str) -> None:
    """But for the number of prompts, which is the decoder's input's, and known before it runs."""
    for name in ("unet", "sam_decoder", "sam_encoder", "vae_encoder"):
        graph = onnx_ir.load(tiny_bundle / f"{name}.onnx").graph
        found = [node for node in graph if node.op_type == forbidden]
        if (name, forbidden) == ("sam_decoder", "Shape"):
            prompts = next(value for value in graph.inputs if value.name == "prompts")
            found = [node for node in found if node.inputs[0] is not prompts]
        assert not found, name


@pytest.mark.parametrize("name", ["sam_decoder", "vae_encoder", "sam_encoder"])
def test_the_same_module_exports_to_the_same_bytes_and_nothing_keeps_its_weights(
    name: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    """The bundle's graph is from another process, or was exported earlier in this one."""
    module = copy.deepcopy(wrap(calm_stack(), name))
    weights = [weakref.ref(parameter) for parameter in module.parameters()]
    export_graph(module, graph_contract(calm_stack().spec)[name], tmp_path)
    del module
    gc.collect()
    kept = [parameter for weight in weights if (parameter := weight()) is not None]
    assert sum(parameter.numel() for parameter in kept) < 1000  # tokens of SAM's decoder, which torch folds
    del kept
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.onnx", f"{name}.onnx.data"}
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (tiny_bundle / path.name).read_bytes()


@pytest.mark.parametrize(("rows", "split"), [(256, False), (257, True)])
def test_norms_over_large_groups_are_summed_in_rows_and_agree(
    rows: int, tmp_path: Path, *, split: bool
) -> None:
    """A group of 4 x 256 x 256 values is the largest that ONNX Runtime adds up in one sum."""
    norm = torch.nn.GroupNorm(2, 8).eval()
    states = torch.randn(1, 8, rows, 256, generator=torch.Generator().manual_seed(0)) + 3
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.linspace(0.5, 2, 8))
        expected = norm(states)
    shape = tuple(states.shape)
    graph = GraphSpec("norm", (TensorSpec("x", "float32", shape),), (TensorSpec("y", "float32", shape),))
    path = export_graph(norm, graph, tmp_path)
    kinds = {node.op_type for node in onnx_ir.load(path).graph}
    assert ("ReduceMean" in kinds) == split
    assert ("InstanceNormalization" in kinds) == (not split)
    assert rewrite(load_graph(path))[1].group_norms == 1, "ort-cuda has one operator for either"
    got = OrtSession(path, graph, threads=1).run({"x": states.numpy()})["y"]
    assert relative_error(got, expected.numpy()) < 1e-5


def test_a_sam_of_vit_h_s_head_width_looks_no_position_up_at_run_time(tmp_path: Path) -> None:
    sizes = SamSizes(width=80, depth=2, heads=1, mlp_dim=80, global_blocks=(1,))
    encoder = SamEncoder(random_module(lambda: build_sam(sizes), seed=0, name="sam")).eval()
    graph = graph_contract(replace(calm_stack().spec, sam=sam_spec(sizes)))["sam_encoder"]
    kinds = {node.op_type for node in onnx_ir.load(export_graph(encoder, graph, tmp_path)).graph}
    assert "Einsum" in kinds
    assert kinds.isdisjoint({"GatherND", "Gather", "Shape"})


def test_a_written_graph_that_breaks_its_contract_is_named(tiny_bundle: Path) -> None:
    graph = graph_contract(calm_stack().spec)["sam_encoder"]
    wrong = replace(graph, outputs=(replace(graph.outputs[0], shape=(1, 2, 3, 4)),))
    with pytest.raises(InputError, match=r"sam_encoder\.onnx: got output embedding float32 .* expected"):
        check_contract(tiny_bundle / "sam_encoder.onnx", wrong)


def test_a_graph_outside_its_tolerance_leaves_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    with pytest.raises(GateError, match="sam_encoder: output embedding"):
        export_bundle(
            calm_stack(),
            tmp_path / "b",
            feeds=ExampleFeeds(make_examples()),
            progress=lines.append,
            exporter=copying(tiny_bundle),
            limit=lambda name: -1.0,
        )
    assert "sam_decoder: exporting" in lines
    assert list(tmp_path.iterdir()) == []


def test_a_missing_example_is_named(tmp_path: Path) -> None:
    """The first stage's, so that nothing is exported; one place checks the examples of all stages."""
    examples = make_examples()
    del examples["sam_masks"]
    with pytest.raises(InputError, match="never ran sam_masks"):
        export_bundle(calm_stack(), tmp_path / "b", feeds=ExampleFeeds(examples), progress=print)
    assert list(tmp_path.iterdir()) == []


def test_a_recorder_keeps_the_last_run_of_each_shape_at_few_values() -> None:
    recorder = Recorder(TorchSessions(calm_stack()), graph_contract(calm_stack().spec))
    first, second = (make_examples(seed=seed)["sam_encoder"] for seed in (1, 2))
    session = recorder.open("sam_encoder")
    session.run(first)
    kept = round_coarsely(second["image"])
    results = session.run(second)
    second["image"][:] = 0.0
    (record,) = recorder.records("sam_encoder")
    np.testing.assert_array_equal(record.feeds["image"], kept)
    np.testing.assert_array_equal(record.results["embedding"], results["embedding"])
    assert recorder.records("vae_encoder") == ()
    recorder.close()


def test_a_run_of_the_taps_is_a_record_of_the_full_pass_too() -> None:
    contract = graph_contract(calm_stack().spec)
    recorder = Recorder(TorchSessions(calm_stack()), contract)
    feeds = make_examples()["unet_taps"]
    got = recorder.open("unet_taps").run(feeds)
    assert set(got) == set(TAP_OUTPUTS)
    (full,), (cut,) = recorder.records("unet"), recorder.records("unet_taps")
    assert full is cut
    assert set(full.results) == set(contract["unet"].output_names)
    recorder.close()


def test_a_number_that_is_none_is_outside_every_tolerance() -> None:
    expected = np.arange(4, dtype=np.float32)
    assert relative_error(np.full(4, np.nan, np.float32), expected) == float("inf")
    assert relative_error(expected[:2], expected) == float("inf")
    assert relative_error(expected, expected) == 0.0
