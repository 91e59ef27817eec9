"""What a machine says of itself, on a Jetson made of files and on machines that say less."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.profiling.profile import _machine
from refdiff.profiling.sensors import (
    Memory,
    MemorySampler,
    Reading,
    Sensors,
    peak_resident,
    read_memory,
    throttled,
)
from tests.support.jetson import jetson, tell


def test_a_jetson_tells_its_model_and_its_power_mode_by_name(tmp_path: Path) -> None:
    machine = _machine(jetson(tmp_path))
    assert machine["model"] == "NVIDIA Jetson AGX Orin Developer Kit"
    assert machine["power_mode"] == "MODE_30W"
    assert machine["memory_bytes"] == 31_000_000 * 1024


def test_a_jetson_tells_clocks_in_hertz_and_temperatures_in_degrees(tmp_path: Path) -> None:
    reading = Sensors(jetson(tmp_path)).read()
    assert reading.clocks_hz == {"cpu0": 2_201_600_000, "cpu1": 2_201_600_000, "17000000.gpu": 930_750_000}
    assert reading.temperatures_c == {"0 cpu-thermal": 48.5, "1 gpu-thermal": 45.25}
    assert reading.throttling == {"cooling 0 cpufreq-cpu0": 0, "hwmon3 oc1_event_cnt": 0}


def test_a_machine_that_tells_nothing_is_not_guessed_at(tmp_path: Path) -> None:
    assert Sensors(tmp_path).read() == Reading()
    machine = _machine(tmp_path)
    assert (machine["model"], machine["power_mode"], machine["memory_bytes"]) == (None, None, None)


def test_a_power_mode_without_a_name_keeps_its_number(tmp_path: Path) -> None:
    root = jetson(tmp_path)
    (root / "etc/nvpmodel.conf").unlink()
    assert _machine(root)["power_mode"] == "number 2"
    tell(root, "var/lib/nvpmodel/status", "pmode:0000 fmode:quiet")
    assert _machine(root)["power_mode"] == "number 0"
    tell(root, "var/lib/nvpmodel/status", "unset")
    assert _machine(root)["power_mode"] is None


def test_x86_counts_its_throttling_per_core(tmp_path: Path) -> None:
    tell(tmp_path, "sys/devices/system/cpu/cpu3/thermal_throttle/core_throttle_count", "17")
    assert Sensors(tmp_path).read().throttling == {"cpu3 core_throttle_count": 17}


def test_a_sensor_that_fails_later_is_left_out(tmp_path: Path) -> None:
    sensors = Sensors(jetson(tmp_path))
    tell(tmp_path, "sys/class/thermal/thermal_zone1/temp", "broken")
    (tmp_path / "sys/class/devfreq/17000000.gpu/cur_freq").unlink()
    reading = sensors.read()
    assert list(reading.temperatures_c) == ["0 cpu-thermal"]
    assert "17000000.gpu" not in reading.clocks_hz


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("sys/class/devfreq/17000000.gpu/cur_freq", "306000000", "17000000.gpu at 306 MHz, 931 at the start"),
        (
            "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq",
            "1100000",
            "cpu1 at 1100 MHz, 2202 at the start",
        ),
        ("sys/class/thermal/cooling_device0/cur_state", "3", "cooling 0 cpufreq-cpu0 went from 0 to 3"),
        ("sys/class/hwmon/hwmon3/oc1_event_cnt", "1", "hwmon3 oc1_event_cnt went from 0 to 1"),
    ],
)
def test_a_slower_clock_or_a_throttling_event_marks_a_sample(
    tmp_path: Path, path: str, value: str, reason: str
) -> None:
    sensors = Sensors(jetson(tmp_path))
    start = sensors.read()
    assert throttled(start, start, sensors.read()) == ()
    tell(tmp_path, path, value)
    assert throttled(start, start, sensors.read()) == (reason,)


def test_throttling_that_goes_on_marks_every_sample_it_lasts(tmp_path: Path) -> None:
    sensors = Sensors(jetson(tmp_path))
    start = sensors.read()
    tell(tmp_path, "sys/class/thermal/cooling_device0/cur_state", "2")
    hot = sensors.read()
    assert throttled(start, hot, hot) == ("cooling 0 cpufreq-cpu0 is at 2, 0 at the start",)


def test_an_event_of_an_earlier_sample_does_not_mark_this_one(tmp_path: Path) -> None:
    sensors = Sensors(jetson(tmp_path))
    start = sensors.read()
    tell(tmp_path, "sys/class/hwmon/hwmon3/oc1_event_cnt", "1")
    after = sensors.read()
    assert throttled(start, after, after) == ()


@given(st.floats(0.96, 2.0))
def test_a_governor_s_wavering_is_no_throttling(share: float) -> None:
    start = Reading(clocks_hz={"cpu0": 2_000_000_000})
    assert throttled(start, start, Reading(clocks_hz={"cpu0": int(2e9 * share)})) == ()


def test_memory_is_read_in_bytes_from_the_kernel_s_file(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmHWM:\t  300 kB\nVmRSS:\t  200 kB\nRssAnon:\t  150 kB\n")
    assert read_memory(status) == Memory(resident=200 * 1024, private=150 * 1024)
    assert peak_resident(status) == 300 * 1024


@pytest.mark.parametrize(
    "text", [None, "", "VmRSS:\t 5 kB\n", "VmRSS: many kB\nRssAnon: few kB\n", "VmRSS:\nRssAnon:\n"]
)
def test_memory_without_a_report_is_unknown(tmp_path: Path, text: str | None) -> None:
    status = tmp_path / "status"
    if text is not None:
        status.write_text(text)
    assert read_memory(status) is None
    with MemorySampler(status) as sampler:
        pass
    assert sampler.highest(0, 1 << 62) is None


def test_the_sampler_sees_the_most_between_two_moments(tmp_path: Path) -> None:
    status = tmp_path / "status"

    def holds(kilobytes: int) -> None:
        draft = tmp_path / "draft"
        draft.write_text(f"VmRSS:\t{2 * kilobytes} kB\nRssAnon:\t{kilobytes} kB\n")
        draft.rename(status)

    moment = iter(range(1_000_000))
    holds(1)
    with MemorySampler(status, clock=lambda: next(moment)) as sampler:
        for kilobytes in (1, 7, 2):
            holds(kilobytes)
            seen = len(sampler._samples)
            while len(sampler._samples) < seen + 3:
                pass
    assert sampler.highest(0, 1_000_000) == Memory(resident=14 * 1024, private=7 * 1024)
    assert sampler.highest(0, 0) == Memory(resident=2 * 1024, private=1024)


def test_the_larger_of_two_memories_is_taken_by_kind() -> None:
    numbers = random.Random(0).sample(range(1000), 4)  # noqa: S311 - no secret
    first, second = (
        Memory(resident=numbers[0], private=numbers[1]),
        Memory(resident=numbers[2], private=numbers[3]),
    )
    assert first.larger(None) == first
    assert first.larger(second) == second.larger(first)
    assert first.larger(second).private == max(numbers[1], numbers[3])
