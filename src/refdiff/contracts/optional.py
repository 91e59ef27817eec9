"""The one place where rooms that need an extra are imported: late, and naming the extra that is missing."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from refdiff.errors import MissingDependencyError

_PACKAGES = frozenset(
    {
        "accelerate",
        "diffusers",
        "huggingface_hub",
        "onnx",
        "onnx_ir",
        "onnxscript",
        "open_clip",
        "safetensors",
        "segment_anything",
        "torch",
        "torchvision",
        "transformers",
    }
)
"""Modules of the extra `export`; the absence of any other is a broken installation, traceback and all."""


def import_torch_room(module: str, purpose: str) -> ModuleType:
    """Import a module that needs the extra `export`.

    Args:
        module: its full name.
        purpose: what the caller wants it for, the subject of the message.

    Raises:
        MissingDependencyError: one of the extra's packages is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in _PACKAGES:
            raise
        raise MissingDependencyError(
            f"{purpose} needs {error.name}, which is not installed; pip install 'refdiff[export]'"
        ) from error
