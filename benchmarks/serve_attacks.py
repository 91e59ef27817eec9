"""Send malformed requests to `refdiff serve` for a while: statuses, time-outs, and the server's memory.

    .venv/bin/python -m benchmarks.serve_attacks [--rounds 10] [--fuzzed 500] [--seed 0]

A round sends every attack of tests/support/http_attacks.py, with damaged copies of good requests drawn from
the seed and the number of the round, then those of tests/support/socket_attacks.py, one live session after
the other; the first round only fills caches. Wrong statuses, tracebacks in answers and answers that do not
come are counted. At the end a second session is opened while one is open, and connections send their head a
byte at a time: the server has to refuse the one, to close the others, and to answer a good request meanwhile.
Counts and memory only: it needs no idle machine. Adds an entry to results/serve-attacks.json.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.records import RESULTS, add_entry
from benchmarks.serve_load import resident, server
from refdiff.data.synthetic import demo_samples
from refdiff.runtime.image import png
from refdiff.serve.client import Client
from tests.support.http_attacks import TOKEN, Attack, attacks, status_of
from tests.support.socket_attacks import BUSY, SocketAttack, attack, opening, outcome_of, socket_attacks

RECORD = RESULTS / "serve-attacks.json"
LIMITS = ("--token", TOKEN, "--timeout", "60", "--max-body", "8", "--cache", "64")
AT_ONCE = 16
LONGEST_S = 60.0
SLOW = 100
"""Connections that send their head a byte at a time."""


def main() -> None:
    """Attack and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="after one that fills caches")
    parser.add_argument("--fuzzed", type=int, default=500, help="damaged copies of good requests, each round")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with server("mini", *LIMITS) as (url, process):
        entry = {"rounds": given.rounds, "seed": given.seed} | attacked(url, process, given)
    add_entry(RECORD, "mini", entry | {"exit_code_after_sigterm": process.returncode})


@dataclass
class Found:
    """What the attacks of all rounds got."""

    sent: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    sessions: Counter[str] = field(default_factory=Counter)
    """How live sessions ended: codes of the server's close messages, and statuses of refused openings."""
    wrong: list[str] = field(default_factory=list)
    tracebacks: int = 0
    unanswered: int = 0
    slowest_s: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, url: str, malformed: Attack) -> None:
        """Send one attack and note what comes back."""
        started = time.monotonic()
        try:
            answer, late = exchange(url, malformed.data), False
        except TimeoutError:
            answer, late = b"", True
        status = status_of(answer)
        with self.lock:
            self.sent[malformed.kind] += 1
            self.statuses["no answer in time" if late else str(status or "closed")] += 1
            self.unanswered += late
            self.tracebacks += b"Traceback" in answer
            self.slowest_s = max(self.slowest_s, time.monotonic() - started)
            if not late and status not in malformed.right:
                self.wrong.append(f"{malformed.kind}, {malformed.name}: {answer[:200]!r}")

    def open(self, url: str, sent: SocketAttack) -> None:
        """Open one live session and note how it ends."""
        started = time.monotonic()
        try:
            outcome, answer = attack(where(url), sent, LONGEST_S)
            late = False
        except TimeoutError:
            outcome, answer, late = 0, b"", True
        self.sent[sent.kind] += 1
        self.sessions["cut" if sent.abrupt else "no end in time" if late else str(outcome or "closed")] += 1
        self.unanswered += late
        self.tracebacks += b"Traceback" in answer
        self.slowest_s = max(self.slowest_s, time.monotonic() - started)
        if not (late or sent.abrupt or outcome in sent.right):
            self.wrong.append(f"{sent.kind}, {sent.name}: {answer[-200:]!r}")


def attacked(url: str, process: subprocess.Popen[str], given: argparse.Namespace) -> dict[str, Any]:
    """Run all rounds and return the counts."""
    found, memory, descriptors = Found(), [], []
    for number in range(given.rounds + 1):
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for malformed in attacks(given.seed + number, fuzzed=given.fuzzed):
                pool.submit(found.send, url, malformed)
        for each in socket_attacks(given.seed + number, fuzzed=given.fuzzed // 10):
            found.open(url, each)
        memory.append(round(resident(process.pid) / 1e6, 1))
        descriptors.append(len(list(Path(f"/proc/{process.pid}/fd").iterdir())))
    closed = slow_heads(url)
    return {
        "requests": sum(found.sent.values()),
        "by_kind": dict(sorted(found.sent.items())),
        "statuses": dict(sorted(found.statuses.items())),
        "live_sessions": dict(sorted(found.sessions.items())),
        "second_session_refused": second_session(url),
        "wrong_status": found.wrong[:20],
        "tracebacks": found.tracebacks,
        "no_answer_in_time": found.unanswered,
        "slowest_s": round(found.slowest_s, 1),
        "memory_mb_after_each_round": memory,
        "open_files_after_each_round": descriptors,
        "slow_heads": closed,
        "good_request_afterwards": answers_well(url),
    }


def exchange(url: str, data: bytes) -> bytes:
    """Send bytes; return what comes back until the server closes.

    Raises:
        TimeoutError: it does not close within the longest time.
    """
    parts: list[bytes] = []
    ends = time.monotonic() + LONGEST_S
    with socket.create_connection(where(url), timeout=LONGEST_S) as connection:
        try:
            connection.sendall(data)
            while part := connection.recv(65536):
                parts.append(part)
                connection.settimeout(max(0.001, ends - time.monotonic()))
        except (ConnectionResetError, BrokenPipeError):
            pass
    return b"".join(parts)


def where(url: str) -> tuple[str, int]:
    """Return host and port of an address."""
    address = urlsplit(url)
    return address.hostname or "", address.port or 0


def second_session(url: str) -> bool:
    """Return whether a second live session is refused while one sends a frame a byte at a time."""
    with socket.create_connection(where(url), timeout=LONGEST_S) as first:
        first.sendall(opening())
        first.recv(65536)
        for byte in b"\x82\xfe\x40\x00":
            first.sendall(bytes([byte]))
            with socket.create_connection(where(url), timeout=LONGEST_S) as second:
                second.sendall(opening())
                answer = b""
                while not outcome_of(answer) and (part := second.recv(65536)):
                    answer += part
                if outcome_of(answer) != BUSY:
                    return False
    return True


def slow_heads(url: str) -> dict[str, Any]:
    """Hold connections open by a byte a second; return when the server has closed them."""
    head = b"POST /v1/segment HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 1000
    held = [socket.create_connection(where(url), timeout=1) for _ in range(SLOW)]
    started, good, at = time.monotonic(), False, 0
    while held and time.monotonic() < started + LONGEST_S:
        held = [each for each in held if _still_open(each, head[at : at + 1])]
        at += 1
        good = good or answers_well(url)
        time.sleep(1)
    seconds = time.monotonic() - started
    for each in held:
        each.close()
    return {
        "connections": SLOW,
        "left_open": len(held),
        "seconds_until_closed": round(seconds, 1),
        "good_request_meanwhile": good,
    }


def _still_open(connection: socket.socket, byte: bytes) -> bool:
    try:
        connection.settimeout(1)
        connection.sendall(byte)
        connection.settimeout(0)
        if connection.recv(1000) == b"":
            raise ConnectionResetError
    except BlockingIOError:
        return True
    except OSError:
        connection.close()
        return False
    return True


def answers_well(url: str) -> bool:
    """Return whether a good request gets a mask."""
    sample = demo_samples()[0]
    (answer,) = Client(url, token=TOKEN).segment(png(sample.read()), sample.phrase)
    return answer.mask is not None


if __name__ == "__main__":
    main()
