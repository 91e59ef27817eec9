"""What this machine makes of a matrix product, to hold graphs against: measured, not looked up.

In: a back-end of ONNX Runtime and a number of threads. Out: GFLOP/s in single precision, of as many runs as
wanted. The graph of one MatMul is written here byte by byte, because the lean environment has no package to
write ONNX with.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort

from refdiff.engines.ort import PROVIDERS, session_options

SIDE = 1024
"""Of the square matrices: 4 MiB each, far more arithmetic than reading."""

_FLOAT, _IR_VERSION, _OPSET = 1, 8, 13


class Product:
    """A matrix product, ready to be timed.

    Args:
        backend: a name of `PROVIDERS`.
        threads: as sessions were given.
        clock: in seconds.
    """

    def __init__(
        self, backend: str, threads: int | None, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        options = session_options(threads, spinning=True)  # a peak: nothing else wants the cores
        provider = [PROVIDERS[backend]]
        self._session: Any = ort.InferenceSession(product_graph(SIDE), options, providers=provider)
        values = np.random.default_rng(0).random((SIDE, SIDE), dtype=np.float32)
        self._feeds = {name: ort.OrtValue.ortvalue_from_numpy(values) for name in ("a", "b")}
        self._clock = clock
        self._run()

    def gflops(self) -> float:
        """Of one run; a multiply-add is two operations."""
        begun = self._clock()
        self._run()
        return 2 * SIDE**3 / (self._clock() - begun) / 1e9

    def _run(self) -> None:
        self._session.run_with_ort_values(["y"], self._feeds)


def product_graph(side: int) -> bytes:
    """An ONNX model of y = MatMul(a, b), all [side, side] float32; field numbers are those of onnx.proto."""
    shape = _message(2, b"".join(_message(1, _number(1, side)) for _ in range(2)))
    tensor_type = _message(1, _number(1, _FLOAT) + shape)
    a, b, y = (_text(1, name) + _message(2, tensor_type) for name in "aby")
    node = _text(1, "a") + _text(1, "b") + _text(2, "y") + _text(4, "MatMul")
    graph = _message(1, node) + _text(2, "product") + _message(11, a) + _message(11, b) + _message(12, y)
    return _number(1, _IR_VERSION) + _message(7, graph) + _message(8, _text(1, "") + _number(2, _OPSET))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _text(field: int, text: str) -> bytes:
    return _message(field, text.encode())
