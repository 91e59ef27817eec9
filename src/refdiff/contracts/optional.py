"""Late imports of modules that need an extra, with an error that names the extra."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
"""Modules of the extra `export`. Another missing module is a broken installation: its traceback stays."""


def install_line(extra: str) -> str:
    """Return the command that installs an extra of refdiff.

    refdiff is on no package index, so the command is one for its sources.
    """
    return f"pip install '.[{extra}]' in a clone of refdiff"


@contextmanager
def require_export(purpose: str) -> Iterator[None]:
    """Turn a missing package of the extra `export` into an error that says what to install.

    Wrap the late import of a module that needs the extra::

        with require_export("an audit"):
            from refdiff.calibration.graph_audit import audit_graph

    Args:
        purpose: what the import is for, the subject of the message.

    Raises:
        MissingDependencyError: one of the extra's packages is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in _PACKAGES:
            raise
        raise MissingDependencyError(
            f"{purpose} needs {error.name}, which is not installed; {install_line('export')}"
        ) from error


@contextmanager
def require_camera(purpose: str) -> Iterator[None]:
    """Turn a missing package of the extra `camera` into an error that says what to install.

    Args:
        purpose: what the import is for, the subject of the message.

    Raises:
        MissingDependencyError: PyAV or OpenCV is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in ("av", "cv2"):
            raise
        raise MissingDependencyError(
            f"{purpose} needs {error.name}, which is not installed; {install_line('camera')}"
        ) from error
