"""Pictures to watch: a video file that stays playable if the process is killed, or a window.

Images are [y, x, 3] uint8 RGB; the first one gives the size, and later ones are fitted into it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from refdiff.contracts.optional import require_camera
from refdiff.contracts.session import ImageArray
from refdiff.errors import MissingDependencyError

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream

_MS = Fraction(1, 1000)
_FRAGMENT_MS = 1000
"""Time from one fragment to the next: as much as a killed process loses."""

_ENCODER = {"preset": "veryfast", "tune": "zerolatency", "crf": "23", "forced-idr": "1", "threads": "1"}
"""One thread, which leaves the other cores to the graphs; nothing is held back for later frames."""

_CONTAINER = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
"""The index is written in front, and each fragment is complete by itself."""


class VideoFile:
    """An H.264 video in a fragmented mp4: every second a fragment is finished and stays playable.

    Args:
        path: the file; replaced if it exists.

    Raises:
        MissingDependencyError: PyAV is not installed.
    """

    def __init__(self, path: Path) -> None:
        with require_camera("a video"):
            import av

        self._av = av
        self._path = path
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._begin_s = 0.0
        self._last_ms = self._key_ms = -_FRAGMENT_MS

    def write(self, image: ImageArray, at_s: float) -> None:
        """Append an image that was captured at this time, in s; times count from the first one.

        Raises:
            OSError: the file cannot be written.
        """
        if self._stream is None:
            self._stream = self._open(image)
            self._begin_s = at_s
        size_xy = (self._stream.width, self._stream.height)
        frame = self._av.VideoFrame.from_ndarray(fit_image(image, size_xy), format="rgb24")
        frame.time_base = _MS
        frame.pts = max(self._last_ms + 1, round(1000 * (at_s - self._begin_s)))
        if frame.pts - self._key_ms >= _FRAGMENT_MS:
            frame.pict_type = self._av.video.frame.PictureType.I
            self._key_ms = frame.pts
        self._last_ms = frame.pts
        self._write_packets(self._stream.encode(frame))

    def close(self) -> None:
        """Finish the file; calling it twice is fine.

        Raises:
            OSError: the file cannot be written.
        """
        container, stream = self._container, self._stream
        self._container = self._stream = None
        if container is None:
            return
        try:
            if stream is not None:
                container.mux(stream.encode(None))
        finally:
            container.close()

    def abandon(self) -> None:
        """End after an error; what was written before it stays, without a fragment that was cut short."""
        with contextlib.suppress(OSError):
            self.close()
        with contextlib.suppress(OSError):
            trim_fragments(self._path)

    def _open(self, image: ImageArray) -> VideoStream:
        self._container = self._av.open(str(self._path), "w", format="mp4", options=dict(_CONTAINER))
        stream = self._container.add_stream("libx264", rate=30, options=dict(_ENCODER))
        stream.height, stream.width = (side + side % 2 for side in image.shape[:2])
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = _MS
        stream.codec_context.thread_count = 1
        return stream

    def _write_packets(self, packets: Any) -> None:
        if self._container is not None:
            self._container.mux(packets)


def trim_fragments(path: Path) -> None:
    """Cut a fragmented mp4 after its last whole fragment: decoders stop with an error at half of one.

    Raises:
        OSError: it cannot be read or written.
    """
    with path.open("r+b") as file:
        size, at, whole = file.seek(0, os.SEEK_END), 0, 0
        while at + 8 <= size:
            file.seek(at)
            head = file.read(8)  # of a box: its length, big-endian, and its name
            length = int.from_bytes(head[:4], "big")
            if length < 8 or at + length > size:
                break
            at += length
            whole = at if head[4:] in (b"moov", b"mdat") else whole
        file.truncate(whole)


class Window:
    """A window of ffplay, a process of its own: it can neither hang this one nor fail to close.

    Args:
        title: of the window.
        command: shows raw RGB frames from stdin; `{width}` and `{height}` are replaced. None: ffplay's.

    Raises:
        MissingDependencyError: there is no display, or ffplay is not installed.
    """

    def __init__(self, title: str, command: Sequence[str] | None = None) -> None:
        self._command = _ffplay(title) if command is None else tuple(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._size_xy = (0, 0)

    def write(self, image: ImageArray, at_s: float) -> None:  # noqa: ARG002 - as a video file's
        """Show an image.

        Raises:
            OSError: the window was closed.
        """
        if self._process is None:
            self._size_xy = (image.shape[1], image.shape[0])
            width, height = map(str, self._size_xy)
            filled = [each.replace("{width}", width).replace("{height}", height) for each in self._command]
            self._process = subprocess.Popen(  # noqa: S603 - the command is ours or the caller's
                filled, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        stream = self._process.stdin
        if stream is not None:
            _write_all(stream, fit_image(image, self._size_xy))

    def close(self) -> None:
        """Close the window; calling it twice is fine."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            if process.stdin is not None:
                process.stdin.close()
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    abandon = close


def _write_all(stream: IO[bytes], image: ImageArray) -> None:
    stream.write(np.ascontiguousarray(image).tobytes())
    stream.flush()


def _ffplay(title: str) -> tuple[str, ...]:
    """Return the command that shows raw frames.

    Raises:
        MissingDependencyError: there is no display, or ffplay is not installed.
    """
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise MissingDependencyError(
            "a window needs a display, and neither DISPLAY nor WAYLAND_DISPLAY is set; write a video instead "
            "(--video out.mp4)"
        )
    program = shutil.which("ffplay")
    if program is None:
        raise MissingDependencyError(
            "a window needs ffplay, which is not installed; install FFmpeg (apt install ffmpeg), or write a "
            "video instead (--video out.mp4)"
        )
    quiet = ("-loglevel", "error", "-fflags", "nobuffer", "-flags", "low_delay", "-framedrop")
    raw = ("-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", "{width}x{height}")
    return (program, *quiet, "-window_title", title, *raw, "-i", "-")


def fit_image(image: ImageArray, size_xy: tuple[int, int]) -> ImageArray:
    """Return the image in this size: padded at the right and bottom, made smaller first if it is larger."""
    width, height = size_xy
    shrink = min(1.0, width / image.shape[1], height / image.shape[0])
    if shrink < 1:
        smaller = (max(1, int(image.shape[1] * shrink)), max(1, int(image.shape[0] * shrink)))
        image = np.asarray(Image.fromarray(image).resize(smaller, Image.Resampling.BILINEAR))
    if image.shape[:2] == (height, width):
        return image
    padded = np.zeros((height, width, 3), dtype=np.uint8)
    padded[: image.shape[0], : image.shape[1]] = image
    return padded
