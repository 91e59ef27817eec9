"""The one owner of the engines: a thread that answers requests from a bounded queue, one at a time.

A job is cancelled between two graphs, when its client goes away or its time is over. Encoded images are kept
up to a number of bytes, so that a client can ask again without sending the image.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from refdiff.contracts.heap import HeapTrimmer
from refdiff.contracts.inspection import check_trained, find_bundle
from refdiff.contracts.options import DEFAULT_BACKEND, DEFAULT_RUN, BackendOptions, RunOptions
from refdiff.contracts.progress import Progress, silent
from refdiff.engines.interruption import CancelledError, Gap, GapSessions
from refdiff.errors import EngineError, InputError, RefdiffError
from refdiff.loading import open_backend, segmenter_of
from refdiff.runtime.confidence import withhold
from refdiff.runtime.encoded_image import EncodedImage
from refdiff.runtime.image import ImageLike
from refdiff.runtime.observer import Observer
from refdiff.runtime.pipeline import Segmenter
from refdiff.runtime.segmentation import Segmentation
from refdiff.serve.request import Prompt
from refdiff.verification.check import check

_LOGGER = logging.getLogger("refdiff.serve")


class QueueFullError(Exception):
    """As many jobs wait as may wait."""


class ClosedError(Exception):
    """The worker takes no more jobs, because it is being stopped or has failed."""


class Listener(Protocol):
    """Receives what becomes of a job, in the worker's thread; the calls return at once."""

    def answered(self, index: int, answer: Segmentation) -> None:
        """Take the answer to the prompt of this index; they come in order."""

    def finished(self, error: Exception | None, stages: Mapping[str, float]) -> None:
        """Take the end of the job: what it failed by, and the time of each stage in s.

        Called once for each job that was submitted.
        """


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """An image, prompts, and who wants the answers."""

    image_id: str | None
    """None: the encoded image is not kept."""
    image: ImageLike | None = field(repr=False)
    """None: the encoded image is expected in the cache."""
    prompts: tuple[Prompt, ...]
    listener: Listener
    counted: bool = True
    """Whether it counts against the jobs that may wait. One of a live session does not: a session has one job
    at a time, and sessions are limited themselves."""
    cancelled: threading.Event = field(default_factory=threading.Event, repr=False)
    """Set it to end the job before its next graph."""


class ImageCache:
    """Encoded images by id, the least recently used dropped first; all methods are thread-safe.

    Args:
        most_bytes: of all images together; a larger one is not kept.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._images: OrderedDict[str, tuple[EncodedImage, int]] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0

    def get(self, image_id: str) -> EncodedImage | None:
        """Return an image, or None."""
        with self._lock:
            found = self._images.get(image_id)
            if found is None:
                return None
            self._images.move_to_end(image_id)
            return found[0]

    def put(self, image_id: str, image: EncodedImage) -> None:
        """Keep an image as long as there is room."""
        size = bytes_of(image)
        with self._lock:
            if image_id in self._images or size > self._most:
                return
            self._images[image_id] = (image, size)
            self.bytes += size
            while self.bytes > self._most:
                _, (_, dropped) = self._images.popitem(last=False)
                self.bytes -= dropped

    def __len__(self) -> int:
        return len(self._images)


def bytes_of(value: object) -> int:
    """Return the bytes of all arrays in a value: those of a dataclass, a sequence or a mapping are added."""
    if hasattr(value, "nbytes"):
        return int(value.nbytes)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return sum(bytes_of(getattr(value, each.name)) for each in dataclasses.fields(value))
    if isinstance(value, dict):
        return sum(map(bytes_of, value.values()))
    return sum(map(bytes_of, value)) if isinstance(value, (list, tuple)) else 0


Opener = Callable[[Gap], Segmenter]
"""Opens a segmenter whose sessions call a function before each run of a graph."""


def opener(
    bundle: Path | str,
    options: RunOptions = DEFAULT_RUN,
    backend: BackendOptions = DEFAULT_BACKEND,
    observer: Observer | None = None,
) -> Opener:
    """Return what opens the segmenter of a bundle; the opener raises as `refdiff.load` does.

    Args:
        bundle: its folder, or "mini" for the built-in one.
        options: what is computed; prompts bring their own least confidence.
        backend: where and how the graphs run.
        observer: notified of every stage, in the worker's thread.
    """

    def open_segmenter(gap: Gap) -> Segmenter:
        found = find_bundle(bundle, expect=options.expect)
        check_trained(found, allow_random_weights=options.allow_random_weights)
        sessions = GapSessions(open_backend(found, backend), gap)
        return segmenter_of(found, sessions, options.pipeline_options(found.spec), observer)

    return open_segmenter


def self_test(bundle: Path | str, backend: BackendOptions, progress: Progress = silent) -> None:
    """Run a bundle on its golden tensors.

    Raises:
        EngineError: it does not give its golden answers here.
        RefdiffError: it cannot be loaded.
    """
    if not check(bundle, dataset=None, backend=backend, progress=progress).passed:
        raise EngineError(f"{bundle} does not give its golden answers here; run: refdiff check {bundle}")


class EngineWorker:
    """Owns the engines of one bundle.

    Args:
        open_segmenter: called in the worker's thread.
        take_stages: returns the time of each stage in s since its last call; called after each job.
        most_waiting: jobs that may wait while one runs.
        cache_bytes: bytes of encoded images to keep.
        tidy: called after each job; returns freed memory to the system.
    """

    def __init__(
        self,
        open_segmenter: Opener,
        *,
        take_stages: Callable[[], Mapping[str, float]] = dict,
        most_waiting: int = 16,
        cache_bytes: int = 1 << 29,
        tidy: Callable[[], None] | None = None,
    ) -> None:
        self._open, self._take_stages, self._tidy = open_segmenter, take_stages, tidy or HeapTrimmer()
        self._most_waiting = most_waiting
        self.cache = ImageCache(cache_bytes)
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._running: Job | None = None
        self._closing = False
        self._segmenter: Segmenter | None = None
        self._error: BaseException | None = None
        self._opened = threading.Event()
        self._thread = threading.Thread(target=self._work, name="refdiff-engines", daemon=True)

    def start(self) -> None:
        """Open the engines in the worker's thread, and wait for it.

        Raises:
            RefdiffError: they cannot be opened.
        """
        self._thread.start()
        self._opened.wait()
        if self._error is not None:
            raise self._error

    @property
    def alive(self) -> bool:
        """Whether the thread can take jobs."""
        return self._thread.is_alive() and not self._closing

    @property
    def waiting(self) -> int:
        """Number of jobs that wait; the one that runs is not counted."""
        return len(self._jobs)

    @property
    def full(self) -> bool:
        """Whether a job would be refused now."""
        return sum(job.counted for job in list(self._jobs)) >= self._most_waiting

    def check_prompts(self, prompts: tuple[Prompt, ...]) -> None:
        """Raise InputError for the first prompt that cannot be answered; runs no graph."""
        if self._segmenter is not None:
            self._segmenter.check_phrases([each.text for each in prompts])

    def submit(self, job: Job) -> None:
        """Put a job into the queue.

        Raises:
            QueueFullError: too many wait.
            ClosedError: the worker is stopped.
        """
        with self._changed:
            if self._closing or not self._thread.is_alive():
                raise ClosedError
            if job.counted and self.full:
                raise QueueFullError
            self._jobs.append(job)
            self._changed.notify_all()

    def withdraw(self, job: Job) -> None:
        """End a job before its next graph, or before it begins; its listener is called."""
        job.cancelled.set()
        with self._changed:
            waited = job in self._jobs
            if waited:
                self._jobs.remove(job)
        if waited:
            job.listener.finished(CancelledError(), {})

    def close(self) -> None:
        """Answer the jobs that wait, end the thread and free the engines; calling it twice is fine."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def _work(self) -> None:
        try:
            self._segmenter = self._open(self._gap)
        except BaseException as error:
            self._error = error
            return
        finally:
            self._opened.set()
        try:
            while (job := self._next()) is not None:
                self._run(self._segmenter, job)
        finally:
            self._refuse_waiting()
            self._segmenter.close()

    def _next(self) -> Job | None:
        """Wait for a job; None when the worker is stopped and none waits."""
        with self._changed:
            self._running = None
            self._changed.wait_for(lambda: self._closing or self._jobs)
            if not self._jobs:
                return None
            self._running = self._jobs.popleft()
            return self._running

    def _run(self, segmenter: Segmenter, job: Job) -> None:
        error: Exception | None = None
        try:
            self._answer(segmenter, job)
        except Exception as raised:  # the engines serve other clients, whatever this job ended by
            error = raised
            if not isinstance(raised, (CancelledError, InputError, UnknownImageError)):
                _LOGGER.exception("a job failed")
        job.listener.finished(error, self._take_stages())
        self._tidy()

    def _answer(self, segmenter: Segmenter, job: Job) -> None:
        if job.cancelled.is_set():
            raise CancelledError
        encoded = None if job.image_id is None else self.cache.get(job.image_id)
        if encoded is None:
            if job.image is None:
                raise UnknownImageError(str(job.image_id))
            encoded = segmenter.encode(job.image)
            if job.image_id is not None:
                self.cache.put(job.image_id, encoded)
        answers = segmenter.segment_each(encoded, [each.text for each in job.prompts])
        for index, (answer, prompt) in enumerate(zip(answers, job.prompts, strict=True)):
            job.listener.answered(index, withhold(answer, prompt.min_confidence))

    def _gap(self, _: str) -> None:
        if self._running is not None and self._running.cancelled.is_set():
            raise CancelledError

    def _refuse_waiting(self) -> None:
        with self._changed:
            self._closing = True
            waiting = list(self._jobs)
            self._jobs.clear()
        for job in waiting:
            job.listener.finished(ClosedError(), {})


class UnknownImageError(RefdiffError):
    """An image was named by an id that the cache does not hold any more."""

    def __init__(self, image_id: str) -> None:
        super().__init__(f"no image {image_id} is kept here (any more); send the image again")
