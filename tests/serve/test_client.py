"""The client against servers that fail: what is repeated, what is sent again, and what is given up."""

import io
import json
import socket
import struct
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from refdiff.serve.attempts import Attempts, ServerError
from refdiff.serve.client import Client
from refdiff.serve.request import image_id_of

LOST = object()
"""A connection that is reset in place of an answer."""


def file_of(size_xy=(12, 8), shade=0):
    buffer = io.BytesIO()
    Image.new("RGB", size_xy, (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def found(text, index=0):
    return {
        "prompt_index": index,
        "echo": {"text": text},
        "predictions": [],
        "reason": "none",
        "cautions": [],
    }


def reply(status, document, headers=""):
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return f"HTTP/1.1 {status} x\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def good(*texts):
    return reply(200, {"image_id": "x", "prompt_results": [found(text) for text in texts]})


def refused(status, kind, headers=""):
    return reply(status, {"error": {"type": kind, "message": kind, "request_id": "1"}}, headers)


def events(*documents, end=""):
    text = "".join(f"event: answer\ndata: {json.dumps(each)}\n\n" for each in documents) + end
    return b"HTTP/1.1 200 x\r\nContent-Type: text/event-stream\r\n\r\n" + text.encode()


@contextmanager
def server(*replies):
    """Answer one connection after the other; yield the address and the documents that were received."""
    listener, received = socket.create_server(("127.0.0.1", 0)), []

    def work():
        for each in replies:
            connection, _ = listener.accept()
            with connection:
                received.append(_read(connection))
                if each is LOST:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                else:
                    connection.sendall(each)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", received
    finally:
        thread.join(20)
        listener.close()
        assert not thread.is_alive()


def _read(connection):
    with connection.makefile("rb") as stream:
        lines = [line.decode().rstrip() for line in iter(stream.readline, b"\r\n")]
        head = dict(line.split(": ", 1) for line in lines[1:])
        return head, json.loads(stream.read(int(head["Content-Length"])))


@pytest.mark.parametrize(
    "failure",
    [
        LOST,
        good("the mug")[:-5],
        refused(503, "not_ready"),
        reply(500, b"Internal Server Error"),
        reply(502, b"<html>bad gateway</html>", "Retry-After: Wed, 21 Oct 2026 07:28:00 GMT\r\n"),
    ],
    ids=["reset", "half an answer", "not ready", "of a router", "of a gateway"],
)
def test_a_request_is_repeated_as_it_was(failure):
    with server(failure, good("the mug")) as (url, received):
        client = Client(url)
        (answer,) = client.segment(file_of(), "the mug")
    assert answer.reason == "none"
    assert received[0][1]["prompts"] == received[1][1]["prompts"]
    assert client.repeated == 1


@pytest.mark.parametrize(
    "failure",
    [
        refused(500, "engine_error"),
        refused(504, "timeout"),
        refused(401, "unauthorized"),
        reply(404, b"none"),
    ],
    ids=["engine", "time", "token", "foreign"],
)
def test_what_would_fail_again_is_not_repeated(failure):
    with server(failure) as (url, _), pytest.raises(ServerError):
        Client(url).segment(file_of(), "the mug")


def test_an_image_that_a_server_does_not_keep_is_sent_again_at_once():
    with server(good("a"), refused(404, "unknown_image"), good("b")) as (url, received):
        client = Client(url, attempts=1)
        client.segment(file_of(), "a")
        client.segment(file_of(), "b")
    assert ["image" in document for _, document in received] == [True, False, True]


def test_a_server_that_never_knows_an_image_is_given_up():
    with (
        server(refused(404, "unknown_image")) as (url, _),
        pytest.raises(ServerError, match="unknown_image"),
    ):
        Client(url).segment(file_of(), "a")


def test_every_request_names_its_image_for_routers():
    data = file_of(shade=3)
    with server(good("a")) as (url, received):
        Client(url).segment(data, "a")
    assert received[0][0]["X-Session-Id"] == image_id_of(data)


def test_a_stream_that_is_lost_goes_on_with_the_phrases_that_are_left():
    first, rest = events(found("a")), events(found("b"), found("c", 1), end="event: done\ndata: {}\n\n")
    with server(first, rest) as (url, received):
        answers = list(Client(url).stream(file_of(), ["a", "b", "c"]))
    assert [each["text"] for each in received[1][1]["prompts"]] == ["b", "c"]
    assert [(each.phrase, each.document["prompt_index"]) for each in answers] == [
        ("a", 0),
        ("b", 1),
        ("c", 2),
    ]


def test_half_an_event_is_no_answer():
    half = events(found("a"), end='event: answer\ndata: {"prompt_index": 1')
    with server(half, events(found("b"), end="event: done\ndata: {}\n\n")) as (url, _):
        assert [each.phrase for each in Client(url).stream(file_of(), ["a", "b"])] == ["a", "b"]


def test_an_answer_with_fewer_results_than_phrases_is_an_error():
    with server(good("a")) as (url, _), pytest.raises(ServerError, match="2 phrases"):
        Client(url).segment(file_of(), ["a", "b"])


@pytest.mark.slow
def test_why_a_large_body_was_refused_is_known_before_all_of_it_is_sent():
    refusal = refused(413, "invalid_request")
    listener = socket.create_server(("127.0.0.1", 0))

    def refuse():
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(refusal)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 20):
                continue

    thread = threading.Thread(target=refuse)
    thread.start()
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8)
    try:
        with pytest.raises(ServerError) as raised:
            Client(f"http://127.0.0.1:{listener.getsockname()[1]}", attempts=1).segment(noise, "a")
    finally:
        thread.join(20)
        listener.close()
    assert raised.value.status == 413


def lost(**named):
    return ServerError("lost", **named)


def test_the_time_that_a_server_names_is_waited():
    attempts = Attempts(5, 10, None)
    assert 0.25 <= attempts.pause_s(lost(retry_after_s=0)) <= 0.32
    assert 7 <= attempts.pause_s(lost(retry_after_s=7)) <= 8.75
    with pytest.raises(ServerError):
        attempts.pause_s(lost(retry_after_s=3600))


def test_pauses_double_up_to_a_limit():
    attempts = Attempts(20, 10, None)
    pauses = [attempts.pause_s(lost(retry_after_s=0)) for _ in range(12)]
    assert pauses[3] >= 2
    assert max(pauses) <= 10


def test_attempts_end_with_their_number_and_with_the_deadline():
    with pytest.raises(ServerError):
        Attempts(1, 10, None).pause_s(lost(retry_after_s=0))
    hurried = Attempts(100, 10, 0.2)
    assert hurried.timeout_s <= 0.2
    with pytest.raises(ServerError):
        hurried.pause_s(lost(retry_after_s=0))
