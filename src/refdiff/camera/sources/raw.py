"""Reads raw frames from the pipe of a command, and from JetPack's GStreamer, in the reader process.

A raw pipe has no marks between frames: a wrong size or pixel format shifts every row, and no program can
notice. Only a last frame that is too short is noticed, and counted.

Axes: y/x = image rows/columns.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refdiff.camera.sources.fault import FaultError
from refdiff.camera.sources.sink import FrameSink
from refdiff.contracts.session import ImageArray

_PACKED = {
    "rgb24": (3, (0, 1, 2)),
    "bgr24": (3, (2, 1, 0)),
    "rgba": (4, (0, 1, 2)),
    "rgb0": (4, (0, 1, 2)),
    "bgra": (4, (2, 1, 0)),
    "bgr0": (4, (2, 1, 0)),
    "gray": (1, (0, 0, 0)),
}
"""Name -> bytes of a pixel, and which of them are red, green and blue."""

_PLANAR = {"nv12": 1.5, "yuv420p": 1.5, "yuyv422": 2.0, "uyvy422": 2.0}
"""Name -> bytes of a pixel; PyAV converts these."""

PIXEL_FORMATS = (*_PACKED, *_PLANAR)
"""Layouts of a raw frame, as FFmpeg names them, in rows without padding."""

_CSI_ELEMENTS = ("nvarguscamerasrc", "nvvidconv", "fdsink")
_CSI_SIZE_XY = 1280, 720
_CSI_RATE = 30.0


class RawFormat(NamedTuple):
    """The layout of raw frames."""

    size_xy: tuple[int, int]
    pixel_format: str

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame."""
        width, height = self.size_xy
        each = _PACKED[self.pixel_format][0] if self.pixel_format in _PACKED else _PLANAR[self.pixel_format]
        return int(width * height * each)


def read_command(request: dict[str, Any], sink: FrameSink) -> None:
    """Run the command of a `cmd:` source, and read raw frames from its stdout until it ends.

    Raises:
        FaultError: it cannot be started, or has ended.
    """
    layout = RawFormat(tuple(request["size"]), request["pixel_format"])
    words = shlex.split(request["location"])
    with _start(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None  # noqa: S101 - asked for
        sink.opened(f"{words[0]}, {layout.size_xy[0]}x{layout.size_xy[1]} px {layout.pixel_format}")
        _read_frames(process.stdout, layout, sink)
        raise _ending(words[0], process)


def read_csi(request: dict[str, Any], sink: FrameSink) -> None:
    """Read a camera on a Jetson's CSI port through gst-launch-1.0.

    Raises:
        FaultError: GStreamer or one of JetPack's elements is missing, or the pipeline has ended.
    """
    _check_gstreamer()
    size_xy = tuple(request["size"] or _CSI_SIZE_XY)
    reading, writing = os.pipe()
    with open(reading, "rb") as frames:  # noqa: PTH123 - a descriptor
        rate = request["rate"] or _CSI_RATE
        words = csi_pipeline(int(request["location"]), size_xy, rate, descriptor=writing)
        process = _start(words, stdout=subprocess.DEVNULL, pass_fds=(writing,))
        os.close(writing)
        sink.opened(f"CSI sensor {request['location']}, {size_xy[0]}x{size_xy[1]} px, {rate:g} frames/s")
        _read_frames(frames, RawFormat(size_xy, "bgr0"), sink)
        raise _ending(words[0], process)


def csi_pipeline(sensor: int, size_xy: tuple[int, int], rate: float, *, descriptor: int) -> list[str]:
    """Return the command that writes a CSI camera's frames as BGRx to a file descriptor.

    Frames do not go to stdout, where nvarguscamerasrc also prints messages.
    """
    width, height = size_xy
    fraction = f"{round(rate * 1000)}/1000"
    elements = (
        f"nvarguscamerasrc sensor-id={sensor}",
        f"video/x-raw(memory:NVMM),format=NV12,width={width},height={height},framerate={fraction}",
        "nvvidconv",
        f"video/x-raw,format=BGRx,width={width},height={height}",
        "queue max-size-buffers=1 leaky=downstream",
        f"fdsink fd={descriptor} sync=false",
    )
    return ["gst-launch-1.0", "-q", *" ! ".join(elements).split(" ")]


def to_rgb(data: bytes, layout: RawFormat) -> ImageArray:
    """Return the pixels [y, x, 3] of a raw frame.

    Args:
        data: exactly one frame.
        layout: its size and one of `PIXEL_FORMATS`.
    """
    width, height = layout.size_xy
    flat: NDArray[np.uint8] = np.frombuffer(data, np.uint8)
    if layout.pixel_format in _PACKED:
        channels, order = _PACKED[layout.pixel_format]
        return np.ascontiguousarray(flat.reshape(height, width, channels)[..., list(order)])
    import av

    pixel_format = layout.pixel_format
    if pixel_format == "uyvy422":  # which PyAV does not take: the same pairs of bytes, in the other order
        flat, pixel_format = np.ascontiguousarray(flat.reshape(-1, 2)[:, ::-1]), "yuyv422"
    shape = (height, width, 2) if pixel_format == "yuyv422" else (height * 3 // 2, width)
    frame = av.VideoFrame.from_ndarray(flat.reshape(shape), format=pixel_format)
    return np.asarray(frame.to_ndarray(format="rgb24"))


def _read_frames(frames: IO[bytes], layout: RawFormat, sink: FrameSink) -> None:
    while data := _read_exactly(frames, layout.frame_bytes):
        now, wall = time.monotonic(), time.time()
        if len(data) < layout.frame_bytes:
            sink.drop("incomplete")
        elif not sink.skipped():
            sink.publish(to_rgb(data, layout), captured_s=now, wall_s=wall)


def _read_exactly(frames: IO[bytes], count: int) -> bytes:
    parts: list[bytes] = []
    while count > 0 and (part := frames.read(count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _start(words: list[str], **pipes: Any) -> subprocess.Popen[bytes]:
    """Start a command; what it writes to stderr goes where the reader's own goes."""
    try:
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, **pipes)  # noqa: S603 - the user's own
    except FileNotFoundError as error:
        raise FaultError("not_found", f"there is no program {words[0]}") from error


def _ending(program: str, process: subprocess.Popen[bytes]) -> FaultError:
    """Return the fault of a command that has closed its pipe."""
    try:
        how = f"ended with exit code {process.wait(timeout=2.0)}"
    except subprocess.TimeoutExpired:
        how = "closed its output"
    return FaultError("closed", f"{program} {how}")


def _check_gstreamer() -> None:
    tools = [tool for tool in ("gst-launch-1.0", "gst-inspect-1.0") if shutil.which(tool) is None]
    if tools:
        raise FaultError(
            "missing",
            f"{' and '.join(tools)} not found; install GStreamer with: apt install gstreamer1.0-tools "
            "gstreamer1.0-plugins-good",
        )
    missing = [name for name in _CSI_ELEMENTS if not _has_element(name)]
    if missing:
        raise FaultError(
            "missing",
            f"GStreamer has no element {' and no element '.join(missing)}; JetPack's package "
            "nvidia-l4t-gstreamer holds those that begin with nv (in a container, start it with the NVIDIA "
            "runtime), gstreamer1.0-tools the others",
        )


def _has_element(name: str) -> bool:
    found = subprocess.run(  # noqa: S603 - a fixed name
        ["gst-inspect-1.0", "--exists", name],  # noqa: S607 - the one on the PATH
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
        timeout=15,
    )
    return found.returncode == 0
