import subprocess
import sys
import threading

import pytest

from refdiff.contracts.graphs import GraphSpec
from refdiff.contracts.session import Timings
from refdiff.engines.watchdog import WatchedSessions
from refdiff.errors import InputError

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
        "import ctypes, refdiff.engines.watchdog as w\n"
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
