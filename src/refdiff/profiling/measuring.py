"""What a profile asks of back-ends beside sessions: a yardstick, Polygraphy, and which of them are here.

Heavy packages come in here, late, as in `factory`.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Protocol

from refdiff.engines.factory import has_driver, import_ort
from refdiff.errors import MissingDependencyError

_PEAK_OF = {
    "ort-cpu": "ort-cpu",
    "ort-rounded": "ort-cpu",
    "ort-cuda": "ort-cuda",
    "ort-tensorrt": "ort-cuda",
    "tensorrt": "ort-cuda",
    "tensorrt-rtx": "ort-cuda",
}
"""Back-end -> the one of ONNX Runtime that a matrix product is timed in on the same processor."""


def ort_backends() -> tuple[str, ...]:
    """The back-ends of ONNX Runtime's own kernels that can run here.

    Raises:
        MissingDependencyError: ONNX Runtime is not installed.
    """
    have = import_ort("ort-cpu").ort.get_available_providers()
    return ("ort-cpu", "ort-cuda") if "CUDAExecutionProvider" in have and has_driver() else ("ort-cpu",)


_NEEDED = {"polygraphy": "profile", "onnxruntime": "cpu"}
"""Package -> the extra that brings it, to compare back-ends."""


def require_polygraphy() -> None:
    """Before any long work: is what `load_polygraphy` imports there?

    Raises:
        MissingDependencyError: Polygraphy or ONNX Runtime is not installed.
    """
    for package in _NEEDED:
        if find_spec(package) is None:
            raise _missing(package)


def _missing(package: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"comparing back-ends needs {package}, which is not installed; "
        f"pip install 'refdiff[{_NEEDED[package]}]'"
    )


_RTX_SWITCH = "POLYGRAPHY_USE_TENSORRT_RTX"


def load_polygraphy(flavour: str | None) -> ModuleType:
    """`refdiff.profiling.polygraphy_runners`, with Polygraphy told which TensorRT to speak.

    It reads that from the environment when it is first imported, and keeps to it.

    Args:
        flavour: "tensorrt-rtx", "tensorrt", or None where no plan is run.

    Raises:
        MissingDependencyError: Polygraphy or ONNX Runtime is not installed.
    """
    before = os.environ.get(_RTX_SWITCH)
    os.environ[_RTX_SWITCH] = str(int(flavour == "tensorrt-rtx"))
    try:
        return import_module("refdiff.profiling.polygraphy_runners")
    except ModuleNotFoundError as error:
        if error.name not in _NEEDED:
            raise
        raise _missing(error.name) from error
    finally:
        if before is None:
            del os.environ[_RTX_SWITCH]
        else:
            os.environ[_RTX_SWITCH] = before


class Yardstick(Protocol):
    """Something whose speed is the machine's."""

    def gflops(self) -> float:
        """Of one run."""
        ...


def open_yardstick(backend: str, threads: int | None) -> tuple[Yardstick | None, str]:
    """A matrix product in single precision on the processor that a back-end uses.

    Args:
        backend: one of `BACKENDS`, "auto" excepted.
        threads: as in `open_sessions`.

    Returns:
        The product, None where it cannot be had; and what it is, or why not.
    """
    where = _PEAK_OF[backend]
    try:
        ort = import_ort(where)
    except MissingDependencyError as error:
        return None, str(error)
    if ort.PROVIDERS[where][0] not in ort.ort.get_available_providers():
        return None, f"no {where} here to time a matrix product in"
    product = import_module("refdiff.profiling.matmul_peak")
    with_threads = "the back-end's choice of threads" if threads is None else f"{threads} threads"
    what = f"a float32 product of {product.SIDE}×{product.SIDE} in {where}, {with_threads}"
    return product.Product(where, threads), what
