"""The GPU of this machine, as the CUDA driver describes it: no package is needed to ask.

In: nothing. Out: a `Device`, or None where there is no driver or no GPU.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h."""

_NAME_BYTES = 128


@dataclass(frozen=True, kw_only=True)
class Device:
    """The first GPU that CUDA shows; CUDA_VISIBLE_DEVICES chooses another."""

    name: str
    compute_capability: str
    """Such as "8.7"."""
    memory_bytes: int
    driver_cuda: str
    """The newest CUDA the driver knows, such as "13.0"."""


def find_device() -> Device | None:
    """Ask the driver.

    Returns:
        None where there is no driver, none that works, or no GPU.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    handle = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGet(ctypes.byref(handle), 0) != 0:
        return None
    name = ctypes.create_string_buffer(_NAME_BYTES)
    driver.cuDeviceGetName(name, _NAME_BYTES, handle)
    memory = ctypes.c_size_t()
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), handle)
    version = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    return Device(
        name=name.value.decode(errors="replace"),
        compute_capability=f"{_attribute(driver, _MAJOR, handle)}.{_attribute(driver, _MINOR, handle)}",
        memory_bytes=memory.value,
        driver_cuda=f"{version.value // 1000}.{version.value % 1000 // 10}",
    )


def _attribute(driver: ctypes.CDLL, which: int, handle: ctypes.c_int) -> int:
    value = ctypes.c_int()
    driver.cuDeviceGetAttribute(ctypes.byref(value), which, handle)
    return value.value
