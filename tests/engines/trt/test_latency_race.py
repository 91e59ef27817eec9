"""Which form of a graph a GPU runs faster, with a TensorRT and a CUDA in memory."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from refdiff.contracts.session import Timings
from refdiff.engines.trt import flavour as flavours
from refdiff.engines.trt import latency_race
from refdiff.engines.trt import open as choice
from refdiff.engines.trt.cuda import Cuda
from refdiff.engines.trt.latency_race import ROUNDS, WARM_UPS, LatencyRace, find_latency_race
from refdiff.errors import EngineError
from tests.support.fake_builder import Behaviour, fake_flavour, fake_rtx, fake_tensorrt
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
def test_every_form_is_built_for_the_feeds_and_run_in_turns(tmp_path, monkeypatch, rtx):
    bench, real, reported = Bench(rtx=rtx), latency_race._time_repeat, []

    def repeated(session):
        reported.append(real(session))
        return reported[-1]

    monkeypatch.setattr(latency_race, "_time_repeat", repeated)
    assert bench.medians(tmp_path) == MS
    assert reported == list(MS.values()) * ROUNDS
    assert bench.machine.trt.runs == len(MS) * (WARM_UPS + ROUNDS)
    for profiles in bench.profiles:
        assert profiles == [{name: [list(feed.shape)] * 3 for name, feed in FEEDS.items()}]


def test_a_form_that_stalls_once_is_judged_by_its_median(tmp_path, monkeypatch):
    bench, real = Bench(), latency_race._time_repeat
    stalls = iter([1000.0])
    monkeypatch.setattr(latency_race, "_time_repeat", lambda session: real(session) + next(stalls, 0.0))
    assert bench.medians(tmp_path) == MS


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


def test_a_device_that_reports_no_time_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(latency_race.TrtSession, "timings", lambda self: Timings())
    with pytest.raises(EngineError, match="reported no time"):
        Bench().medians(tmp_path)


@pytest.fixture
def machine(monkeypatch):
    """Sets up what a machine has: its GPU and its TensorRT."""

    def set_up(device, module):
        for package in {each for several in flavours.PACKAGES.values() for each in several}:
            monkeypatch.setitem(sys.modules, package, module if package == module.__name__ else None)
        monkeypatch.setattr(
            flavours, "find_spec", lambda name: module.__spec__ if name == module.__name__ else None
        )
        monkeypatch.setattr(latency_race, "find_device", lambda: device)
        monkeypatch.setattr(choice, "_import_cuda", lambda backend: Machine().cuda)

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
    module = Bench().module
    module.__name__ = "something_else"
    machine(GPU, module)
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
    def missing(backend):
        raise ImportError("libcudart.so.13: cannot open shared object file")

    machine(GPU, Bench().module)
    monkeypatch.setattr(choice, "_import_cuda", missing)
    has_race, said = found()
    assert not has_race
    assert "libcudart.so.13" in said
    assert "refdiff doctor" in said
