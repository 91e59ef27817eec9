"""TensorRT sessions on a TensorRT and a CUDA in memory: what they move, keep, refuse and give back."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from refdiff.contracts.graphs import GraphSpec, TensorSpec
from refdiff.engines.trt.buffers import StreamContext
from refdiff.engines.trt.cuda import Cuda
from refdiff.engines.trt.engine import Engine
from refdiff.engines.trt.runtime import JitCache, Library
from refdiff.engines.trt.session import TrtSession
from refdiff.errors import EngineError, InputError, MissingDependencyError
from tests.support.fake_cuda import Error, FakeCuda
from tests.support.fake_tensorrt import FakeTensorRT, plan_of

SUMS = GraphSpec(
    "sums",
    (TensorSpec("left", "float32", ("b", 3)), TensorSpec("right", "int32", ("b",))),
    (TensorSpec("once", "float32", ("b", 2)), TensorSpec("twice", "float32", ("b", 5))),
)

AFTER = GraphSpec(
    "after", (TensorSpec("once", "float32", ("b", 2)),), (TensorSpec("total", "float32", ("b", 1)),)
)


class Bench:
    """A device, and sessions on it."""

    def __init__(self, **flavour: bool) -> None:
        self.cuda = FakeCuda()
        self.trt = FakeTensorRT(self.cuda, **flavour)
        self.context = StreamContext(Cuda(self.cuda))
        self.library = Library(self.trt)

    def session(self, graph: GraphSpec = SUMS, *, plan: bytes | None = None, cache=None, **options):
        content = plan or plan_of(graph)
        load = lambda: Engine(self.library, content, graph, cache=cache)  # noqa: E731
        return TrtSession(graph, self.context, load, **options)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.context.close()
    bench.context.close()
    assert bench.cuda.is_clean
    assert bench.trt.loaded == 0


def feeds(batch: int = 2, value: float = 1.0) -> dict[str, np.ndarray]:
    return {"left": np.full((batch, 3), value, np.float32), "right": np.zeros(batch, np.int32)}


def test_a_run_returns_what_the_engine_computes_in_the_contracts_shapes(bench: Bench) -> None:
    session = bench.session()
    assert session.graph is SUMS
    found = session.run(feeds())
    assert {name: (values.shape, values.dtype, values.flat[0]) for name, values in found.items()} == {
        "once": ((2, 2), np.float32, 6.0),
        "twice": ((2, 5), np.float32, 12.0),
    }
    session.close()


def test_only_the_outputs_asked_for_come_to_the_host(bench: Bench) -> None:
    session = bench.session()
    assert list(session.run(feeds(), ["twice"])) == ["twice"]
    assert bench.cuda.count("copy out") == 1
    assert session.run(feeds(), []) == {}
    assert bench.cuda.count("copy out") == 1
    session.close()


def test_results_stay_what_they_were_when_the_session_runs_again(bench: Bench) -> None:
    session = bench.session()
    first = session.run(feeds())["once"]
    session.run(feeds(value=7.0))
    assert first[0, 0] == 6.0
    session.close()


def test_a_feed_that_is_no_contiguous_array_is_copied_right(bench: Bench) -> None:
    session = bench.session()
    wide = np.zeros((3, 4), np.float32)
    wide[:, ::2] = 1.0
    assert session.run({**feeds(), "left": wide.T[::2]})["once"][0, 0] == 6.0
    session.close()


def test_buffers_are_kept_from_run_to_run_and_grow_only_for_larger_shapes(bench: Bench) -> None:
    session = bench.session()
    session.run(feeds(2))
    allocated = bench.cuda.count("cudaMalloc"), bench.cuda.count("cudaMallocHost")
    for batch in (2, 1, 2):
        session.run(feeds(batch))
    assert (bench.cuda.count("cudaMalloc"), bench.cuda.count("cudaMallocHost")) == allocated
    assert session.run(feeds(4))["once"].shape == (4, 2)
    assert bench.cuda.used <= 4 * 512 + 4 * 1024  # tensors and activations, each rounded up
    session.close()


@pytest.mark.parametrize("flavour", [{"old": True}, {"rtx": True}])
def test_releases_that_name_things_differently_run_the_same(flavour: dict[str, bool]) -> None:
    bench = Bench(**flavour)
    session = bench.session()
    assert session.run(feeds())["once"][0, 0] == 6.0
    session.close()
    bench.context.close()
    assert bench.cuda.is_clean


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"left": np.ones((2, 3), np.float32)}, "expected exactly left, right"),
        ({**feeds(), "left": np.ones((2, 3))}, "left is float64, expected float32"),
        ({**feeds(), "left": np.ones((2, 4), np.float32)}, r"left is \[2, 4\]"),
        ({**feeds(), "right": np.zeros(3, np.int32)}, "right is"),
    ],
)
def test_a_wrong_feed_is_refused_and_the_session_goes_on(bench: Bench, given: dict, message: str) -> None:
    session = bench.session()
    with pytest.raises(InputError, match=message):
        session.run(given)
    assert session.run(feeds())["once"][0, 0] == 6.0
    session.close()


def test_an_unknown_output_is_named(bench: Bench) -> None:
    session = bench.session()
    with pytest.raises(InputError, match="no output 'thrice'"):
        session.run(feeds(), ["thrice"])
    session.close()


def test_shapes_the_plan_was_not_built_for_are_refused_with_what_it_was_built_for(bench: Bench) -> None:
    session = bench.session()
    with pytest.raises(EngineError, match=r"left \[1, 3\] to \[4, 3\].*got left \[5, 3\].*refdiff build"):
        session.run(feeds(5))
    assert session.run(feeds(4))["once"].shape == (4, 2)
    session.close()


def test_the_profile_that_holds_the_shapes_is_chosen(bench: Bench) -> None:
    small = [{"left": [1, 3], "right": [1]}, {"left": [2, 3], "right": [2]}]
    large = [{"left": [8, 3], "right": [8]}, {"left": [9, 3], "right": [9]}]
    session = bench.session(plan=plan_of(SUMS, profiles=[small, large]))
    for batch in (1, 9, 2, 8):
        assert session.run(feeds(batch))["once"][0, 0] == 3.0 * batch
    with pytest.raises(EngineError, match=r"to \[2, 3\].*; left \[8, 3\] to \[9, 3\]"):
        session.run(feeds(4))
    session.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outputs": {"once": ["b", 2]}}, r"has inputs .* and outputs"),
        (
            {"dtypes": {"left": "float16", "right": "int32", "once": "float32", "twice": "float32"}},
            "left as HALF",
        ),
        ({"host": ["right"]}, "right on the host"),
    ],
)
def test_a_plan_of_another_graph_is_refused(bench: Bench, changes: dict, message: str) -> None:
    session = bench.session(plan=plan_of(SUMS, **changes))
    with pytest.raises(EngineError, match=message):
        session.run(feeds())
    assert session.is_closed


def test_a_plan_that_is_none_says_what_tensorrt_said(bench: Bench) -> None:
    session = bench.session(plan=b"not a plan")
    with pytest.raises(EngineError, match=r"cannot be loaded: tensorrt 10\.3\.0: Magic tag does not match"):
        session.load()
    assert session.is_closed


@pytest.mark.parametrize(
    ("when", "message"), [("context", "no context for you"), ("run", "kernel went away")]
)
def test_a_failure_in_tensorrt_is_reported_and_everything_is_freed(
    bench: Bench, when: str, message: str
) -> None:
    session = bench.session()
    bench.trt.fail = when
    with pytest.raises(EngineError, match=message):
        session.run(feeds())
    assert session.is_closed
    assert bench.cuda.used == 0
    with pytest.raises(EngineError, match="sums: the session is closed"):
        session.run(feeds())


@pytest.mark.parametrize(
    "call", ["cudaMallocHost", "copy in", "copy out", "cudaStreamSynchronize", "cudaEventSynchronize"]
)
def test_a_failure_in_cuda_is_reported_and_everything_is_freed(bench: Bench, call: str) -> None:
    session = bench.session()
    bench.cuda.fail[call] = Error.cudaErrorIllegalAddress
    with pytest.raises(EngineError, match=r"CUDA failed: what CUDA says .cudaErrorIllegalAddress"):
        session.run(feeds())
    assert session.is_closed
    assert bench.cuda.used == 0
    bench.cuda.fail.clear()


def test_too_little_device_memory_says_for_what_and_how_much_is_free(bench: Bench) -> None:
    bench.cuda.total = 4096
    session = bench.session(plan=plan_of(SUMS, activations=10**6))
    with pytest.raises(
        EngineError, match=r"no 2 MB of device memory left for activations of sums .*--memory"
    ):
        session.run(feeds())
    assert bench.cuda.used == 0


def test_a_session_closes_twice_and_says_that_it_is_closed(bench: Bench) -> None:
    session = bench.session()
    session.run(feeds())
    session.close()
    session.close()
    for attempt in (
        session.load,
        lambda: session.run(feeds()),
        lambda: session.run(feeds(), keep_on_device=True),
    ):
        with pytest.raises(EngineError, match="closed; open it again"):
            attempt()


def test_outputs_pass_from_graph_to_graph_without_the_host(bench: Bench) -> None:
    first, second = bench.session(), bench.session(AFTER)
    kept = first.run(feeds(), keep_on_device=True)
    assert (kept["once"].shape, kept["once"].dtype) == ((2, 2), np.float32)
    out = bench.cuda.count("copy out")
    assert second.run({"once": kept["once"]})["total"][0, 0] == 24.0
    assert bench.cuda.count("copy out") == out + 1
    assert bench.cuda.count("copy across") == 1
    np.testing.assert_array_equal(kept["twice"].to_host(), np.full((2, 5), 12.0))
    first.close()
    second.close()


def test_an_output_that_was_overwritten_is_refused(bench: Bench) -> None:
    first, second = bench.session(), bench.session(AFTER)
    kept = first.run(feeds(), keep_on_device=True)["once"]
    first.run(feeds())
    for use in (kept.to_host, lambda: second.run({"once": kept})):
        with pytest.raises(InputError, match=r"sums/once .* has run again"):
            use()
    later = first.run(feeds(), keep_on_device=True)["once"]
    first.close()
    with pytest.raises(InputError, match="or was closed"):
        later.to_host()
    second.close()


def test_an_output_of_another_factory_or_library_is_refused(bench: Bench) -> None:
    other = Bench()
    foreign, second = other.session(), bench.session(AFTER)
    with pytest.raises(InputError, match="another factory"):
        second.run({"once": foreign.run(feeds(), keep_on_device=True)["once"]})

    class Foreign:
        dtype, shape = np.dtype(np.float32), (2, 2)

    with pytest.raises(InputError, match="was fed a Foreign"):
        second.run({"once": Foreign()})
    foreign.close()
    other.context.close()
    second.close()


def test_staging_is_not_rewritten_before_the_device_has_read_it(bench: Bench) -> None:
    first, second = bench.session(), bench.session(AFTER)
    total = second.run(
        {"once": first.run(feeds(value=1.0), keep_on_device=True)["once"]}, keep_on_device=True
    )["total"]
    first.run(feeds(value=2.0), keep_on_device=True)  # the first run may still be running
    assert total.to_host()[0, 0] == 24.0
    first.close()
    second.close()


def test_the_second_run_of_a_shape_is_captured_and_later_ones_replayed(bench: Bench) -> None:
    session = bench.session()
    found = [session.run(feeds(value=value))["once"][0, 0] for value in (1.0, 2.0, 3.0, 4.0)]
    assert found == [6.0, 12.0, 18.0, 24.0]
    assert bench.cuda.count("cudaGraphInstantiate") == 1
    assert bench.cuda.count("cudaGraphLaunch") == 3
    session.run(feeds(3))
    assert not session.cuda_graph.is_captured
    session.close()


def test_without_capture_every_run_is_a_plain_one(bench: Bench) -> None:
    session = bench.session(cuda_graphs=False)
    for _ in range(3):
        session.run(feeds())
    assert bench.cuda.count("cudaStreamBeginCapture") == 0
    session.close()


def test_a_graph_that_cannot_be_captured_runs_plainly_and_says_why(bench: Bench) -> None:
    bench.trt.capturable = False
    session = bench.session()
    assert [session.run(feeds())["once"][0, 0] for _ in range(3)] == [6.0] * 3
    assert session.cuda_graph.refusal == "TensorRT says that it is not capturable"
    session.close()
    bench.trt.capturable = True
    failing = bench.session()
    bench.cuda.fail["cudaGraphInstantiate"] = Error.cudaErrorStreamCaptureUnsupported
    assert [failing.run(feeds())["once"][0, 0] for _ in range(3)] == [6.0] * 3
    assert "cudaErrorStreamCaptureUnsupported" in str(failing.cuda_graph.refusal)
    bench.cuda.graphs.clear()
    failing.close()


def test_a_shared_activation_buffer_serves_the_largest_and_drops_captures_when_it_moves(bench: Bench) -> None:
    shared = bench.context.activations
    small = bench.session(activations=shared)
    large = bench.session(AFTER, plan=plan_of(AFTER, activations=50_000), activations=shared)
    for _ in range(3):
        small.run(feeds())
    assert small.cuda_graph.is_captured
    large.run({"once": np.ones((2, 2), np.float32)})
    assert shared.size == 100_352
    assert small.run(feeds())["once"][0, 0] == 6.0  # the fake refuses activations that were freed
    small.close()
    large.close()
    assert bench.cuda.used == shared.size


def test_an_unloaded_session_keeps_its_outputs_and_loads_again(bench: Bench) -> None:
    first, second = bench.session(), bench.session(AFTER)
    first.run(feeds())
    kept = first.run(feeds(), keep_on_device=True)["once"]
    first.unload()
    first.unload()
    assert (first.is_loaded, bench.trt.loaded) == (False, 0)
    assert second.run({"once": kept})["total"][0, 0] == 24.0
    assert first.run(feeds())["once"][0, 0] == 6.0
    assert bench.trt.loads == 3
    first.close()
    second.close()


def test_a_run_can_be_repeated_on_the_feeds_it_had(bench: Bench) -> None:
    session = bench.session()
    with pytest.raises(InputError, match="sums has not run yet"):
        session.repeat()
    kept = session.run(feeds(), keep_on_device=True)["once"]
    copies = bench.cuda.count("copy in")
    for _ in range(2):
        session.repeat()
    assert (bench.trt.runs, bench.cuda.count("copy in")) == (3, copies)
    with pytest.raises(InputError, match="has run again"):
        kept.to_host()
    session.close()


@pytest.mark.parametrize("works", [True, False])
def test_a_plan_without_weights_gets_them_from_its_graph(bench: Bench, tmp_path: Path, works: bool) -> None:
    path = tmp_path / "sums.onnx"
    if works:
        path.write_bytes(b"weights")
        Engine(bench.library, plan_of(SUMS), SUMS, weights=path).close()
        assert bench.trt.refitted == [str(path)]
        return
    with pytest.raises(EngineError, match=r"does not take the weights of .*sums\.onnx: .*no such file"):
        Engine(bench.library, plan_of(SUMS), SUMS, weights=path)


def test_no_gpu_and_no_driver_are_missing_dependencies() -> None:
    with pytest.raises(MissingDependencyError, match="sees no GPU"):
        Cuda(FakeCuda(devices=0))
    cuda = FakeCuda()
    cuda.fail["cudaGetDeviceCount"] = Error.cudaErrorInsufficientDriver
    with pytest.raises(MissingDependencyError, match=r"cudaErrorInsufficientDriver.*nvidia-smi"):
        Cuda(cuda)


@pytest.mark.parametrize("damage", ["none", "truncated", "other plan", "other version", "other user"])
def test_compiled_kernels_are_stored_with_the_plan_and_used_only_for_it(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    plan, path = tmp_path / "sums.plan", tmp_path / "sums.plan.jit"
    bench = Bench(rtx=True)
    session = bench.session(cache=JitCache(plan, "abc"))
    session.run(feeds())
    session.close()
    written = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(written[:-1])
    if damage == "other user":
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("other")))
    if damage == "other version":
        bench.trt.__version__ = "1.8.0"
    again = JitCache(plan, "abc" if damage != "other plan" else "abd")
    engine = Engine(bench.library, plan_of(SUMS), SUMS, cache=again)
    assert (engine._config.cache.kernels != b"") == (damage == "none")
    engine.close()
    bench.context.close()
    assert [each.name for each in tmp_path.iterdir()] == ["sums.plan.jit"]


@pytest.mark.parametrize(("profiles", "strategy"), [(1, "eager"), (2, "lazy")])
def test_a_plan_of_one_profile_is_compiled_for_its_shape_before_it_runs(
    tmp_path: Path, profiles: int, strategy: str
) -> None:
    bench = Bench(rtx=True)
    extent = [{"left": [1, 3], "right": [1]}, {"left": [4, 3], "right": [4]}]
    plan = plan_of(SUMS, profiles=[extent] * profiles)
    engine = Engine(bench.library, plan, SUMS, cache=JitCache(tmp_path / "sums.plan", "abc"))
    assert engine._config.dynamic_shapes_kernel_specialization_strategy == strategy
    engine.close()
    bench.context.close()


def test_a_folder_that_cannot_be_written_costs_the_cache_alone(tmp_path: Path) -> None:
    bench = Bench(rtx=True)
    session = bench.session(cache=JitCache(tmp_path / "none" / "sums.plan", "abc"))
    assert session.run(feeds())["once"][0, 0] == 6.0
    session.close()
    bench.context.close()
    assert bench.cuda.is_clean


def test_events_with_timing_measure_and_are_given_back(bench: Bench) -> None:
    cuda = bench.context.cuda
    start, end = cuda.new_event(timing=True), cuda.new_event(timing=True)
    cuda.record(start, bench.context.stream)
    cuda.record(end, bench.context.stream)
    cuda.wait_for(end)
    assert cuda.elapsed_ms(start, end) == 1.5
    cuda.end_event(start)
    cuda.end_event(end)
