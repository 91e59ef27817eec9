"""Video of the test pattern as bytes, and servers that send it: for tests of streams, without a camera."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from refdiff.camera.pattern import draw_pattern

if TYPE_CHECKING:
    from typing_extensions import Self

RATE = 30


def encode(
    numbers: Iterable[int],
    size_yx: tuple[int, int] = (96, 160),
    *,
    target: Any = None,
    form: str = "mpegts",
    codec: str = "libx264",
) -> bytes:
    """Encode the pattern's frames; the frame of number n has the time n / RATE."""
    import av

    buffer = io.BytesIO()
    with av.open(target or buffer, "w", format=form) as container:
        stream = add_stream(container, size_yx, codec)
        for number in numbers:
            container.mux(encode_one(stream, number, size_yx))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def add_stream(container: Any, size_yx: tuple[int, int], codec: str = "libx264") -> Any:
    options = {"preset": "ultrafast", "tune": "zerolatency"} if codec == "libx264" else {}
    stream = container.add_stream(codec, rate=RATE, options=options)
    stream.height, stream.width = size_yx
    stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    stream.gop_size = 10
    stream.codec_context.thread_count = 1
    return stream


def encode_one(stream: Any, number: int, size_yx: tuple[int, int]) -> Any:
    import av

    frame = av.VideoFrame.from_ndarray(draw_pattern(number, size_yx), format="rgb24")
    frame.pts, frame.time_base = number, Fraction(1, RATE)
    return stream.encode(frame)


class Server:
    """Answers each connection to a free port of this machine, in a thread.

    Args:
        answer: called with the connection and its count from 0; the connection is closed when it returns.
    """

    def __init__(self, answer: Callable[[socket.socket, int], None]) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for each in (self._listener, *self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _serve(self) -> None:
        count = 0
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(connection)
            threading.Thread(target=self._run, args=(connection, count), daemon=True).start()
            count += 1

    def _run(self, connection: socket.socket, count: int) -> None:
        with suppress(OSError):
            self._answer(connection, count)
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()


def read_head(connection: socket.socket) -> str:
    """Return a request's lines, as HTTP and RTSP send them; empty at the end of the connection."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        part = connection.recv(1)
        if not part:
            return ""
        data += part
    return data.decode()


def refuse(status: str, protocol: str = "RTSP/1.0", header: str = "") -> Callable[[socket.socket, int], None]:
    """Return what answers every request with one status, such as "404 Not Found"."""

    def answer(connection: socket.socket, count: int) -> None:
        while head := read_head(connection):
            sequence = "".join(line + "\r\n" for line in head.split("\r\n") if line.startswith("CSeq"))
            text = f"{protocol} {status}\r\n{sequence}{header}Content-Length: 0\r\n\r\n"
            connection.sendall(text.encode())

    return answer
