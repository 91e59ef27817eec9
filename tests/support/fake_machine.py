"""Puts stand-ins where Python and the loader look for the libraries of a GPU: TensorRT, CUDA, the driver.

What is under test finds them as it finds the real ones.
"""

import ctypes
import sys
from importlib.machinery import ModuleSpec
from types import SimpleNamespace
from typing import Any

import pytest

from refdiff.engines.trt.device import Device
from refdiff.engines.trt.flavour import PACKAGES
from tests.support.fake_driver import FakeDriver

load_library = ctypes.CDLL
"""The real one, which `install_gpu` replaces."""


def install_tensorrt(monkeypatch: pytest.MonkeyPatch, *modules: Any) -> None:
    """Let these be the only TensorRTs that can be imported."""
    found = {module.__name__: module for module in modules}
    for name, module in found.items():
        if getattr(module, "__spec__", None) is None:
            module.__spec__ = ModuleSpec(name, loader=None)
    for package in {each for several in PACKAGES.values() for each in several}:
        monkeypatch.setitem(sys.modules, package, found.get(package))


def install_cuda(monkeypatch: pytest.MonkeyPatch, runtime: Any) -> None:
    """Let `cuda.bindings.runtime` be this."""
    bindings = SimpleNamespace(runtime=runtime)
    packages = {"cuda": SimpleNamespace(bindings=bindings), "cuda.bindings": bindings}
    for name, module in {**packages, "cuda.bindings.runtime": runtime}.items():
        monkeypatch.setitem(sys.modules, name, module)


def install_gpu(monkeypatch: pytest.MonkeyPatch, device: Device | None) -> None:
    """Let the CUDA driver show this GPU alone; None: there is no driver."""

    def load(name: str | None, *arguments: Any, **options: Any) -> Any:
        if name != "libcuda.so.1":
            return load_library(name, *arguments, **options)
        if device is None:
            raise OSError(f"{name}: cannot open shared object file")
        return FakeDriver(devices=(device,))

    monkeypatch.setattr(ctypes, "CDLL", load)
