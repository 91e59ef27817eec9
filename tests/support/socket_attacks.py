"""Live sessions that no well-behaved client opens, as the bytes of a connection; drawn from a seed.

An attack ends with a close message unless the server is expected to end the session. Its outcome is the
status of a refused opening, or the code of the server's close message; 0 is a connection that ends without
either.
"""

from __future__ import annotations

import base64
import json
import socket
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from tests.support.http_attacks import TOKEN, picture

REFUSED = frozenset({400, 401, 403, 404, 405, 421, 426})
ENDED = frozenset({0, 1002, 1007, 1009})
"""What may become of a session whose messages are broken."""
LEFT = frozenset({1000})
TEXT, BINARY, CLOSE, PING = 1, 2, 8, 9
BUSY = 1013
_FIRST_CODE = 1000
"""Of close messages; lower numbers are HTTP's."""

_PHRASES = json.dumps({"type": "phrases", "phrases": ["the mug"]}).encode()


@dataclass(frozen=True, kw_only=True)
class SocketAttack:
    """Bytes that are sent, and the right outcomes."""

    name: str
    data: bytes = field(repr=False, default=b"")
    head: bytes = field(repr=False, default=b"")
    """The request that opens the session; the bytes follow its answer. Empty: a good one."""
    right: frozenset[int] = ENDED
    abrupt: bool = False
    """The connection is cut after the bytes; nothing is expected back."""
    kind: str = "sockets"


def opening(
    *,
    path: str = "/v1/live",
    host: str = "127.0.0.1",
    token: str | None = TOKEN,
    headers: tuple[str, ...] = (),
) -> bytes:
    """Return the request that opens a session."""
    lines = [f"GET {path} HTTP/1.1", f"Host: {host}", "Connection: Upgrade", "Upgrade: websocket"]
    if not any(each.startswith("Sec-WebSocket-Version") for each in headers):
        lines.append("Sec-WebSocket-Version: 13")
    if not any(each.startswith("Sec-WebSocket-Key") for each in headers):
        lines.append("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    return "\r\n".join([*lines, *headers, "", ""]).encode()


def frame(kind: int, body: bytes = b"", *, last: bool = True, bits: int = 0, masked: bool = True) -> bytes:
    """Return one frame of a client; its mask is zero, which leaves the body readable."""
    size, mask = len(body), 0x80 * masked
    head = bytes([0x80 * last | bits | kind])
    if size < 126:
        head += bytes([mask | size])
    elif size < 1 << 16:
        head += bytes([mask | 126]) + struct.pack(">H", size)
    else:
        head += bytes([mask | 127]) + struct.pack(">Q", size)
    return head + bytes(4) * masked + body


_END = frame(CLOSE, struct.pack(">H", 1000))
GOOD = frame(TEXT, _PHRASES) + frame(BINARY, picture((64, 48), "JPEG")) * 2 + _END
"""What a good client sends after the opening."""


def socket_attacks(seed: int = 0, *, fuzzed: int = 100) -> Iterator[SocketAttack]:
    """Yield all attacks; `fuzzed` is the number of damaged copies of a good session."""
    yield from _openings()
    yield from _frames()
    yield from _messages()
    yield from _fuzzed(seed, fuzzed)


def _openings() -> Iterator[SocketAttack]:
    wrong = base64.urlsafe_b64encode(b"wrong").decode().rstrip("=")
    given = {
        **{
            f"origin {each}": {"headers": (f"Origin: {each}",)}
            for each in (
                "https://evil.example",
                "null",
                "http://127.0.0.1:1",
                "file://",
                "http://127.0.0.1.evil.example",
                "\xff",
            )
        },
        **{
            f"host {each}": {"host": each}
            for each in ("rebound.example", "[::1", "127.0.0.1@evil.example", "")
        },
        **{
            f"path {each}": {"path": each}
            for each in ("/", "/v1/segment", "/v1/live/", "/static/app.js", "//v1/live")
        },
        "no token": {"token": None},
        "wrong token": {"token": TOKEN[:-1]},
        "wrong subprotocol": {
            "token": None,
            "headers": (f"Sec-WebSocket-Protocol: refdiff, bearer.{wrong}",),
        },
        "damaged subprotocol": {"token": None, "headers": ("Sec-WebSocket-Protocol: bearer._, bearer.%%%",)},
        "version 7": {"headers": ("Sec-WebSocket-Version: 7",)},
        "short key": {"headers": ("Sec-WebSocket-Key: AAAA",)},
        "damaged key": {"headers": ("Sec-WebSocket-Key: %%%",)},
    }
    for name, named in given.items():
        yield SocketAttack(name=name, head=opening(**named), right=REFUSED | {0})


def _frames() -> Iterator[SocketAttack]:
    """Yield sessions whose frames break the protocol, or are cut."""
    bomb = zlib.compress(bytes(64 << 20))[2:-4]
    broken = {
        "unmasked": frame(TEXT, _PHRASES, masked=False),
        "reserved bit": frame(BINARY, bits=0x20),
        "a deflated bomb without the extension": frame(BINARY, bomb, bits=0x40),
        "reserved kind": frame(3),
        "ping in parts": frame(PING, last=False),
        "long ping": frame(PING, bytes(126)),
        "no begin": frame(0),
        "two begins": frame(TEXT, b"a", last=False) + frame(TEXT, b"a"),
        "no UTF-8": frame(TEXT, b"\xc3\x28"),
        "close of one byte": frame(CLOSE, b"\x03"),
        "close with a reserved code": frame(CLOSE, struct.pack(">H", 1006)),
        "exabytes": b"\x82\xff\x7f" + bytes(6) + b"\x01" + bytes(4),
        "negative length": b"\x82\xff" + b"\xff" * 8 + bytes(4),
        "parts without end": frame(BINARY, last=False) + frame(0, bytes(1 << 20), last=False) * 8,
        "HTTP": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "5 MB": frame(BINARY, bytes(5 << 20)),
    }  # fmt: skip
    for name, data in broken.items():
        yield SocketAttack(name=name, data=data)
    bytewise = b"".join(frame(0, bytes([each]), last=False) for each in _PHRASES[1:])
    parts = frame(TEXT, _PHRASES[:1], last=False) + bytewise + frame(0)
    yield SocketAttack(name="a byte a part", data=parts + _END, right=LEFT)
    empty = frame(TEXT, last=False) + frame(0, last=False) * 20_000 + frame(0, _PHRASES)
    yield SocketAttack(name="20000 empty parts", data=empty + _END, right=LEFT | ENDED)
    yield SocketAttack(name="5000 pings", data=frame(PING, b"a" * 100) * 5000 + _END, right=LEFT)
    offer = ("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",)
    yield SocketAttack(
        name="a deflated bomb", head=opening(headers=offer), data=frame(BINARY, bomb, bits=0x40)
    )
    for name, cut in {"head": 1, "length": 3, "body": 500}.items():
        data = opening() + frame(BINARY, picture((200, 200), "JPEG") * 4)[:cut]
        yield SocketAttack(name=f"cut in the {name}", data=data, abrupt=True)
    yield SocketAttack(name="cut after a frame", data=GOOD[: -len(_END)], abrupt=True)


def _messages() -> Iterator[SocketAttack]:
    """Yield sessions of whole messages that cannot be used."""
    texts = (
        b"",
        b"garbage",
        b"[]",
        b"{}",
        b"null",
        b'{"type": "phrases"}',
        b'{"type": "phrases", "phrases": [1]}',
    )
    for number, text in enumerate((*texts, b"[" * 60_000, b"a" * 70_000, b"9" * 5000, b'{"type": "x"}')):
        yield SocketAttack(name=f"text {number}", data=frame(TEXT, text), right=frozenset({1007}))
    for number, phrases in enumerate(
        ([""], ["a"] * 2, ["a"] * 7, ["x" * 60_000], ["\ud800"], ["\x00"], [" "] * 3)
    ):
        text = json.dumps({"type": "phrases", "phrases": phrases}).encode()
        yield SocketAttack(name=f"phrases {number}", data=frame(TEXT, text) + _END, right=LEFT)
    yield SocketAttack(
        name="a large frame", data=frame(BINARY, bytes((2 << 20) + 1)), right=frozenset({1009})
    )
    whole = picture()
    head = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
    bombs = [head + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0) for side in (1 << 31, 10_000, 0)]
    for number, data in enumerate((b"", b"text", whole[:40], whole[:-4], b"GIF89a" + bytes(40), *bombs)):
        sent = frame(TEXT, _PHRASES) + frame(BINARY, data) * 40 + _END
        yield SocketAttack(name=f"picture {number}", data=sent, right=LEFT | {1007})


def _fuzzed(seed: int, count: int) -> Iterator[SocketAttack]:
    rng, good = np.random.default_rng(seed), GOOD
    for number in range(count):
        data = bytearray(good)
        for _ in range(int(rng.integers(1, 5))):
            at = int(rng.integers(len(data)))
            if rng.integers(2):
                data[at] = int(rng.integers(256))
            else:
                del data[at : at + int(rng.integers(1, 40))]
        data += bytes(70_000)  # no frame of a client; a cut one takes it as its rest
        yield SocketAttack(name=f"copy {number}", data=bytes(data), right=ENDED | LEFT | {1005, 1008})


def outcome_of(answer: bytes) -> int:
    """Return the status of a refused opening, or the code of the server's close message; 0 without one."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 "):
        return 0
    if not head.startswith(b"HTTP/1.1 101"):
        return int(head.split(b" ", 2)[1])
    while len(rest) >= 2:
        size, at = rest[1] & 127, 2
        if size == 126:
            size, at = int.from_bytes(rest[2:4], "big"), 4
        elif size == 127:
            size, at = int.from_bytes(rest[2:10], "big"), 10
        if rest[0] & 15 == CLOSE:
            return int.from_bytes(rest[at : at + 2], "big") if size >= 2 else 1005
        rest = rest[at + size :]
    return 0


def attack(address: tuple[str, int], sent: SocketAttack, seconds: float = 60.0) -> tuple[int, bytes]:
    """Send one attack; return its outcome and what came back, once the place of the session before is free.

    Raises:
        TimeoutError: the server does not close within these seconds.
    """
    while True:
        parts: list[bytes] = []
        with (
            socket.create_connection(address, timeout=seconds) as connection,
            suppress(ConnectionResetError, BrokenPipeError),
        ):
            connection.sendall(sent.head or opening())
            parts.append(connection.recv(65536))
            connection.sendall(sent.data)
            while not sent.abrupt and outcome_of(b"".join(parts)) < _FIRST_CODE:
                if not (part := connection.recv(65536)):
                    break
                parts.append(part)
        answer = b"".join(parts)
        if (found := outcome_of(answer)) != BUSY:
            return found, answer
