"""Stop `refdiff serve` under load, and kill it again and again while clients ask.

    .venv/bin/python -m benchmarks.serve_stop [--stops 5] [--seconds 60] [--kills 5] [--clients 8]

* SIGTERM: clients without a second attempt ask from this process. What the server's log counts as answered
  has to arrive, and everything else is refused: 503, 429, or no connection.
* SIGKILL: the server is killed and started again while clients ask with attempts and a deadline. Every
  request has to be answered, with the mask that the pipeline gives.

Counts only: it needs no idle machine. Adds entries to results/serve-stop.json.
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import time
from collections import Counter
from typing import Any

from benchmarks.records import RESULTS, add_entry
from tests.support.asking import Asking, Questions, server_process

RECORD = RESULTS / "serve-stop.json"


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--stops", type=int, default=5, help="times that the server is stopped")
    parser.add_argument("--seconds", type=float, default=60, help="of asking while the server is killed")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--clients", type=int, default=8)
    given = parser.parse_args()
    questions = Questions()
    stops = [stopped(questions, given.clients) for _ in range(given.stops)]
    add_entry(RECORD, "SIGTERM", {"clients": given.clients, "stops": stops})
    add_entry(RECORD, "SIGKILL", killed(questions, given.clients, given.seconds, given.kills))


def stopped(questions: Questions, clients: int) -> dict[str, Any]:
    """Stop a server under load; count what its clients got and what its log says."""
    with (
        server_process("mini", "--port", "0", "--threads", "1") as server,
        Asking(server.url, questions, clients, attempts=1) as asking,
    ):
        asking.wait_for(lambda outcomes: outcomes["right"] >= 3 * clients)
        server.process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        code = server.ended()
        seconds = time.monotonic() - started
        asking.wait_for(lambda outcomes: outcomes["not reached"] >= clients)
    log = Counter(
        line["status"]
        for line in (json.loads(text) for text in server.log if text.startswith("{"))
        if line["path"] == "/v1/segment"
    )
    return {
        "outcomes": dict(sorted(asking.outcomes.items())),
        "answered_by_log": log[200],
        "answered_but_not_received": log[200] - asking.outcomes["right"] - asking.outcomes["wrong"],
        "seconds_until_exit": round(seconds, 2),
        "exit_code": code,
    }


def killed(questions: Questions, clients: int, seconds: float, kills: int) -> dict[str, Any]:
    """Kill a server so many times while clients ask, and start it again at the same address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    arguments = ("mini", "--port", port, "--threads", "1")
    ends, asking, lived = time.monotonic() + seconds, None, []
    for left in range(kills, -1, -1):
        with server_process(*arguments) as server:
            if asking is None:
                asking = Asking(server.url, questions, clients, attempts=100, deadline_s=60)
                asking.__enter__()
            started = time.monotonic()
            time.sleep(max(0.5, (ends - time.monotonic()) / (left + 1)))
            if not left:
                asking.__exit__()
            lived.append(round(time.monotonic() - started, 1))
            server.process.kill()
    assert asking is not None  # noqa: S101 - there was a server
    return {
        "clients": clients,
        "kills": kills,
        "seconds_between_kills": lived,
        "outcomes": dict(sorted(asking.outcomes.items())),
        "attempts_repeated": asking.repeated,
        "messages": asking.messages[:5],
    }


if __name__ == "__main__":
    main()
