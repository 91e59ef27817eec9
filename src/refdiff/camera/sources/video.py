"""Reads devices, streams and video files with PyAV (FFmpeg), in the reader process."""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from refdiff.camera.sources.fault import FaultError
from refdiff.camera.sources.sink import FrameSink, Pace
from refdiff.contracts.session import ImageArray

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_STREAM_OPTIONS = {
    "rtsp": {"flags": "low_delay", "rtsp_transport": "tcp"},
    "tcp": {"flags": "low_delay", "analyzeduration": "1000000"},
    "udp": {"flags": "low_delay", "analyzeduration": "1000000"},
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
            decoder = _Decoder(sink, pace, keep_damaged=request["keep_damaged"])
            for packet in _packets(container, stream, request["kind"]):
                decoder.take(packet)
            if not request["loop"] or not request["recorded"]:
                break
            container.seek(0)
            time.sleep(0.001)  # a file without frames does not occupy a core
    if not request["recorded"]:
        raise FaultError("closed", "the sender ended the stream")


def _packets(container: InputContainer, stream: VideoStream, kind: str) -> Iterator[Packet[VideoStream]]:
    try:
        yield from container.demux(stream)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        if kind == "device":
            raise FaultError("unplugged", "the device gives no more data") from error
        raise FaultError("closed", "the connection broke off") from error


def _open(request: dict[str, Any]) -> InputContainer:
    import av

    location, options = request["location"], dict(request["open_options"])
    if request["kind"] == "device":
        return cast(
            "InputContainer",
            av.open(location, format=_device_format(), options={**_device_options(request), **options}),
        )
    scheme = location.split(":", 1)[0].lower() if request["kind"] == "stream" else ""
    preset = _STREAM_OPTIONS.get(scheme, {})
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


class _Decoder:
    """Decodes the packets of a stream, and passes on what is whole.

    After damage, a decoder goes on with frames that are made from the damaged one, and marks none of them. So
    from the damage to the next key frame, frames count as damaged; likewise before the first key frame.

    Args:
        sink: takes the frames.
        pace: when.
        keep_damaged: pass them on nevertheless.
    """

    def __init__(self, sink: FrameSink, pace: Pace, *, keep_damaged: bool) -> None:
        self._sink = sink
        self._pace = pace
        self._keep = keep_damaged
        self._whole = keep_damaged
        self._arrivals: dict[int | None, tuple[float, bool]] = {}

    def take(self, packet: Packet[VideoStream]) -> None:
        """Decode a packet, and pass on the frames that are ready."""
        import av.error

        now = time.monotonic()
        self._arrivals[packet.pts] = now, packet.is_corrupt
        while len(self._arrivals) > _ARRIVALS:
            del self._arrivals[next(iter(self._arrivals))]
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            self._whole = self._keep
            self._sink.drop("damaged")
            return
        for frame in frames:
            self._pass_on(frame, *self._arrivals.pop(frame.pts, (now, packet.is_corrupt)))

    def _pass_on(self, frame: VideoFrame, captured_s: float, damaged: bool) -> None:  # noqa: FBT001 - of a pair
        if damaged or frame.is_corrupt:
            self._whole = self._keep
        elif frame.key_frame:
            self._whole = True
        if not self._whole:
            self._sink.drop("damaged")
            return
        if self._sink.skipped():
            return
        if self._pace.wait(frame.time):
            captured_s = time.monotonic()
        wall_s = time.time() - (time.monotonic() - captured_s)
        self._sink.publish(upright(frame), captured_s=captured_s, wall_s=wall_s, pts_s=frame.time)


def upright(frame: VideoFrame) -> ImageArray:
    """Return a frame's pixels [y, x, 3] as they are to be seen: phones record turned pictures with a note."""
    pixels = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, round(getattr(frame, "rotation", 0) / 90)))
