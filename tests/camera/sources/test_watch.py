"""Deadlines, pauses and the end of patience, on times that are given."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.camera.sources.fault import SourceFault
from refdiff.camera.sources.watch import Limits, Watch

STALLED = SourceFault(kind="stalled", reason="")
CLOSED = SourceFault(kind="closed", reason="")
DENIED = SourceFault(kind="authentication", reason="")


def watch(*, recorded: bool = False, **limits: object) -> Watch:
    return Watch(Limits(**limits), recorded=recorded, rng=random.Random(0))  # type: ignore[arg-type]  # noqa: S311


def test_the_first_frame_has_a_limit_of_its_own() -> None:
    clock = watch(first_frame_timeout_s=20, stall_timeout_s=5)
    clock.start(100.0)
    assert clock.deadline(0) == 120.0
    assert clock.silence(0).kind == "timeout"
    clock.alive(110.0)
    assert clock.deadline(0) == 130.0
    assert clock.frame(111.0)
    assert not clock.frame(112.0)
    assert clock.deadline(0) == 117.0
    assert clock.silence(3).kind == "stalled"
    assert "3 frames could not be decoded" in clock.silence(3).reason


def test_waiting_for_a_slow_consumer_is_no_stall() -> None:
    clock = watch(stall_timeout_s=5)
    clock.start(0.0)
    clock.frame(1.0)
    clock.block()
    assert clock.deadline(4) is None
    clock.release(60.0)
    assert clock.deadline(0) == 65.0
    clock.frame(61.0)
    assert clock.deadline(4) == 66.0


def test_a_wrong_password_is_not_tried_twice_before_the_source_was_open_and_is_after() -> None:
    clock = watch()
    clock.start(0.0)
    assert clock.pause(DENIED, 1.0) is None
    clock.frame(2.0)
    clock.start(3.0)
    assert clock.pause(DENIED, 4.0) is not None


def test_a_source_that_never_opens_is_given_up_after_its_attempts() -> None:
    clock = watch(open_attempts=3)
    for expected in (True, True, False):
        clock.start(0.0)
        assert (clock.pause(CLOSED, 1.0) is not None) == expected


@pytest.mark.parametrize("limits", [{"reconnect_attempts": 2}, {"reconnect_for_s": 50.0}])
def test_a_lost_source_is_given_up_after_its_attempts_or_time(limits: dict[str, float]) -> None:
    clock = watch(**limits)
    clock.start(0.0)
    clock.frame(1.0)
    for now, expected in ((11.0, True), (21.0, True), (61.0, False)):
        assert (clock.pause(CLOSED, now) is not None) == expected
        clock.start(now)


def test_without_a_limit_a_lost_source_is_tried_for_ever() -> None:
    clock = watch()
    clock.start(0.0)
    clock.frame(1.0)
    for now in range(2, 3000):
        assert clock.pause(CLOSED, float(now)) is not None
        clock.start(float(now))


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.floats(0.1, 2), st.floats(2, 60))
def test_pauses_stay_within_their_limits_and_grow(
    with_frame: list[bool], shortest: float, longest: float
) -> None:
    clock, now = watch(backoff_s=(shortest, longest)), 0.0
    clock.start(now)
    clock.frame(now)
    pauses = []
    for framed in with_frame:
        pause = clock.pause(CLOSED, now)
        assert pause is not None
        assert shortest <= pause <= longest
        pauses.append(pause)
        now += pause
        clock.start(now)
        if framed:
            clock.frame(now)  # and it is lost at once: no reason to come back sooner
    assert pauses[-1] >= pauses[0] * 0.99 or pauses[-1] >= longest / 2


def test_a_stalled_or_killed_reader_is_replaced_at_once_unless_it_happens_again_at_once() -> None:
    clock = watch(backoff_s=(1.0, 30.0))
    clock.start(0.0)
    clock.frame(0.5)
    assert clock.pause(STALLED, 10.0) == 0.0
    clock.start(10.0)
    clock.frame(10.2)
    assert (clock.pause(STALLED, 10.3) or 0) >= 1.0
    clock.start(20.0)
    clock.frame(20.2)
    assert clock.pause(STALLED, 60.0) == 0.0


def test_a_file_that_fails_at_the_same_place_is_given_up() -> None:
    clock = watch(recorded=True, open_attempts=3)
    clock.start(0.0)
    clock.frame(1.0)
    assert clock.pause(SourceFault(kind="codec", reason=""), 2.0) is None
    results = []
    for _ in range(3):
        clock.start(3.0)
        results.append(clock.pause(SourceFault(kind="crashed", reason=""), 4.0))
    assert results[-1] is None
    assert None not in results[:-1]
