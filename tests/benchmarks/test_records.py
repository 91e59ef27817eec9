"""benchmarks/records.py: that nothing is timed while other programs run."""

from __future__ import annotations

import subprocess
import sys

import pytest
from benchmarks.records import QuietMachine

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc/stat is Linux's")


def test_other_work_during_a_measurement_is_an_error():
    code = "while True: pass"
    other = subprocess.Popen([sys.executable, "-c", code])
    try:
        with pytest.raises(SystemExit, match="other programs used"), QuietMachine(look_s=0.3, most=0.05):
            pytest.fail("the block was entered")
    finally:
        other.kill()
        other.wait()


def test_own_work_is_not_other_work():
    with QuietMachine(look_s=0.1, most=1.0) as machine:
        sum(range(2_000_000))
    assert 0 <= machine.others <= 1
