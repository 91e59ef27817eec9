"""Tensors that stay where a session of ONNX Runtime computed them."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from refdiff.contracts.graphs import GraphSpec, TensorSpec
from refdiff.engines.ort import OrtSession
from refdiff.engines.ort_tensors import DeviceTensor, run_bound
from refdiff.errors import EngineError

GRAPH = GraphSpec("g", (TensorSpec("x", "float32", ("b", 3)),), (TensorSpec("y", "float32", ("b", 3)),))

X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (x, y) = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ("b", 3)) for name in ("x", "y")
    )
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "x"], ["y"])], "g", [x], [y])
    opsets = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "g.onnx")
    return tmp_path / "g.onnx"


def test_an_output_that_stayed_is_fed_to_the_next_session(path):
    first, second = (onnxruntime.InferenceSession(path) for _ in range(2))
    (kept,) = run_bound(first, {"x": X}, ["y"], device="cpu", keep=True)
    assert (kept.dtype, kept.shape) == (np.float32, (2, 3))
    (again,) = run_bound(first, {"x": X + 1}, ["y"], device="cpu", keep=True)
    np.testing.assert_array_equal(kept.to_host(), 2 * X, "a later run does not overwrite it")
    (result,) = run_bound(second, {"x": kept}, ["y"], device="cpu", keep=False)
    assert isinstance(result, np.ndarray)
    np.testing.assert_array_equal(result, 4 * X)
    np.testing.assert_array_equal(again.to_host(), 2 * X + 2)


def test_rows_that_are_a_view_of_another_array_are_fed_as_they_read(path):
    (result,) = run_bound(
        onnxruntime.InferenceSession(path), {"x": X.T.copy().T[::-1]}, ["y"], device="cpu", keep=False
    )
    np.testing.assert_array_equal(result, 2 * X[::-1])


class Binding:
    def __init__(self, session: "Bound") -> None:
        self.session = session

    def bind_cpu_input(self, name: str, values: np.ndarray) -> None:
        self.session.bound.append((name, "host"))

    def bind_ortvalue_input(self, name: str, value: object) -> None:
        self.session.bound.append((name, value))

    def bind_output(self, name: str, device: str) -> None:
        self.session.bound.append((name, device))

    def get_outputs(self) -> list[object]:
        value = onnxruntime.OrtValue.ortvalue_from_numpy(2 * X)
        return [value]


class Bound:
    """Stands in for a session on CUDA: writes down what is bound where."""

    def __init__(self) -> None:
        self.bound: list[tuple[str, object]] = []

    def io_binding(self) -> Binding:
        return Binding(self)

    def run_with_iobinding(self, binding: Binding) -> None:
        self.bound.append(("run", None))

    def run(self, names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.bound.append(("run", "host"))
        return [2 * feeds["x"]]


def on_cuda(path: Path) -> tuple[OrtSession, Bound]:
    session, bound = OrtSession(path, GRAPH, threads=1), Bound()
    session._session, session._device = bound, "cuda"
    return session, bound


def test_ort_cuda_keeps_outputs_on_the_device_and_reads_them_there(path):
    session, bound = on_cuda(path)
    kept = session.run({"x": X}, keep_on_device=True)["y"]
    assert isinstance(kept, DeviceTensor)
    assert bound.bound == [("x", "host"), ("y", "cuda"), ("run", None)]
    bound.bound.clear()
    assert isinstance(session.run({"x": kept})["y"], np.ndarray)
    assert bound.bound == [("x", kept.value), ("y", "cpu"), ("run", None)]
    bound.bound.clear()
    session.run({"x": X})
    assert bound.bound == [("run", "host")], "nothing to keep: a plain run"


def test_a_back_end_without_a_device_returns_host_arrays(path):
    session = OrtSession(path, GRAPH, threads=1)
    assert isinstance(session.run({"x": X}, keep_on_device=True)["y"], np.ndarray)


def test_a_copy_that_fails_is_an_engine_error():
    def lost() -> None:
        raise RuntimeError("CUDA failure 700")

    with pytest.raises(EngineError, match="could not be copied from the device: CUDA failure 700"):
        DeviceTensor(SimpleNamespace(numpy=lost)).to_host()
