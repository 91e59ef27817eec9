import subprocess
import sys
import threading

import numpy as np
import pytest

from refdiff.contracts.bundle import open_bundle
from refdiff.contracts.graphs import GraphSpec
from refdiff.contracts.options import options_for
from refdiff.contracts.session import Timings
from refdiff.engines.factory import open_sessions
from refdiff.engines.interruption import CLOSED_GAPS, CancelledError, GapSessions, WatchedSessions
from refdiff.errors import InputError
from refdiff.loading import segmenter_of
from refdiff.miniature.scenes import render_scene


class Kept:
    """An output on a device, gone when its session runs again."""

    def __init__(self, session, values):
        self._session, self._values, self._run = session, values, session.runs
        self.dtype, self.shape = values.dtype, values.shape

    def to_host(self):
        if self._session.runs != self._run:
            raise InputError("its session has run again")
        return self._values.copy()


class DeviceSession:
    def __init__(self, inner):
        self.inner, self.runs = inner, 0
        self.graph, self.max_batch, self.timings = inner.graph, inner.max_batch, inner.timings

    def run(self, feeds, outputs=None, *, keep_on_device=False):
        host = {
            name: each if isinstance(each, np.ndarray) else each.to_host() for name, each in feeds.items()
        }
        self.runs += 1
        found = self.inner.run(host, outputs)
        return {name: Kept(self, each) for name, each in found.items()} if keep_on_device else found


class DeviceSessions:
    """A back-end that keeps outputs on a device, as TensorRT's plans do."""

    backend, reason = "fake", "a test"

    def __init__(self, inner):
        self._inner, self._open = inner, {}

    def open(self, name):
        return self._open.setdefault(name, DeviceSession(self._inner.open(name)))

    def close(self):
        self._inner.close()


@pytest.fixture(scope="module")
def bundle(mini_bundle):
    return open_bundle(mini_bundle)


@pytest.fixture(scope="module")
def device(bundle):
    sessions = DeviceSessions(open_sessions(bundle, backend="ort-cpu", threads=1))
    yield sessions
    sessions.close()


def answer(bundle, sessions, phrase="the mug"):
    segmenter = segmenter_of(bundle, sessions, options_for(bundle.spec))
    return segmenter.segment(segmenter.encode(render_scene(1).image), phrase)


def refine_everywhere(bundle, device, closed=CLOSED_GAPS):
    """Answer a key frame with a refinement of another image in every gap but the closed ones."""
    inside, ran = [], []

    def gap(graph):
        ran.append(graph)
        if inside or graph in closed:
            return
        inside.append(graph)
        segmenter.refine(render_scene(2).image, box=(10, 10, 60, 60))
        inside.pop()

    sessions = GapSessions(device, gap)
    segmenter = segmenter_of(bundle, sessions, options_for(bundle.spec))
    return answer(bundle, sessions), ran


@pytest.mark.slow
def test_refinements_in_the_gaps_leave_a_key_frame_s_answer_as_it_is(bundle, device):
    plain = answer(bundle, device)
    refined, ran = refine_everywhere(bundle, device)
    assert np.array_equal(refined.mask, plain.mask)
    assert refined.score == plain.score
    assert ran.count("sam_encoder") > 5


@pytest.mark.slow
def test_a_refinement_in_a_closed_gap_would_destroy_what_the_decoder_left(bundle, device):
    with pytest.raises(InputError, match="run again"):
        refine_everywhere(bundle, device, closed=frozenset())


def test_a_gap_that_raises_ends_the_work_before_the_graph_runs(bundle):
    ran = []

    class Session:
        graph, max_batch, timings = GraphSpec("unet", (), ()), 2, None

        def run(self, feeds, outputs=None, *, keep_on_device=False):
            ran.append((feeds, outputs, keep_on_device))
            return {}

    class Sessions:
        backend, reason = "fake", "a test"

        def open(self, name):
            return Session()

    stop = []

    def gap(graph):
        if stop:
            raise CancelledError

    session = GapSessions(Sessions(), gap).open("unet")
    session.run({"x": 1}, ["y"], keep_on_device=True)
    stop.append(1)
    with pytest.raises(CancelledError):
        session.run({})
    assert ran == [({"x": 1}, ["y"], True)]
    assert (session.graph.name, session.max_batch) == ("unet", 2)


def test_the_encoder_runs_once_for_several_prompts_and_its_time_is_known(bundle, device):
    ran = []
    sessions = GapSessions(device, ran.append)
    segmenter = segmenter_of(bundle, sessions, options_for(bundle.spec))
    assert sessions.encoder_s is None
    with sessions.encode_once():
        for box in ((10, 10, 60, 60), (40, 30, 90, 80)):
            segmenter.refine(render_scene(2).image, box=box)
    assert ran.count("sam_encoder") == 1
    assert sessions.encoder_s > 0
    segmenter.refine(render_scene(2).image, box=(10, 10, 60, 60))
    assert ran.count("sam_encoder") == 2


GRAPH = GraphSpec("unet", (), ())


class Slow:
    """A back-end whose run returns when it is released."""

    backend, reason, graph, max_batch = "fake", "a test", GRAPH, 3

    def __init__(self):
        self.released = threading.Event()

    def open(self, name):
        assert name == "unet"
        return self

    def run(self, feeds, outputs=None, *, keep_on_device=False):
        assert self.released.wait(10)
        return {"feeds": feeds, "outputs": outputs, "kept": keep_on_device}

    def timings(self):
        return Timings()

    def close(self):
        self.released.set()


def test_a_run_that_takes_too_long_ends_the_process():
    backend, said = Slow(), []

    def end(message):
        said.append(message)
        backend.released.set()

    WatchedSessions(backend, 0.01, end=end).open("unet").run({})
    assert said == ["unet did not return within 0.01 s; start again, or raise the run limit"]


def test_a_run_in_time_is_that_of_the_back_end():
    backend, said = Slow(), []
    sessions = WatchedSessions(backend, 30.0, end=said.append)
    backend.released.set()
    session = sessions.open("unet")
    assert session.run({"x": 1}, ["y"], keep_on_device=True) == {
        "feeds": {"x": 1},
        "outputs": ["y"],
        "kept": True,
    }
    assert (session.graph, session.max_batch, session.timings()) == (GRAPH, 3, Timings())
    assert (sessions.backend, sessions.reason, said) == ("fake", "a test", [])


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), float("inf")])
def test_a_limit_that_is_no_time_is_refused(limit):
    with pytest.raises(InputError, match="expected more than 0"):
        WatchedSessions(Slow(), limit)


@pytest.mark.slow
def test_a_hang_in_native_code_ends_the_process_with_its_exit_code():
    code = (
        "import ctypes, refdiff.engines.interruption as w\n"
        "class Backend:\n"
        "    backend, reason = 'fake', 'a test'\n"
        "    def open(self, name):\n"
        "        ctypes.CDLL(None).sleep(60)\n"
        "w.WatchedSessions(Backend(), 0.2).open('unet')\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False
    )
    assert process.returncode == 3
    assert process.stderr == "error: unet did not return within 0.2 s; start again, or raise the run limit\n"
