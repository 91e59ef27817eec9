"""Video read with PyAV, in this process: files, streams over loopback, and what goes wrong with them."""

from __future__ import annotations

import socket
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

av = pytest.importorskip("av")

from refdiff.camera.pattern import read_pattern_number
from refdiff.camera.sources.address import parse_source
from refdiff.camera.sources.fault import SourceFault
from refdiff.camera.sources.reader import read_source
from refdiff.camera.sources.sink import ReadingDone
from refdiff.camera.sources.source import SourceOptions, build_request
from refdiff.camera.sources.video import upright
from refdiff.contracts.session import ImageArray
from tests.support.streams import RATE, Server, encode, refuse


class ListSink:
    """Keeps what a reader hands over."""

    def __init__(self, limit: int = 1000) -> None:
        self.numbers: list[int | None] = []
        self.sizes: list[tuple[int, ...]] = []
        self.times: list[float | None] = []
        self.dropped: Counter[str] = Counter()
        self.description = ""
        self.pixels: ImageArray | None = None
        self._limit = limit

    def opened(self, description: str) -> None:
        self.description = description

    def skipped(self) -> bool:
        return False

    def drop(self, cause: str) -> None:
        self.dropped[cause] += 1

    def publish(
        self, pixels: ImageArray, *, captured_s: float, wall_s: float, pts_s: float | None = None
    ) -> None:
        self.numbers.append(read_pattern_number(pixels) if pixels.shape[1] >= 64 else None)
        self.sizes.append(pixels.shape[:2])
        self.times.append(pts_s)
        self.pixels = pixels
        if len(self.numbers) >= self._limit:
            raise ReadingDone


def read_here(
    text: str, options: SourceOptions | None = None, *, limit: int = 1000
) -> tuple[ListSink, SourceFault | None]:
    sink: Any = ListSink(limit)
    return sink, read_source(build_request(parse_source(text), options or SourceOptions()), sink)


def test_a_file_gives_each_frame_with_its_time_and_ends(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    encode(range(12), target=str(clip), form="mp4")
    sink, fault = read_here(str(clip))
    assert fault is None
    assert sink.numbers == list(range(12))
    assert sink.times == pytest.approx([number / RATE for number in range(12)])
    assert sink.description == "h264 160x96 px in mov,mp4,m4a,3gp,3g2,mj2"


def test_a_file_in_a_loop_starts_again(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    encode(range(5), target=str(clip), form="mp4")
    sink, _ = read_here(str(clip), SourceOptions(loop=True), limit=12)
    assert sink.numbers == [*range(5), *range(5), 0, 1]


def test_a_size_that_changes_in_the_middle_changes_the_frames(tmp_path: Path) -> None:
    clip = tmp_path / "clip.ts"
    clip.write_bytes(encode(range(10)) + encode(range(10, 20), (64, 128)))
    sink, fault = read_here(str(clip))
    assert fault is None
    assert [*dict.fromkeys(sink.sizes)] == [(96, 160), (64, 128)]
    assert sink.numbers == sorted(set(sink.numbers))


def test_no_frame_is_made_up_where_the_data_is_damaged(tmp_path: Path) -> None:
    """Every frame that comes out is one that was put in; the others are counted."""
    clip, rng = tmp_path / "clip.ts", np.random.default_rng(0)
    data = bytearray(encode(range(60)))
    for start in (len(data) // 3, len(data) // 2):
        data[start : start + 2000] = rng.bytes(2000)
    clip.write_bytes(bytes(data))
    sink, fault = read_here(str(clip))
    assert fault is None
    assert 20 <= len(sink.numbers) < 60
    assert sink.numbers == sorted(set(sink.numbers))
    assert sink.numbers[-1] == 59
    assert sink.dropped["damaged"] > 0
    kept, _ = read_here(str(clip), SourceOptions(keep_damaged=True))
    assert None in kept.numbers


def test_a_stream_that_is_joined_in_the_middle_starts_with_a_whole_frame(tmp_path: Path) -> None:
    """The frames before the next key frame are made from frames that were never seen."""
    clip, data = tmp_path / "clip.ts", encode(range(30))
    clip.write_bytes(data[: 188 * 3] + data[188 * 20 :])
    sink, _ = read_here(str(clip))
    assert sink.numbers[0] == 10
    assert sink.numbers == list(range(10, 30))


def test_mjpeg_over_http_is_read_until_the_sender_ends_it() -> None:
    pictures = [encode([number], form="mjpeg", codec="mjpeg") for number in range(6)]

    def answer(connection: socket.socket, count: int) -> None:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace;boundary=cut\r\n\r\n")
        for picture in pictures:
            connection.sendall(
                b"--cut\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(picture)
            )
            connection.sendall(picture + b"\r\n")

    with Server(answer) as server:
        sink, fault = read_here(f"http://127.0.0.1:{server.port}/video?token=secret")
    assert sink.numbers == list(range(6))
    assert fault is not None
    assert fault.kind == "closed"


@pytest.mark.parametrize(
    ("scheme", "status", "kind"),
    [
        ("rtsp", "401 Unauthorized", "authentication"),
        ("rtsp", "404 Not Found", "not_found"),
        ("http", "401 Unauthorized", "authentication"),
        ("http", "403 Forbidden", "authentication"),
        ("http", "404 Not Found", "not_found"),
        ("http", "503 Service Unavailable", "unreachable"),
    ],
)
def test_a_refusal_of_the_server_is_named(scheme: str, status: str, kind: str) -> None:
    protocol = "RTSP/1.0" if scheme == "rtsp" else "HTTP/1.0"
    header = 'WWW-Authenticate: Basic realm="cam"\r\n' if "401" in status else ""
    with Server(refuse(status, protocol, header)) as server:
        _, fault = read_here(f"{scheme}://admin:hunter22@127.0.0.1:{server.port}/1?key=hush99")
    assert fault is not None
    assert fault.kind == kind
    assert "hunter22" not in fault.reason
    assert "hush99" not in fault.reason


def test_an_address_that_cannot_be_reached_says_which_part_is_wrong(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert _kind(f"tcp://127.0.0.1:{port}") == "refused"
    assert _kind("/dev/video97") == "not_found"
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    assert _kind(str(text)) == "codec"
    sound = tmp_path / "sound.wav"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        samples = av.AudioFrame(format="s16", layout="mono", samples=64)
        samples.sample_rate = 8000
        container.mux(stream.encode(samples))
    assert _kind(str(sound)) == "codec"


def test_a_host_without_an_address_is_named() -> None:
    _, fault = read_here("rtsp://user:hunter22@no.such.host.invalid/1")
    assert fault is not None
    assert fault.kind == "not_found"
    assert "no.such.host.invalid cannot be resolved" in fault.reason


@pytest.mark.parametrize(("rotation", "first"), [(0, 1), (90, 2), (180, 4), (-90, 3)])
def test_a_turned_picture_is_turned_upright(rotation: int, first: int) -> None:
    """The rotation is counterclockwise: at 90 degrees, what was on the top right comes to the top left."""
    pixels = np.array([[1, 2], [3, 4]], np.uint8)[..., None].repeat(3, axis=2)
    frame: Any = SimpleNamespace(to_ndarray=lambda format: pixels, rotation=rotation)
    assert upright(frame)[0, 0, 0] == first


def _kind(text: str) -> str:
    _, fault = read_here(text)
    return "" if fault is None else fault.kind
