"""From graph to plan file with a TensorRT in memory: what reaches the builder, and how it may fail."""

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from refdiff.contracts.options import options_for
from refdiff.engines.trt.building import BuildTask, build_plan
from refdiff.engines.trt.monitor import Watch, make_log, run_stoppable
from refdiff.engines.trt.options import BuildOptions
from refdiff.engines.trt.shapes import shape_profiles
from refdiff.errors import EngineError, InputError
from tests.support.attentions import attention
from tests.support.fake_builder import (
    Behaviour,
    Complaint,
    OldComplaint,
    Severity,
    Tensor,
    fake_flavour,
    fake_rtx,
    fake_tensorrt,
)
from tests.support.plans import CONTRACT, MINIATURE


def task(graph="clip_image", **options):
    return BuildTask(
        graph=graph,
        onnx=Path(f"{graph}.onnx"),
        shapes=shape_profiles(CONTRACT[graph], MINIATURE.spec, [options_for(MINIATURE.spec)]),
        options=BuildOptions(**options),
    )


def built(folder, module, what=None, tell=lambda line: None):
    """Build, and read from the plan the settings of the builder."""
    flavour, target = fake_flavour(module), folder / "draft"
    log = make_log(flavour)
    made = build_plan(flavour, what or task(), target, log, Watch("clip_image", tell))
    return {
        **json.loads(target.read_bytes()),
        "activations": made.activation_bytes,
        "attention": made.attention,
    }


@pytest.mark.parametrize("streams", [True, False], ids=["streaming", "in memory"])
@pytest.mark.parametrize("make", [fake_tensorrt, fake_rtx], ids=["tensorrt", "rtx"])
def test_every_build_is_strongly_typed_without_tf32_for_all_sizes(tmp_path, make, streams):
    settings = built(tmp_path, make(behaviour=Behaviour(streams=streams)))
    assert settings["network_flags"] == 1 << 1
    assert settings["flags"] == []
    assert settings["verbosity"] == "DETAILED"  # kernels say which nodes they compute
    assert len(settings["profiles"]) == 2
    assert settings["profiles"][0]["mask"] == [[1, 65, 65], [10, 65, 65], [20, 65, 65]]
    assert settings["activations"] == 4096


def test_a_graph_without_dynamic_axes_is_given_no_profile(tmp_path):
    assert built(tmp_path, fake_tensorrt(), task("sam_encoder"))["profiles"] == []


def test_only_dynamic_inputs_are_given_shapes(tmp_path):
    behaviour = Behaviour(
        inputs=[Tensor("latent", (-1, 4, 32, 32)), Tensor("timestep", (1,)), Tensor("context", (-1, 77, 128))]
    )
    settings = built(tmp_path, fake_tensorrt(behaviour=behaviour), task("unet"))
    assert set(settings["profiles"][0]) == {"latent", "context"}


def test_options_reach_the_builder_by_this_version_s_names(tmp_path):
    options = {
        "refit": True,
        "version_compatible": True,
        "hardware_compatible": True,
        "workspace_bytes": 4096,
    }
    settings = built(tmp_path, fake_tensorrt(), task(**options))
    assert settings["flags"] == ["REFIT", "VERSION_COMPATIBLE"]
    assert (settings["hardware"], settings["workspace"]) == ("AMPERE_PLUS", 4096)
    assert built(tmp_path, fake_tensorrt(), task(strip_weights=True))["flags"] == ["STRIP_PLAN"]


def test_named_gpus_reach_rtx(tmp_path):
    settings = built(tmp_path, fake_rtx(), task(compute_capabilities=("8.9", "8.6", "8.9")))
    assert settings["capabilities"] == ["SM86", "SM89"]


def test_a_gpu_that_rtx_refuses_after_all_is_named(tmp_path):
    module = fake_rtx(behaviour=Behaviour(refused=("SM120",)))
    with pytest.raises(EngineError, match=r"refuses compute capability 12\.0"):
        built(tmp_path, module, task(compute_capabilities=("12.0",)))


def test_the_parser_is_handed_a_file_not_its_bytes(tmp_path):
    behaviour = Behaviour()
    built(tmp_path, fake_tensorrt(behaviour=behaviour))
    assert behaviour.parsed == ["clip_image.onnx"]


@pytest.mark.parametrize("attention_op", [True, False])
def test_an_attention_that_is_lost_without_an_obstacle_is_an_error_where_fusion_is_required(
    tmp_path, attention_op
):
    pytest.importorskip("onnx_ir")
    kernels = "Layers:\nName: soft, LayerType: kgen, Metadata: [ONNX Layer: /Softmax]\n"
    module = fake_tensorrt(behaviour=Behaviour(layers=attention().layers, says=[(Severity.VERBOSE, kernels)]))
    what = replace(task("sd_text", attention_op=attention_op), onnx=MINIATURE.graph_path("sd_text"))
    if attention_op:
        with pytest.raises(EngineError, match=r"does not fuse 1 of the 1 attentions of sd_text, .* /Softmax"):
            built(tmp_path, module, what)
    else:
        (block,) = built(tmp_path, module, what)["attention"]
        assert block.fused is False


@pytest.mark.parametrize(
    ("complaint", "says"),
    [
        (
            Complaint("/mask/NonZero", "NonZero", "no importer\nregistered"),
            r"refuses clip_image: node /mask/NonZero \(NonZero\): no importer registered; its output's size",
        ),
        (
            Complaint("/mod/Foo", "Foo", "Plugin not found"),
            r"node /mod/Foo \(Foo\): Plugin not found; export the bundle again",
        ),
        (
            Complaint("/a/Add", "Add", "/a/Add must have same input types\n[catchCudaError] Cuda Runtime"),
            r"\(Add\): /a/Add must have same input types; the graph mixes types",
        ),
        (
            OldComplaint("Failed to parse the ONNX model."),
            r"refuses clip_image: Failed to parse the ONNX model\.; it is no ONNX file",
        ),
    ],
)
def test_a_refused_node_is_named_with_operator_reason_and_cure(tmp_path, complaint, says):
    with pytest.raises(EngineError, match=says):
        built(tmp_path, fake_tensorrt(behaviour=Behaviour(complaints=[complaint])))


def test_a_parser_that_refuses_without_a_reason_is_believed(tmp_path):
    with pytest.raises(EngineError, match="it gives no reason"):
        built(tmp_path, fake_tensorrt(behaviour=Behaviour(silent_refusal=True)))


def test_a_tensorrt_that_cannot_start_says_why(tmp_path):
    module = fake_tensorrt(behaviour=Behaviour(cannot_start=True))
    with pytest.raises(EngineError, match=r"cannot start: CUDA initialization failure with error: 35"):
        built(tmp_path, module)


@pytest.mark.parametrize("streams", [True, False], ids=["streaming", "in memory"])
def test_a_builder_that_returns_nothing_is_quoted(tmp_path, streams):
    says = [(Severity.ERROR, "Could not find any implementation for node x\nmore"), (Severity.INFO, "bye")]
    behaviour = Behaviour(fails=True, streams=streams, says=says)
    with pytest.raises(EngineError, match=r"cannot build clip_image: Could not find.*node x; see the build"):
        built(tmp_path, fake_tensorrt(behaviour=behaviour))


def test_a_graph_of_another_size_is_refused_before_the_build(tmp_path):
    other = [Tensor("image", (1, 3, 99, 99))]
    with pytest.raises(EngineError, match=r"takes image as \[1, 3, 99, 99\].*\[1, 3, 160, 160\]"):
        built(tmp_path, fake_tensorrt(behaviour=Behaviour(inputs=other)), task("sam_encoder"))
    with pytest.raises(EngineError, match="has inputs picture, expected image"):
        behaviour = Behaviour(inputs=[Tensor("picture", (1, 3, 160, 160))])
        built(tmp_path, fake_tensorrt(behaviour=behaviour), task("sam_encoder"))


def test_shapes_that_tensorrt_refuses_are_reported(tmp_path):
    with pytest.raises(EngineError, match="refuses the shapes"):
        built(tmp_path, fake_tensorrt(behaviour=Behaviour(refused=("profile",))))


def test_a_timing_cache_is_read_and_written(tmp_path):
    cache = tmp_path / "cache"
    assert built(tmp_path, fake_tensorrt(), task(timing_cache=cache))["cache"] == ""
    assert cache.read_bytes() == b"+"
    assert built(tmp_path, fake_tensorrt(), task(timing_cache=cache))["cache"] == "+"
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_a_timing_cache_of_another_gpu_is_refused(tmp_path):
    cache = tmp_path / "cache"
    cache.write_bytes(b"foreign")
    with pytest.raises(InputError, match="of another TensorRT or GPU"):
        built(tmp_path, fake_tensorrt(), task(timing_cache=cache))
    assert cache.read_bytes() == b"foreign"


@pytest.mark.parametrize("streams", [True, False], ids=["streaming", "in memory"])
def test_a_full_disk_is_named(streams):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    flavour = fake_flavour(fake_tensorrt(behaviour=Behaviour(streams=streams, plan_bytes=1 << 20)))
    with pytest.raises(InputError, match="cannot write /dev/full: No space left on device"):
        build_plan(flavour, task(), Path("/dev/full"), make_log(flavour), Watch("x", lambda line: None))


def test_progress_is_tensorrt_s_own_and_at_most_a_line_a_second():
    lines, now = [], [0.0]
    watch = Watch("unet", lines.append, clock=lambda: now[0])
    watch.started("Building engine", 1)
    watch.started("Timing tactics", 154)
    for step in range(154):
        now[0] += 0.25
        assert watch.stepped("Timing tactics", step)
    watch.finished("Timing tactics")
    now[0] += 1
    assert watch.stepped("Building engine", 0)
    assert lines[0] == "unet: Building engine"
    assert lines[1] == "unet: Timing tactics 4/154"
    assert len(lines) == 1 + 154 // 4


def test_a_version_without_a_progress_monitor_builds_all_the_same(tmp_path):
    assert built(tmp_path, fake_tensorrt(without=("IProgressMonitor",)))["network_flags"]


def test_what_the_progress_line_raises_ends_the_build_and_is_raised(tmp_path):
    def broken(line):
        raise BrokenPipeError("no reader")

    behaviour = Behaviour(steps=1000)
    with pytest.raises(BrokenPipeError, match="no reader"):
        built(tmp_path, fake_tensorrt(behaviour=behaviour), tell=broken)


@pytest.fixture
def heard():
    """Ctrl-C is heard, though a shell's background jobs inherit it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
def test_an_interrupted_wait_stops_the_build_between_two_steps(tmp_path):
    """Ctrl-C is heard by the main thread, while the build runs in another."""
    steps = []

    def on_step(step):
        steps.append(step)
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        if step > 2:
            time.sleep(0.02)

    behaviour = Behaviour(steps=100_000, on_step=on_step)
    with pytest.raises(KeyboardInterrupt):
        built(tmp_path, fake_tensorrt(behaviour=behaviour))
    taken = len(steps)
    assert 2 < taken < 1000
    assert behaviour.threads == {"refdiff-build"}
    time.sleep(0.1)
    assert len(steps) == taken  # nothing is built after the call


def test_what_the_work_raises_is_raised_by_the_waiter():
    def work():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_stoppable(work, threading.Event())
    assert run_stoppable(lambda: 3, threading.Event()) == 3


def test_the_log_keeps_what_matters_and_forgets_the_missing_driver():
    log = make_log(fake_flavour(fake_tensorrt()))
    log.log(Severity.VERBOSE, "chatter")
    log.log(Severity.WARNING, "careful")
    log.log(Severity.ERROR, "[checkMacros.cpp::catchCudaError::250] CUDA driver version is insufficient")
    assert log.lines[0] == "[WARNING] careful"
    assert len(log.lines) == 2
    assert log.errors == []
