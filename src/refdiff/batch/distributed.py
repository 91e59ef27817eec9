"""Work spread over a Ray cluster: one worker for each GPU, or for each group of cores, and an item at a time.

Ray Data hands out the items and holds back what would not fit into memory. Nothing that was taken is computed
again: when a worker or its node is lost, the items without a result are handed out to those that are left.

Every node needs refdiff in the version of the caller, and the bundle and the data at the same paths, on a
shared file system; the results are written by the caller alone.
"""

from __future__ import annotations

import importlib
import logging
import os
import pickle
import socket
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from refdiff.contracts.optional import install_line
from refdiff.contracts.progress import Progress
from refdiff.errors import EngineError, InputError, MissingDependencyError, RefdiffError

T = TypeVar("T")
R = TypeVar("R")

NO_REPORTS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_USAGE_DISABLED": "1"}
"""Ray reports its use to its makers unless these are set before it is imported."""

ON_PROCESSORS = (None, "ort-cpu", "ort-rounded")
"""Back-ends that take no GPU; None is the torch reference."""

_TRIES = 3
"""Losses of a worker in a row, without a result between them, that end the run."""


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Options of a run on a Ray cluster."""

    address: str
    """"local" for a cluster of this machine alone, which ends with the run; "auto" for the one that this
    machine is in; or its "host:port"."""
    workers: int | None = None
    """None: one for each GPU, or without GPUs one for each group of `cpus` cores."""
    cpus: int = 1
    """Cores of a worker."""


def map_on_ray(
    items: Iterable[T],
    open_worker: Callable[[], Callable[[T], R]],
    where: RayOptions,
    *,
    backend: str | None,
    report: Progress,
) -> Iterator[R]:
    """Yield the result of each item once, in the order in which they arrive.

    Args:
        items: can be pickled; all are taken before the first result.
        open_worker: can be pickled; called once in each worker, and returns what is called with each item.
        where: the cluster and the workers.
        backend: what runs the graphs; unless it runs on processors, each worker takes a GPU.
        report: called when a worker is lost.

    Raises:
        InputError: there is no such cluster, or no room for a worker in it.
        MissingDependencyError: Ray is not installed.
        EngineError: workers are lost again and again.
        RefdiffError: what a worker raised, with the name of its node.
    """
    waiting = {number: pickle.dumps(item) for number, item in enumerate(items)}
    if not waiting:
        return
    ray = import_ray()
    needs = {"CPU": float(where.cpus)} | ({} if backend in ON_PROCESSORS else {"GPU": 1.0})
    if where.cpus < 1 or (where.workers is not None and where.workers < 1):
        raise InputError(f"got {where.workers} workers of {where.cpus} CPUs, expected 1 or more")
    with connected(ray, where.address):
        count = find_room(ray, needs, where.workers, where.address)
        losses = 0
        while waiting:
            before = len(waiting)
            try:
                for row in _rows(ray, waiting, open_worker, needs, count):
                    del waiting[row["number"]]
                    yield _value(row["outcome"])
            except ray.exceptions.RayError as error:
                losses = 0 if len(waiting) < before else losses + 1
                reason = next(
                    (line for line in str(error).splitlines() if "died because" in line), str(error)
                )
                if losses == _TRIES:
                    raise EngineError(
                        f"workers are lost again and again ({reason.strip()}); look for a lack of memory, "
                        "then repeat the command: it resumes"
                    ) from error
                report(f"a worker was lost, {len(waiting)} images are handed out again ({reason.strip()})")
                count = min(count, count_workers(_nodes(ray), needs, None))


def import_ray(part: str = "ray.data", extra: str = "ray") -> Any:
    """Import Ray with its reports of use switched off.

    Args:
        part: of Ray that is needed too.
        extra: of refdiff that has it.

    Raises:
        MissingDependencyError: it is not installed.
    """
    os.environ.update(NO_REPORTS)
    try:
        import ray

        importlib.import_module(part)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"--ray needs {error.name}, which is not installed; {install_line(extra)}"
        ) from error
    for name in ("ray", part):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return ray


def find_room(ray: Any, needs: Mapping[str, float], asked: int | None, address: str) -> int:
    """Return the number of workers that a cluster can start now; see `count_workers`.

    Raises:
        InputError: there is no room for them, or other work has taken it.
    """
    count = count_workers(_nodes(ray), needs, asked)
    _check_free(ray.available_resources(), needs, address)
    return count


def count_workers(nodes: Iterable[Mapping[str, float]], needs: Mapping[str, float], asked: int | None) -> int:
    """Return the number of workers: what is asked for, or else what the cluster has room for.

    Args:
        nodes: resources of each node, such as {"CPU": 8, "GPU": 1}.
        needs: resources of a worker.
        asked: None for as many as fit.

    Raises:
        InputError: there is no room; Ray would wait for it without a word.
    """
    nodes = list(nodes)
    room = sum(min(int(node.get(kind, 0) / each) for kind, each in needs.items()) for node in nodes)
    if room < (asked or 1):
        sizes = ", ".join(_describe({kind: node.get(kind, 0) for kind in needs}) for node in nodes)
        raise InputError(
            f"the Ray cluster has room for {room} workers of {_describe(needs)}, expected {asked or 1}; its "
            f"nodes have {sizes or 'nothing'}: ask for fewer or smaller workers, or add nodes"
        )
    return asked or room


def _check_free(free: Mapping[str, float], needs: Mapping[str, float], address: str) -> None:
    short = {kind: free.get(kind, 0) for kind, each in needs.items() if free.get(kind, 0) < each}
    if short:
        raise InputError(
            f"the Ray cluster {address} is taken by other work: {_describe(short)} free, a worker needs "
            f"{_describe(needs)}; wait until that has ended, or use another cluster"
        )


def _describe(resources: Mapping[str, float]) -> str:
    return " and ".join(f"{amount:g} {kind}" for kind, amount in resources.items())


@contextmanager
def connected(ray: Any, address: str) -> Iterator[None]:
    """Connect to the cluster, unless this process is connected, and disconnect.

    Raises:
        InputError: there is no such cluster.
    """
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"the Ray cluster {address} cannot be used ({error}); start one with `ray start --head`, or take "
            "this machine alone (--ray local)"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _nodes(ray: Any) -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _rows(
    ray: Any, items: Mapping[int, bytes], open_worker: Any, needs: Mapping[str, float], count: int
) -> Iterator[dict[str, Any]]:
    """Yield {"number", "outcome"} for each item; a block holds one, so that no result waits for others."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    rows = [{"number": number, "item": item} for number, item in items.items()]
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # 2.64 will not take `max_restarts` here; the extra is bounded for that
        results = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            Worker,
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=count),
            fn_constructor_args=(open_worker, os.getcwd()),  # noqa: PTH109 - pickled
            num_cpus=needs["CPU"],
            num_gpus=needs.get("GPU"),
            max_restarts=0,  # Ray would wait for room for a lost worker, for ever if its node is gone
            max_task_retries=0,
        )
    yield from results.iter_rows()


class Worker:
    """Runs in an actor: opens what it needs with the first item, and returns results and errors alike."""

    def __init__(self, open_worker: Callable[[], Callable[[Any], Any]], folder: str) -> None:
        self._open, self._folder = open_worker, folder
        self._work: Callable[[Any], Any] | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the number of the one item of a batch, and its outcome."""
        return {"number": batch["number"], "outcome": [self._outcome(batch["item"][0])]}

    def _outcome(self, item: bytes) -> bytes:
        try:
            if self._work is None:
                self._enter()
                self._work = self._open()
            return pickle.dumps((None, self._work(pickle.loads(item))))  # noqa: S301 - of this run
        except RefdiffError as error:
            return pickle.dumps((type(error)(f"{error} (on node {socket.gethostname()})"), None))
        except Exception:
            return pickle.dumps((RuntimeError(f"on {socket.gethostname()}: {traceback.format_exc()}"), None))

    def _enter(self) -> None:
        """Stand where the caller stands: relative paths then mean the same files."""
        try:
            os.chdir(self._folder)
        except OSError as error:
            raise InputError(
                f"{self._folder} cannot be entered ({error.strerror}); share the file system"
            ) from error


def _value(outcome: bytes) -> Any:
    error, value = pickle.loads(outcome)  # noqa: S301 - from a worker of this run
    if error is not None:
        raise error
    return value
