"""Returning freed memory: how often, and that it does happen."""

import sys
from pathlib import Path

import numpy as np
import pytest

from refdiff.contracts.heap import HeapTrimmer, trim_heap


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def trimmer(seconds):
    """Return a trimmer whose trims take so long, its clock, and when it trimmed."""
    clock, trims = Clock(), []

    def trim():
        trims.append(clock.now)
        clock.now += seconds

    return HeapTrimmer(trim, clock), clock, trims


def test_the_heap_is_trimmed_every_ten_seconds_of_work():
    found, clock, trims = trimmer(seconds=0.01)
    for _ in range(399):
        clock.now += 0.125
        found()
    assert trims[0] == pytest.approx(10.0)
    assert len(trims) == 4  # in 50 s


def test_slow_trims_take_two_percent_of_the_time():
    found, clock, trims = trimmer(seconds=1.0)
    while clock.now < 1000:
        clock.now += 0.5
        found()
    assert len(trims) == pytest.approx(20, abs=1)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc; glibc keeps freed pages")
def test_freed_pages_go_back_to_the_system():
    def resident_mb():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

    blocks = [np.ones(8000, np.uint8) for _ in range(20_000)]  # below the size that is mapped by itself
    kept, full = blocks[::100], resident_mb()
    del blocks
    trim_heap()
    assert resident_mb() < full - 60
    assert len(kept) == 200
