"""What the CUDA driver says, as one JSON document: `python -m refdiff.diagnostics.driver_report`.

A process of its own, because a driver without a GPU behind it can hang whoever asks it.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from refdiff.engines.trt.device import describe, free_memory, open_driver


def driver_report(driver: Any | None) -> dict[str, Any]:
    """GPUs, why there are none, and free bytes of the first.

    Args:
        driver: what `open_driver` gave, or a stand-in.
    """
    if driver is None:
        return {"devices": [], "why_none": "there is no NVIDIA driver (no libcuda.so.1)", "memory_free": None}
    devices, why_none = describe(driver)
    return {
        "devices": [dataclasses.asdict(device) for device in devices],
        "why_none": why_none,
        "memory_free": free_memory(driver) if devices else None,
    }


if __name__ == "__main__":
    print(json.dumps(driver_report(open_driver())))  # noqa: T201 - the answer to the process that asked
