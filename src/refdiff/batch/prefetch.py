"""Three stages at the same time: what comes in is read ahead, what goes out is written behind.

The stage in the middle stays in the caller's thread: sessions are used by one thread, and Ctrl-C arrives
where it can end the work. Each side has a bound, so memory does not grow with the work. Errors of a thread
are raised in the caller's, with their own traceback.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def read_ahead(items: Iterable[T], read: Callable[[T], R], *, ahead: int) -> Iterator[Iterator[R]]:
    """Read items in a thread while earlier ones are worked on.

    Args:
        items: what to read; taken in the caller's thread.
        read: run in one thread, in order.
        ahead: how many may be read, or be in reading, beside the one that is worked on.

    Yields:
        An iterator over what was read, in order; it raises what `read` raised. When the block ends, what is
        not begun is dropped, and what is in reading is waited for.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="read")
    try:
        yield _in_order(pool, items, read, ahead)
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(
    pool: ThreadPoolExecutor, items: Iterable[T], read: Callable[[T], R], ahead: int
) -> Iterator[R]:
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(pool.submit(read, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


class WriteBehind:
    """Writes what was made while the next is being made; use it in a `with` block.

    A block that ends, by an error or Ctrl-C too, waits for everything that was handed over. A write that
    fails raises in the next `submit`, or at the block's end; then what is not begun is dropped.

    Args:
        behind: how many writes may wait or run; `submit` waits for the oldest when there are more.
        threads: how many run at once.
    """

    def __init__(self, *, behind: int, threads: int = 1) -> None:
        self._behind = behind
        self._pending: deque[Future[Any]] = deque()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="write")

    def __enter__(self) -> WriteBehind:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._wait(down_to=0)
        except Exception:
            if error is None:
                raise
            # The block ended by an error already: a write that failed besides does not replace it.
        finally:
            self._pool.shutdown(cancel_futures=True)

    def submit(self, write: Callable[..., Any], *arguments: Any) -> None:
        """Hand over one write.

        Raises:
            BaseException: what an earlier write raised.
        """
        self._wait(down_to=self._behind - 1)
        self._pending.append(self._pool.submit(write, *arguments))

    def _wait(self, *, down_to: int) -> None:
        while self._pending and (len(self._pending) > down_to or self._pending[0].done()):
            self._pending.popleft().result()
