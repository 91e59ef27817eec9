"""refdiff: zero-shot referring image segmentation (Ref-Diff), exported to ONNX and run without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refdiff.loading import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import the public names when first asked for: `import refdiff` alone stays light."""
    if name != "load":
        raise AttributeError(f"module 'refdiff' has no attribute {name!r}")
    from refdiff.loading import load

    return load
