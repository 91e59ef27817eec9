"""ONNX Runtime sessions: what they check, refuse and report."""

import builtins
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from refdiff.contracts.bundle import GraphRecord, open_bundle, write_bundle
from refdiff.contracts.graphs import GraphSpec, TensorSpec, graph_contract
from refdiff.engines import factory
from refdiff.errors import BundleError, EngineError, InputError, MissingDependencyError
from tests.support.plan_bundle import SPEC

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from refdiff.engines import ort as ort_module
from refdiff.engines.ort import OrtSession

SUMS = GraphSpec(
    "sums",
    (TensorSpec("left", "float32", ("b", 3)), TensorSpec("right", "float32", ("b", 3))),
    (TensorSpec("sum", "float32", ("b", 3)), TensorSpec("difference", "float32", ("b", 3))),
)


def write_model(path: Path, graph: GraphSpec, nodes: list[tuple[str, list[str], list[str]]]) -> Path:
    def info(tensor: TensorSpec) -> object:
        kind = {"float32": onnx.TensorProto.FLOAT, "int32": onnx.TensorProto.INT32}[tensor.dtype]
        return onnx.helper.make_tensor_value_info(tensor.name, kind, tensor.shape)

    proto = onnx.helper.make_graph(
        [onnx.helper.make_node(kind, inputs, outputs) for kind, inputs, outputs in nodes],
        graph.name,
        [info(t) for t in graph.inputs],
        [info(t) for t in graph.outputs],
    )
    model = onnx.helper.make_model(proto, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return path


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    nodes = [("Add", ["left", "right"], ["sum"]), ("Sub", ["left", "right"], ["difference"])]
    return write_model(tmp_path / "sums.onnx", SUMS, nodes)


def feeds(batch: int = 2) -> dict[str, np.ndarray]:
    return {"left": np.full((batch, 3), 2.0, np.float32), "right": np.ones((batch, 3), np.float32)}


def test_a_session_computes_all_outputs_or_the_ones_asked_for(sums: Path) -> None:
    session = OrtSession(sums, SUMS, threads=1)
    assert session.graph is SUMS
    assert {name: float(array[0, 0]) for name, array in session.run(feeds()).items()} == {
        "sum": 3.0,
        "difference": 1.0,
    }
    assert list(session.run(feeds(), ["difference"])) == ["difference"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"right": None}, "sums: got inputs left, expected exactly left, right"),
        ({"extra": np.zeros(1, np.float32)}, "expected exactly left, right"),
        ({"left": np.zeros((2, 3), np.float64)}, "left is float64, expected float32"),
        ({"left": np.zeros((2, 4), np.float32)}, r"left is \[2, 4\], expected \['b', 3\]"),
        ({"left": np.zeros((2, 3, 1), np.float32)}, r"left is \[2, 3, 1\]"),
        ({"right": np.zeros((5, 3), np.float32)}, r"right is \[5, 3\], expected \['b', 3\] with b=2"),
    ],
)
def test_a_wrong_feed_is_named(sums: Path, change: dict[str, np.ndarray | None], message: str) -> None:
    merged = {name: array for name, array in {**feeds(), **change}.items() if array is not None}
    with pytest.raises(InputError, match=message):
        OrtSession(sums, SUMS).run(merged)


def test_an_unknown_output_is_named(sums: Path) -> None:
    with pytest.raises(InputError, match="no output 'product', it has: sum, difference"):
        OrtSession(sums, SUMS).run(feeds(), ["product"])


def test_a_closed_session_says_so_and_closes_twice(sums: Path) -> None:
    session = OrtSession(sums, SUMS)
    session.close()
    session.close()
    with pytest.raises(EngineError, match="closed"):
        session.run(feeds())


@pytest.mark.parametrize("threads", [0, 5000])
def test_threads_are_one_to_the_number_of_cores(sums: Path, threads: int) -> None:
    with pytest.raises(InputError, match=rf"got {threads} threads, expected 1 to {os.cpu_count()}, .*cores"):
        OrtSession(sums, SUMS, threads=threads)


class FakeRuntime:
    """As the module `onnxruntime` with these providers; each session starts the first of `started`."""

    def __init__(self, *providers: str, started: Sequence[str] = ("CPUExecutionProvider",), fault: str = ""):
        self._providers, self._started, self._fault = list(providers), list(started), fault
        self.asked: list[dict[str, Any]] = []

    def get_available_providers(self) -> list[str]:
        return self._providers

    def InferenceSession(self, model: object, **options: Any) -> SimpleNamespace:  # noqa: N802 - its name
        if self._fault:
            raise RuntimeError(self._fault)
        self.asked.append(options)
        return SimpleNamespace(get_providers=lambda: self._started, disable_fallback=lambda: None)


def test_a_system_without_threads_left_is_one_line_with_its_cure(sums: Path) -> None:
    fault = "env.cc:327 PosixThread pthread_create failed, error code: 11\nand its trace"
    runtime = FakeRuntime("CPUExecutionProvider", fault=fault)
    with pytest.raises(EngineError, match=r"no more threads; use fewer \(--threads 1\) or raise .*-u\)$"):
        OrtSession(sums, SUMS, runtime=runtime)


def test_a_file_that_is_another_graph_is_refused(sums: Path) -> None:
    other = GraphSpec("sums", SUMS.inputs, SUMS.outputs[:1])
    with pytest.raises(EngineError, match=r"sums\.onnx has (inputs|outputs)"):
        OrtSession(sums, other)


@pytest.mark.parametrize(
    "tensor", [TensorSpec("left", "float32", ("b", 4)), TensorSpec("left", "int32", ("b", 3))]
)
def test_a_file_whose_sizes_or_types_are_not_the_contract_s_is_refused(
    sums: Path, tensor: TensorSpec
) -> None:
    other = GraphSpec("sums", (tensor, SUMS.inputs[1]), SUMS.outputs)
    with pytest.raises(EngineError, match=r"sums\.onnx has inputs .*, expected .*; export again"):
        OrtSession(sums, other)


@pytest.mark.parametrize("change", ["overwritten", "replaced", "deleted"])
def test_a_bundle_that_changes_on_disk_after_it_was_loaded_is_not_run(bundle_path: Path, change: str) -> None:
    sessions = factory.open_sessions(open_bundle(bundle_path), backend="ort-cpu", threads=1)
    session = sessions.open("clip_text")
    given = {"ids": np.ones((1, 4), np.int32), "end": np.ones(1, np.int32)}
    np.testing.assert_array_equal(session.run(given)["vector"], [[1.0, 1.0]])
    path = bundle_path / "clip_text.onnx"
    content = path.read_bytes()
    if change != "overwritten":
        path.unlink()
    if change != "deleted":
        path.write_bytes(content)
    with pytest.raises(EngineError, match=r"clip_text\.onnx changed on disk .*; load the bundle again"):
        session.run(given)
    sessions.close()


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(EngineError, match=r"cannot load .*bad\.onnx") as caught:
        OrtSession(path, SUMS)
    assert "\n" not in str(caught.value)


def test_a_failure_inside_the_engine_is_an_engine_error(tmp_path: Path) -> None:
    graph = GraphSpec(
        "g",
        (TensorSpec("x", "float32", ("b", 2)), TensorSpec("y", "float32", ("c", 2))),
        (TensorSpec("z", "float32", ("b", 2)),),
    )
    path = write_model(tmp_path / "g.onnx", graph, [("Add", ["x", "y"], ["z"])])
    with pytest.raises(EngineError, match="g failed in ONNX Runtime"):
        OrtSession(path, graph).run({"x": np.zeros((2, 2), np.float32), "y": np.zeros((3, 2), np.float32)})


def test_cuda_without_its_provider_is_refused(sums: Path) -> None:
    with pytest.raises(EngineError, match="ort-cuda needs CUDAExecutionProvider"):
        OrtSession(sums, SUMS, backend="ort-cuda", runtime=FakeRuntime("CPUExecutionProvider"))


def test_onnx_runtimes_tensorrt_takes_the_whole_graph_or_none_of_it(sums: Path) -> None:
    with pytest.raises(EngineError, match=r"ort-tensorrt needs TensorrtExecutionProvider.* and TensorRT, or"):
        OrtSession(sums, SUMS, backend="ort-tensorrt", runtime=FakeRuntime("CPUExecutionProvider"))
    runtime = FakeRuntime("TensorrtExecutionProvider")
    with pytest.raises(EngineError, match="requested TensorrtExecutionProvider, ONNX Runtime started CPU"):
        OrtSession(sums, SUMS, backend="ort-tensorrt", runtime=runtime)
    (asked,) = runtime.asked
    assert asked["sess_options"].get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
    assert asked["providers"][0][0] == "TensorrtExecutionProvider"


RTX = "NvTensorRTRTXExecutionProvider"


class FakeRtx(FakeRuntime):
    """As the plugin's package, and as the ONNX Runtime that knows of it."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        gpus: int = 1,
        fault: str = "",
        started: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        super().__init__(started=started)
        self.registered: list[tuple[str, str]] = []
        self.gpus, self.fault = gpus, fault
        monkeypatch.setitem(sys.modules, ort_module.RTX_PLUGIN, self)  # type: ignore[arg-type]
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")

    def get_library_path(self) -> str:
        return "/plugin.so"

    def register_execution_provider_library(self, name: str, path: str) -> None:
        if self.fault:
            raise RuntimeError(self.fault)
        self.registered.append((name, path))

    def get_ep_devices(self) -> list[SimpleNamespace]:
        cpu = SimpleNamespace(ep_name="CPUExecutionProvider")
        gpus = [SimpleNamespace(ep_name=RTX, number=number) for number in range(self.gpus)]
        return [cpu, *gpus] if self.registered else [cpu]


class RtxOptions:
    """Stands in for SessionOptions, which takes no invented device."""

    def __init__(self) -> None:
        self.entries: dict[str, str] = {}
        self.added: list[tuple[list[SimpleNamespace], dict[str, str]]] = []

    def add_session_config_entry(self, name: str, value: str) -> None:
        self.entries[name] = value

    def add_provider_for_devices(self, devices: list[SimpleNamespace], options: dict[str, str]) -> None:
        self.added.append((devices, options))


def test_ort_rtx_gives_the_whole_graph_to_the_first_gpu_of_the_plugin(
    sums: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = FakeRtx(monkeypatch, gpus=2, started=(RTX, "CPUExecutionProvider"))
    for _ in range(2):
        options = RtxOptions()
        assert ort_module.create_session(sums, "ort-rtx", options, plugin).get_providers()[0] == RTX
        ((devices, _),) = options.added
        assert [each.number for each in devices] == [0]
        assert options.entries == {"session.disable_cpu_ep_fallback": "1"}
    assert plugin.registered == [(RTX, "/plugin.so")], "a second registration is refused by ONNX Runtime"
    given = [each["providers"] for each in plugin.asked]
    assert given == [None, None], "providers given by name replace those of the options"
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"


def test_ort_rtx_that_starts_on_the_cpu_is_an_error(sums: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match=f"requested {RTX}, ONNX Runtime started CPU"):
        ort_module.create_session(sums, "ort-rtx", RtxOptions(), FakeRtx(monkeypatch))


@pytest.mark.parametrize(
    ("gpus", "fault", "message"),
    [(0, "", "supports no GPU here.*Ampere"), (1, "libcuda.so.1: cannot open", "libcuda.*driver")],
)
def test_ort_rtx_without_a_gpu_or_a_driver_says_so(
    sums: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, fault: str, message: str
) -> None:
    plugin = FakeRtx(monkeypatch, gpus=gpus, fault=fault)
    with pytest.raises(EngineError, match=message):
        ort_module.create_session(sums, "ort-rtx", RtxOptions(), plugin)


def test_the_plugin_of_ort_rtx_is_loaded_by_this_onnx_runtime_or_refused(
    sums: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the package installed: registered where there is a driver, and one line where there is none."""
    pytest.importorskip(ort_module.RTX_PLUGIN)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "")
    try:
        OrtSession(sums, SUMS, backend="ort-rtx")
    except EngineError as error:
        assert "ort-rtx" in str(error)
    assert ort_module.ort.get_ep_devices()


def test_a_silent_fall_back_is_an_error(sums: Path) -> None:
    runtime = FakeRuntime("CUDAExecutionProvider", "CPUExecutionProvider")
    with pytest.raises(EngineError, match="requested CUDAExecutionProvider, ONNX Runtime started CPU"):
        OrtSession(sums, SUMS, backend="ort-cuda", runtime=runtime)


def test_ort_cuda_is_channels_last_without_tf32_and_searches_all_algorithms(sums: Path) -> None:
    runtime = FakeRuntime("CUDAExecutionProvider", started=("CUDAExecutionProvider",))
    ort_module.create_session(sums, "ort-cuda", ort_module.session_options(1), runtime)
    (asked,) = runtime.asked
    options = {"use_tf32": "0", "prefer_nhwc": "1", "cudnn_conv_algo_search": "EXHAUSTIVE"}
    assert asked["providers"] == [("CUDAExecutionProvider", options)]
    assert asked["disabled_optimizers"] is None


def test_a_cuda_provider_without_channels_last_convolutions_runs_as_it_can(sums: Path) -> None:
    class Older(FakeRuntime):
        def InferenceSession(self, model: object, **options: Any) -> SimpleNamespace:  # noqa: N802 - its name
            session = super().InferenceSession(model, **options)
            if "prefer_nhwc" in options["providers"][0][1]:
                raise RuntimeError("This build does not support NHWC layout")
            return session

    runtime = Older("CUDAExecutionProvider", started=("CUDAExecutionProvider",))
    ort_module.create_session(sums, "ort-cuda", ort_module.session_options(1), runtime)
    options = {"use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE"}
    assert runtime.asked[-1]["providers"] == [("CUDAExecutionProvider", options)]
    assert len(runtime.asked) == 2


def test_a_form_is_run_with_the_weights_of_its_graph(sums: Path) -> None:
    runtime = FakeRuntime("CUDAExecutionProvider", started=("CUDAExecutionProvider",))
    options = ort_module.session_options(1)
    ort_module.create_session(sums, "ort-cuda", options, runtime, form=b"form")
    entry = "session.model_external_initializers_file_folder_path"
    assert options.get_session_config_entry(entry) == str(sums.parent)


@pytest.fixture
def bundle_path(tmp_path: Path) -> Path:
    """A bundle whose one graph has the right names and does something."""
    graph = graph_contract(SPEC)["clip_text"]
    with write_bundle(tmp_path / "bundle") as writer:
        nodes = [
            ("Cast", ["ids"], ["cast"]),
            ("Split", ["cast"], ["vector", "rest"]),
        ]
        model = writer.path / "clip_text.onnx"
        write_model(model, graph, nodes)
        proto = onnx.load(model)
        proto.graph.node[0].attribute.append(onnx.helper.make_attribute("to", onnx.TensorProto.FLOAT))
        for attribute, value in (("axis", 1), ("num_outputs", 2)):
            proto.graph.node[1].attribute.append(onnx.helper.make_attribute(attribute, value))
        onnx.save(proto, model)
        record = GraphRecord(
            files=("clip_text.onnx",), precision="fp32", inputs=graph.inputs, outputs=graph.outputs
        )
        writer.describe(spec=SPEC, precision="fp32", sources={}, versions={}, graphs={"clip_text": record})
    return tmp_path / "bundle"


def test_the_factory_opens_late_once_and_reports_its_choice(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    sessions = factory.open_sessions(open_bundle(bundle_path), threads=1, has_driver=lambda: False)
    assert (sessions.backend, sessions.reason) == ("ort-cpu", "this onnxruntime has no CUDA provider")
    session = sessions.open("clip_text")
    assert sessions.open("clip_text") is session
    with pytest.raises(BundleError, match="no graph 'unet'"):
        sessions.open("unet")
    sessions.close()
    sessions.close()


@pytest.mark.parametrize(("driver", "backend"), [(True, "ort-cuda"), (False, "ort-cpu")])
def test_auto_takes_cuda_only_where_a_driver_is(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch, driver: bool, backend: str
) -> None:
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    sessions = factory.open_sessions(open_bundle(bundle_path), has_driver=lambda: driver)
    assert sessions.backend == backend
    assert "driver" in sessions.reason


def test_a_driver_shows_by_any_of_its_files(tmp_path: Path) -> None:
    assert factory.has_driver((tmp_path / "none", tmp_path))
    assert not factory.has_driver((tmp_path / "none",))


def test_an_unknown_back_end_is_refused(bundle_path: Path) -> None:
    with pytest.raises(InputError, match="unknown back-end 'coreml'; choose one of: auto, ort-cpu, ort-cuda"):
        factory.open_sessions(open_bundle(bundle_path), backend="coreml")


@pytest.mark.parametrize(
    ("missing", "expected"),
    [("onnxruntime", MissingDependencyError), ("onnxruntime.capi", ModuleNotFoundError)],
)
def test_only_the_named_packages_absence_is_called_missing(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, expected: type[Exception]
) -> None:
    real_import = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name == "onnxruntime":
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
        return real_import(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "refdiff.engines.ort")
    monkeypatch.delattr("refdiff.engines.ort")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(expected, match=r"\.\[cpu\]|onnxruntime\.capi"):
        factory.open_sessions(open_bundle(bundle_path))


def test_threads_that_spin_give_the_same(sums: Path) -> None:
    feeds = {name: np.ones((2, 3), np.float32) for name in SUMS.input_names}
    spinning, still = OrtSession(sums, SUMS, spinning=True), OrtSession(sums, SUMS)
    assert (spinning.run(feeds)["sum"] == still.run(feeds)["sum"]).all()


@pytest.mark.parametrize(
    ("version", "allowed", "duration"), [((1, 25), "0", None), ((1, 26), None, "50"), ((2, 0), None, "50")]
)
def test_waiting_threads_spin_only_where_the_time_can_be_given(
    version: tuple[int, ...], allowed: str | None, duration: str | None
) -> None:
    def entry(options: Any, name: str) -> str | None:
        try:
            return options.get_session_config_entry(f"session.intra_op.{name}")
        except RuntimeError:  # it was not set
            return None

    options = ort_module.session_options(1, version=version)
    assert (entry(options, "allow_spinning"), entry(options, "spin_duration_us")) == (allowed, duration)
    options = ort_module.session_options(1, version=version, spinning=True)
    assert (entry(options, "allow_spinning"), entry(options, "spin_duration_us")) == (None, None)


@pytest.mark.parametrize(("backend", "rows"), [("ort-cpu", None), ("ort-tensorrt", 2), ("ort-rtx", 2)])
def test_only_tensorrt_s_provider_bounds_the_rows(sums: Path, backend: str, rows: int | None) -> None:
    session = OrtSession(sums, SUMS)
    session._backend = backend
    assert session.max_batch == rows


MEMORY = """
import os, sys
from pathlib import Path
import numpy as np
from refdiff.contracts.graphs import GraphSpec, TensorSpec
from refdiff.engines.ort import OrtSession

def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

inputs = tuple(TensorSpec(name, "float32", ("b", 3)) for name in ("left", "right"))
outputs = tuple(TensorSpec(name, "float32", (1, 1)) for name in ("sum", "difference"))
feeds = {"left": np.ones((2_000_000, 3), np.float32), "right": np.ones((2_000_000, 3), np.float32)}
spec = GraphSpec("sam_masks", inputs, outputs)
sessions = [OrtSession(Path(sys.argv[1]), spec, threads=1) for _ in range(3)]
print(resident_mb())
for session in sessions:
    session.run(feeds)
    print(resident_mb())
for session in sessions:
    session.close()
print(resident_mb())
"""
"""Three sessions with two tensors of 24 MB: memory before, after each run, and after all are closed."""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_sessions_share_their_memory_and_the_last_one_returns_it(tmp_path: Path) -> None:
    """In a process of its own: sessions that other tests keep open would keep the memory."""
    nodes = [
        ("Add", ["left", "right"], ["a"]),
        ("Mul", ["a", "right"], ["b"]),
        *(("ReduceSum", ["b"], [name]) for name in ("sum", "difference")),
    ]
    scalars = tuple(TensorSpec(name, "float32", (1, 1)) for name in ("sum", "difference"))
    path = write_model(tmp_path / "sums.onnx", GraphSpec("sums", SUMS.inputs, scalars), nodes)
    command = [sys.executable, "-c", MEMORY, str(path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    before, first, _, last, closed = map(float, printed.split())
    assert first - before > 20
    assert last - first < 12
    assert closed < first - 20
