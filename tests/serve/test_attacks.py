"""Malformed requests: the right status, no traceback, and a server that answers afterwards."""

import pytest

pytest.importorskip("starlette")
pytest.importorskip("cv2")

from refdiff.serve.app import AppOptions
from refdiff.serve.client import Client
from refdiff.serve.guard import GuardOptions
from refdiff.serve.server import ServeOptions
from tests.support.http_attacks import TOKEN, attacks, picture, status_of
from tests.support.http_server import running
from tests.support.socket_attacks import GOOD, SocketAttack, attack, socket_attacks

LIMITS = GuardOptions(token=TOKEN, hosts=frozenset({"127.0.0.1"}), most_body_bytes=8 << 20, body_seconds=0.3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning", "ignore:Corrupt EXIF")
def test_no_attack_gets_a_wrong_status_or_a_traceback():
    wrong, all_attacks = [], list(attacks(fuzzed=60))
    with running(AppOptions(guard=LIMITS), serving=ServeOptions(head_seconds=0.3)) as server:
        for attack in all_attacks:
            try:
                answer = server.send(attack.data)
            except (ConnectionResetError, BrokenPipeError):
                answer = b""
            if status_of(answer) not in attack.right or b"Traceback" in answer:
                wrong.append((attack.kind, attack.name, answer[:200]))
        (after,) = Client(server.url, token=TOKEN).segment(picture(), "the mug")
    assert wrong == []
    assert len(all_attacks) >= 300
    assert after.mask is not None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_no_live_session_ends_in_a_wrong_way_and_a_good_one_works_afterwards():
    wrong = []
    with running(AppOptions(guard=LIMITS)) as server:
        for sent in (
            *socket_attacks(fuzzed=20),
            SocketAttack(name="good", data=GOOD, right=frozenset({1000})),
        ):
            outcome, answer = attack(("127.0.0.1", server.port), sent)
            if not (sent.abrupt or outcome in sent.right) or b"Traceback" in answer:
                wrong.append((sent.name, outcome, answer[-200:]))
    assert wrong == []
