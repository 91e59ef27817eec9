"""The server as replicas on a Ray cluster: Ray Serve listens, and gives each request to one of them.

Every replica is the whole application with engines, queue and cache of its own, and is tested before it gets
requests. Requests with the same X-Session-Id go to the same replica as long as that one has room, so that an
image is encoded once; another one answers that it does not know the image, and clients send it again.
"""

from __future__ import annotations

import importlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from refdiff.batch.distributed import ON_PROCESSORS, connected, find_room, import_ray
from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.manifest import refdiff_version
from refdiff.contracts.options import DEFAULT_BACKEND, DEFAULT_RUN, BackendOptions, RunOptions
from refdiff.contracts.progress import Progress, silent
from refdiff.errors import EngineError, InputError
from refdiff.loading import open_backend
from refdiff.serve.app import create_app
from refdiff.serve.guard import App, Message, Receive, Scope, Send
from refdiff.serve.metrics import Metrics
from refdiff.serve.server import (
    ServeOptions,
    app_options,
    check_address,
    listen,
    logging_requests,
    open_worker,
)
from refdiff.serve.service import Status

_NAME = "refdiff"
"""The application in Ray Serve: a later start takes the place of an earlier one without a gap."""
_ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
_STARTS = 3  # attempts to start a replica before the start counts as failed


@dataclass(frozen=True, kw_only=True)
class ReplicaOptions:
    """The cluster, and the replicas on it."""

    address: str
    """"local" for a cluster of this machine alone, which ends with the server; "auto" for the one that this
    machine is in; or its "host:port"."""
    replicas: int = 1
    max_replicas: int | None = None
    """Let Ray Serve start up to so many where requests wait; None: as many as `replicas`."""
    cpus_per_replica: float = 1.0
    """Cores that a replica reserves; its engines have as many threads, and at least one."""
    gpus_per_replica: float | None = None
    """GPUs that a replica reserves, such as 0.5; None: one, or none where the back-end runs on processors."""
    autoscaling: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of Ray Serve's AutoscalingConfig, such as {"target_ongoing_requests": 4}."""


@dataclass(frozen=True, kw_only=True)
class ReplicaSettings:
    """What a replica is made of; sent to it."""

    version: str
    """Of refdiff, which every node needs."""
    bundle: str
    """The bundle's path on every node, or "mini"."""
    serving: ServeOptions
    options: RunOptions
    backend: BackendOptions


class Replica:
    """One replica, as Ray Serve runs it: the application, and what the cluster asks of it.

    Args:
        settings: the same for all of them.
        name: of this one, for metrics.

    Raises:
        InputError: this node has another version of refdiff, or another bundle.
        EngineError: the self-test failed.
    """

    def __init__(self, settings: ReplicaSettings, name: str | None = None) -> None:
        with ExitStack() as started:
            started.enter_context(logging_requests())
            if refdiff_version() != settings.version:
                raise InputError(
                    f"got refdiff {refdiff_version()} on node {socket.gethostname()}, "
                    f"expected {settings.version}: install the same version on every node"
                )
            serving, metrics = settings.serving, Metrics({"replica": name or _replica_name()})
            self._worker = open_worker(
                settings.bundle, serving, settings.options, settings.backend, metrics, silent
            )
            started.callback(self._worker.close)
            self._status = Status(tested=True)
            self._app = create_app(
                self._worker, options=app_options(serving), metrics=metrics, status=self._status
            )
            self._started = started.pop_all()

    def __serve_build_asgi_app__(self) -> App:
        """Return the application; Ray Serve adds the request's id to its answers itself."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_without_id(message: Message) -> None:
                if message["type"] == "http.response.start":
                    headers = [each for each in message.get("headers", ()) if each[0] != b"x-request-id"]
                    message = {**message, "headers": headers}
                await send(message)

            await self._app(scope, receive, send_without_id)

        return app

    async def check_health(self) -> None:
        """Fail once the engines cannot answer any more: Ray Serve then starts another replica.

        Raises:
            EngineError: their thread has ended.
        """
        if not self._worker.alive:
            raise EngineError("the thread of the engines has ended; the log of the replica has the reason")

    async def drain(self) -> int:
        """Refuse new requests with 503, and return how many are still answered."""
        self._status.draining = True
        return self._app.running

    def close(self) -> None:
        """End the thread and free the engines; calling it twice is fine."""
        if hasattr(self, "_started"):
            self._started.close()

    def __del__(self) -> None:
        """Close: Ray Serve calls it when it stops a replica."""
        self.close()


def serve_on_ray(
    bundle: Path | str,
    where: ReplicaOptions,
    *,
    serving: ServeOptions | None = None,
    options: RunOptions = DEFAULT_RUN,
    backend: BackendOptions = DEFAULT_BACKEND,
    progress: Progress | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve a bundle from replicas on a Ray cluster until SIGTERM or SIGINT.

    Args:
        bundle: its folder, at the same path on every node, or "mini" for the built-in one.
        where: the cluster and the replicas.
        serving: address, and limits of each replica.
        options: what is computed.
        backend: where and how the graphs run; "auto" is what this machine has.
        progress: called with one line at each step.
        on_ready: called with the server's address once requests are answered.

    Raises:
        InputError: there is no such cluster or no room in it, an address for other machines without a
            token, a port that is in use, or options that cannot be used.
        MissingDependencyError: a package of the extra is not installed.
        EngineError: the replicas cannot be started.
        RefdiffError: the bundle cannot be loaded.
    """
    serving, progress = serving or ServeOptions(), progress or silent
    check_address(serving)
    scale = autoscaling_of(where)
    settings = _settings(bundle, where, serving, options, backend)
    ray = import_ray("ray.serve", "serve-ray")
    with connected(ray, where.address):
        find_room(ray, _needs(where, settings), where.replicas, where.address)
        address = _listen_on_ray(ray, where, settings)
        progress("starting the replicas, each tests the bundle")
        with _stop_signal() as stop:
            try:
                handle = _deploy(ray, where, settings, scale)
                stop.starting = False
                if on_ready is not None:
                    on_ready(address)
                stop.wait()
                _drain(handle, serving.grace_seconds)
            except _StoppedEarly:
                progress("stopped while the replicas were starting")
            finally:
                _remove(ray)


def autoscaling_of(where: ReplicaOptions) -> dict[str, Any]:
    """Return how many replicas there are, as arguments of Ray Serve's deployment.

    Raises:
        InputError: numbers that cannot be used.
    """
    if where.replicas < 1 or where.cpus_per_replica <= 0 or (where.gpus_per_replica or 0) < 0:
        size = f"{where.cpus_per_replica:g} CPUs and {where.gpus_per_replica or 0:g} GPUs"
        raise InputError(f"got {where.replicas} replicas of {size}, expected 1 or more with CPUs")
    most = where.replicas if where.max_replicas is None else where.max_replicas
    if most < where.replicas:
        raise InputError(f"got at most {most} replicas, expected {where.replicas} or more")
    if most == where.replicas and not where.autoscaling:
        return {"num_replicas": where.replicas}
    limits = {"min_replicas": where.replicas, "max_replicas": most}
    return {"autoscaling_config": {**limits, **where.autoscaling}}


def _settings(
    bundle: Path | str,
    where: ReplicaOptions,
    serving: ServeOptions,
    options: RunOptions,
    backend: BackendOptions,
) -> ReplicaSettings:
    """Return what all replicas are made of: the bundle of this machine, and the back-end that it chooses."""
    found = find_bundle(bundle, expect=options.expect)
    sessions = open_backend(found, backend)
    sessions.close()
    return ReplicaSettings(
        version=refdiff_version(),
        bundle=str(bundle) if bundle == "mini" else str(Path(bundle).absolute()),
        serving=serving,
        options=replace(options, expect=found.manifest.sha256),
        backend=replace(
            backend, name=sessions.backend, threads=backend.threads or max(1, int(where.cpus_per_replica))
        ),
    )


def _needs(where: ReplicaOptions, settings: ReplicaSettings) -> dict[str, float]:
    gpus = where.gpus_per_replica
    if gpus is None:
        gpus = 0.0 if settings.backend.name in ON_PROCESSORS else 1.0
    return {"CPU": where.cpus_per_replica} | ({"GPU": gpus} if gpus else {})


def _listen_on_ray(ray: Any, where: ReplicaOptions, settings: ReplicaSettings) -> str:
    """Start Ray Serve unless the cluster has it, and return the address at which it listens.

    Raises:
        InputError: the port is in use, or Ray Serve listens at another address.
    """
    wanted = settings.serving
    with listen(wanted) if where.address == "local" else listen(replace(wanted, port=0)) as probe:
        port = wanted.port or probe.getsockname()[1]
    seconds = wanted.request_seconds + app_options(wanted).guard.body_seconds
    ray.serve.start(
        proxy_location="HeadOnly" if where.address == "local" else "EveryNode",
        http_options={"host": wanted.host, "port": port, "request_timeout_s": seconds},
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    running = importlib.import_module("ray.serve.context")._get_global_client().http_config
    if (running.host, running.port) != (wanted.host, port):
        raise InputError(
            f"Ray Serve listens at {running.host}:{running.port} on this cluster already, not at "
            f"{wanted.host}:{port}; give that as --host and --port, or end it with: serve shutdown"
        )
    host = f"[{running.host}]" if ":" in running.host else running.host
    return f"http://{host}:{running.port}"


def _deploy(ray: Any, where: ReplicaOptions, settings: ReplicaSettings, scale: Mapping[str, Any]) -> Any:
    """Start the replicas, wait until they answer, and return Ray Serve's handle of them.

    Raises:
        InputError: Ray Serve does not take the options.
        EngineError: they cannot be started.
    """
    needs, serving = _needs(where, settings), settings.serving
    try:
        deployment = ray.serve.deployment(
            ray.serve.ingress()(Replica),
            name=_NAME,
            ray_actor_options={"num_cpus": needs["CPU"], "num_gpus": needs.get("GPU", 0)},
            max_ongoing_requests=serving.most_waiting + 1,
            max_queued_requests=serving.most_waiting,
            backpressure_config={"status_code": 429, "retry_after_s": 1},
            graceful_shutdown_timeout_s=serving.grace_seconds,
            health_check_period_s=5,
            max_constructor_retry_count=_STARTS,
            request_router_config={"request_router_class": _ROUTER},
            **scale,
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"Ray Serve does not take these options: {error}") from error
    try:
        return ray.serve.run(deployment.bind(settings), name=_NAME, route_prefix="/")
    except (RuntimeError, ray.exceptions.RayError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = next((line for line in reversed(lines) if "Error" in line), lines[-1])
        raise EngineError(f"the replicas cannot be started: {reason.strip()}") from error


def _replica_name() -> str:
    return str(importlib.import_module("ray.serve").get_replica_context().replica_id.unique_id)


class _StoppedEarly(BaseException):
    """The first signal came while the replicas were starting; like KeyboardInterrupt, nothing swallows it."""


class _Stop(threading.Event):
    """Set by SIGTERM and SIGINT; `starting`: the signal interrupts, as nothing has been accepted yet."""

    starting = True


@contextmanager
def _stop_signal() -> Iterator[_Stop]:
    """Yield an event that SIGTERM and SIGINT set; a second one, and one during the start, interrupts."""
    stop = _Stop()

    def note(number: int, _: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt(number)
        stop.set()
        if stop.starting:
            raise _StoppedEarly

    with ExitStack() as restored:
        for each in (signal.SIGTERM, signal.SIGINT):
            restored.callback(signal.signal, each, signal.signal(each, note))
        yield stop


def _drain(handle: Any, seconds: float) -> None:
    """Let the replicas refuse new requests, and wait until they have answered the others."""
    ends = time.monotonic() + seconds
    while True:
        running = handle.broadcast("drain").results(timeout_s=5, return_exceptions=True)
        if time.monotonic() > ends or not any(isinstance(each, int) and each for each in running):
            return
        time.sleep(0.1)


def _remove(ray: Any) -> None:
    """Remove the application; Ray Serve ends if it has no other."""
    others = set(ray.serve.status().applications) - {_NAME}
    if others:
        ray.serve.delete(_NAME)
    else:
        ray.serve.shutdown()
