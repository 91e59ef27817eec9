"""Reads devices, streams and video files with PyAV (FFmpeg), in the reader process."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from refdiff.camera.reader_sink import FrameSink, Pace
from refdiff.camera.source_fault import FaultError
from refdiff.contracts.session import ImageArray

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_LOW_DELAY = {"fflags": "nobuffer", "flags": "low_delay"}
_STREAM_OPTIONS = {
    "rtsp": {**_LOW_DELAY, "rtsp_transport": "tcp"},
    "tcp": {**_LOW_DELAY, "analyzeduration": "1000000"},
    "udp": {**_LOW_DELAY, "analyzeduration": "1000000"},
}
"""Scheme -> FFmpeg's options that keep a stream's delay low; the caller's own come on top."""

_ARRIVALS = 64
"""Packets in a decoder at once, at most."""


def read_video(request: dict[str, Any], sink: FrameSink) -> None:
    """Read a device, a stream or a file until it ends.

    Args:
        request: as of `reader.py`.
        sink: takes the frames.

    Raises:
        FaultError, av.error.FFmpegError: it cannot be opened, or breaks off.
        ReadingDone: the frames that were wanted have been read.
    """
    import av
    import av.logging

    av.logging.restore_default_callback()  # FFmpeg's own words go to stderr, whose last lines explain a fault
    av.logging.set_libav_level(av.logging.ERROR)
    pace = Pace(real=request["pace"] == "real" and request["recorded"])
    with _open(request) as container:
        stream = _video_stream(container)
        stream.codec_context.thread_count = request["decoder_threads"]
        context = stream.codec_context
        sink.opened(f"{context.name} {context.width}x{context.height} px in {container.format.name}")
        while True:
            before = time.monotonic()
            for frame, captured_s in _frames(container, stream, sink):
                _deliver(frame, captured_s, sink, pace)
            if not request["loop"]:
                break
            container.seek(0)
            _check_progress(before)
    if not request["recorded"]:
        raise FaultError("closed", "the sender ended the stream")


def _check_progress(before: float) -> None:
    """Leave a pause after a pass without work, so that an empty file in a loop does not occupy a core."""
    if time.monotonic() - before < 0.001:
        time.sleep(0.01)


def _open(request: dict[str, Any]) -> InputContainer:
    import av

    location, options = request["location"], dict(request["open_options"])
    if request["kind"] == "device":
        return cast(
            "InputContainer",
            av.open(location, format=_device_format(), options={**_device_options(request), **options}),
        )
    scheme = location.split(":", 1)[0].lower() if request["kind"] == "stream" else ""
    preset = _STREAM_OPTIONS.get(scheme, {} if request["recorded"] else _LOW_DELAY)
    if request["kind"] == "file":
        location = f"file:{location}"
    return cast("InputContainer", av.open(location, options={**preset, **options}))


def _device_format() -> str:
    return "avfoundation" if sys.platform == "darwin" else "v4l2"


def _device_options(request: dict[str, Any]) -> dict[str, str]:
    options = {}
    if request["size"]:
        options["video_size"] = "{}x{}".format(*request["size"])
    if request["rate"]:
        options["framerate"] = f"{request['rate']:g}"
    if request["pixel_format"]:
        options["input_format"] = request["pixel_format"]
    return options


def _video_stream(container: InputContainer) -> VideoStream:
    if not container.streams.video:
        raise FaultError("codec", "there is no video in it")
    stream = container.streams.video[0]
    if getattr(stream, "codec_context", None) is None:
        raise FaultError("codec", "this build of FFmpeg has no decoder for its video")
    return stream


def _frames(
    container: InputContainer, stream: VideoStream, sink: FrameSink
) -> Iterator[tuple[VideoFrame, float]]:
    """Yield frames with the times when they arrived; those that cannot be decoded are counted."""
    import av.error

    arrivals: dict[int | None, float] = {}
    for packet in container.demux(stream):
        now = time.monotonic()
        arrivals[packet.pts] = now
        while len(arrivals) > _ARRIVALS:
            del arrivals[next(iter(arrivals))]
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            sink.drop("damaged")
            continue
        for frame in frames:
            yield frame, arrivals.pop(frame.pts, now)


def _deliver(frame: VideoFrame, captured_s: float, sink: FrameSink, pace: Pace) -> None:
    if frame.is_corrupt:  # part of it never arrived: what is in its place comes from other frames
        sink.drop("damaged")
        return
    if sink.skipped():
        return
    if pace.wait(frame.time):
        captured_s = time.monotonic()
    wall_s = time.time() - (time.monotonic() - captured_s)
    sink.publish(upright(frame), captured_s=captured_s, wall_s=wall_s, pts_s=frame.time)


def upright(frame: VideoFrame) -> ImageArray:
    """Return a frame's pixels [y, x, 3] as they are to be seen: phones record turned pictures with a note."""
    pixels = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, round(getattr(frame, "rotation", 0) / 90)))
