"""Results written to files, each in a thread of its own: a slow disk loses frames and delays nothing else."""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from refdiff.camera.frame import FrameResult, TargetEvent, TargetResult
from refdiff.camera.overlay import draw_frame
from refdiff.contracts.atomic_io import write_file
from refdiff.contracts.session import ImageArray
from refdiff.runtime.image import png
from refdiff.runtime.masks import compress_coco_rle, to_coco_rle
from refdiff.runtime.segmentation import mask_box

_WAITING = 8
"""Results that wait for a writer, frames included."""

_SYNC_S = 1.0
"""Time between two forced writes to the disk, in s: as much as a power cut loses."""

_CLOSE_S = 10.0
"""Time that a writer has to finish, in s."""


class Writer(Protocol):
    """Writes results somewhere, in the order they come."""

    def write(self, result: FrameResult, events: tuple[TargetEvent, ...]) -> None:
        """Write one frame, with the events since the last one that was written.

        Raises:
            OSError: the place cannot be written.
        """
        ...

    def close(self) -> None:
        """Finish.

        Raises:
            OSError: the place cannot be written.
        """
        ...

    def abandon(self) -> None:
        """End after an error; what was written stays."""
        ...


class Recorder:
    """Runs one writer. Where it is too slow, frames are left out of its file and counted.

    After an error the writer is stopped, what it has written stays, and all further frames are counted as
    lost.

    Args:
        name: of what is written, for messages.
        writer: used in the recorder's thread alone.
        waits: `put` waits for a slow writer instead of leaving frames out.
    """

    def __init__(self, name: str, writer: Writer, *, waits: bool = False) -> None:
        self.name = name
        self.written = 0
        self.dropped = 0
        self.error: str | None = None
        self._writer = writer
        self._waits = waits
        self._queue: queue.Queue[tuple[FrameResult, tuple[TargetEvent, ...]] | None] = queue.Queue(_WAITING)
        self._unwritten: tuple[TargetEvent, ...] = ()
        self._thread = threading.Thread(target=self._work, name=f"refdiff-{name}", daemon=True)
        self._thread.start()

    def put(self, result: FrameResult) -> None:
        """Hand over one result; call it from one thread."""
        if self.error is not None:
            self.dropped += 1
            return
        events = (*self._unwritten, *result.events)
        try:
            self._queue.put((result, events), block=self._waits)
            self._unwritten = ()
        except queue.Full:
            self.dropped += 1
            self._unwritten = events

    def close(self) -> None:
        """Finish what waits and close the writer; calling it twice is fine."""
        try:
            self._queue.put(None, timeout=_CLOSE_S)
            self._thread.join(_CLOSE_S)
        except queue.Full:
            pass
        if self._thread.is_alive() and self.error is None:
            self.error = f"{self.name} did not finish within {_CLOSE_S:g} s"

    def _work(self) -> None:
        try:
            while (given := self._queue.get()) is not None:
                self._writer.write(*given)
                self.written += 1
            self._writer.close()
        except Exception as error:  # a thread that ended silently would keep `put` waiting
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            self.error = f"{self.name}: {reason}; frames after the first {self.written} are missing"
            self.dropped += 1
            self._writer.abandon()
            while self._queue.get() is not None:
                self.dropped += 1


class Pictures(Protocol):
    """Takes pictures: a `VideoFile` or a `Window`."""

    def write(self, image: ImageArray, at_s: float) -> None: ...  # noqa: D102 - see VideoFile

    def close(self) -> None: ...  # noqa: D102

    def abandon(self) -> None: ...  # noqa: D102


class OverlayWriter:
    """Draws results and writes the pictures.

    Args:
        pictures: where they go.
        status: returns the line below the phrases.
    """

    def __init__(self, pictures: Pictures, status: Callable[[], str] = str) -> None:
        self._pictures = pictures
        self._status = status
        self._rows: int | None = None

    def write(self, result: FrameResult, events: tuple[TargetEvent, ...]) -> None:
        """Draw one frame; the strip keeps the height of the first one."""
        self._rows = len(result.targets) if self._rows is None else self._rows
        status = "  ".join([self._status(), *(f"{each.kind}: {each.phrase}" for each in events)])
        image = draw_frame(result, status=status, rows=self._rows)
        self._pictures.write(image, time_of(result))

    def close(self) -> None:
        """Finish the pictures."""
        self._pictures.close()

    def abandon(self) -> None:
        """Leave the pictures as they are."""
        self._pictures.abandon()


class ResultWriter:
    """Appends one JSON line per frame; every line that is there is complete.

    Args:
        path: the file; replaced if it exists.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._handle = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666
        )
        self._clock = clock
        self._synced_s = clock()
        self._size = 0

    def write(self, result: FrameResult, events: tuple[TargetEvent, ...]) -> None:
        """Append one line; half a line is removed again."""
        line = f"{json.dumps(frame_record(result, events), allow_nan=False)}\n".encode()
        left = line
        try:
            while left:
                left = left[os.write(self._handle, left) :]
        except OSError:
            os.ftruncate(self._handle, self._size)
            raise
        self._size += len(line)
        if self._clock() - self._synced_s >= _SYNC_S:
            os.fsync(self._handle)
            self._synced_s = self._clock()

    def close(self) -> None:
        """Force the lines to the disk and close the file."""
        try:
            os.fsync(self._handle)
        finally:
            os.close(self._handle)

    def abandon(self) -> None:
        """Close the file."""
        os.close(self._handle)


class MaskWriter:
    """Writes every mask as a PNG, 255 inside: `NUMBER.PLACE.png`, the frame's number and the phrase's place.

    Args:
        folder: exists.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, result: FrameResult, events: tuple[TargetEvent, ...]) -> None:  # noqa: ARG002 - the protocol's
        """Write the masks of one frame; a phrase without one has no file."""
        for at, target in enumerate(result.targets):
            if target.mask is not None:
                path = self._folder / f"{result.frame.number:08d}.{at}.png"
                write_file(path, png(target.mask.astype(np.uint8) * np.uint8(255)))

    def close(self) -> None:
        """Do nothing: every file is complete."""

    abandon = close


def time_of(result: FrameResult) -> float:
    """Return the frame's time in s: the source's own, or that of its capture."""
    return result.frame.captured_s if result.frame.pts_s is None else result.frame.pts_s


def frame_record(result: FrameResult, events: tuple[TargetEvent, ...]) -> dict[str, Any]:
    """Return what is known about a frame as a JSON-ready dictionary, masks as COCO run lengths."""
    frame = result.frame
    return {
        "source": frame.source,
        "frame": frame.number,
        "size_yx": list(frame.size_yx),
        "captured_s": round(frame.captured_s, 6),
        "wall_s": round(frame.wall_s, 6),
        "pts_s": frame.pts_s,
        "latency_ms": round(1000 * result.latency_s, 3),
        "targets": [target_record(each) for each in result.targets],
        "events": [
            {"kind": each.kind, "phrase": each.phrase, "frame": each.frame, "reason": each.reason}
            for each in events
        ],
    }


def target_record(target: TargetResult) -> dict[str, Any]:
    """Return what is known about a phrase at one frame as a JSON-ready dictionary."""
    mask = target.mask
    return {
        "phrase": target.phrase,
        "version": target.version,
        "state": target.state,
        "origin": target.origin,
        "age_ms": None if target.age_s is None else round(1000 * target.age_s, 3),
        "key_frame": target.key_number,
        "confidence": target.confidence,
        "score": None if target.score is None or not np.isfinite(target.score) else target.score,
        "reason": target.reason,
        "cautions": list(target.cautions),
        "evidence": {name: value if np.isfinite(value) else None for name, value in target.evidence.items()},
        "area": None if mask is None else int(np.count_nonzero(mask)),
        "box": None if mask is None else mask_box(mask),
        "mask": None if mask is None else compress_coco_rle(to_coco_rle(mask)),
    }
