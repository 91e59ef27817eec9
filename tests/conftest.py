"""What every test gets: tests that lack their package or device are skipped, and say so."""

import ctypes
import functools
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# Property tests share small machines with model runs: a slow example is no failure, a wrong one is.
hypothesis.settings.register_profile("house", deadline=None)
hypothesis.settings.load_profile("house")


_MAKERS = ("torch", "onnx-ir", "onnxscript", "diffusers", "transformers", "open_clip_torch", "numpy")
"""Packages whose version decides what an export writes."""


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


@pytest.fixture(autouse=True, scope="session")
def no_clock() -> Iterator[None]:
    """No GPU has a say in eight bits, unless a test brings one: exports come out the same everywhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("refdiff.calibration.precision.find_latency_race", lambda tell: (None, "not in tests"))
        yield


@pytest.fixture(scope="session")
def tiny_bundle(request: pytest.FixtureRequest) -> Path:
    """A real bundle of the tiny stack; read it, copy it, do not change it.

    Exporting it takes most of a minute, so it is kept in pytest's cache under a hash of everything it is
    made from: `pytest --cache-clear` makes it anew.
    """
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed: pip install 'refdiff[export]'")
    folder = request.config.cache.mkdir(f"tiny-bundle-{_digest_of_its_makers()}") / "bundle"
    if not folder.exists():
        from refdiff.export.export import export_stack
        from tests.support.calm_stack import calm_stack

        export_stack(calm_stack(), output=folder, progress=lambda line: None)
    return folder


def _digest_of_its_makers() -> str:
    root = Path(__file__).parent.parent
    rooms = (root / "src/refdiff" / room for room in ("contracts", "export", "passes", "runtime"))
    files = [
        root / name
        for name in (
            "tests/support/tiny_stack.py",
            "tests/support/calm_stack.py",
            "src/refdiff/export/export.py",
        )
    ]
    files += (path for room in rooms for path in sorted(room.rglob("*.py")))
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    for package in _MAKERS:
        digest.update(importlib.metadata.version(package).encode())
    return digest.hexdigest()[:16]
