"""`refdiff build` as a person and a script see it, over TensorRTs in memory."""

import dataclasses
import json

import pytest

from refdiff.cli import main
from refdiff.engines import build
from refdiff.engines import build as building
from refdiff.engines.trt.device import Device
from refdiff.engines.trt.options import BuildOptions
from refdiff.engines.trt.plan_store import plans_folder
from refdiff.errors import EngineError, InputError, MissingDependencyError
from tests.support.attentions import attention
from tests.support.fake_builder import (
    Behaviour,
    Complaint,
    Layer,
    Severity,
    fake_flavour,
    fake_rtx,
    fake_tensorrt,
)
from tests.support.fake_machine import install_gpu, install_tensorrt
from tests.support.plans import MINIATURE

ORIN = Device(name="Orin", compute_capability="8.7", memory_bytes=8 * 10**9, driver_cuda="12.6")


@pytest.fixture
def behaviour():
    return Behaviour()


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def machine(request, behaviour, machines):
    """A Jetson with TensorRT, or a machine without a GPU that has TensorRT-RTX."""
    if request.param == "tensorrt":
        machines(fake_tensorrt(behaviour=behaviour), ORIN)
    else:
        machines(fake_rtx(behaviour=behaviour), None)
    return request.param


@pytest.fixture
def machines(monkeypatch, tmp_path):
    """Sets up a machine: the TensorRT it has, and its GPU."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def set_up(module, device):
        install_tensorrt(monkeypatch, module)
        install_gpu(monkeypatch, device)

    return set_up


def said(capsys, *arguments):
    code = main(["build", "mini", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_every_graph_is_built_and_then_kept(machine, capsys):
    code, first = said(capsys)
    assert code == 0
    assert [each["graph"] for each in first["graphs"]] == list(MINIATURE.manifest.graphs)
    assert not any(each["reused"] for each in first["graphs"])
    code, second = said(capsys)
    assert code == 0
    assert all(each["reused"] for each in second["graphs"])
    assert [each["key"] for each in second["graphs"]] == [each["key"] for each in first["graphs"]]


def test_the_report_says_what_was_chosen_why_and_for_what(machine, capsys):
    _, report = said(capsys, "--graph", "sd_text")
    expected = {
        "tensorrt": ("10.3.0", ["8.7"], "Orin", "tensorrt-sm87"),
        "tensorrt-rtx": ("1.7.1", ["portable"], None, "tensorrt-rtx-portable"),
    }[machine]
    version, targets, device, folder = expected
    assert report["flavour"] == machine
    assert report["reason"] == "the only one installed"
    assert (report["version"], report["targets"], report["device"]) == (version, targets, device)
    (graph,) = report["graphs"]
    assert graph["plan"] == str(plans_folder(MINIATURE) / folder / "sd_text.plan")
    assert graph["activation_bytes"] == 4096
    assert graph["built_on"] == device


def test_the_bundle_s_own_size_may_be_named(machine, capsys):
    assert said(capsys, "--graph", "sd_text", "--size", "128")[0] == 0
    assert said(capsys, "--graph", "sd_text", "--size", "128", "--lint")[0] == 0


def test_another_size_than_a_model_s_bundle_has_is_refused_with_the_export_that_makes_it():
    spec = dataclasses.replace(MINIATURE.spec, name="refdiff")
    bundle = dataclasses.replace(MINIATURE, manifest=dataclasses.replace(MINIATURE.manifest, spec=spec))
    with pytest.raises(InputError, match=r"are for 128 px; .*: refdiff export MODEL --size 768"):
        building.check_size(bundle, 768)


@pytest.mark.parametrize(
    "arguments",
    [("--force",), ("--workspace", "4GB"), ("--variant", "official")],
    ids=["forced", "another workspace", "another variant"],
)
def test_anything_else_is_built_again(machine, capsys, arguments):
    said(capsys, "--graph", "clip_image")
    _, again = said(capsys, "--graph", "clip_image", *arguments)
    assert [each["reused"] for each in again["graphs"]] == [False]


def test_a_new_version_is_built_again_in_the_same_place(machines, capsys):
    machines(fake_tensorrt(version="10.3.0"), ORIN)
    _, old = said(capsys, "--graph", "sd_text")
    machines(fake_tensorrt(version="10.4.0"), ORIN)
    _, new = said(capsys, "--graph", "sd_text")
    assert new["graphs"][0]["reused"] is False
    assert new["graphs"][0]["plan"] == old["graphs"][0]["plan"]


def test_the_table_names_every_plan_and_where_it_is(machine, capsys):
    assert main(["build", "mini", "--graph", "unet", "--graph", "sd_text"]) == 0
    table = capsys.readouterr().out
    for word in ("unet", "sd_text", "built", machine, "metadata and build logs"):
        assert word in table
    assert "vae_encoder" not in table


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--graph", "nope"), "has no graph 'nope', it has: sd_text"),
        (("--variant", "nope"), "unknown variant 'nope'"),
        (("--size", "512"), "are for 128 px; leave it out: the miniature has no other"),
        (("--lint", "--size", "512"), "got --size 512, but the graphs of"),
        (("--workspace", "much"), 'expected a size such as "8GB"'),
        (("--flavour", "nope"), "unknown flavour 'nope'"),
        (("--refit", "--strip-weights"), "expected one"),
        (("--attention-op",), "10.3.0 has no IAttention, expected TensorRT 10.14 or later"),
        (("--attention-op", "--lint"), "is in fp32, in which TensorRT fuses no attention"),
    ],
)
def test_misuse_is_exit_code_2_and_builds_nothing(machines, behaviour, capsys, arguments, says):
    machines(fake_tensorrt(behaviour=behaviour), ORIN)
    code, document = said(capsys, *arguments)
    assert code == 2
    assert says in document["error"]["message"]
    assert behaviour.parsed == []


@pytest.mark.parametrize(
    ("module", "device", "arguments"),
    [
        (fake_tensorrt(), ORIN, ("--compute-capability", "8.6")),
        (fake_rtx(), None, ("--timing-cache", "cache")),
        (fake_rtx(), None, ("--version-compatible",)),
        (fake_rtx(), None, ("--hardware-compatible",)),
        (fake_tensorrt(without=("BuilderFlag.REFIT",)), ORIN, ("--refit",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_an_option_a_flavour_does_not_have_is_refused_by_name(machines, capsys, module, device, arguments):
    machines(module, device)
    code, document = said(capsys, *arguments)
    assert code == 2
    assert document["error"]["message"].startswith(f"got {arguments[0]}, but ")


def test_rtx_names_the_gpus_it_can_build_for(machines, capsys):
    machines(fake_rtx(), None)
    code, document = said(capsys, "--compute-capability", "8.6,9.0")
    assert code == 2
    assert "'9.0', it can for: 8.0, 8.6, 8.9, 12.0" in document["error"]["message"]


def test_rtx_builds_for_the_gpus_that_are_named(machines, capsys):
    machines(fake_rtx(), None)
    code, report = said(capsys, "--graph", "sd_text", "--compute-capability", "12.0, 8.6")
    assert (code, report["targets"]) == (0, ["8.6", "12.0"])
    assert "tensorrt-rtx-sm86-sm120" in report["graphs"][0]["plan"]


def test_tensorrt_without_a_gpu_is_exit_code_3(machines, behaviour, capsys):
    machines(fake_tensorrt(behaviour=behaviour), None)
    code, document = said(capsys)
    assert code == 3
    assert "builds on the GPU it builds for" in document["error"]["message"]
    assert behaviour.parsed == []


def test_rtx_needs_a_gpu_for_plans_that_are_refitted():
    flavour = fake_flavour(fake_rtx())
    for options in (BuildOptions(refit=True), BuildOptions(strip_weights=True)):
        with pytest.raises(MissingDependencyError, match="needs a GPU for --"):
            building.check_options(options, flavour, None)
        building.check_options(options, flavour, ORIN)


def test_hardware_compatible_plans_have_a_folder_of_their_own(machines, capsys):
    machines(fake_tensorrt(), ORIN)
    _, report = said(capsys, "--graph", "sd_text", "--hardware-compatible")
    assert report["targets"] == ["ampere-plus"]
    assert "tensorrt-ampere-plus" in report["graphs"][0]["plan"]


def test_a_refused_graph_ends_with_3_names_the_log_and_leaves_no_plan(machine, behaviour, capsys):
    behaviour.complaints = [Complaint("/mask/NonZero", "NonZero", "no importer")]
    code, document = said(capsys, "--graph", "unet")
    assert code == 3
    message = document["error"]["message"]
    assert "node /mask/NonZero (NonZero): no importer" in message
    (log,) = plans_folder(MINIATURE).rglob("*.log")
    assert str(log) in message
    assert "[ERROR] no importer" in log.read_text()
    assert list(plans_folder(MINIATURE).rglob("*.plan")) == []
    behaviour.complaints = []
    assert said(capsys, "--graph", "unet")[0] == 0
    assert not log.exists()


def test_a_failed_rebuild_leaves_the_plan_that_was_there(machine, behaviour):
    before = build.build("mini", graphs=["unet"]).graphs[0]
    behaviour.fails, behaviour.says = True, [(Severity.ERROR, "no kernel")]
    with pytest.raises(EngineError, match="no kernel"):
        build.build("mini", graphs=["unet"], force=True)
    after = build.build("mini", graphs=["unet"]).graphs[0]
    assert after.reused
    assert after.metadata == before.metadata


def test_progress_comes_from_tensorrt_and_says_what_is_kept(machine):
    lines = []
    build.build("mini", graphs=["unet"], progress=lines.append)
    assert lines == ["unet: Building engine"]
    build.build("mini", graphs=["unet"], progress=lines.append)
    assert lines[1].endswith("unet.plan is there")


def test_ctrl_c_is_130_and_leaves_nothing(machine, behaviour, capsys):
    def interrupted(step):
        raise KeyboardInterrupt

    behaviour.on_step = interrupted
    assert main(["build", "mini", "--graph", "unet"]) == 130
    assert [path.name for path in plans_folder(MINIATURE).rglob("*") if path.is_file()] == [".lock"]


def test_lint_builds_nothing_and_ends_with_0_when_the_parser_takes_all(machine, behaviour, capsys):
    code, report = said(capsys, "--lint")
    assert (code, report["passed"]) == (0, True)
    assert [each["graph"] for each in report["graphs"]] == list(MINIATURE.manifest.graphs)
    assert len(behaviour.parsed) == 9
    assert not plans_folder(MINIATURE).exists()


def test_lint_needs_no_gpu_even_with_tensorrt(machines, capsys):
    machines(fake_tensorrt(), None)
    assert said(capsys, "--lint", "--graph", "unet")[0] == 0


def test_lint_ends_with_1_when_the_parser_refuses_and_says_where(machine, behaviour, capsys):
    behaviour.complaints = [Complaint("/mask/NonZero", "NonZero", "no importer")]
    code, report = said(capsys, "--lint", "--graph", "unet")
    assert (code, report["passed"]) == (1, False)
    (refusal,) = report["graphs"][0]["refusals"]
    assert (refusal["node"], refusal["operator"], refusal["reason"]) == (
        "/mask/NonZero",
        "NonZero",
        "no importer",
    )
    assert main(["build", "mini", "--lint", "--graph", "unet"]) == 1
    assert "REFUSED" in capsys.readouterr().out


def test_lint_tells_risks_and_does_not_fail(machine, behaviour, capsys):
    behaviour.layers = [Layer("PLUGIN_V3", "/norm/Plugin")]
    code, report = said(capsys, "--lint", "--graph", "unet")
    assert code == 0
    (finding,) = report["graphs"][0]["findings"]
    assert (finding["rule"], finding["layer"]) == ("plugin", "/norm/Plugin")
    assert main(["build", "mini", "--lint", "--graph", "unet"]) == 0
    assert "/norm/Plugin" in capsys.readouterr().out


MHA = (
    "Name: mha, LayerType: kgen, Metadata: [ONNX Layer: /MatMul][ONNX Layer: /Softmax][ONNX Layer: /MatMul_1]"
)


def test_fusion_says_of_each_attention_whether_one_kernel_computes_it(machine, behaviour, capsys):
    behaviour.layers = attention().layers
    behaviour.says = [(Severity.VERBOSE, f"Layers:\n{MHA}")]
    _, report = said(capsys, "--graph", "unet")
    (block,) = report["graphs"][0]["attention"]
    assert (block["softmax"], block["fused"], block["kernel"]) == ("/Softmax", True, "mha")
    assert main(["build", "mini", "--graph", "unet", "--fusion"]) == 0
    table = capsys.readouterr().out
    for words in ("kept", "1 of 1", "/Softmax", "yes"):
        assert words in table


def test_an_attention_in_several_kernels_is_reported_with_its_obstacles(machine, behaviour, capsys):
    behaviour.layers = attention(head_size=8).layers
    behaviour.says = [(Severity.VERBOSE, MHA.replace("[ONNX Layer: /MatMul_1]", ""))]
    assert main(["build", "mini", "--graph", "unet", "--fusion"]) == 0
    table = capsys.readouterr().out
    for words in ("0 of 1", "NO", "heads of 8"):
        assert words in table


def test_the_inspector_is_asked_where_the_log_lists_no_layers(machines, behaviour, capsys):
    machines(fake_tensorrt(behaviour=behaviour), ORIN)
    behaviour.layers = attention().layers
    behaviour.inspected = json.dumps({"Layers": [{"Name": "mha", "Metadata": MHA}]})
    _, report = said(capsys, "--graph", "unet")
    assert report["graphs"][0]["attention"][0]["fused"] is True


def test_a_report_says_so_where_it_is_unknown_what_was_fused(machine, behaviour, capsys):
    behaviour.layers = attention().layers
    _, report = said(capsys, "--graph", "unet")
    assert report["graphs"][0]["attention"][0]["fused"] is None
    assert main(["build", "mini", "--graph", "unet", "--fusion"]) == 0
    assert "can be" in capsys.readouterr().out


def test_lint_says_what_could_be_fused_before_anything_is_built(machine, behaviour, capsys):
    behaviour.layers = attention(dtype="FLOAT").layers
    _, report = said(capsys, "--lint", "--graph", "unet")
    assert report["graphs"][0]["attention"][0]["obstacles"] == ["products in float32"]
    assert main(["build", "mini", "--lint", "--fusion", "--graph", "unet"]) == 0
    assert "cannot be" in capsys.readouterr().out
