"""What the CUDA driver's library is asked, over one in memory."""

import json
import subprocess
import sys

import pytest

from refdiff.diagnostics.gather import DRIVER_REPORT
from refdiff.engines.trt.device import describe, driver_report, find_device, free_memory
from tests.support.fake_driver import FakeDriver


def test_every_gpu_is_described_the_used_one_first() -> None:
    found, why_none = describe(FakeDriver())
    assert [(each.name, each.compute_capability) for each in found] == [
        ("NVIDIA RTX 4090", "8.9"),
        ("NVIDIA RTX 3090", "8.6"),
    ]
    assert found[0].driver_cuda == "12.8"
    assert why_none == ""


@pytest.mark.parametrize(
    ("driver", "why_none"),
    [
        (FakeDriver(init=803), "cuInit of the driver failed with CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"),
        (FakeDriver(init=5), "cuInit of the driver failed with error 5"),
        (FakeDriver(devices=()), "the driver shows no GPU"),
    ],
)
def test_a_driver_without_a_gpu_says_why(driver: FakeDriver, why_none: str) -> None:
    assert describe(driver) == ((), why_none)


def test_free_memory_is_asked_in_a_context_that_is_given_back() -> None:
    driver = FakeDriver()
    assert free_memory(driver) == 20 << 30
    assert driver.retained == 0


def test_free_memory_is_unknown_where_no_context_can_be_made() -> None:
    assert free_memory(FakeDriver(context=2)) is None


def test_the_first_gpu_is_the_one_that_is_used() -> None:
    device = find_device(FakeDriver)
    assert device is not None
    assert device.name == "NVIDIA RTX 4090"
    assert find_device(lambda: None) is None


def test_the_report_has_no_free_memory_without_a_gpu() -> None:
    assert driver_report(FakeDriver(devices=()))["memory_free"] is None
    assert driver_report(FakeDriver())["memory_free"] == 20 << 30
    assert "no NVIDIA driver" in driver_report(None)["why_none"]


def test_the_report_of_this_machine_is_one_json_document() -> None:
    process = subprocess.run(DRIVER_REPORT, capture_output=True, text=True, check=True, timeout=60)
    assert set(json.loads(process.stdout)) == {"devices", "why_none", "memory_free"}
    assert sys.executable == DRIVER_REPORT[0]
