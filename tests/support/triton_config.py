"""Triton's protocol buffer of a model's configuration, read from `tritonclient` without its gRPC client.

The package `tritonclient.grpc` imports grpcio, which the tests do not need; the messages are one file of it.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from types import ModuleType

import tritonclient


@functools.cache
def model_config_pb2() -> ModuleType:
    """Return the module `tritonclient.grpc.model_config_pb2`."""
    path = Path(tritonclient.__path__[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
