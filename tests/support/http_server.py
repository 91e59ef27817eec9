"""A server in a thread, and requests to it as bytes on a socket."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from refdiff.serve.app import AppOptions, create_app
from refdiff.serve.server import ServeOptions, Server
from refdiff.serve.service import Status
from refdiff.serve.worker import EngineWorker
from tests.support.answers import answer


class FakeSegmenter:
    """Answers each phrase with one mask; every graph run waits for `go`.

    Args:
        gap: called before each of its graphs, as `GapSessions` does.
    """

    def __init__(self, gap) -> None:
        self._gap = gap
        self.go = threading.Event()
        self.go.set()
        self.graphs: list[str] = []
        self.fails_with: Exception | None = None
        self.entered = threading.Event()

    def run(self, name):
        self._gap(name)
        self.entered.set()
        self.go.wait(20)
        self.graphs.append(name)
        if self.fails_with is not None:
            raise self.fails_with

    def check_phrases(self, phrases):
        from refdiff.errors import InputError

        if "" in phrases:
            raise InputError("got an empty phrase")

    def encode(self, image):
        self.run("encode")
        return np.zeros((8, 12, 3), np.uint8)

    def segment_each(self, encoded, phrases):
        for phrase in phrases:
            self.run(phrase)
            yield segmentation(phrase)

    def close(self):
        self.graphs.append("closed")


def segmentation(phrase, confidence=0.75):
    mask = np.zeros((8, 12), bool)
    mask[2:5, 3:9] = True
    heat, cautions = mask.astype(np.float32), ("test: a caution",)
    return answer(phrase, mask, score=1.0, heat=heat, confidence=confidence, cautions=cautions)


class Running:
    """A server that runs: its segmenter, its address and its state."""

    def __init__(self, segmenter, worker, status, server, port) -> None:
        self.segmenter, self.worker, self.status, self.server, self.port = (
            segmenter,
            worker,
            status,
            server,
            port,
        )
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, path, body=None, *, method=None, headers=()):
        """Send a request; return status, headers and JSON document or bytes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        sent = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
        head = {"content-type": "application/json", **dict(headers)}
        connection.request(method or ("GET" if body is None else "POST"), path, sent, head)
        response = connection.getresponse()
        data = response.read()
        connection.close()
        is_json = response.headers.get("content-type") == "application/json"
        return response.status, response.headers, json.loads(data) if is_json else data

    def send(self, data):
        """Send bytes as they are; return what comes back until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            connection.sendall(data)
            parts = []
            while part := connection.recv(65536):
                parts.append(part)
        return b"".join(parts)


@contextmanager
def running(
    options=None, *, most_waiting=2, cache_bytes=1 << 20, serving=None, open_segmenter=None, tidy=None
) -> Iterator[Running]:
    """Run a server over a fake segmenter, or over the one that `open_segmenter` opens."""
    made = []
    worker = EngineWorker(
        open_segmenter or (lambda gap: made.append(FakeSegmenter(gap)) or made[0]),
        most_waiting=most_waiting,
        cache_bytes=cache_bytes,
        tidy=tidy,
    )
    worker.start()
    status, listener = Status(tested=True), socket.create_server(("127.0.0.1", 0))
    app = create_app(worker, options=options or AppOptions(), status=status)
    ready = threading.Event()
    server = Server(app, status, serving or ServeOptions(), lambda _: ready.set())
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    assert ready.wait(20)
    try:
        yield Running(made[0] if made else None, worker, status, server, listener.getsockname()[1])
    finally:
        if made:
            made[0].go.set()
        server.should_exit = True
        thread.join(20)
        worker.close()
        listener.close()
        assert not thread.is_alive()
