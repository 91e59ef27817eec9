"""What the tests on a GPU get besides: the GPU, which all others do not see."""

import ctypes

import pytest

from tests.support.fake_machine import load_library


@pytest.fixture(autouse=True)
def real_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", load_library)
