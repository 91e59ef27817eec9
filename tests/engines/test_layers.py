"""Where inside a run the time went, and what the device says of it: ONNX Runtime, and TensorRT in memory."""

from pathlib import Path

import numpy as np
import pytest

from refdiff.contracts.bundle import open_bundle
from refdiff.contracts.session import Timings
from refdiff.engines import ort_layers
from refdiff.engines.factory import open_sessions
from refdiff.engines.trt.buffers import StreamContext
from refdiff.engines.trt.cuda import Cuda
from refdiff.engines.trt.engine import Engine
from refdiff.engines.trt.runtime import Library
from refdiff.engines.trt.session import TrtSession
from refdiff.engines.trt.timing import LayerLog
from refdiff.errors import EngineError
from tests.engines.trt.test_session import SUMS, feeds
from tests.support.fake_cuda import FakeCuda
from tests.support.fake_tensorrt import FakeTensorRT, plan_of
from tests.support.plans import BUNDLE

pytest.importorskip("onnxruntime")


def node(name: str, operator: str, microseconds: float, category: str = "Node") -> dict:
    return {"cat": category, "name": name, "dur": microseconds, "args": {"op_name": operator}}


def test_a_node_s_kernel_times_are_summed_and_everything_else_is_left_out() -> None:
    times = ort_layers.layer_times(
        [
            {"cat": "Session", "name": "model_loading_uri", "dur": 900, "args": {}},
            node("conv_in/Conv_fence_before", "Conv", 5),
            node("conv_in/Conv_kernel_time", "Conv", 1000),
            node("attn/MatMul_kernel_time", "MatMul", 250),
            node("conv_in/Conv_kernel_time", "Conv", 2000),
            node("SequentialExecutor::Execute", "", 9000, "Session"),
        ]
    )
    assert [(t.name, t.operator, t.calls, t.ms) for t in times] == [
        ("conv_in/Conv", "Conv", 2, 3.0),
        ("attn/MatMul", "MatMul", 1, 0.25),
    ]


def test_onnx_runtime_times_the_layers_of_all_runs_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    bundle = open_bundle(BUNDLE, verify="size")
    sessions = open_sessions(bundle, backend="ort-cpu", threads=1, measure="layers")
    session, given = sessions.open("clip_text"), bundle.golden()["clip_text"][0]
    for _ in range(2):
        session.run(given)
    layers = session.timings().layers
    assert {layer.calls for layer in layers} == {2}
    assert any(layer.operator == "MatMul" and layer.ms > 0 for layer in layers)
    assert session.timings().layers == layers
    session.run(given)
    sessions.close()
    assert list(tmp_path.iterdir()) == []


def test_a_session_that_does_not_measure_has_no_layers(tmp_path: Path) -> None:
    sessions = open_sessions(open_bundle(BUNDLE, verify="size"), backend="ort-cpu", threads=1, measure="runs")
    session = sessions.open("clip_text")
    assert session.timings() == Timings()
    sessions.close()


def test_layers_of_a_closed_session_are_an_error() -> None:
    sessions = open_sessions(
        open_bundle(BUNDLE, verify="size"), backend="ort-cpu", threads=1, measure="layers"
    )
    session = sessions.open("clip_text")
    sessions.close()
    with pytest.raises(EngineError, match="closed"):
        session.timings()


class Bench:
    """A device in memory, and one session on it."""

    def __init__(self, *, timed: bool = False, layers: bool = False, rtx: bool = False) -> None:
        self.cuda = FakeCuda()
        self.trt = FakeTensorRT(self.cuda, rtx=rtx)
        self.context = StreamContext(Cuda(self.cuda))
        log = LayerLog(self.trt) if layers else None
        library = Library(self.trt)
        self.session = TrtSession(
            SUMS,
            self.context,
            lambda: Engine(library, plan_of(SUMS), SUMS, layers=log),
            timed=timed,
            layers=log,
        )

    def end(self) -> None:
        self.session.close()
        self.context.close()
        assert self.cuda.is_clean


def test_a_timed_session_s_device_time_is_between_two_events_around_the_run() -> None:
    bench = Bench(timed=True)
    assert bench.session.timings().device_ms is None
    bench.session.run(feeds())
    bench.cuda.calls.clear()
    bench.session.run(feeds())
    calls = [
        call for call in bench.cuda.calls if call.startswith(("copy", "cudaEventRecord", "cudaGraphLaunch"))
    ]
    assert calls == [
        *("copy in", "copy in", "cudaEventRecord"),
        *("cudaEventRecord", "cudaGraphLaunch", "cudaEventRecord"),
        *("copy out", "copy out"),
    ]
    assert bench.session.timings().device_ms == 1.5
    bench.end()


def test_an_untimed_session_takes_no_events() -> None:
    bench = Bench()
    bench.session.run(feeds())
    assert bench.session.timings().device_ms is None
    assert bench.cuda.count("cudaEventElapsedTime") == 0
    bench.end()


def test_a_failed_run_gives_no_time() -> None:
    bench = Bench(timed=True)
    bench.trt.fail = "run"
    with pytest.raises(EngineError):
        bench.session.run(feeds())
    with pytest.raises(EngineError, match="closed"):
        bench.session.timings()
    bench.end()


@pytest.mark.parametrize("rtx", [False, True])
def test_tensorrt_times_every_layer_of_every_run_and_replays_none(rtx: bool) -> None:
    bench = Bench(layers=True, rtx=rtx)
    for _ in range(3):
        bench.session.run(feeds())
    assert [(t.name, t.operator, t.calls, t.ms) for t in bench.session.timings().layers] == [
        ("once", "", 3, 3.0),
        ("twice", "", 3, 6.0),
    ]
    assert bench.cuda.count("cudaGraphLaunch") == 0
    bench.end()


def test_layers_go_on_after_the_weights_were_taken_off_the_device() -> None:
    bench = Bench(layers=True)
    bench.session.run(feeds())
    bench.session.unload()
    bench.session.run(feeds())
    assert {layer.calls for layer in bench.session.timings().layers} == {2}
    bench.end()


def test_a_session_without_layers_sets_no_profiler() -> None:
    bench = Bench(timed=True)
    np.testing.assert_array_equal(bench.session.run(feeds())["once"][0], 6.0)
    assert bench.session.timings().layers == ()
    bench.end()
