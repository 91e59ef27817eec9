"""Two replicas of the server on a Ray cluster of this machine: kill one under load, then stop them all.

    .venv/bin/python -m benchmarks.serve_ray [--seconds 60] [--clients 6]

* A replica is killed (SIGKILL) while clients without a second attempt ask: every request is answered or has a
  clear error. The same again with clients as they come, which repeat requests: none may fail.
* SIGTERM under load: what the replicas' logs count as answered has to arrive.

The replicas and the clients share the cores of one machine, so that the rates say little about a cluster.
Counts only: it needs no idle machine. Adds an entry to results/serve-ray.json.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import time
from typing import Any

from benchmarks.records import RESULTS, add_entry
from tests.support.asking import Asking, Questions, ServerProcess, replica_processes, server_process

RECORD = RESULTS / "serve-ray.json"


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="of asking around each kill")
    parser.add_argument("--clients", type=int, default=6)
    given = parser.parse_args()
    questions = Questions()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    arguments = ["mini", "--port", port, "--threads", "1"]
    arguments += ["--ray", "local", "--replicas", "2", "--cpus-per-replica", "0.5"]
    started = time.monotonic()
    with server_process(*arguments) as server:
        entry: dict[str, Any] = {
            "replicas": 2,
            "clients": given.clients,
            "seconds_until_ready": round(time.monotonic() - started, 1),
        }
        for name, limits in (
            ("one attempt", {"attempts": 1}),
            ("repeated", {"attempts": 20, "deadline_s": 60}),
        ):
            asking = Asking(server.url, questions, given.clients, **limits)
            entry[f"a replica killed, {name}"] = kill_one(server, asking, given.seconds)
        entry["SIGTERM"] = stop(server, Asking(server.url, questions, given.clients, attempts=1))
    add_entry(RECORD, "mini", entry)


def kill_one(server: ServerProcess, asking: Asking, seconds: float) -> dict[str, Any]:
    """Kill one of the replicas a third of the time after the start."""
    with asking:
        time.sleep(seconds / 3)
        before, victims = asking.outcomes["right"], replica_processes(server.process.pid)
        os.kill(victims[0], signal.SIGKILL)
        killed = time.monotonic()
        while len(set(replica_processes(server.process.pid)) - {victims[0]}) < len(victims):
            time.sleep(0.1)
        back = time.monotonic() - killed
        time.sleep(max(0.0, seconds * 2 / 3 - back))
    return {
        "answered_before": before,
        "outcomes": dict(sorted(asking.outcomes.items())),
        "attempts_repeated": asking.repeated,
        "seconds_until_another_process": round(back, 1),
        "messages": asking.messages[:5],
    }


def stop(server: ServerProcess, asking: Asking) -> dict[str, Any]:
    """Stop the server under load."""
    with asking:
        asking.wait_for(lambda outcomes: outcomes["right"] >= 20)
        server.process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        code = server.ended()
        seconds = time.monotonic() - started
        asking.wait_for(lambda outcomes: outcomes["not reached"] >= 1)
    return {
        "outcomes": dict(sorted(asking.outcomes.items())),
        "seconds_until_exit": round(seconds, 2),
        "exit_code": code,
        "messages": asking.messages[:5],
    }


if __name__ == "__main__":
    main()
