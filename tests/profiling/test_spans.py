"""Spans, and a question's time in parts that add up, on a clock that is set by hand."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.contracts.graphs import GraphSpec, TensorSpec
from refdiff.contracts.session import Timings
from refdiff.profiling.records import trace_of
from refdiff.profiling.spans import (
    BETWEEN,
    LOADING,
    Part,
    Percentiles,
    Stopwatch,
    TimedSample,
    TimedSessions,
    by_part,
)
from refdiff.runtime.observer import observed

MS = 1_000_000


class Clock:
    """Tells what it was set to, in ns."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now

    def pass_ms(self, ms: float) -> None:
        self.now += int(ms * MS)


class FakeSession:
    """Takes two milliseconds by the clock; with a device it says that the device took one."""

    graph = GraphSpec(
        "sums", (TensorSpec("left", "float32", ("b", 3)),), (TensorSpec("sum", "float32", ("b",)),)
    )

    def __init__(self, clock: Clock) -> None:
        self.clock, self.closed = clock, 0

    def run(self, feeds, outputs=None, *, keep_on_device=False):
        self.clock.pass_ms(2)
        return {"sum": np.asarray(feeds["left"]).sum(axis=1)}

    def timings(self) -> Timings:
        return Timings()

    def close(self) -> None:
        self.closed += 1


class FakeDeviceArray:
    dtype, shape = np.dtype(np.float32), (2,)

    def to_host(self):
        return np.zeros(2, np.float32)


class FakeDeviceSession(FakeSession):
    """Returns at once, and is done five milliseconds later."""

    def run(self, feeds, outputs=None, *, keep_on_device=False):
        return {"sum": FakeDeviceArray() if keep_on_device else np.zeros(2, np.float32)}

    def timings(self) -> Timings:
        self.clock.pass_ms(5)
        return Timings(device_ms=1.0)


class FakeFactory:
    def __init__(self, session: FakeSession) -> None:
        self.session, self.opened, self.closed = session, 0, 0

    def open(self, name):
        self.opened += 1
        self.session.clock.pass_ms(7 if self.opened == 1 else 0)
        return self.session

    def close(self) -> None:
        self.closed += 1


class Pipeline:
    """Two verbs with stages in them, as the real one has them."""

    def __init__(self, watch: Stopwatch, clock: Clock, sessions: TimedSessions) -> None:
        self._observer, self.clock, self.sessions = watch, clock, sessions

    @observed("encode")
    def encode(self) -> None:
        self.clock.pass_ms(1)
        self._latent()

    @observed("latent")
    def _latent(self) -> None:
        self.clock.pass_ms(3)
        self.sessions.open("sums").run({"left": np.ones((2, 3), np.float32)})

    @observed("segment")
    def segment(self, value: int, *, more: int = 0) -> int:
        self._cues()
        return value + more

    @observed("scoring")
    def _cues(self) -> None:
        self.clock.pass_ms(4)
        self._crops()

    @observed("crops")
    def _crops(self) -> None:
        self.clock.pass_ms(5)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watch(clock: Clock) -> Stopwatch:
    return Stopwatch(clock)


def ask(watch: Stopwatch, clock: Clock) -> tuple:
    pipeline = Pipeline(watch, clock, TimedSessions(FakeFactory(FakeSession(clock)), watch))
    pipeline.encode()
    assert pipeline.segment(1, more=2) == 3
    return watch.take()


def test_the_parts_of_a_question_add_up_to_all_of_it(watch: Stopwatch, clock: Clock) -> None:
    parts = by_part(ask(watch, clock))
    assert {str(part): ms for part, ms in parts.items()} == {
        "latent/host": 3,
        "latent/sums": 2,
        "crops/host": 5,
        "scoring/host": 4,
        f"{BETWEEN}/host": 1,
        f"{LOADING}/sums": 7,
    }
    assert sum(parts.values()) == clock.now / MS


def test_parts_come_in_the_order_of_the_method(watch: Stopwatch, clock: Clock) -> None:
    stages = [part.stage for part in by_part(ask(watch, clock))]
    assert stages == ["latent", "latent", "crops", "scoring", BETWEEN, LOADING]


def test_a_graph_s_time_is_the_stage_s_it_ran_in(watch: Stopwatch, clock: Clock) -> None:
    sample = TimedSample.of(ask(watch, clock), round=3, index=1)
    ((part, ms, call),) = sample.calls
    assert (str(part), ms) == ("latent/sums", 2.0)
    assert (call.shapes, call.fed_bytes, call.returned_bytes) == ({"left": (2, 3)}, 24, 8)
    assert sample.to_json()["parts"]["latent/sums"] == 2.0


def test_a_span_ends_when_its_work_fails(watch: Stopwatch, clock: Clock) -> None:
    with pytest.raises(KeyError), watch.stage("crops"), watch.span("step", "inside"):
        clock.pass_ms(2)
        raise KeyError
    outer, inner = watch.take()
    assert (outer.ms, inner.ms, inner.parent) == (2.0, 2.0, 0)
    assert watch.take() == ()


def test_what_is_loaded_is_loaded_once(watch: Stopwatch, clock: Clock) -> None:
    factory = FakeFactory(FakeSession(clock))
    sessions = TimedSessions(factory, watch)
    for _ in range(3):
        sessions.open("sums")
    assert [span.name for span in watch.take() if span.kind == "load"] == ["sums"]
    sessions.close()
    assert factory.closed == 1


def test_a_timed_session_returns_what_its_session_returns(watch: Stopwatch, clock: Clock) -> None:
    plain = TimedSessions(FakeFactory(FakeSession(clock)), watch).open("sums")
    device = TimedSessions(FakeFactory(FakeDeviceSession(clock)), watch).open("sums")
    feeds = {"left": np.ones((2, 3), np.float32)}
    assert isinstance(plain.run(feeds, keep_on_device=True)["sum"], np.ndarray)
    assert isinstance(device.run(feeds, keep_on_device=True)["sum"], FakeDeviceArray)
    assert (plain.timings(), device.timings()) == (Timings(), Timings(device_ms=1.0))
    assert plain.graph is device.graph is FakeSession.graph
    for session in (plain, device):
        session.close()


def test_outputs_left_on_a_device_are_waited_for_and_are_no_copies(watch: Stopwatch, clock: Clock) -> None:
    session = TimedSessions(FakeFactory(FakeDeviceSession(clock)), watch).open("sums")
    left = session.run({"left": np.ones((2, 3), np.float32)}, keep_on_device=True)
    session.run({"left": left["sum"]})
    _, kept, fed = watch.take()
    assert (kept.ms, kept.call.device_ms) == (5.0, 1.0)
    assert (kept.call.fed_bytes, kept.call.returned_bytes) == (24, 0)
    assert fed.call.fed_bytes == 0


def test_a_trace_holds_every_span_in_microseconds(watch: Stopwatch, clock: Clock) -> None:
    clock.pass_ms(100)
    events = trace_of([("cold", ()), ("question", ask(watch, clock))])["traceEvents"]
    complete = [event for event in events if event["ph"] == "X"]
    assert [event["name"] for event in complete][:4] == ["question", "encode", "latent", "sums"]
    assert complete[0]["ts"] == 0
    assert complete[0]["dur"] == 22_000
    (run,) = [event for event in complete if event["cat"] == "graph"]
    assert run["args"]["feeds"] == {"left": "2×3"}


@contextmanager
def opened(watch: Stopwatch, clock: Clock, tree) -> Iterator[None]:
    """A stage for each node of a tree, a millisecond on either side of what lies in it."""
    with watch.stage("crops"):
        clock.pass_ms(1)
        for child in tree:
            with opened(watch, clock, child):
                pass
        clock.pass_ms(1)
    yield


@given(st.recursive(st.just([]), lambda inner: st.lists(inner, max_size=3), max_leaves=12))
def test_however_stages_are_nested_nothing_is_counted_twice(tree) -> None:
    clock = Clock()
    watch = Stopwatch(clock)
    with opened(watch, clock, tree):
        pass
    assert sum(by_part(watch.take()).values()) == pytest.approx(clock.now / MS)


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_percentiles_are_ordered_and_inside(values: list[float]) -> None:
    found = Percentiles.of(values)
    assert min(values) <= found.p50 <= found.p90 <= found.p99 <= max(values)
    assert found.n == len(values)


def test_a_part_is_read_back_from_its_name() -> None:
    for part in (Part("latent", "unet_taps"), Part(BETWEEN, "host"), Part("all", "")):
        assert Part.parse(str(part)) == part


def test_the_default_clock_is_monotonic() -> None:
    watch = Stopwatch()
    for number in range(50):
        with watch.span("step", str(number)):
            pass
    spans = watch.take()
    assert all(before.end_ns <= after.start_ns for before, after in pairwise(spans))
