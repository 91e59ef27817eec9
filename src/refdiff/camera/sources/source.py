"""Opens a camera, a stream, a video or a folder of frames from one text."""

from __future__ import annotations

import math
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal

from refdiff.camera.pattern import SMALLEST_YX
from refdiff.camera.sources.address import SourceAddress, parse_source, source_help
from refdiff.camera.sources.process import ReaderProcess
from refdiff.camera.sources.raw import PIXEL_FORMATS
from refdiff.camera.sources.reader_source import ReaderSource
from refdiff.camera.sources.watch import Limits
from refdiff.contracts.optional import install_line
from refdiff.errors import InputError, MissingDependencyError

__all__ = ["DEFAULT_SOURCE", "SourceOptions", "open_source", "source_help"]

FramePolicy = Literal["newest", "every"]
Pace = Literal["real", "reader"]

_LARGEST_SIDE_PX = 16_384

_SECRET_OPTION = re.compile("auth|cookie|header|key|pass|secret|token|user")


@dataclass(frozen=True, kw_only=True)
class SourceOptions(Limits):
    """How a source is opened and read; the times and attempts are those of `Limits`."""

    frames: FramePolicy | None = None
    """`newest`: a frame that was not read when the next one came is dropped. `every`: none is dropped, and
    the source waits. None: `newest` for what is live, the test pattern and the scenes; `every` for files."""
    pace: Pace | None = None
    """Of a file, a folder, the test pattern and the scenes. `real`: at their own times, like a camera.
    `reader`: as fast as they are read. None: `real` under `newest`, else `reader`."""
    size_xy: tuple[int, int] | None = None
    """Width and height in px that a device is asked for, or that the frames of a command, the pattern or the
    scenes have."""
    rate: float | None = None
    """Frames/s that a device is asked for, or at which a folder, the pattern and the scenes play (30)."""
    pixel_format: str | None = None
    """Of a command's frames: one of `PIXEL_FORMATS`, default `bgr24`. Of a device: FFmpeg's `input_format`,
    such as `mjpeg`."""
    loop: bool = False
    """Start a file or a folder again at its end."""
    max_frames: int | None = None
    """End after so many frames of the source, dropped ones included."""
    open_options: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Further options of FFmpeg, such as `{"rtsp_transport": "udp"}`; they may hold credentials."""
    keep_damaged: bool = False
    """Also hand over frames that were decoded from damaged data, and those that are made from them."""
    decoder_threads: int = 1
    """More than one delays a live stream by a frame each."""


DEFAULT_SOURCE = SourceOptions()


def open_source(text: str, options: SourceOptions = DEFAULT_SOURCE) -> ReaderSource:
    """Open a source; its reader process starts at once, and `read` waits for the first frame.

    Args:
        text: see `source_help`.
        options: see `SourceOptions`.

    Returns:
        A `FrameSource`. Close it, or use it in a `with` block.

    Raises:
        InputError: the text or an option cannot be used.
        MissingDependencyError: PyAV or OpenCV is not installed, or the system is Windows.
    """
    address = parse_source(text)
    _check_options(options)
    _check_size(address, options)
    _check_system(address)
    return ReaderSource(
        address.name,
        build_request(address, options),
        ReaderProcess,
        options,
    )


def build_request(address: SourceAddress, options: SourceOptions) -> dict[str, Any]:
    """Return what a reader process is asked for; see `reader.py`."""
    simulated = address.kind in ("pattern", "scenes")
    newest = (options.frames or ("newest" if simulated or not address.recorded else "every")) == "newest"
    return {
        "kind": address.kind,
        "location": address.location,
        "recorded": address.recorded,
        "newest": newest,
        "pace": options.pace or ("real" if newest else "reader"),
        "loop": options.loop,
        "size": options.size_xy,
        "rate": options.rate,
        "pixel_format": options.pixel_format or ("bgr24" if address.kind == "command" else None),
        "open_options": dict(options.open_options),
        "keep_damaged": options.keep_damaged,
        "decoder_threads": options.decoder_threads,
        "secrets": [*address.secrets, *_secret_options(options.open_options)],
        "skip": 0,
        "limit": options.max_frames,
    }


def _secret_options(options: Mapping[str, str]) -> list[str]:
    """Return the values of FFmpeg's options that may be credentials, such as `headers` and `cookies`."""
    return [text for name, text in options.items() if _SECRET_OPTION.search(name) and len(text) > 2]


def _check_options(options: SourceOptions) -> None:
    shortest, longest = options.backoff_s
    checks = {
        "frames": options.frames in (None, "newest", "every"),
        "pace": options.pace in (None, "real", "reader"),
        "rate": options.rate is None or 0 < options.rate <= 1000,
        "max_frames": options.max_frames is None or options.max_frames > 0,
        "decoder_threads": 0 < options.decoder_threads <= 64,
        "first_frame_timeout_s": 0 < options.first_frame_timeout_s < math.inf,
        "stall_timeout_s": 0 < options.stall_timeout_s < math.inf,
        "open_attempts": options.open_attempts > 0,
        "reconnect_attempts": options.reconnect_attempts is None or options.reconnect_attempts > 0,
        "reconnect_for_s": options.reconnect_for_s is None or options.reconnect_for_s > 0,
        "backoff_s": 0 < shortest <= longest < math.inf,
    }
    for name, fits in checks.items():
        if not fits:
            raise InputError(f"got {name}={getattr(options, name)!r}, expected what SourceOptions describes")


def _check_size(address: SourceAddress, options: SourceOptions) -> None:
    size = options.size_xy
    if size is not None and not all(0 < side <= _LARGEST_SIDE_PX for side in size):
        raise InputError(f"got a frame size of {size[0]}x{size[1]} px, expected 1 to {_LARGEST_SIDE_PX} px")
    if (
        address.kind == "pattern"
        and size is not None
        and (size[1] < SMALLEST_YX[0] or size[0] < SMALLEST_YX[1])
    ):
        raise InputError(
            f"got a pattern of {size[0]}x{size[1]} px, expected at least {SMALLEST_YX[1]}x{SMALLEST_YX[0]} px"
        )
    if address.kind != "command":
        return
    if size is None:
        raise InputError(
            f"source {address.name}: got no frame size, expected the width and height that the command "
            "writes, such as --size 640x480"
        )
    if options.pixel_format not in (None, *PIXEL_FORMATS):
        raise InputError(
            f"source {address.name}: got pixel format {options.pixel_format!r}, expected one of "
            f"{', '.join(PIXEL_FORMATS)}"
        )
    if options.pixel_format in PIXEL_FORMATS[-4:] and any(side % 2 for side in size):
        raise InputError(
            f"source {address.name}: got {size[0]}x{size[1]} px of {options.pixel_format}, expected even "
            "sides"
        )


def _check_system(address: SourceAddress) -> None:
    if not hasattr(socket, "send_fds"):
        raise MissingDependencyError(
            "cameras and videos need Linux or macOS: frames come through Unix sockets, "
            "which Python has not on Windows"
        )
    package = (
        "av" if address.kind in ("device", "stream", "file") else "cv2" if address.kind == "scenes" else None
    )
    if package is not None and find_spec(package) is None:
        raise MissingDependencyError(
            f"source {address.name} needs {package}, which is not installed; {install_line('camera')}"
        )
