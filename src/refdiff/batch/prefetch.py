"""Overlap three stages: inputs are prefetched and outputs written in the background.

The middle stage stays in the caller's thread: sessions are used by one thread, and Ctrl-C arrives where it
can end the work. Both queues are bounded, so memory does not grow with the work. An error of a thread is
raised in the caller's thread, with its own traceback.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def prefetch(items: Iterable[T], read: Callable[[T], R], *, ahead: int) -> Iterator[Iterator[R]]:
    """Read items in a thread while earlier ones are processed.

    Args:
        items: the arguments of `read`; taken in the caller's thread.
        read: run in one thread, in order.
        ahead: largest number of items that are read, or being read, in addition to the current one.

    Yields:
        An iterator over the results of `read`, in order; it raises what `read` raised. When the block ends,
        pending reads are cancelled, and the running one is waited for.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="read")
    try:
        yield map_ahead(pool, read, items, ahead=ahead)
    finally:
        pool.shutdown(cancel_futures=True)


def map_ahead(pool: Executor, function: Callable[[T], R], items: Iterable[T], *, ahead: int) -> Iterator[R]:
    """Map items in a pool, in order, with a bound on the calls that are submitted.

    Args:
        pool: runs the calls.
        function: called with each item.
        items: taken as results are taken.
        ahead: largest number of calls beyond the one whose result is taken next.
    """
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


class BackgroundWriter:
    """Writes results in threads while the next are computed; use it in a `with` block.

    When the block ends, also by an error or Ctrl-C, all submitted writes are waited for. A write that fails
    raises in the next `submit`, or at the end of the block; pending writes are then cancelled.

    Args:
        pending: largest number of writes that wait or run; `submit` waits for the oldest beyond that.
        threads: writes that run at the same time.
    """

    def __init__(self, *, pending: int, threads: int = 1) -> None:
        self._limit = pending
        self._pending: deque[Future[Any]] = deque()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="write")

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._wait(down_to=0)
        except Exception:
            if error is None:
                raise
            # The block is already ending with an error, which a failed write must not replace.
        finally:
            self._pool.shutdown(cancel_futures=True)

    def submit(self, write: Callable[..., Any], *arguments: Any) -> None:
        """Schedule `write(*arguments)`.

        Raises:
            BaseException: an earlier write failed.
        """
        self._wait(down_to=self._limit - 1)
        self._pending.append(self._pool.submit(write, *arguments))

    def _wait(self, *, down_to: int) -> None:
        while self._pending and (len(self._pending) > down_to or self._pending[0].done()):
            self._pending.popleft().result()
