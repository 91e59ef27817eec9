"""Malformed requests: the right status, no traceback, and a server that answers afterwards."""

import pytest

pytest.importorskip("starlette")

from refdiff.serve.app import AppOptions
from refdiff.serve.client import Client
from refdiff.serve.guard import GuardOptions
from refdiff.serve.server import ServeOptions
from tests.support.http_attacks import TOKEN, attacks, picture, status_of
from tests.support.http_server import running

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
