"""What every test gets: tests that lack their package or device are skipped, and say so."""

import ctypes
import functools
import importlib.util

import hypothesis
import pytest

# Property tests share small machines with model runs: a slow example is no failure, a wrong one is.
hypothesis.settings.register_profile("house", deadline=None)
hypothesis.settings.load_profile("house")


@functools.cache
def has_nvidia_device() -> bool:
    """Ask the CUDA driver itself: a Jetson has no nvidia-smi, and the lean environment has no torch."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("needs_torch") and importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed: pip install 'refdiff[export]'")
    if item.get_closest_marker("needs_gpu") and not has_nvidia_device():
        pytest.skip("no NVIDIA device")
