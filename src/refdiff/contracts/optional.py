"""Late imports of modules that need an extra, with an error that names the extra."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

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
def _require(purpose: str, extra: str, packages: frozenset[str]) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in packages:
            raise
        raise MissingDependencyError(
            f"{purpose} needs {error.name}, which is not installed; {install_line(extra)}"
        ) from error


def require_export(purpose: str) -> AbstractContextManager[None]:
    """Turn a missing package of the extra `export` into an error that says what to install.

    Wrap the late import of a module that needs the extra::

        with require_export("an audit"):
            from refdiff.calibration.graph_audit import audit_graph

    Args:
        purpose: what the import is for, the subject of the message.

    Raises:
        MissingDependencyError: one of the extra's packages is not installed; raised by the block.
    """
    return _require(purpose, "export", _PACKAGES)


def require_camera(purpose: str) -> AbstractContextManager[None]:
    """Do the same for the extra `camera`: PyAV and OpenCV."""
    return _require(purpose, "camera", frozenset({"av", "cv2"}))


def require_serve(purpose: str) -> AbstractContextManager[None]:
    """Do the same for the extra `serve`."""
    return _require(purpose, "serve", frozenset({"multipart", "prometheus_client", "starlette", "uvicorn"}))
