"""The program of a reader process: it opens one source, and hands its frames over until it ends.

Folders of images, the test pattern and the rendered scenes are read here.

It imports no engine, and the packages of its kind of source only. It ends when its parent ends, and takes the
commands with it that it has started: they are of its process group.

The request is a JSON object, sent over the socket and never written into a command line, because an address
may hold credentials:

    kind, location, recorded     of the `SourceAddress`
    name                         the same without credentials
    newest                       whether only the newest frame is kept while no slot is free
    pace                         `real` or `reader`
    loop                         whether what is recorded starts again at its end
    size                         [x, y] px, or null
    rate                         frames/s, or null
    pixel_format                 or null
    open_options                 FFmpeg's, name -> value
    secrets                      texts that stand in no message
    keep_damaged                 whether frames after damage are handed over
    decoder_threads
    skip                         frames that an earlier reader has handed over
    limit                        frames in all, or null
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from refdiff.camera.pattern import draw_pattern
from refdiff.camera.sources.address import redact
from refdiff.camera.sources.fault import FaultError, SourceFault, explain
from refdiff.camera.sources.sink import FrameSink, Pace, ReadingDone
from refdiff.contracts.session import ImageArray
from refdiff.errors import InputError

LENGTH = struct.Struct("!I")
"""The length of the request, which comes before it."""


def main() -> None:
    """Read the source of the request that comes over the socket in argument 1."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    with suppress(ConnectionError):  # the parent has ended
        serve(connection, on_parent_end=_end_group)
    _end_group()


def serve(connection: socket.socket, *, on_parent_end: Callable[[], None]) -> None:
    """Read one request, then its source, and report over the connection."""
    (length,) = LENGTH.unpack(_receive(connection, LENGTH.size))
    request = json.loads(_receive(connection, length))
    sink = FrameSink(
        connection,
        newest=request["newest"],
        skip=request["skip"],
        limit=request["limit"],
        on_parent_end=on_parent_end,
    )
    sink.finish(read_source(request, sink))


def read_source(request: dict[str, Any], sink: FrameSink) -> SourceFault | None:
    """Read a source to its end.

    Returns:
        None at the end, or why there is no more, without credentials.
    """
    try:
        _choose(request["kind"])(request, sink)
    except ReadingDone:
        return None
    except Exception as error:
        fault = explain(error, request["location"])
    else:
        return None
    return SourceFault(kind=fault.kind, reason=redact(fault.reason, tuple(request["secrets"])))


def _choose(kind: str) -> Callable[[dict[str, Any], FrameSink], None]:
    if kind in ("folder", "pattern", "scenes"):
        return read_pictures
    if kind in ("command", "csi"):
        from refdiff.camera.sources.raw import read_command, read_csi

        return read_csi if kind == "csi" else read_command
    from refdiff.camera.sources.video import read_video

    return read_video


def _receive(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise ConnectionAbortedError("the parent ended before it sent the request")
        data += part
    return data


def _end_group() -> None:
    """End this process and the commands that it has started: they are of the group that it leads."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(0)


if __name__ == "__main__":
    main()


_SUFFIXES = frozenset(
    [
        ".avif",
        ".bmp",
        ".gif",
        ".jp2",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    ]
)


def read_pictures(request: dict[str, Any], sink: FrameSink) -> None:
    """Read a folder, or draw frames, until they end.

    Args:
        request: as of `reader.py`.
        sink: takes the frames.

    Raises:
        FaultError: the folder holds no images.
        ReadingDone: the frames that were wanted have been read.
    """
    pace, rate = Pace(real=request["pace"] == "real"), request["rate"] or 30.0
    if request["kind"] == "folder":
        paths = natural_order(Path(request["location"]))
        sink.opened(f"{len(paths)} images")
        for number, path in _passes(paths, loop=request["loop"]):
            _hand_over(sink, pace, number / rate, partial(_decode, path))
    else:
        draw, description = _renderer(request)
        sink.opened(f"{description}, {rate:g} frames/s")
        for number in count():
            _hand_over(sink, pace, number / rate, partial(draw, number))


def _hand_over(sink: FrameSink, pace: Pace, pts_s: float, make: Callable[[], ImageArray | None]) -> None:
    if sink.skipped():
        return
    pixels = make()
    if pixels is None:
        sink.drop("damaged")
        return
    pace.wait(pts_s)
    sink.publish(pixels, captured_s=time.monotonic(), wall_s=time.time(), pts_s=pts_s)


def natural_order(folder: Path) -> list[Path]:
    """Return the images of a folder with numbers in order of their values: frame2 before frame10.

    Raises:
        FaultError: there are none.
    """
    found = [path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES and path.is_file()]
    if not found:
        raise FaultError("input", f"got a folder without images ({', '.join(sorted(_SUFFIXES))})")
    return sorted(found, key=lambda path: (_key(path.name), path.name))


def _key(name: str) -> list[tuple[int, int, str]]:
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(0, int(part), "") if part[0].isdecimal() else (1, 0, part.lower()) for part in parts]


def _passes(names: list[Path], *, loop: bool) -> Iterator[tuple[int, Path]]:
    for start in count(0, len(names)) if loop else (0,):
        yield from enumerate(names, start)


def _decode(path: Path) -> ImageArray | None:
    """Return an image's pixels; None if it cannot be read."""
    from refdiff.runtime.image import read_image

    try:
        return read_image(path)
    except (InputError, OSError):
        return None


def _renderer(request: dict[str, Any]) -> tuple[Callable[[int], ImageArray], str]:
    """Return what draws the frame of a number, and one line about it."""
    width, height = request["size"] or (640, 480)
    if request["kind"] == "pattern":
        return lambda number: draw_pattern(number, (height, width)), f"a test pattern, {width}x{height} px"
    from refdiff.data.moving_scenes import MovingScene

    scene = MovingScene(int(request["location"]), size_yx=(height, width))
    phrases = ", ".join(repr(phrase.phrase) for phrase in scene.phrases)
    return lambda number: scene.frame(number).pixels, f"rendered scenes, {width}x{height} px, with {phrases}"
