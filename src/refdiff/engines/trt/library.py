"""TensorRT's own runtime, which turns a plan into an engine, and what it says when it does not.

In: the module of a flavour (`tensorrt` or `tensorrt_rtx`, or a stand-in). Out: engines, and errors that carry
what TensorRT logged.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

from refdiff.errors import EngineError

_LINES_KEPT = 3


class Library:
    """One flavour of TensorRT, ready to load plans; what it logs as an error goes into our errors.

    Args:
        module: `tensorrt` or `tensorrt_rtx`.
        host_code: let plans bring the runtime they were built with (TensorRT's version-compatible plans).

    Raises:
        EngineError: TensorRT cannot start here.
    """

    def __init__(self, module: Any, *, host_code: bool = False) -> None:
        self.module = module
        self._lines: deque[str] = deque(maxlen=_LINES_KEPT)
        self._log = _error_log(module, self._lines)  # TensorRT keeps no reference of its own
        try:
            self.runtime = module.Runtime(self._log)
        except TypeError as error:  # pybind11's word for a library that cannot start, as without a driver
            raise self.failed("TensorRT's runtime cannot start") from error
        if host_code:
            self.runtime.engine_host_code_allowed = True

    def load(self, plan: Any, name: str, weights: Path | None = None) -> Any:
        """The engine of a plan.

        Args:
            plan: its bytes.
            name: of the graph, for messages.
            weights: the ONNX file that a plan without weights gets them from.

        Raises:
            EngineError: TensorRT refuses it; says why.
        """
        self._lines.clear()
        engine = self.runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self.failed(f"the plan of {name} cannot be loaded")
        if weights is not None:
            refitter = self.module.Refitter(engine, self._log)
            parser = self.module.OnnxParserRefitter(refitter, self._log)
            if not (parser.refit_from_file(str(weights)) and refitter.refit_cuda_engine()):
                raise self.failed(f"the plan of {name} does not take the weights of {weights}")
        return engine

    def failed(self, what: str) -> EngineError:
        """An error with what TensorRT logged since the last one."""
        lines = " | ".join(" ".join(line.split()) for line in self._lines) or "it says nothing more"
        self._lines.clear()
        return EngineError(f"{what}: {self.module.__name__} {self.module.__version__}: {lines}")


def _error_log(module: Any, lines: deque[str]) -> Any:
    """A logger of this flavour; its base class belongs to the module."""

    class Errors(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= module.ILogger.ERROR:
                lines.append(message)

    return Errors()
