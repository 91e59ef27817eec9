"""Replicas on a Ray cluster: their options, one replica by itself, and one of two that is killed."""

import asyncio
import importlib.util
import os
import signal
import socket

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from refdiff.cli import main
from refdiff.contracts.manifest import refdiff_version
from refdiff.contracts.options import BackendOptions, RunOptions
from refdiff.errors import EngineError, InputError
from refdiff.serve.metrics import Metrics
from refdiff.serve.replicas import (
    Replica,
    ReplicaOptions,
    ReplicaSettings,
    _stop_signal,
    _StoppedEarly,
    autoscaling_of,
    serve_on_ray,
)
from refdiff.serve.server import ServeOptions
from tests.support.asking import Asking, Questions, replica_processes, server_process

HAS_RAY = all(importlib.util.find_spec(name) for name in ("ray", "grpc", "fastapi"))


def settings(**changes):
    given = {
        "version": refdiff_version(),
        "bundle": "mini",
        "serving": ServeOptions(),
        "options": RunOptions(),
        "backend": BackendOptions(name="ort-cpu", threads=1),
    }
    return ReplicaSettings(**given | changes)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"replicas": 0}, "got 0 replicas"),
        ({"cpus_per_replica": 0}, "expected 1 or more with CPUs"),
        ({"gpus_per_replica": -1}, "expected 1 or more with CPUs"),
        ({"replicas": 3, "max_replicas": 2}, "at most 2 replicas, expected 3 or more"),
    ],
)
def test_numbers_that_cannot_be_used_are_refused_before_anything_starts(given, message):
    with pytest.raises(InputError, match=message):
        serve_on_ray("mini", ReplicaOptions(address="local", **given))


def test_an_address_for_other_machines_needs_a_token_here_too():
    with pytest.raises(InputError, match="--token"):
        serve_on_ray("mini", ReplicaOptions(address="local"), serving=ServeOptions(host="0.0.0.0"))


def test_a_fixed_number_of_replicas_or_a_range_with_further_fields():
    assert autoscaling_of(ReplicaOptions(address="auto", replicas=2)) == {"num_replicas": 2}
    fields = {"target_ongoing_requests": 4}
    scaled = autoscaling_of(ReplicaOptions(address="auto", replicas=1, max_replicas=3, autoscaling=fields))
    assert scaled == {
        "autoscaling_config": {"min_replicas": 1, "max_replicas": 3, "target_ongoing_requests": 4}
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--replicas", "2"], "--replicas is for replicas on a Ray cluster"),
        (["--max-replicas", "2"], "--max-replicas is for replicas on a Ray cluster"),
        (["--ray", "local", "--autoscaling", "{"], "--autoscaling is not JSON"),
        (["--ray", "local", "--autoscaling", "[1]"], "expected a JSON object"),
    ],
)
def test_options_of_the_command_line_that_do_not_fit(arguments, message, capsys):
    assert main(["serve", "mini", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_signal_interrupts_the_start_of_the_replicas_and_is_waited_for_afterwards():
    with pytest.raises(_StoppedEarly), _stop_signal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        stop.wait(20)
    with _stop_signal() as stop:
        stop.starting = False
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(20)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_node_with_another_version_is_refused_by_name():
    with pytest.raises(InputError, match="install the same version on every node"):
        Replica(settings(version="0.0.1"), "a")


@pytest.mark.slow
def test_a_node_with_another_bundle_is_refused():
    with pytest.raises(InputError):
        Replica(settings(options=RunOptions(expect="0" * 64)), "a")


@pytest.mark.slow
def test_a_replica_answers_drains_and_says_when_its_engines_have_ended():
    replica = Replica(settings(), "replica-1")
    app = replica.__serve_build_asgi_app__()

    async def ask(path):
        sent = []

        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message):
            sent.append(message)

        headers = [(b"host", b"127.0.0.1:8000"), (b"x-request-id", b"from-the-router")]
        scope = {"type": "http", "method": "GET", "path": path, "headers": headers, "query_string": b""}
        await app({**scope, "raw_path": path.encode(), "root_path": "", "http_version": "1.1"}, receive, send)
        return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]

    status, headers, _ = asyncio.run(ask("/health/ready"))
    assert status == 200
    assert b"x-request-id" not in headers  # Ray Serve adds it
    asyncio.run(replica.check_health())
    _, _, text = asyncio.run(ask("/metrics"))
    assert b'replica="replica-1"' in text
    assert asyncio.run(replica.drain()) == 0
    assert asyncio.run(ask("/health/ready"))[0] == 503
    replica.close()
    with pytest.raises(EngineError, match="the thread of the engines has ended"):
        asyncio.run(replica.check_health())


def test_every_value_has_the_name_of_its_replica():
    metrics = Metrics({"replica": "b"})
    metrics.rejected.labels(reason="queue_full").inc()
    values = [line for line in metrics.text().decode().splitlines() if not line.startswith("#")]
    assert values
    assert all('replica="b"' in line for line in values)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_RAY, reason="no Ray Serve: pip install '.[serve-ray]'")
def test_a_replica_that_is_killed_loses_no_request():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    ray = ("--ray", "local", "--replicas", "2", "--cpus-per-replica", "0.5")
    with server_process("mini", "--port", port, "--threads", "1", *ray) as server:
        with Asking(server.url, Questions(2), 3, attempts=20, deadline_s=60) as asking:
            asking.wait_for(lambda outcomes: outcomes["right"] >= 6)
            victim, other = replica_processes(server.process.pid)
            os.kill(victim, signal.SIGKILL)
            before = asking.outcomes["right"]
            asking.wait_for(lambda outcomes: outcomes["right"] >= before + 20)
        assert set(asking.outcomes) == {"right"}, (asking.outcomes, asking.messages)
        assert other in replica_processes(server.process.pid)
        server.process.send_signal(signal.SIGTERM)
        assert server.ended() == 0
