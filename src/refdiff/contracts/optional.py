"""Late imports of modules that need an extra, with an error that names the extra."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

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

_ROS = frozenset({"lifecycle_msgs", "rcl_interfaces", "rclpy", "rpyutils", "sensor_msgs", "std_msgs"})
"""Packages of ROS 2 that the node cannot do without."""

_SERVE = frozenset({"multipart", "prometheus_client", "starlette", "uvicorn", "websockets"})


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


def load_cv2(purpose: str) -> Any:
    """Return the module cv2 of the extra `camera`.

    Args:
        purpose: what it is for, the subject of the message.

    Raises:
        MissingDependencyError: OpenCV is not installed.
    """
    try:
        import cv2
    except ModuleNotFoundError as error:
        if error.name != "cv2":
            raise
        raise MissingDependencyError(
            f"{purpose} needs OpenCV, which is not installed; {install_line('camera')}"
        ) from error
    return cv2


def require_serve(purpose: str) -> AbstractContextManager[None]:
    """Do the same for the extra `serve`."""
    return _require(purpose, "serve", _SERVE)


def require_bags(purpose: str) -> AbstractContextManager[None]:
    """Do the same for the extra `bag`."""
    return _require(purpose, "bag", frozenset({"rosbags"}))


@contextmanager
def require_ros(purpose: str) -> Iterator[None]:
    """Turn a missing package of ROS 2 into an error that names both ways to get it.

    Args:
        purpose: what the import is for, the subject of the message.

    Raises:
        MissingDependencyError: rclpy or a package of messages is not installed for this Python.
    """
    try:
        yield
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _ROS:
            raise
        raise MissingDependencyError(
            f"{purpose} needs {package} of ROS 2, which this Python does not find; "
            "source /opt/ros/DISTRO/setup.bash and use that distribution's Python, or, with Python 3.11: "
            "pip install ros-rclpy ros-rmw-fastrtps-cpp ros-rmw-implementation ros-sensor-msgs ros-std-msgs"
        ) from error
