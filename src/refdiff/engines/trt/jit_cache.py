"""Kernels that TensorRT-RTX compiled on this machine, kept beside the plan so that the next start is fast.

The file is `<plan>.jit`: a magic line, the sha256 of everything after it, the plan's key, and TensorRT-RTX's
own blob. A file that is damaged, or of another plan, is not looked at; one that TensorRT-RTX finds to be of
another driver, device or version is not used. Either is replaced when the session closes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from pathlib import Path
from typing import Any

SUFFIX = ".jit"

_MAGIC = b"refdiff jit cache 1\n"
_HASH_BYTES = 32


class JitCache:
    """The compiled kernels of one plan.

    Args:
        path: of the file.
        key: what tells the plan from others: its hash.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        self._key = key.encode() + b"\n"
        self._cache: Any = None
        self._stored: bytes | None = None

    @staticmethod
    def fits(engine: Any) -> bool:
        """Whether this flavour compiles kernels when it runs, and lets them be kept."""
        make = getattr(engine, "create_runtime_config", None)
        return make is not None and hasattr(make(), "create_runtime_cache")

    def attach(self, engine: Any, strategy: Any) -> Any:
        """A configuration for the engine's context that reads and fills the cache."""
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        self._cache = config.create_runtime_cache()
        self._stored = self._read()
        if self._stored is not None and not self._cache.deserialize(self._stored):
            self._stored = None
        config.set_runtime_cache(self._cache)
        return config

    def save(self) -> None:
        """Write what was compiled since, if anything was; a folder that cannot be written is left alone.

        Nothing depends on the file: without it the kernels are compiled again at the next start.
        """
        if self._cache is None:
            return
        blob = bytes(memoryview(self._cache.serialize()))
        if blob != self._stored:
            self._stored = blob
            with contextlib.suppress(OSError):
                self._write(blob)

    def _read(self) -> bytes | None:
        try:
            content = self._path.read_bytes()
        except OSError:
            return None
        head, body = content[: len(_MAGIC)], content[len(_MAGIC) :]
        digest, rest = body[:_HASH_BYTES], body[_HASH_BYTES:]
        if head != _MAGIC or hashlib.sha256(rest).digest() != digest or not rest.startswith(self._key):
            return None
        return rest[len(self._key) :]

    def _write(self, blob: bytes) -> None:
        """Whole or not at all: another process may be reading it."""
        rest = self._key + blob
        draft = self._path.with_name(f"{self._path.name}.{secrets.token_hex(4)}.tmp")
        try:
            draft.write_bytes(_MAGIC + hashlib.sha256(rest).digest() + rest)
            os.replace(draft, self._path)  # noqa: PTH105 - one call, one step
        finally:
            draft.unlink(missing_ok=True)
