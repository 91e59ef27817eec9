"""Live sessions over real sockets; a segmenter that finds a red disc stands in for the engines."""

import asyncio
import base64
import io
import json
import signal
import socket as sockets
import threading
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image, ImageDraw

pytest.importorskip("starlette")
pytest.importorskip("cv2")
client = pytest.importorskip("websockets.sync.client")

from websockets.exceptions import ConnectionClosed, InvalidStatus

from refdiff.engines.interruption import CancelledError
from refdiff.errors import EngineError
from refdiff.serve.app import AppOptions
from refdiff.serve.guard import TOKEN_PROTOCOL, GuardOptions
from refdiff.serve.live import PROTOCOL, LiveOptions, LiveSessions
from refdiff.serve.live_message import Outbox
from refdiff.serve.metrics import Metrics
from refdiff.serve.server import ServeOptions
from refdiff.serve.service import AnswerService, Status
from refdiff.serve.shared_engines import SharedEngines
from refdiff.serve.worker import EngineWorker
from tests.support.http_server import FakeSegmenter, running
from tests.support.moving_patch import MovingPatch, answer_of, texture

TOKEN = "0123456789abcdef"


class RedFinder(FakeSegmenter):
    """Answers every phrase with the red pixels of the image."""

    def encode(self, image):
        self.run("encode")
        return image

    def segment_each(self, encoded, phrases):
        for phrase in phrases:
            self.run(phrase)
            red = (encoded[..., 0] > 110) & (encoded[..., 1] < 70)
            yield answer_of(red, image=encoded)


def picture(pixels, kind="JPEG", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def clip():
    """Frames as files, and the true mask of the disc in each."""
    look, table = texture(1, (69, 69)), texture(0)
    look[..., 0] = look[..., 0] // 2 + 127
    look[..., 1:] //= 5
    table[..., 1] = table[..., 1] // 2 + 127
    frames, masks = MovingPatch(look=look, table=table).moving(40, step_xy=(2.0, 1.0))
    return [picture(each.pixels, quality=90) for each in frames], masks


@pytest.fixture
def server():
    made = []
    with running(open_segmenter=lambda gap: made.append(RedFinder(gap)) or made[0]) as found:
        found.segmenter = made[0]
        yield found
        made[0].go.set()


def opened(server, **named):
    """Open a socket."""
    url = server.url.replace("http", "ws") + "/v1/live"
    return client.connect(url, compression=None, proxy=None, **named)


def ask(socket, *phrases):
    socket.send(json.dumps({"type": "phrases", "phrases": phrases}))


def next_of(socket, kind):
    """Return the next message of a kind."""
    while True:
        message = json.loads(socket.recv(timeout=20))
        if message["type"] == kind:
            return message


def closed(socket):
    """Read to the end; return code and reason of the close message."""
    with pytest.raises(ConnectionClosed) as error:
        while True:
            socket.recv(timeout=20)
    return error.value.rcvd.code, error.value.rcvd.reason


def drawn(rings, size):
    """Fill rings as the page does; one inside of another is a hole."""
    mask = np.zeros(size[::-1], bool)
    for ring in rings:
        image = Image.new("1", size)
        points = [tuple(point) for point in ring]
        (ImageDraw.Draw(image).polygon if len(points) > 1 else ImageDraw.Draw(image).point)(points, fill=1)
        mask ^= np.asarray(image)
    return mask


def overlap(one, other):
    return (one & other).sum() / (one | other).sum()


@pytest.mark.slow
def test_every_mask_is_one_of_the_frame_that_its_result_names(server, clip):
    frames, masks = clip
    states = set()
    with opened(server) as socket:
        assert next_of(socket, "hello")["most_phrases"] == 6
        ask(socket, "the disc")
        for number, frame in enumerate(frames):
            socket.send(frame)
            result = next_of(socket, "result")
            assert result["frame"] == number
            (target,) = result["targets"]
            states.add(target["state"])
            if target["masks"] is not None:
                assert overlap(drawn(target["masks"], result["size"]), masks[number]) > 0.8
    assert states >= {"searching", "tracked"}


def test_phrases_change_while_the_session_runs(server, clip):
    with opened(server) as socket:
        ask(socket, "the disc")
        socket.send(clip[0][0])
        assert [each["phrase"] for each in next_of(socket, "result")["targets"]] == ["the disc"]
        ask(socket, "the disc", "the plate")
        ask(socket, "the plate", "the plate")
        assert "twice" in next_of(socket, "error")["message"]
        socket.send(clip[0][1])
        result = next_of(socket, "result")
        assert [each["phrase"] for each in result["targets"]] == ["the disc", "the plate"]
        assert [each["phrase"] for each in result["events"] if each["kind"] == "phrase"] == ["the plate"]


@pytest.mark.parametrize("phrases", [("",), ("the disc", "the disc"), tuple("abcdefg")])
def test_phrases_that_cannot_be_used_are_refused_and_the_session_goes_on(server, clip, phrases):
    with opened(server) as socket:
        ask(socket, *phrases)
        assert next_of(socket, "error")["message"].startswith("got")
        ask(socket, "the disc")
        socket.send(clip[0][0])
        assert next_of(socket, "result")["frame"] == 0


def test_without_a_phrase_frames_are_taken_and_nothing_runs(server, clip):
    with opened(server) as socket:
        ask(socket, "the disc")
        socket.send(clip[0][0])
        next_of(socket, "result")
        ask(socket)
        ask(socket, "the disc", "the disc")
        next_of(socket, "error")  # so the text before it has been read
        socket.send(clip[0][1])
        assert next_of(socket, "taken")["frame"] == 1
        ask(socket, "the plate")
        socket.send(clip[0][2])
        assert [each["phrase"] for each in next_of(socket, "result")["targets"]] == ["the plate"]


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (b"", "no picture"),
        (b"\xff\xd8\xff\xe0 not a JPEG", "no picture"),
        (b"GIF89a" + bytes(40), "no picture"),
        (picture(np.zeros((30, 40, 3), np.uint8))[:-4], "damaged"),
        (picture(np.zeros((4000, 4000), np.uint8), "PNG"), "4000x4000 px"),
    ],
    ids=["empty", "text", "GIF", "cut", "bomb"],
)
def test_a_frame_that_cannot_be_used_is_said_and_the_session_goes_on(server, clip, frame, said):
    with opened(server) as socket:
        ask(socket, "the disc")
        socket.send(frame)
        assert said in next_of(socket, "error")["message"]
        socket.send(clip[0][0])
        assert next_of(socket, "result")["frame"] == 1


def test_a_client_that_only_sends_garbage_is_closed(server):
    with opened(server) as socket:
        ask(socket, "the disc")
        for number in range(20):
            socket.send(b"garbage")
            assert next_of(socket, "taken")["frame"] == number
        assert closed(socket) == (1007, "20 frames in a row cannot be decoded")


@pytest.mark.parametrize(
    "text",
    ["garbage", "[]", '{"type": "phrases"}', '{"type": "phrases", "phrases": [1]}', "[" * 60_000],
    ids=["text", "list", "nothing", "number", "deep"],
)
def test_another_text_than_phrases_ends_the_session(server, text):
    with opened(server) as socket:
        socket.send(text)
        assert closed(socket)[0] == 1007


def test_a_frame_of_too_many_bytes_ends_the_session(server):
    with opened(server) as socket:
        socket.send(bytes((2 << 20) + 1))
        assert closed(socket)[0] == 1009


def test_a_message_that_is_much_too_large_is_not_read_to_its_end(server):
    with opened(server) as socket, pytest.raises(ConnectionClosed):
        socket.send([bytes(1 << 20)] * 100)


HANDSHAKE = (
    b"GET /v1/live HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
MASK = bytes(4)
BROKEN = {
    "unmasked": b"\x82\x05hello",
    "reserved bit": b"\xc2\x80" + MASK,
    "reserved kind": b"\x83\x80" + MASK,
    "ping in parts": b"\x09\x80" + MASK,
    "no begin": b"\x80\x80" + MASK,
    "no UTF-8": b"\x81\x82" + MASK + b"\xc3\x28",
    "exabytes": b"\x82\xff\x7f" + bytes(6) + b"\x01" + MASK,
}


@pytest.mark.parametrize("sent", BROKEN.values(), ids=BROKEN)
def test_a_broken_message_closes_the_socket_and_the_next_session_works(guardless, sent):
    with sockets.create_connection(("127.0.0.1", guardless.port), timeout=5) as connection:
        connection.sendall(HANDSHAKE)
        head = connection.recv(65536)
        assert head.startswith(b"HTTP/1.1 101 ")
        connection.sendall(sent)
        with suppress(ConnectionResetError):
            while connection.recv(65536):
                pass
    assert first_of(guardless)["type"] == "hello"


@pytest.fixture(scope="module")
def guardless():
    with running() as found:
        yield found


def first_of(server):
    """Open a session as soon as the place of the one before is free; return its first message."""
    for _ in range(200):
        with opened(server) as socket, suppress(ConnectionClosed):
            return json.loads(socket.recv(timeout=20))
    return pytest.fail("the place of the session before was not given back")


def test_a_second_session_is_refused_until_the_first_has_left(server):
    with opened(server) as first:
        next_of(first, "hello")
        with opened(server) as second:
            assert closed(second) == (1013, "another live session is running; try again later")
    assert first_of(server)["type"] == "hello"


def test_a_client_that_leaves_in_the_middle_of_a_key_frame_stops_its_work(server, clip):
    server.segmenter.go.clear()
    with opened(server) as socket:
        ask(socket, "the disc")
        socket.send(clip[0][0])
        assert server.segmenter.entered.wait(20)
    names = {"refdiff-key", "refdiff-track", "refdiff-live"}
    left = [each for each in threading.enumerate() if each.name in names]
    for each in left:
        each.join(20)
    assert not any(each.is_alive() for each in left)
    server.segmenter.go.set()
    status, _, _ = server.ask("/metrics")
    assert status == 200
    assert server.worker.waiting == 0
    assert "the disc" not in server.segmenter.graphs


def test_a_session_ends_when_no_frame_comes_and_not_before_as_a_connection_without_a_request():
    options = AppOptions(live=LiveOptions(idle_seconds=0.6))
    with running(options, serving=ServeOptions(head_seconds=0.1)) as server, opened(server) as socket:
        assert closed(socket) == (1008, "no frame came within 0.6 s")


def test_a_stopping_server_closes_the_session_with_going_away(server, clip):
    with opened(server) as socket:
        ask(socket, "the disc")
        socket.send(clip[0][0])
        next_of(socket, "result")
        server.server.handle_exit(signal.SIGTERM, None)
        assert closed(socket) == (1001, "the server is stopping")


@pytest.mark.parametrize(
    ("status", "named"),
    [
        (401, {}),
        (401, {"subprotocols": [PROTOCOL]}),
        (401, {"subprotocols": [PROTOCOL, TOKEN_PROTOCOL + "d3Jvbmc"]}),
        (401, {"subprotocols": [PROTOCOL, TOKEN_PROTOCOL + "_"]}),
        (401, {"additional_headers": {"Authorization": "Bearer wrong"}}),
        (403, {"origin": "https://evil.example", "additional_headers": {"Authorization": f"Bearer {TOKEN}"}}),
        (403, {"origin": "null", "additional_headers": {"Authorization": f"Bearer {TOKEN}"}}),
        (403, {"origin": "http://127.0.0.1:1", "additional_headers": {"Authorization": f"Bearer {TOKEN}"}}),
    ],
)
def test_a_socket_without_the_token_or_of_another_site_is_refused(guarded, status, named):
    with pytest.raises(InvalidStatus) as error:
        opened(guarded, **named)
    assert error.value.response.status_code == status
    assert json.loads(error.value.response.body)["error"]["type"] in ("unauthorized", "foreign_origin")


def test_a_name_that_points_here_opens_no_socket(guarded):
    url = f"ws://rebound.example:{guarded.port}/v1/live"
    with (
        sockets.create_connection(("127.0.0.1", guarded.port)) as connection,
        pytest.raises(InvalidStatus) as error,
    ):
        client.connect(url, sock=connection, additional_headers={"Authorization": f"Bearer {TOKEN}"})
    assert error.value.response.status_code == 421


def test_no_other_path_is_a_socket(guarded):
    url = guarded.url.replace("http", "ws")
    for path in ("/", "/v1/segment", "/static/app.js"):
        with pytest.raises(InvalidStatus) as error:
            client.connect(url + path, proxy=None, additional_headers={"Authorization": f"Bearer {TOKEN}"})
        assert error.value.response.status_code == 403


def test_the_page_opens_a_socket_with_the_token_as_a_subprotocol(guarded):
    token = base64.urlsafe_b64encode(TOKEN.encode()).decode().rstrip("=")
    with opened(guarded, origin=guarded.url, subprotocols=[PROTOCOL, TOKEN_PROTOCOL + token]) as socket:
        assert socket.subprotocol == PROTOCOL
        assert next_of(socket, "hello")["frames_per_second"] == 15


@pytest.fixture(scope="module")
def guarded():
    guard = GuardOptions(token=TOKEN, hosts=frozenset({"127.0.0.1"}))
    with running(AppOptions(guard=guard)) as found:
        yield found


def test_a_client_that_does_not_read_gets_the_newest_result_and_is_closed_in_the_end():
    async def use():
        worker = EngineWorker(FakeSegmenter)
        worker.start()
        service = AnswerService(worker, Metrics(), Status(tested=True))
        socket = StuckSocket()
        await asyncio.wait_for(LiveSessions(service, LiveOptions(idle_seconds=0.1)).serve(socket), 20)
        worker.close()
        return socket.closed

    assert asyncio.run(use())[0] == 1008


class StuckSocket:
    """A connection whose other side takes nothing."""

    scope = {"subprotocols": ()}  # noqa: RUF012 - read only

    async def accept(self, subprotocol):
        assert subprotocol is None

    async def receive(self):
        await asyncio.Event().wait()

    async def send_text(self, text):
        await asyncio.Event().wait()

    async def close(self, code, reason):
        self.closed = code, reason


def test_results_that_wait_are_replaced_and_their_events_are_kept():
    async def use():
        outbox = Outbox(asyncio.get_running_loop())
        for number in range(1000):
            outbox.take_note(number)
            outbox.note({"type": "error", "message": str(number)})
            outbox.put_result({"type": "result", "frame": number, "events": [number]})
        return [json.loads(each) for each in await outbox.next()]

    messages = asyncio.run(use())
    assert messages[0] == {"type": "taken", "frame": 999}
    assert len(messages) == 34
    assert messages[-1] == {"type": "result", "frame": 999, "events": list(range(968, 1000))}


def job_of(engines, found, pixels=None):
    """Answer a frame in a thread of its own, as the key lane does."""

    def work():
        try:
            found.extend(answer.phrase for answer in engines.segment_each(np.zeros((8, 12, 3)), ["live"]))
        except (CancelledError, EngineError) as error:
            found.append(type(error))

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_requests_and_sessions_take_turns_and_a_full_queue_keeps_no_session_out(server):
    held, found = server.segmenter, []
    held.go.clear()
    image = base64.b64encode(picture(np.zeros((8, 12, 3), np.uint8), "PNG")).decode()
    asking = [
        threading.Thread(
            target=server.ask, args=("/v1/segment", {"image": image, "prompts": [f"request {number}"]})
        )
        for number in range(3)
    ]
    asking[0].start()
    assert held.entered.wait(20)
    for number, each in enumerate(asking[1:], start=1):
        each.start()
        wait_until(lambda number=number: server.worker.waiting == number)
    assert server.worker.full
    live = job_of(SharedEngines(server.worker, lambda _: None), found)
    wait_until(lambda: server.worker.waiting == 3)
    held.go.set()
    for each in (*asking, live):
        each.join(20)
    assert found == ["the disc"]
    assert [each for each in held.graphs if each != "encode"] == [
        "request 0",
        "request 1",
        "request 2",
        "live",
    ]


def test_a_key_frame_of_no_use_leaves_the_queue_at_once(server):
    held, found, useless = server.segmenter, [], threading.Event()

    def gap(_):
        if useless.is_set():
            raise CancelledError

    held.go.clear()
    first = job_of(SharedEngines(server.worker, lambda _: None), [])
    assert held.entered.wait(20)
    second = job_of(SharedEngines(server.worker, gap), found)
    wait_until(lambda: server.worker.waiting == 1)
    useless.set()
    second.join(20)
    assert found == [CancelledError]
    assert server.worker.waiting == 0
    held.go.set()
    first.join(20)


def test_a_failing_engine_ends_the_session_with_a_reason(server, clip):
    server.segmenter.fails_with = EngineError("the plan is broken")
    with opened(server) as socket:
        ask(socket, "the disc")
        with pytest.raises(ConnectionClosed) as error:
            for frame in clip[0] * 20:
                socket.send(frame)
                next_of(socket, "taken")
    assert error.value.rcvd.code == 1011
    assert "the plan is broken" in error.value.rcvd.reason
    server.segmenter.fails_with = None


def wait_until(true):
    for _ in range(4000):
        if true():
            return
        threading.Event().wait(0.005)
    pytest.fail("it did not come true")
