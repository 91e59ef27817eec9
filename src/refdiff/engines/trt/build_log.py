"""What TensorRT says while it works, kept as text.

In: messages from TensorRT's threads. Out: the log's text, its errors, the plan's layers, and what it says of
memory.
"""

from __future__ import annotations

import re
from typing import Any, Protocol, cast

from refdiff.engines.trt.flavour import Flavour
from refdiff.engines.trt.plan_layers import LAYER_LINE

_ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+)")
"""One line for each optimisation profile; a context takes the largest."""

_BORING = re.compile(r"catchCudaError.*CUDA driver version is insufficient|^Unable to determine GPU memory")
"""What every build without a driver says."""


class BuildLog(Protocol):
    """TensorRT's logger as we made it."""

    lines: list[str]
    errors: list[str]
    layers: list[str]
    """Of the plan, in TensorRT's words; `plan_layers` reads them."""


def make_log(flavour: Flavour) -> BuildLog:
    """A logger to hand to a builder and a parser: it keeps information, warnings and errors."""
    levels: Any = flavour.module.ILogger

    class Log(levels):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []
            self.errors: list[str] = []
            self.layers: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if LAYER_LINE in message:
                self.layers += [line for line in message.split("\n") if LAYER_LINE in line]
            if int(severity) > int(levels.INFO):
                return
            self.lines.append(f"[{severity_name(severity)}] {message}")
            if int(severity) <= int(levels.ERROR) and not _BORING.search(message):
                self.errors.append(message)

    return cast("BuildLog", Log())


def severity_name(severity: Any) -> str:
    """The member's name; pybind11's enumerations have one, stand-ins may not."""
    return str(getattr(severity, "name", severity))


def activation_bytes(log: BuildLog) -> int | None:
    """Device memory of one context's activations, None where the log does not say."""
    found = [int(match[1]) for line in log.lines if (match := _ACTIVATIONS.search(line))]
    return max(found, default=None)


def last_error(log: BuildLog) -> str:
    """The most telling line of a failure: the first line of the last error."""
    return log.errors[-1].strip().splitlines()[0] if log.errors else "it gives no reason"
