"""Order, completeness and bookkeeping of a source, with readers that run in threads and end on command."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refdiff.camera.frame import SourceCounts
from refdiff.camera.sources.fault import SourceFault
from refdiff.camera.sources.reader_source import ReaderSource
from refdiff.camera.sources.sink import FrameSink, ReadingDone
from refdiff.camera.sources.watch import Limits
from refdiff.errors import SourceError, SourceLostError

QUICK = Limits(backoff_s=(0.001, 0.002), first_frame_timeout_s=30, stall_timeout_s=30)
PATIENCE_S = 30.0


@dataclass(frozen=True)
class Script:
    """How many frames a reader reads, and how it ends: `end`, `die`, or the kind of a fault."""

    frames: int
    ending: str


class ThreadedReader:
    """A reader in a thread; its camera goes on counting while no reader runs."""

    def __init__(
        self, camera: Iterator[tuple[int, tuple[int, int] | None]], script: Script, request: Mapping[str, Any]
    ) -> None:
        self.connection, self._theirs = socket.socketpair()
        self.pid = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(camera, script, dict(request)), daemon=True)
        self._thread.start()

    def kill(self) -> None:
        for each in (self._theirs, self.connection):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE_S)
        self._theirs.close()
        self.connection.close()

    def explain(self) -> SourceFault:
        return SourceFault(kind="crashed", reason="it was killed")

    def last_words(self) -> str:
        return ""

    def trim(self) -> None:
        pass

    def _read(
        self, camera: Iterator[tuple[int, tuple[int, int] | None]], script: Script, request: dict[str, Any]
    ) -> None:
        with suppress(OSError):
            sink = FrameSink(
                self._theirs,
                newest=request["newest"],
                skip=request["skip"],
                limit=request["limit"],
                on_parent_end=self._done.set,
            )
            with suppress(ReadingDone, StopIteration):
                for _ in range(script.frames + request["skip"]):
                    self._one(camera, sink)
            if script.ending == "die":
                self._theirs.shutdown(socket.SHUT_RDWR)
            elif script.ending == "end":
                sink.finish()
            else:
                sink.finish(SourceFault(kind=script.ending, reason="as the script says"))

    def _one(self, camera: Iterator[tuple[int, tuple[int, int] | None]], sink: FrameSink) -> None:
        content, size = next(camera)
        if size is None:
            sink.drop("damaged")
        elif not sink.skipped():
            pixels = np.zeros((*size, 3), np.uint8)
            pixels.reshape(-1)[:] = np.resize(
                np.frombuffer(struct.pack("<I", content)[:3], np.uint8), pixels.size
            )
            sink.publish(pixels, captured_s=float(content), wall_s=0.0)


def content_of(pixels: np.ndarray) -> int:
    """The number that every pixel holds; a torn frame holds two."""
    values = np.unique(pixels.reshape(-1, 3), axis=0)
    assert len(values) == 1
    return int(values[0] @ [1, 256, 65536])


def make_source(
    scripts: list[Script],
    sizes: list[tuple[int, int] | None],
    *,
    newest: bool,
    recorded: bool,
    limits: Limits = QUICK,
    total: int = 1000,
) -> ReaderSource:
    """Open a source of `total` frames; one that is recorded starts again with every reader."""
    left = iter(scripts)
    live = ((number, sizes[number % len(sizes)]) for number in range(total))

    def launch(request: Mapping[str, Any]) -> ThreadedReader:
        again = ((number, sizes[number % len(sizes)]) for number in range(total))
        return ThreadedReader(again if recorded else live, next(left, Script(0, "end")), request)

    request = {
        "newest": newest,
        "recorded": recorded,
        "loop": False,
        "limit": None,
        "pace": "reader",
        "skip": 0,
    }
    return ReaderSource("test", request, launch, limits)


def balance(counts: SourceCounts) -> int:
    return counts.captured - counts.delivered - sum(counts.dropped.values()) - counts.waiting


SCRIPTS = st.lists(
    st.builds(Script, st.integers(0, 12), st.sampled_from(["die", "closed", "stalled"])), max_size=4
)
SIZES = st.lists(
    st.one_of(st.none(), st.tuples(st.integers(1, 60), st.integers(1, 300))), min_size=1, max_size=5
)
PAUSES = st.lists(st.sampled_from([0.0, 0.0, 0.001, 0.004]), min_size=1, max_size=6)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(SCRIPTS, SIZES, PAUSES, st.booleans(), st.booleans())
def test_no_frame_comes_twice_torn_out_of_order_or_without_account(
    scripts: list[Script],
    sizes: list[tuple[int, int] | None],
    pauses: list[float],
    newest: bool,
    recorded: bool,
) -> None:
    total = sum(script.frames for script in scripts) + 5
    limits = Limits(backoff_s=(0.001, 0.002), open_attempts=9)
    numbers, contents = [], []
    with make_source(
        [*scripts, Script(1000, "end")],
        sizes,
        newest=newest,
        recorded=recorded,
        limits=limits,
        total=total,
    ) as source:
        while not source.ended:
            frame = source.read(PATIENCE_S)
            if frame is None:
                continue
            numbers.append(frame.number)
            contents.append(content_of(frame.pixels))
            assert frame.captured_s == contents[-1]
            threading.Event().wait(pauses[len(numbers) % len(pauses)])
            assert balance(source.counts()) == 0
        counts = source.counts()
    assert numbers == sorted(set(numbers))
    assert contents == sorted(set(contents))
    assert balance(counts) == 0
    assert counts.waiting == 0
    assert counts.captured <= total
    if recorded and not newest:
        assert contents == [number for number in range(total) if sizes[number % len(sizes)] is not None]
        assert set(counts.dropped) <= {"damaged"}


def test_a_source_is_closed_while_another_thread_reads() -> None:
    source = make_source([Script(1, "end")], [None], newest=True, recorded=False)
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(source.read(PATIENCE_S)))
    thread.start()
    source.close()
    thread.join(PATIENCE_S)
    assert results == [None]


def test_a_source_that_is_lost_for_good_gives_its_last_frames_first(
    caplog: pytest.LogCaptureFixture,
) -> None:
    limits = Limits(reconnect_attempts=1, backoff_s=(0.001, 0.002))
    scripts = [Script(3, "closed"), Script(0, "refused"), Script(0, "refused")]
    with make_source(scripts, [(2, 2)], newest=False, recorded=False, limits=limits) as source:
        assert [frame.number for frame in (source.read(PATIENCE_S) for _ in range(3)) if frame] == [1, 2, 3]
        assert not source.ended
        for _ in range(2):
            with pytest.raises(SourceLostError, match="test is lost: as the script says"):
                source.read(PATIENCE_S)
        assert source.ended
        events = source.take_events()
        assert [(event.kind, event.cause) for event in events] == [
            ("opened", ""),
            ("failed", "closed"),
            ("reconnecting", "closed"),
            ("failed", "refused"),
        ]
        assert source.counts().reconnects == 0
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings[0] == "source test: failed: as the script says"
    assert len(warnings) == 3


def test_a_source_that_never_opened_is_an_error_of_another_exit_code() -> None:
    with make_source([Script(0, "not_found")], [None], newest=True, recorded=False) as source:
        with pytest.raises(SourceError) as caught:
            source.read(PATIENCE_S)
        assert caught.value.exit_code == 3
    assert SourceLostError.exit_code == 1


def test_a_change_of_the_size_is_an_event_also_across_readers() -> None:
    sizes: list[tuple[int, int] | None] = [(2, 4), (2, 4), (200, 300)]
    with make_source([Script(2, "closed"), Script(1, "end")], sizes, newest=False, recorded=False) as source:
        shapes = []
        while not source.ended:
            frame = source.read(PATIENCE_S)
            shapes += [frame.size_yx] if frame else []
        assert shapes == sizes
        resized = [event.reason for event in source.take_events() if event.kind == "resized"]
        assert resized == ["from 4x2 to 300x200 px"]
        assert source.counts().reconnects == 1


def test_a_reader_that_is_silent_is_ended_and_replaced() -> None:
    """Its thread never ends by itself: nothing but the watchdog gets past it."""
    hangs = threading.Event()

    class Silent(ThreadedReader):
        def _read(self, *arguments: Any) -> None:
            sink = FrameSink(self._theirs, newest=True, on_parent_end=hangs.set)
            sink.publish(np.zeros((2, 2, 3), np.uint8), captured_s=0.0, wall_s=0.0)
            hangs.wait(PATIENCE_S)

    readers = iter([Silent, ThreadedReader])

    def launch(request: Mapping[str, Any]) -> ThreadedReader:
        return next(readers)(iter([(1, (2, 2))]), Script(1, "end"), request)

    request = {"newest": True, "recorded": False, "loop": False, "limit": None, "pace": "real", "skip": 0}
    with ReaderSource("test", request, launch, Limits(stall_timeout_s=0.05)) as source:
        assert source.read(PATIENCE_S) is not None
        second = source.read(PATIENCE_S)
        assert second is not None
        assert second.number == 2
        assert [event.kind for event in source.take_events()][:4] == [
            "opened",
            "stalled",
            "reconnecting",
            "opened",
        ]
    assert hangs.is_set()


def test_a_system_that_refuses_another_process_is_a_fault_with_a_cure() -> None:
    def launch(request: Mapping[str, Any]) -> ThreadedReader:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    request = {"newest": True, "recorded": False, "loop": False, "limit": None, "pace": "real", "skip": 0}
    source = ReaderSource("test", request, launch, Limits(open_attempts=1))
    with source, pytest.raises(SourceError, match=r"no process can be started.*ulimit -u"):
        source.read(PATIENCE_S)
