"""TensorRT's runtime, which turns plans into engines, and its cache of compiled kernels.

In: the module of a flavour (`tensorrt` or `tensorrt_rtx`, or a stand-in) and plans. Out: engines, and errors
with what TensorRT logged.

TensorRT-RTX compiles kernels when an engine runs; `JitCache` stores them in `<plan>.jit`, so that the next
start is fast. The file is a magic line, the sha256 of everything after it, the plan's key, and TensorRT-RTX's
blob. A file that is damaged, of another plan or from elsewhere is not read, and one that TensorRT-RTX finds
to be of another driver, device or version is not used. Either is replaced when the session closes.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
from collections import deque
from pathlib import Path
from typing import Any

from refdiff.contracts.atomic_io import write_file
from refdiff.contracts.plain_file import open_plain, read_plain
from refdiff.engines.trt.trust import is_trusted, record_trust
from refdiff.errors import EngineError, InputError

_LINES_KEPT = 3


class Library:
    """One flavour of TensorRT, ready to load plans; its logged errors become part of ours.

    Args:
        module: `tensorrt` or `tensorrt_rtx`.
        host_code: allow plans that contain the runtime they were built with (version-compatible plans).

    Raises:
        EngineError: TensorRT cannot start here.
    """

    def __init__(self, module: Any, *, host_code: bool = False) -> None:
        self.module = module
        self._lines: deque[str] = deque(maxlen=_LINES_KEPT)
        self._log = _error_log(module, self._lines)  # TensorRT keeps no reference of its own
        try:
            self.runtime = module.Runtime(self._log)
        except TypeError as error:  # of pybind11, for a library that cannot start, as without a driver
            raise self.failed("TensorRT's runtime cannot start") from error
        if host_code:
            self.runtime.engine_host_code_allowed = True

    def load(self, plan: Any, name: str, weights: Path | None = None) -> Any:
        """Load the engine of a plan.

        Args:
            plan: its bytes.
            name: the graph's name, for messages.
            weights: the ONNX file from which a plan without weights gets them.

        Raises:
            EngineError: TensorRT refuses the plan or the weights.
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
        """Return an error with what TensorRT logged since the last one."""
        lines = " | ".join(" ".join(line.split()) for line in self._lines) or "it says nothing more"
        self._lines.clear()
        return EngineError(f"{what}: {self.module.__name__} {self.module.__version__}: {lines}")


def map_plan(path: Path) -> mmap.mmap:
    """Map a plan's bytes into memory, so that loading it needs no copy on the host."""
    with open_plain(path) as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _error_log(module: Any, lines: deque[str]) -> Any:
    """Make a logger of this flavour, whose base class belongs to the module."""

    class Errors(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= module.ILogger.ERROR:
                lines.append(message)

    return Errors()


_SUFFIX = ".jit"
_MAGIC = b"refdiff jit cache 1\n"
_HASH_BYTES = 32


class JitCache:
    """The compiled kernels of one plan.

    Args:
        plan: path of the plan.
        key: hash of the plan.
    """

    def __init__(self, plan: Path, key: str) -> None:
        self._path = plan.with_name(plan.name + _SUFFIX)
        self._key = key.encode() + b"\n"
        self._cache: Any = None
        self._stored: bytes | None = None

    @staticmethod
    def fits(engine: Any) -> bool:
        """Return whether this flavour compiles kernels at run time and can store them."""
        make = getattr(engine, "create_runtime_config", None)
        return make is not None and hasattr(make(), "create_runtime_cache")

    def attach(self, engine: Any, strategy: Any) -> Any:
        """Return a configuration for the engine's context that reads and fills the cache."""
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        self._cache = config.create_runtime_cache()
        self._stored = self._read()
        if self._stored is not None and not self._cache.deserialize(self._stored):
            self._stored = None
        config.set_runtime_cache(self._cache)
        return config

    def save(self) -> None:
        """Write newly compiled kernels, if there are any; a folder that cannot be written is no error.

        Without the file the kernels are compiled again at the next start.
        """
        if self._cache is None:
            return
        blob = bytes(memoryview(self._cache.serialize()))
        if blob != self._stored:
            self._stored = blob
            with contextlib.suppress(InputError, OSError):
                self._write(blob)

    def _read(self) -> bytes | None:
        try:
            content = read_plain(self._path)
        except OSError:
            return None
        if not is_trusted(hashlib.sha256(content).hexdigest()):
            return None
        head, body = content[: len(_MAGIC)], content[len(_MAGIC) :]
        digest, rest = body[:_HASH_BYTES], body[_HASH_BYTES:]
        if head != _MAGIC or hashlib.sha256(rest).digest() != digest or not rest.startswith(self._key):
            return None
        return rest[len(self._key) :]

    def _write(self, blob: bytes) -> None:
        """Write the file in one step, because another process may be reading it."""
        rest = self._key + blob
        content = _MAGIC + hashlib.sha256(rest).digest() + rest
        record_trust(hashlib.sha256(content).hexdigest())
        write_file(self._path, content)
