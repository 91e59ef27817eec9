"""The program of a reader process: it opens one source, and hands its frames over until it ends.

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
import signal
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from refdiff.camera.sources.address import redact
from refdiff.camera.sources.fault import SourceFault, explain
from refdiff.camera.sources.sink import FrameSink, ReadingDone

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
        from refdiff.camera.sources.pictures import read_pictures

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
