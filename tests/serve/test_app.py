"""The HTTP API over a fake segmenter: answers, refusals, cancellation, limits, and the stop."""

import base64
import io
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from refdiff.errors import EngineError, InputError
from refdiff.serve.app import AppOptions
from refdiff.serve.attempts import ServerError
from refdiff.serve.client import Client
from refdiff.serve.guard import GuardOptions
from refdiff.serve.metrics import Metrics
from refdiff.serve.request import image_id_of
from refdiff.serve.server import LOOPBACK, ServeOptions, check_address
from tests.support.http_server import running


def file_of(shade=0):
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 12, 3), shade, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def asked(*phrases, shade=0, **fields):
    return {"image": base64.b64encode(file_of(shade)).decode(), "prompts": list(phrases), **fields}


def until(condition, seconds=20):
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


@pytest.fixture(scope="module")
def server():
    with running() as found:
        yield found


def test_phrases_are_answered_in_order(server):
    status, headers, answer = server.ask("/v1/segment", asked("the mug", "the cup"))
    assert status == 200
    assert [each["echo"]["text"] for each in answer["prompt_results"]] == ["the mug", "the cup"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in headers


def test_an_image_is_encoded_once_and_asked_again_by_its_id(server):
    _, _, first = server.ask("/v1/segment", asked("the mug", shade=9))
    before = server.segmenter.graphs.count("encode")
    status, _, again = server.ask("/v1/segment", {"image_id": first["image_id"], "prompts": ["the cup"]})
    assert (status, again["image_id"]) == (200, first["image_id"])
    assert server.ask("/v1/segment", asked("the mug", shade=9))[0] == 200
    assert server.segmenter.graphs.count("encode") == before


def test_a_form_is_answered_like_json(server):
    part = b'--B\r\ncontent-disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    body = (
        part % (b"image", b'; filename="a.png"', file_of())
        + part % (b"prompt", b"", b"the mug")
        + b"--B--\r\n"
    )
    status, _, answer = server.ask(
        "/v1/segment", body, headers={"content-type": "multipart/form-data; boundary=B"}.items()
    )
    assert status == 200
    assert answer["prompt_results"][0]["matched"]


def test_less_confidence_than_wanted_is_no_mask(server):
    _, _, answer = server.ask("/v1/segment", asked("the mug", min_confidence=0.9))
    assert answer["prompt_results"][0]["predictions"] == []
    assert "0.75" in answer["prompt_results"][0]["reason"]


def test_a_file_is_sent_as_it_is(server, tmp_path):
    path = tmp_path / "photo.jpg"
    Image.fromarray(np.full((8, 12, 3), 200, np.uint8)).save(path)
    (answer,) = Client(server.url).segment(path, "the mug")
    assert answer.image_id == image_id_of(path.read_bytes())
    with pytest.raises(InputError, match="does not exist"):
        Client(server.url).segment(tmp_path / "none.jpg", "the mug")


def test_freed_memory_is_returned_after_every_job_and_after_one_that_failed():
    tidied = []
    with running(tidy=lambda: tidied.append(1)) as server:
        assert server.ask("/v1/segment", asked("the mug"))[0] == 200
        until(lambda: len(tidied) == 1)
        server.segmenter.fails_with = EngineError("graph unet failed")
        assert server.ask("/v1/segment", asked("the mug"))[0] == 500
        until(lambda: len(tidied) == 2)


def test_the_stages_of_other_threads_are_not_those_of_a_job():
    metrics = Metrics()
    with metrics.stage("latent"):
        pass
    other = threading.Thread(target=_run_stage, args=(metrics, "reading"))
    other.start()
    other.join()
    assert list(metrics.take_stages()) == ["latent"]
    assert metrics.take_stages() == {}
    assert b'refdiff_stage_seconds_count{stage="reading"} 1.0' in metrics.text()


def _run_stage(metrics, name):
    with metrics.stage(name):
        pass


def test_answers_are_streamed_as_events(server):
    client = Client(server.url)
    assert [each.phrase for each in client.stream(file_of(), ["the mug", "the cup"])] == [
        "the mug",
        "the cup",
    ]


def test_the_client_reads_masks_and_sends_an_image_once(server):
    client = Client(server.url)
    (answer,) = client.segment(file_of(77), "the mug")
    assert answer.mask.sum() == 18
    before = server.segmenter.graphs.count("encode")
    assert len(client.segment(file_of(77), ["the cup", "the pen"])) == 2
    assert server.segmenter.graphs.count("encode") == before


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("/v1/segment", {"prompts": ["x"]}, 400, "invalid_request"),
        ("/v1/segment", asked(""), 400, "invalid_request"),
        (
            "/v1/segment",
            {**asked("x"), "image": base64.b64encode(b"no image").decode()},
            400,
            "invalid_request",
        ),
        ("/v1/segment", {"image_id": "unknown", "prompts": ["x"]}, 404, "unknown_image"),
        ("/nowhere", {}, 404, "unknown_path"),
        ("/v1/segment", None, 405, "wrong_method"),
    ],
)
def test_errors_are_json_with_a_kind_and_an_id(server, path, body, status, kind):
    got, headers, answer = server.ask(path, body, headers={"x-request-id": "mine"}.items())
    assert (got, answer["error"]["type"]) == (status, kind)
    assert answer["error"]["request_id"] == headers["x-request-id"] == "mine"
    assert "Traceback" not in str(answer)


def test_another_media_type_is_refused(server):
    assert server.ask("/v1/segment", b"x", headers={"content-type": "text/plain"}.items())[0] == 415


def test_pages_of_other_sites_are_refused(server):
    assert server.ask("/health/live", headers={"origin": "https://evil.example"}.items())[0] == 403
    assert server.ask("/health/live", headers={"origin": server.url}.items())[0] == 200


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000", 200),
        ("[::1]:8000", "http://[::1]:8000", 200),
        ("[::1]", None, 200),
        ("LOCALHOST:1", None, 200),
        ("127.0.0.1:8000", "http://127.0.0.1:9000", 403),
        ("127.0.0.1:8000", "http://127.0.0.1", 403),
        ("127.0.0.1:8000", "null", 403),
        ("127.0.0.1:8000", "", 403),
        ("127.0.0.1:8000", "http://127.0.0.1:8000.evil.example", 403),
        ("127.0.0.1:8000", "http://evil.example/?://127.0.0.1:8000", 403),
        ("[::1]:8000", "http://::1:8000", 403),
        ("[::1", None, 421),
        ("::1", None, 421),
        ("127.0.0.1@evil.example", None, 421),
        ("evil.example@127.0.0.1.evil.example", None, 421),
        ("127.0.0.1.", None, 421),
        ("", "null", 421),
    ],
)
def test_a_host_and_an_origin_of_this_server_are_let_in_and_no_others(local, host, origin, status):
    lines = f"GET /health/live HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
    lines += "" if origin is None else f"Origin: {origin}\r\n"
    assert local.send(f"{lines}\r\n".encode()).startswith(f"HTTP/1.1 {status} ".encode())


@pytest.fixture(scope="module")
def local():
    with running(AppOptions(guard=GuardOptions(hosts=frozenset(LOOPBACK)))) as found:
        yield found


def test_a_page_without_an_origin_is_not_taken_for_one_of_a_server_without_a_name(server):
    answer = server.send(b"GET /health/live HTTP/1.1\r\nHost:\r\nOrigin: null\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 403 ")


def test_the_log_holds_no_query_token_path_or_phrase_and_no_line_of_a_client(server, caplog):
    secret = "secret-0123456789"
    with caplog.at_level("INFO", "refdiff.serve"):
        server.ask(f"/?token={secret}")
        server.ask(f"/v1/demo/{secret}", headers={"authorization": f"Bearer {secret}"}.items())
        server.ask(f"/{secret}%0d%0aX:%20y", headers={"x-request-id": f"{secret} {{}}"}.items())
        status, headers, _ = server.ask("/v1/segment", asked(secret), headers={"x-request-id": "a-1"}.items())
        until(lambda: len(caplog.records) == 4)
    assert (status, headers["x-request-id"]) == (200, "a-1")
    assert secret not in caplog.text
    assert [json.loads(each.getMessage())["status"] for each in caplog.records] == [200, 404, 404, 200]


def test_metrics_count_by_path_and_never_hold_phrases(server):
    server.ask("/v1/segment", asked("the secret phrase"))
    _, _, text = server.ask("/metrics")
    assert b'refdiff_requests_total{path="/v1/segment",status="200"}' in text
    assert b"refdiff_queue_length 0.0" in text
    assert b"secret" not in text


def test_the_api_describes_itself(server):
    _, _, document = server.ask("/openapi.json")
    assert document["openapi"].startswith("3.1")
    properties = document["components"]["schemas"]["SegmentRequest"]["properties"]
    assert {"image", "image_id", "prompts", "format"} <= set(properties)


def test_a_graph_that_fails_is_an_error_of_the_server_and_the_next_request_is_answered(server):
    server.segmenter.fails_with = EngineError("unet failed at /secret/path")
    try:
        status, _, answer = server.ask("/v1/segment", asked("the mug", shade=31))
    finally:
        server.segmenter.fails_with = None
    assert (status, answer["error"]["type"]) == (500, "engine_error")
    assert "secret" not in str(answer)
    assert server.ask("/v1/segment", asked("the mug", shade=31))[0] == 200


def test_a_full_queue_is_refused_with_when_to_try_again():
    with running(most_waiting=1) as server:
        server.segmenter.go.clear()
        threads = [
            threading.Thread(target=server.ask, args=("/v1/segment", asked("the mug", shade=shade)))
            for shade in (1, 2)
        ]
        threads[0].start()
        assert server.segmenter.entered.wait(20)
        threads[1].start()
        until(lambda: server.worker.full)
        status, headers, answer = server.ask("/v1/segment", asked("the mug", shade=3))
        assert (status, answer["error"]["type"]) == (429, "queue_full")
        assert int(headers["retry-after"]) >= 1
        server.segmenter.go.set()
        for thread in threads:
            thread.join(20)


def test_a_client_that_goes_away_cancels_its_job_before_the_next_graph():
    with running() as server:
        server.segmenter.go.clear()
        body = json.dumps(asked("the first", "the second")).encode()
        head = "POST /v1/segment HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        connection = socket.create_connection(("127.0.0.1", server.port))
        connection.sendall(head.encode() + body)
        assert server.segmenter.entered.wait(20)
        connection.close()
        until(lambda: b'reason="client_gone"' in server.ask("/metrics")[2])
        server.segmenter.go.set()
        assert server.ask("/v1/segment", asked("the third"))[0] == 200
        assert "the second" not in server.segmenter.graphs


def test_a_request_that_takes_too_long_is_cancelled():
    with running(AppOptions(request_seconds=0.1)) as server:
        server.segmenter.go.clear()
        status, _, answer = server.ask("/v1/segment", asked("the mug"))
        assert (status, answer["error"]["type"]) == (504, "timeout")


def test_large_and_slow_bodies_are_refused():
    limits = GuardOptions(most_body_bytes=1000, body_seconds=0.2)
    with running(AppOptions(guard=limits)) as server:
        assert server.ask("/v1/segment", b"x" * 1001)[0] == 413
        head = b"POST /v1/segment HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        chunks = b"Transfer-Encoding: chunked\r\n\r\n" + b"400\r\n" + b"x" * 1024 + b"\r\n"
        assert b" 413 " in server.send(head + chunks).splitlines()[0]
        assert b" 408 " in server.send(head + b"Content-Length: 9\r\n\r\nab").splitlines()[0]


@pytest.mark.parametrize("path", ["/v1/segment", "/predict", "/setup", "/v2/models/refdiff/infer"])
def test_other_clients_are_answered_while_a_large_body_is_read(path):
    class Gated(ThreadPoolExecutor):
        def submit(self, call, /, *args, **named):
            entered.set()
            return super().submit(lambda: gate.wait(20) and call(*args, **named))

    entered, gate, answers = threading.Event(), threading.Event(), []
    body = b'{"image": "' + b"A" * (1 << 20)  # no JSON: nothing but reading it is done
    with running() as server, Gated(2) as pool:
        loop = server.server.loop
        loop.call_soon_threadsafe(loop.set_default_executor, pool)
        asking = threading.Thread(target=lambda: answers.append(server.ask(path, body)))
        asking.start()
        assert entered.wait(20)
        assert server.ask("/health/live")[0] == 200
        assert not answers
        gate.set()
        asking.join(20)
    assert answers[0][0] == 400
    assert "not JSON" in json.dumps(answers[0][2])


def test_a_token_is_needed_everywhere_but_for_the_probes():
    token = "0123456789abcdef"
    with running(AppOptions(guard=GuardOptions(token=token))) as server:
        assert server.ask("/v1/segment", asked("the mug"))[0] == 401
        assert server.ask("/metrics")[0] == 401
        assert server.ask("/health/live")[0] == 200
        assert server.ask("/metrics", headers={"authorization": f"Bearer {token}"}.items())[0] == 200
        assert Client(server.url, token=token).segment(file_of(), "the mug")[0].mask is not None
        with pytest.raises(ServerError, match="token"):
            Client(server.url, token="wrong").segment(file_of(), "the mug")


def test_another_name_of_this_address_is_refused():
    with running(AppOptions(guard=GuardOptions(hosts=frozenset({"127.0.0.1"})))) as server:
        assert server.ask("/health/live")[0] == 200
        assert server.ask("/health/live", headers={"host": "evil.example"}.items())[0] == 421


def test_a_stop_answers_what_was_accepted_and_refuses_the_rest():
    with running() as server:
        server.segmenter.go.clear()
        answers = []
        thread = threading.Thread(target=lambda: answers.append(server.ask("/v1/segment", asked("the mug"))))
        thread.start()
        assert server.segmenter.entered.wait(20)
        server.server.handle_exit(15, None)
        until(lambda: server.status.draining)
        assert server.ask("/v1/segment", asked("the cup"))[0] == 503
        assert server.ask("/health/ready")[0] == 503
        server.segmenter.go.set()
        thread.join(20)
        assert answers[0][0] == 200


def test_other_machines_are_let_in_with_a_token_only():
    with pytest.raises(InputError, match="--token"):
        check_address(ServeOptions(host="0.0.0.0"))
    with pytest.raises(InputError, match="16 characters"):
        check_address(ServeOptions(token="short"))
    check_address(ServeOptions(host="0.0.0.0", token="0123456789abcdef"))
    check_address(ServeOptions(host="0.0.0.0", no_token=True))
