"""Which form of a graph a GPU runs faster, with a TensorRT and a CUDA in memory."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from refdiff.contracts.session import Timings
from refdiff.engines.trt.cuda import Cuda
from refdiff.engines.trt.latency_race import ROUNDS, WARM_UPS, LatencyRace, find_latency_race, time_repeat
from refdiff.errors import EngineError
from tests.support.fake_builder import Behaviour, fake_flavour, fake_rtx, fake_tensorrt
from tests.support.fake_machine import install_cuda, install_gpu, install_tensorrt
from tests.support.fake_tensorrt import plan_of
from tests.support.plan_bundle import GPU, Machine
from tests.support.plans import CONTRACT

GRAPH = CONTRACT["clip_text"]
FEEDS = {
    tensor.name: np.zeros([2 if isinstance(side, str) else side for side in tensor.shape], tensor.dtype)
    for tensor in GRAPH.inputs
}
MS = {"int8": 1.25, "fp16": 2.5}


class Bench:
    """A TensorRT that builds, a TensorRT that runs what it built, and a GPU for both."""

    def __init__(self, *, rtx: bool = False, total: int = 1 << 30) -> None:
        self.machine = Machine(rtx=rtx, total=total)
        self.behaviour = Behaviour(plan=self.plan)
        self.profiles: list[list[dict]] = []
        self.module = (fake_rtx if rtx else fake_tensorrt)(behaviour=self.behaviour)
        for name in ("Runtime", "TensorIOMode", "TensorLocation", "ExecutionContextAllocationStrategy"):
            setattr(self.module, name, getattr(self.machine.trt, name))
        self.race = LatencyRace(fake_flavour(self.module), Cuda(self.machine.cuda), GPU, lambda line: None)

    def plan(self, onnx: Path, config) -> bytes:
        self.profiles.append(config.profiles)
        return plan_of(GRAPH, ms=MS[onnx.parent.name])

    def medians(self, folder: Path) -> dict[str, float]:
        """Of two forms in a folder; the plans go there too."""
        forms = {name: folder / name / f"{GRAPH.name}.onnx" for name in MS}
        for path in forms.values():
            path.parent.mkdir()
            path.write_bytes(b"a graph")
        return self.race.medians_ms(GRAPH, forms, FEEDS, scratch=folder)


@pytest.mark.parametrize("rtx", [False, True])
def test_every_form_is_built_for_the_feeds_and_run_in_turns(tmp_path, rtx):
    bench = Bench(rtx=rtx)
    assert bench.medians(tmp_path) == MS
    warm_ups = [ms for ms in MS.values() for _ in range(WARM_UPS)]
    assert bench.machine.trt.times == warm_ups + list(MS.values()) * ROUNDS
    for profiles in bench.profiles:
        assert profiles == [{name: [list(feed.shape)] * 3 for name, feed in FEEDS.items()}]


def test_a_form_that_stalls_once_is_judged_by_its_median(tmp_path):
    bench = Bench()
    bench.machine.trt.stalls_at = len(MS) * WARM_UPS + 1
    assert bench.medians(tmp_path) == MS
    assert max(bench.machine.trt.times) > 1000


def test_nothing_is_on_the_device_while_a_form_is_built(tmp_path):
    bench = Bench()
    bench.behaviour.on_step = lambda step: held.append(bench.machine.cuda.used)
    held = []
    bench.medians(tmp_path)
    assert set(held) == {0}


def test_everything_is_given_back(tmp_path):
    bench = Bench()
    bench.medians(tmp_path)
    assert bench.machine.cuda.is_clean
    assert bench.machine.trt.loaded == 0


def test_a_form_that_cannot_be_built_is_an_error(tmp_path):
    bench = Bench()
    bench.behaviour.fails = True
    with pytest.raises(EngineError, match="cannot build clip_text"):
        bench.medians(tmp_path)
    assert bench.machine.cuda.is_clean


@pytest.mark.parametrize("fault", ["context", "run"])
def test_a_form_that_does_not_run_is_an_error(tmp_path, fault):
    bench = Bench()
    bench.machine.trt.fail = fault
    with pytest.raises(EngineError, match="clip_text"):
        bench.medians(tmp_path)
    assert bench.machine.cuda.is_clean


def test_too_little_memory_is_an_error_and_gives_back_what_there_was(tmp_path):
    bench = Bench(total=4096)
    with pytest.raises(EngineError, match="memory"):
        bench.medians(tmp_path)
    assert bench.machine.cuda.is_clean


def test_a_session_that_reports_no_time_is_an_error():
    session = SimpleNamespace(graph=GRAPH, repeat=lambda: None, timings=Timings)
    with pytest.raises(EngineError, match="reported no time"):
        time_repeat(session)


@pytest.fixture
def machine(monkeypatch):
    """Sets up what a machine has: its GPU and its TensorRT."""

    def set_up(device, *modules):
        install_tensorrt(monkeypatch, *modules)
        install_gpu(monkeypatch, device)
        install_cuda(monkeypatch, Machine().cuda)

    return set_up


def found():
    race, said = find_latency_race(lambda line: None)
    return race is not None, said


def test_a_machine_with_a_gpu_and_a_tensorrt_has_a_race(machine):
    machine(GPU, Bench().module)
    assert found() == (True, "Fake 8.6, tensorrt 10.3.0")


def test_without_a_gpu_there_is_no_race(machine):
    machine(None, Bench().module)
    assert found() == (False, "this machine shows no GPU")


def test_a_gpu_that_tensorrt_does_not_know_has_no_race(machine):
    machine(replace(GPU, compute_capability="9.0"), Bench(rtx=True).module)
    assert found() == (False, "tensorrt-rtx 1.7.1 does not know Fake 8.6")


def test_without_a_tensorrt_there_is_no_race(machine):
    machine(GPU)
    has_race, said = found()
    assert not has_race
    assert "no TensorRT is installed" in said


def test_a_tensorrt_that_cannot_start_is_no_race(machine):
    module = Bench().module

    def refuse(log):
        raise TypeError("factory function returned nullptr")

    module.Runtime = refuse
    machine(GPU, module)
    has_race, said = found()
    assert not has_race
    assert said.startswith("TensorRT's runtime cannot start: tensorrt 10.3.0")


def test_a_library_that_is_missing_is_no_race(machine, monkeypatch):
    class WithoutItsLibrary:
        @property
        def runtime(self):
            raise ImportError("libcudart.so.13: cannot open shared object file")

    machine(GPU, Bench().module)
    monkeypatch.setitem(sys.modules, "cuda.bindings", WithoutItsLibrary())
    has_race, said = found()
    assert not has_race
    assert "libcudart.so.13" in said
    assert "refdiff doctor" in said
