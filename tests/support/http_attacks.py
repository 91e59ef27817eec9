"""Requests that no well-behaved client sends, as the bytes of a connection; drawn from a seed.

Each attack has a class, a name, its bytes and the statuses that are right: 0 is a connection that the server
closes without an answer, as it may where no request can be read.
"""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from tests.support.label_studio import predict_request

REFUSED = frozenset({400, 401, 403, 404, 405, 408, 411, 413, 415, 421, 422, 431, 501, 505})
SILENT = frozenset({0})
TOKEN = "0123456789abcdef0123"


@dataclass(frozen=True, kw_only=True)
class Attack:
    """Bytes that are sent, and the right statuses of the answer."""

    kind: str
    name: str
    data: bytes = field(repr=False)
    right: frozenset[int] = REFUSED


def attacks(seed: int = 0, *, fuzzed: int = 200) -> Iterator[Attack]:
    """Yield all attacks; `fuzzed` is the number of damaged copies of good requests."""
    yield from _json_bodies()
    yield from _forms()
    yield from _images()
    yield from _heads()
    yield from _paths()
    yield from _framing()
    yield from _tokens()
    yield from _sizes()
    yield from _tensors()
    yield from _tasks()
    yield from _fuzzed(seed, fuzzed)


def status_of(answer: bytes) -> int:
    """Return the status of an answer; 0 if there is none."""
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def request(
    body: bytes = b"",
    *,
    method: str = "POST",
    path: str = "/v1/segment",
    kind: str = "application/json",
    headers: tuple[str, ...] = (),
    token: str | None = TOKEN,
    length: int | None = None,
) -> bytes:
    """Return a request as bytes; the connection ends after it."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close", f"Content-Type: {kind}"]
    lines += [f"Content-Length: {len(body) if length is None else length}", *headers]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def picture(size_xy: tuple[int, int] = (12, 8), kind: str = "PNG") -> bytes:
    """Return a small image file."""
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((size_xy[1], size_xy[0], 3), np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def _document(**changes: object) -> bytes:
    image = base64.b64encode(picture()).decode()
    return json.dumps({"image": image, "prompts": ["the mug"], **changes}).encode()


def _json_bodies() -> Iterator[Attack]:
    deep = [b"[" * depth + b"]" * depth for depth in (100, 10_000, 200_000)]
    objects = [b'{"prompts":' * depth + b"1" + b"}" * depth for depth in (100, 20_000)]
    odd = [b"", b"null", b"7", b'"text"', b"{", b"{}", b"\x00" * 100, b"\xff" * 100, b"NaN", b"1e999", b"[]"]
    numbers = [
        b'{"image_id": "a", "prompts": ["x"], "min_confidence": %s}' % n
        for n in (b"1e400", b"-1", b"NaN", b"9" * 5000)
    ]
    for number, body in enumerate([*deep, *objects, *odd, *numbers]):
        yield Attack(kind="json", name=f"body {number}", data=request(body))
    values = (
        None,
        7,
        -1.5,
        True,
        [],
        {},
        "",
        "\x00",
        "\ud800",
        "a" * 100_000,
        ["x"] * 10_000,
        [[["x"]]],
        {"a": {"b": 1}},
    )
    for name in ("image", "image_id", "prompts", "format", "min_confidence", "candidates", "heat", "unknown"):
        for number, value in enumerate(values):
            if (
                value in (None, True)
                or (name == "prompts" and value == "a")
                or (name == "unknown" and value is None)
            ):
                continue
            fields = {name: value, **({"image": None} if name == "image_id" else {})}
            yield Attack(kind="fields", name=f"{name} {number}", data=request(_document(**fields)))
    for number, text in enumerate(
        ("", " ", "\x00\x01", "\u202e", "a" * 10_000, "🙂" * 500, "%s%n", "{{7*7}}")
    ):
        right = REFUSED | {200}  # a phrase without sense is answered
        yield Attack(
            kind="phrases", name=f"phrase {number}", data=request(_document(prompts=[text])), right=right
        )
    for count in (65, 1000, 10_000):
        yield Attack(kind="phrases", name=f"{count} phrases", data=request(_document(prompts=["x"] * count)))


def _forms() -> Iterator[Attack]:
    def part(disposition: str, body: bytes = b"x") -> bytes:
        return b"--B\r\n" + disposition.encode("latin-1") + b"\r\n\r\n" + body + b"\r\n"

    image = part('content-disposition: form-data; name="image"; filename="a.png"', picture())
    phrase = part('content-disposition: form-data; name="prompt"', b"the mug")
    form, end = "multipart/form-data; boundary=B", b"--B--\r\n"
    bodies = {
        "no end": image + phrase,
        "no parts": b"--B--\r\n",
        "empty": b"",
        "no names": part("content-disposition: form-data") + end,
        "no disposition": part("x-y: z") + end,
        "two images": image + image + phrase + end,
        "no image": phrase + end,
        "no phrase": image + end,
        "1000 phrases": image + phrase * 1000 + end,
        "1000 files": image * 1000 + end,
        "unknown part": image + phrase + part('content-disposition: form-data; name="x"') + end,
        "large field": image + part('content-disposition: form-data; name="prompt"', b"a" * (2 << 20)) + end,
        "long header": part('content-disposition: form-data; name="' + "a" * 100_000 + '"') + end,
        "other boundary": b"--C\r\n\r\nx\r\n--C--\r\n",
        "binary": bytes(range(256)) * 40,
        "nested": part(
            'content-disposition: form-data; name="image"\r\ncontent-type: multipart/mixed; boundary=C',
            b"--C--",
        )
        + end,
    }
    for name, body in bodies.items():
        yield Attack(kind="forms", name=name, data=request(body, kind=form), right=REFUSED | SILENT)
    good = image + phrase + b"--B--\r\n"
    for kind in (
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=" + "a" * 300,
        "multipart/mixed; boundary=B",
        "application/x-www-form-urlencoded",
        "",
    ):
        yield Attack(kind="forms", name=f"type {kind[:40]!r}", data=request(good, kind=kind))


def _images() -> Iterator[Attack]:
    whole = picture()
    files = {
        "empty": b"",
        "text": b"hello",
        "half": whole[: len(whole) // 2],
        "header only": whole[:33],
        "damaged": whole[:40] + b"\x00" * 8 + whole[48:],
        "PNG of 2^31 px a side": _png_header(2**31 - 1, 2**31 - 1),
        "PNG of 100 MP": _png_header(10_000, 10_000),
        "PNG of 0 px": _png_header(0, 8),
        "one line of 60000": _png_header(60_000, 1),
        "text bomb": whole[:33] + _chunk(b"zTXt", b"a\0\0" + zlib.compress(b"a" * (64 << 20))) + whole[33:],
        "GIF of two images": _gif(),
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "TIFF without end": b"II*\0\xff\xff\xff\xff",
        "JPEG start": b"\xff\xd8\xff\xe0" + b"\0" * 100,
    }
    for name, data in files.items():
        body = _document(image=base64.b64encode(data).decode())
        right = REFUSED | {200} if name == "text bomb" else REFUSED  # texts of a PNG are not read
        yield Attack(kind="images", name=name, data=request(body), right=right)
    for value in (
        "http://127.0.0.1/x.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "=" * 100,
        "data:image/png;base64,%%%",
    ):
        yield Attack(kind="images", name=value[:30], data=request(_document(image=value)))
    for kind in ("url", "numpy", "pil", 7):
        yield Attack(
            kind="images", name=f"type {kind}", data=request(_document(image={"type": kind, "value": "x"}))
        )


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png_header(width: int, height: int) -> bytes:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + _chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + _chunk(b"IEND", b"")


def _gif() -> bytes:
    buffer = io.BytesIO()
    shades = [Image.new("L", (8, 8), shade) for shade in (0, 255)]
    shades[0].save(buffer, "GIF", save_all=True, append_images=shades[1:])
    return buffer.getvalue()


def _heads() -> Iterator[Attack]:
    good = _document()
    many = tuple(f"X-{number}: a" for number in range(20_000))
    silent = REFUSED | SILENT
    yield Attack(
        kind="heads",
        name="a header of 100 kB",
        data=request(good, headers=("X: " + "a" * 100_000,)),
        right=silent | {200},
    )
    yield Attack(kind="heads", name="20000 headers", data=request(good, headers=many), right=silent)
    for number, line in enumerate(
        (
            "X\x00: a",
            "X : a",
            ": a",
            "no colon",
            "X: \x00",
            "X:\r\n folded",
            "Host: evil.example",
            "X-Request-Id: " + "\x7f" * 9,
        )
    ):
        yield Attack(
            kind="heads", name=f"header {number}", data=request(good, headers=(line,)), right=silent | {200}
        )
    for number, head in enumerate(("", "Host: evil.example", "Host: 127.0.0.1:1@evil.example", "Host: [::1")):
        lines = (
            f"POST /v1/segment HTTP/1.1\r\n{head}\r\nConnection: close\r\n\r\n"
            if head
            else "POST / HTTP/1.1\r\n\r\n"
        )
        yield Attack(kind="heads", name=f"host {number}", data=lines.encode(), right=silent)
    yield Attack(
        kind="heads", name="foreign origin", data=request(good, headers=("Origin: https://evil.example",))
    )
    yield Attack(kind="heads", name="null origin", data=request(good, headers=("Origin: null",)))
    for method in ("GET", "PUT", "DELETE", "TRACE", "OPTIONS", "PATCH", "A" * 200, "get"):
        yield Attack(kind="heads", name=f"method {method[:10]}", data=request(method=method), right=silent)


def _paths() -> Iterator[Attack]:
    names = (
        "../app.py",
        "..%2fapp.py",
        "%2e%2e/app.py",
        "....//app.py",
        "..\\app.py",
        "/etc/passwd",
        "%00",
        "index.html%00.js",
        ".",
        "",
        "static/app.js",
        "a" * 5000,
    )
    for name in names:
        yield Attack(
            kind="paths",
            name=f"static {name[:20]!r}",
            data=request(method="GET", path=f"/static/{name}"),
            right=REFUSED | SILENT,
        )
        yield Attack(
            kind="paths",
            name=f"demo {name[:20]!r}",
            data=request(method="GET", path=f"/v1/demo/{name}"),
            right=REFUSED | SILENT,
        )
    for path in (
        "//evil.example/",
        "/v1/segment/../../etc/passwd",
        "/%0d%0aX:%20y",
        "/" + "a" * 70_000,
        "*",
        "/v1//segment",
        "/V1/SEGMENT",
        "/docs",
        "/redoc",
    ):
        yield Attack(
            kind="paths", name=path[:30], data=request(method="GET", path=path), right=REFUSED | SILENT
        )


def _framing() -> Iterator[Attack]:
    body = _document()
    host = b"Host: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\n"
    post = b"POST /v1/segment HTTP/1.1\r\n" + host
    silent = REFUSED | SILENT
    hidden = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    raw = {
        "length and chunks": post
        + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        + hidden,
        "two lengths": post + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
        "two equal lengths": post + b"Content-Length: 4\r\nContent-Length: 4\r\n\r\nabcd",
        "negative length": post + b"Content-Length: -1\r\n\r\n",
        "length with a sign": post + b"Content-Length: +4\r\n\r\nabcd",
        "hexadecimal length": post + b"Content-Length: 0x4\r\n\r\nabcd",
        "huge length": post + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n",
        "short body": post + b"Content-Length: 1000\r\n\r\nabc",
        "obfuscated chunks": post + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "chunks with a space": post + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "two encodings": post + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "bad chunk size": post + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n",
        "huge chunk size": post + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n",
        "chunk without end": post + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
        "long chunk extension": post
        + b"Transfer-Encoding: chunked\r\n\r\n1;"
        + b"a" * 100_000
        + b"\r\nx\r\n0\r\n\r\n",
        "bare line feeds": (post + b"Content-Length: %d\r\n\r\n" % len(body)).replace(b"\r\n", b"\n") + body,
        "no version": b"GET /\r\n\r\n",
        "version 9": b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "TLS": bytes.fromhex("16030100ff010000fb0303") + b"\x00" * 200,
        "CONNECT": b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        "upgrade": b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        "nothing": b"",
        "line feeds": b"\r\n" * 5000,
        "zeros": b"\x00" * 70_000,
    }
    for name, data in raw.items():
        yield Attack(kind="framing", name=name, data=data, right=silent)


def _tokens() -> Iterator[Attack]:
    body = _document()
    headers = (
        "",
        "Authorization:",
        "Authorization: Bearer",
        f"Authorization: Basic {TOKEN}",
        f"Authorization: Bearer {TOKEN[:-1]}",
        f"Authorization: Bearer {TOKEN}x",
        f"Authorization: bearer {TOKEN}",
        "Authorization: Bearer " + "a" * 10_000,
        "Authorization: Bearer \xe9\xe9",
        "Cookie: token=" + TOKEN,
    )
    for number, line in enumerate(headers):
        data = request(body, headers=(line,) if line else (), token=None)
        yield Attack(kind="tokens", name=f"token {number}", data=data, right=frozenset({401}))
    for path in ("/metrics", "/openapi.json", "/v1/demo", "/v1/segment/stream"):
        yield Attack(
            kind="tokens",
            name=path,
            data=request(method="GET", path=path, token=None),
            right=frozenset({401}),
        )


_INFER = "/v2/models/refdiff/infer"
_PHRASES = {"name": "phrases", "datatype": "BYTES", "shape": [1], "data": ["the mug"]}


def _infer(name: str, body: bytes, length: int | str | None = None) -> Attack:
    headers = () if length is None else (f"Inference-Header-Content-Length: {length}",)
    return Attack(kind="inference", name=name, data=request(body, path=_INFER, headers=headers))


def _sizes() -> Iterator[Attack]:
    """Yield bodies of KServe v2 whose announced sizes are wrong."""
    file = struct.pack("<I", len(picture())) + picture()

    def image(**parameters: object) -> bytes:
        entry = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": parameters}
        return json.dumps({"inputs": [entry, _PHRASES]}).encode()

    good = image(binary_data_size=len(file))
    for length in (0, 1, -1, "", "x", "9" * 40, len(good) - 1, len(good) + 1, len(good + file), 1 << 62):
        yield _infer(f"JSON of {str(length)[:20]} bytes", good + file, length)
    for size in (-1, 0, 3, len(file) - 1, len(file) + 1, 1 << 62, 10**40, None, True, 1.5, "7", [], {}):
        head = image(binary_data_size=size)
        yield _infer(f"data of {str(size)[:20]} bytes", head + file, len(head))
    both = {"name": "pixels", "datatype": "UINT8", "shape": [1, 1, 3], "parameters": {"binary_data_size": 3}}
    head = good.replace(b'"inputs": [', b'"inputs": [' + json.dumps(both).encode() + b", ")
    yield _infer("two inputs in the bytes of one", head + file, len(head))
    yield _infer("an element longer than its tensor", good + b"\xff" * len(file), len(good))
    yield _infer("shared memory", image(shared_memory_region="x", shared_memory_byte_size=1 << 40))


def _tensors() -> Iterator[Attack]:
    """Yield bodies of KServe v2 whose shapes, values, types and models are wrong."""
    shapes = ([], [1], [-1, 1, 3], [0, 0, 3], [1 << 31, 1 << 31, 3], [10**300, 1, 3], [1, 1, 3, 1], [[1]])
    lists = ([], [1, 2], [1, 2, 3, 4], [[[[1, 2, 3]]]], [256, 0, 0], ["a", "b", "c"], [None] * 3, [1e999] * 3)
    changes = (
        *({"shape": each} for each in (*shapes, "x", {}, [1, None, 3], None)),
        *({"data": each} for each in (*lists, None, 7, "x", {})),
        *({"datatype": each} for each in ("FP16", "UINT64", "STRING", "bytes", "", None, 7, [])),
    )
    for change in changes:
        entry = {"name": "pixels", "datatype": "UINT8", "shape": [1, 1, 3], "data": [1, 2, 3], **change}
        yield _infer(f"{str(change)[:60]}", json.dumps({"inputs": [entry, _PHRASES]}).encode())
    for depth in (100, 10_000, 200_000):
        deep = b"[" * depth + b"1" + b"]" * depth
        entry = b'{"name":"pixels","datatype":"UINT8","shape":[1,1,3],"data":%s}' % deep
        yield _infer(f"data {depth} lists deep", b'{"inputs":[%s]}' % entry)
    for name in ("refdiff%2f..%2fother", "", "refdiff/versions/1e0"):
        yield Attack(kind="inference", name=name, data=request(b"{}", path=f"/v2/models/{name}/infer"))


def _tasks() -> Iterator[Attack]:
    """Yield requests of Label Studio that cannot be answered."""
    task = predict_request("data:image/png;base64," + base64.b64encode(picture()).decode(), "the mug")
    laughs = '<!DOCTYPE x [<!ENTITY a "a"><!ENTITY b "&a;&a;">]><View>&b;</View>'
    configs = ("", "<", "<View>" * 50_000, "<View/>", laughs, "x" * (1 << 20), None, 7, [], {})
    places = ("/etc/passwd", "file:///etc/passwd", "http://127.0.0.1/x", "/data/upload/../../x", "data:,", 7)
    data = [{"image": place} for place in places]
    bodies = [
        *({**task, "label_config": each} for each in configs),
        *({**task, "tasks": each} for each in (None, 7, "x", {}, [7], [{}])),
        *({**task, "tasks": [{"id": 1, "data": each}]} for each in (None, 7, "x", [], {}, *data)),
    ]
    for number, body in enumerate(bodies):
        sent = request(json.dumps(body).encode(), path="/predict")
        yield Attack(kind="tasks", name=f"task {number}", data=sent)
    for path, right in (("/predict", REFUSED), ("/setup", REFUSED), ("/webhook", REFUSED | {201})):
        for number, body in enumerate((b"", b"[", b"null", b"7", b"[" * 100_000, b"\xff" * 100)):
            yield Attack(kind="tasks", name=f"{path} {number}", data=request(body, path=path), right=right)


def _good_requests() -> list[bytes]:
    """Return one good request of each protocol."""
    image = picture()
    data = base64.b64encode(image).decode()
    file = struct.pack("<I", len(image)) + image
    entry = {
        "name": "image",
        "datatype": "BYTES",
        "shape": [1],
        "parameters": {"binary_data_size": len(file)},
    }
    head = json.dumps({"inputs": [entry, _PHRASES]}).encode()
    pixels = {"name": "pixels", "datatype": "UINT8", "shape": [1, 1, 3], "data": [1, 2, 3]}
    form = b'--B\r\ncontent-disposition: form-data; name="image"; filename="a.png"\r\n\r\n' + image
    form += b'\r\n--B\r\ncontent-disposition: form-data; name="prompt"\r\n\r\nthe mug\r\n--B--\r\n'
    task = predict_request(f"data:image/png;base64,{data}", "the mug")
    return [
        request(_document()),
        request(form, kind="multipart/form-data; boundary=B"),
        request(json.dumps({"inputs": [pixels, _PHRASES]}).encode(), path=_INFER),
        request(head + file, path=_INFER, headers=(f"Inference-Header-Content-Length: {len(head)}",)),
        request(json.dumps(task).encode(), path="/predict"),
    ]


def _fuzzed(seed: int, count: int) -> Iterator[Attack]:
    """Yield copies of good requests with a few bytes changed, removed or doubled; they may be good still."""
    rng, good = np.random.default_rng(seed), _good_requests()
    for number in range(count):
        data = bytearray(good[number % len(good)])
        for _ in range(int(rng.integers(1, 6))):
            at = int(rng.integers(len(data)))
            change = int(rng.integers(3))
            if change == 0:
                data[at] = int(rng.integers(256))
            elif change == 1:
                del data[at : at + int(rng.integers(1, 40))]
            else:
                data[at:at] = data[at : at + int(rng.integers(1, 40))]
        yield Attack(kind="fuzzed", name=f"copy {number}", data=bytes(data), right=REFUSED | SILENT | {200})
