"""Masks that follow phrases through the frames of a camera or a video: `refdiff.track`.

    grab    a process of its own reads the source (`sources`)
    key     a thread owns the engines and answers one frame after another (`key_lane`)
    track   a thread follows the masks through every frame (`track_lane`)

Results wait for their consumer in a short queue. Where the consumer is too slow, a file waits; of a live
source, the oldest result is dropped and counted.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Condition, Event, Thread

from refdiff.camera.frame import FrameResult, FrameSource, SourceEvent
from refdiff.camera.key_lane import KeyLane, OwnedEngines
from refdiff.camera.options import DEFAULT_CAMERA, CameraOptions, Wanted, Wishes
from refdiff.camera.sources.address import parse_source
from refdiff.camera.sources.source import open_source
from refdiff.camera.summary import CameraSummary, summarize
from refdiff.camera.track_lane import TrackLane
from refdiff.contracts.options import DEFAULT_BACKEND, BackendOptions, RunOptions
from refdiff.engines.interruption import Gap
from refdiff.errors import InputError
from refdiff.loading import Engines

_WAITING = 2
"""Results that wait for the consumer."""

_WAIT_S = 0.1


def track(
    bundle: Path | str,
    source: str | FrameSource,
    phrases: str | Sequence[str],
    *,
    options: CameraOptions = DEFAULT_CAMERA,
    backend: BackendOptions = DEFAULT_BACKEND,
) -> Generator[FrameResult, None, None]:
    """Yield what is known about every phrase at each frame; the masks are of that very frame.

    Engines and source are opened when the first result is taken. Closing the generator, or leaving the loop
    that uses it, stops everything. `Tracker` does the same and can be changed while it runs.

    Args:
        bundle: its folder, or "mini" for the built-in one.
        source: a text as `refdiff camera --source` takes, or something that delivers frames; it is closed in
            the end.
        phrases: English, such as "the red mug"; each is followed by itself.
        options: how frames are read, answered and followed.
        backend: where and how the graphs run.

    Raises:
        InputError: a phrase, the source's text or an option cannot be used.
        BundleError: the bundle is missing, damaged or newer.
        MissingDependencyError: a package, the back-end's GPU or its driver is missing.
        EngineError: the engines cannot be opened, or several key frames in a row have failed.
        SourceError: the source could not be opened.
        SourceLostError: it was opened, and is lost for good.
    """
    with Tracker(bundle, source, phrases, options=options, backend=backend) as tracker:
        yield from tracker


class Tracker:
    """Follows phrases through a source; use it in a `with` block, and iterate over it for the results.

    All methods may be called from other threads. For the arguments and errors see `track`.

    Args:
        bundle: see `track`.
        source: see `track`.
        phrases: see `track`.
        options: see `track`.
        backend: see `track`.
        open_engines: opens what answers key frames, given the function to call before each graph; None: the
            bundle's graphs.
    """

    def __init__(
        self,
        bundle: Path | str,
        source: str | FrameSource,
        phrases: str | Sequence[str],
        *,
        options: CameraOptions = DEFAULT_CAMERA,
        backend: BackendOptions = DEFAULT_BACKEND,
        open_engines: Callable[[Gap], OwnedEngines] | None = None,
    ) -> None:
        options.check()
        if isinstance(source, str):
            parse_source(source)  # a wrong text is known before the engines are loaded
        self._options = options
        self._given = source
        self._wishes = Wishes(Wanted(phrases=distinct_phrases(phrases), run=options.run))
        self._key = KeyLane(
            open_engines or (lambda gap: Engines(bundle, options.run, backend, gap)),
            most_failures=options.most_failures,
        )
        self._stopped = Event()
        self._source: FrameSource | None = None
        self._lane: TrackLane | None = None
        self._results: ResultQueue | None = None
        self._thread = Thread(target=self._work, name="refdiff-track", daemon=True)
        self._began_s = self._ended_s = 0.0

    def __enter__(self) -> Tracker:
        """Open engines and source, and start."""
        try:
            self._key.start()
            self._key.check_phrases(self.phrases, self._options.run)
            given = self._given
            self._source = open_source(given, self._options.source) if isinstance(given, str) else given
            self._lane = TrackLane(self._source, self._key, self._wishes, self._options)
            self._results = ResultQueue(waits=self._lane.lockstep)
        except BaseException:
            self._key.close()
            if not isinstance(self._given, str):
                self._given.close()
            raise
        self._began_s = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop and free everything; waits for the graph that runs. Calling it twice is fine."""
        self._stopped.set()
        if self._results is not None:
            self._results.close()
        if self._source is not None:
            self._source.close()
        if self._thread.ident is not None:
            self._thread.join()
            self._ended_s = self._ended_s or time.monotonic()
        self._key.close()

    def __iter__(self) -> Iterator[FrameResult]:
        """Yield the results until the source ends, `stop` is called, or a limit of the options is reached.

        Raises:
            RefdiffError: see `track`.
        """
        if self._results is None:
            raise InputError("the tracker is not open; use it in a `with` block")
        limit, most = self._options.seconds, self._options.max_frames
        count = 0
        while not self._stopped.is_set():
            result = self._results.get(_WAIT_S)
            if result is not None:
                yield result
                count += 1
            elif self._results.finished:
                return
            late = limit is not None and time.monotonic() - self._began_s >= limit
            if late or count == most:
                return

    def run(self, on_result: Callable[[FrameResult], None]) -> None:
        """Call a function with each result, in this thread, until the end; see `track` for the errors."""
        for result in self:
            on_result(result)

    def stop(self) -> None:
        """End the iteration; `close` frees what is open."""
        self._stopped.set()

    @property
    def phrases(self) -> tuple[str, ...]:
        """The phrases that are followed."""
        return self._wishes.wanted.phrases

    @property
    def run_options(self) -> RunOptions:
        """The options that key frames are answered with."""
        return self._wishes.wanted.run

    @property
    def lockstep(self) -> bool:
        """Whether a slow consumer is waited for, as with a file; otherwise it loses frames."""
        return self._lane is not None and self._lane.lockstep

    @property
    def paused(self) -> bool:
        """Whether it is paused."""
        return self._wishes.wanted.paused

    def set_phrases(self, phrases: str | Sequence[str]) -> None:
        """Follow other phrases from the next frame on; those that stay keep their masks.

        The key frame in progress is cancelled before its next graph. No result has an answer to a phrase that
        was replaced.

        Raises:
            InputError: a phrase cannot be used; nothing is changed.
        """
        wanted = distinct_phrases(phrases)
        self._key.check_phrases(wanted, self._wishes.wanted.run)
        self._wishes.change(lambda before: replace(before, phrases=wanted))
        self._key.cancel()

    def use(self, run: RunOptions) -> None:
        """Answer key frames with other options, such as another variant, on the engines that are open.

        Raises:
            InputError: an unknown option; nothing is changed.
        """
        self._key.check_phrases(self.phrases, run)
        self._wishes.change(lambda before: replace(before, run=run))
        self._key.cancel()

    def pause(self) -> None:
        """Run no graph and give no result until `resume`; live frames are dropped, a file waits."""
        self._wishes.change(lambda before: replace(before, paused=True))
        self._key.cancel()

    def resume(self) -> None:
        """Go on with the next frame; all phrases are searched for again."""
        self._wishes.change(lambda before: replace(before, paused=False))

    def ask_key(self) -> None:
        """Answer one of the next frames, whatever the options say about the time between key frames."""
        self._wishes.key_asked.set()

    def take_events(self) -> list[SourceEvent]:
        """Return what has happened to the source since the last call, oldest first."""
        return [] if self._source is None else self._source.take_events()

    def status(self) -> str:
        """Return rates and drops as one line."""
        summary = self.summary()
        counts = None if self._lane is None else self._lane.counts
        fps = {} if counts is None else {"in": counts.captured.recent, "out": counts.out.recent}
        rates = " ".join(f"{name} {value:.1f}" for name, value in (fps | {"key": summary.fps["key"]}).items())
        lost = sum(summary.dropped.values())
        return f"frames/s: {rates}" + (f"  dropped {lost}" if lost else "")

    def summary(self) -> CameraSummary:
        """Return what was measured so far."""
        if self._lane is None or self._source is None or self._results is None:
            raise InputError("the tracker is not open; use it in a `with` block")
        return summarize(
            self._lane.counts,
            self._key.counts,
            self._source.counts(),
            seconds=(self._ended_s or time.monotonic()) - self._began_s,
            taken=self._results.taken,
            unread=self._results.dropped,
            backend=self._key.backend,
        )

    def _work(self) -> None:
        lane, results = self._lane, self._results
        if lane is None or results is None:
            return
        error: BaseException | None = None
        try:
            lane.run(results.put, self._stopped)
        except BaseException as raised:  # raised again in the thread that takes the results
            error = raised
        results.finish(error)


class ResultQueue:
    """Hands results from the track lane to a consumer.

    Args:
        waits: `put` waits for room; otherwise the oldest result is dropped, and its events go to the next.
    """

    def __init__(self, *, waits: bool) -> None:
        self._waits = waits
        self._changed = Condition()
        self._results: deque[FrameResult] = deque()
        self._closed = self._finished = False
        self._error: BaseException | None = None
        self.taken = self.dropped = 0

    @property
    def finished(self) -> bool:
        """Whether no result will come any more."""
        with self._changed:
            return self._finished and not self._results

    def put(self, result: FrameResult) -> None:
        """Add a result."""
        with self._changed:
            if self._waits:
                self._changed.wait_for(lambda: self._closed or len(self._results) < _WAITING)
            elif len(self._results) >= _WAITING:
                lost = self._results.popleft()
                self.dropped += 1
                self._results[0] = replace(self._results[0], events=(*lost.events, *self._results[0].events))
            if not self._closed:
                self._results.append(result)
            self._changed.notify_all()

    def get(self, timeout_s: float) -> FrameResult | None:
        """Wait for the next result; None if none came, or if all have been taken.

        Raises:
            BaseException: the error that ended the lane, once all results have been taken.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._results or self._finished or self._closed, timeout_s)
            if self._results:
                result = self._results.popleft()
                self.taken += 1
                self._changed.notify_all()
                return result
            if self._error is not None and self._finished:
                raise self._error
            return None

    def finish(self, error: BaseException | None) -> None:
        """Say that no result comes any more, and why."""
        with self._changed:
            self._finished, self._error = True, error
            self._changed.notify_all()

    def close(self) -> None:
        """Take no further result; a `put` that waits returns."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def distinct_phrases(phrases: str | Sequence[str]) -> tuple[str, ...]:
    """Return the phrases as a tuple; each may be given once.

    Raises:
        InputError: there is none, or one is given twice.
    """
    given = (phrases,) if isinstance(phrases, str) else tuple(phrases)
    if not given:
        raise InputError('got no phrase, expected at least one, such as "the red mug"')
    twice = [each for at, each in enumerate(given) if each in given[:at]]
    if twice:
        raise InputError(f"got the phrase {twice[0]!r} twice, expected different ones; leave one out")
    return given
