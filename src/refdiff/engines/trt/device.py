"""Describe this machine's GPUs through the CUDA driver alone; no package is needed.

In: nothing, or a loaded driver library. Out: `Device`s, or the reason why there are none. As a program,
`python -m refdiff.engines.trt.device` prints all of it as one JSON document: diagnostics run it in a separate
process, because a driver without a working GPU can hang its caller.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h."""

_NAME_BYTES = 128


@dataclass(frozen=True, kw_only=True)
class Device:
    """A GPU that CUDA shows, in the order of CUDA_VISIBLE_DEVICES."""

    name: str
    compute_capability: str
    """Version, such as "8.7"."""
    memory_bytes: int
    driver_cuda: str
    """The newest CUDA that the driver supports, such as "13.0"."""


def open_driver() -> Any | None:
    """Load the driver's library; None if there is none."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


def find_device(open_driver: Callable[[], Any | None] = open_driver) -> Device | None:
    """Return the first GPU, on which everything runs; None without a GPU or a working driver."""
    driver = open_driver()
    devices, _ = describe(driver) if driver is not None else ((), "")
    return devices[0] if devices else None


def describe(driver: Any) -> tuple[tuple[Device, ...], str]:
    """Describe all GPUs of a driver.

    Args:
        driver: from `open_driver`, or a stand-in with the same calls.

    Returns:
        The GPUs, first the one that is used; and the reason if there are none.
    """
    count = ctypes.c_int()
    for name, arguments in (("cuInit", (0,)), ("cuDeviceGetCount", (ctypes.byref(count),))):
        code = getattr(driver, name)(*arguments)
        if code:
            return (), f"{name} of the driver failed with {_error_name(driver, code)}"
    if not count.value:
        return (), "the driver shows no GPU"
    return tuple(_describe(driver, ordinal) for ordinal in range(count.value)), ""


def free_memory(driver: Any) -> int | None:
    """Return the free bytes of the first GPU; None if the driver does not say.

    Args:
        driver: one that `describe` has initialized.
    """
    handle, context = ctypes.c_int(), ctypes.c_void_p()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    driver.cuDeviceGet(ctypes.byref(handle), 0)
    if driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle):
        return None
    try:
        driver.cuCtxSetCurrent(context)
        failed = driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        return None if failed else free.value
    finally:
        driver.cuDevicePrimaryCtxRelease_v2(handle)


def driver_report(driver: Any | None) -> dict[str, Any]:
    """Return the GPUs, the reason if there are none, and the free bytes of the first, ready for JSON.

    Args:
        driver: from `open_driver`, or a stand-in.
    """
    if driver is None:
        return {"devices": [], "why_none": "there is no NVIDIA driver (no libcuda.so.1)", "memory_free": None}
    devices, why_none = describe(driver)
    return {
        "devices": [dataclasses.asdict(device) for device in devices],
        "why_none": why_none,
        "memory_free": free_memory(driver) if devices else None,
    }


def _describe(driver: Any, ordinal: int) -> Device:
    handle = ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(handle), ordinal)
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


def _attribute(driver: Any, which: int, handle: ctypes.c_int) -> int:
    value = ctypes.c_int()
    driver.cuDeviceGetAttribute(ctypes.byref(value), which, handle)
    return value.value


def _error_name(driver: Any, code: int) -> str:
    text = ctypes.c_char_p()
    driver.cuGetErrorName(code, ctypes.byref(text))
    return text.value.decode() if text.value else f"error {code}"


if __name__ == "__main__":
    print(json.dumps(driver_report(open_driver())))  # noqa: T201 - the calling process reads it
