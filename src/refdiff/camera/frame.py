"""A frame of a source, what delivers frames, and what is known about every phrase at a frame.

Axes: y/x = image rows/columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from refdiff.contracts.session import Bool, ImageArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """One picture with its times."""

    source: str
    """The source as it was given, without credentials."""
    number: int
    """Counts the frames that the source is known to have produced, dropped ones included: it grows from frame
    to frame, also across reconnects, and is never used twice."""
    pixels: ImageArray = field(repr=False)
    """[y, x, 3] RGB, read-only, not shared with the source's buffer."""
    captured_s: float
    """`time.monotonic()` when the frame arrived from the camera or the network. It may be read in another
    process: on Linux and macOS, the clock is one for the whole machine."""
    wall_s: float
    """`time.time()` of the same moment."""
    pts_s: float | None = None
    """The source's own presentation time in s; None where it has none."""
    header: object | None = field(default=None, repr=False)
    """What the source attached, such as the header of a ROS message; it is handed through unread."""

    @property
    def size_yx(self) -> tuple[int, int]:
        """The frame's size in px."""
        return self.pixels.shape[0], self.pixels.shape[1]


@dataclass(frozen=True, kw_only=True)
class SourceEvent:
    """Something that happened to a source: opened, lost, stalled, reconnected, changed its size, ended."""

    kind: str
    """`opened`, `failed`, `stalled`, `reconnecting`, `resized` or `ended`."""
    reason: str
    """One line without credentials."""
    at_s: float
    """`time.monotonic()`."""
    attempt: int = 0
    """Number of the attempt to connect since the last frame; 0 where none was needed."""
    cause: str = ""
    """The kind of a fault, such as `authentication`, `refused` or `timeout` (docs/camera.md); empty where
    nothing failed."""


@dataclass(frozen=True, kw_only=True)
class SourceCounts:
    """What became of the frames of a source: `captured` is `delivered` + all `dropped` + `waiting`."""

    captured: int = 0
    """Frames that the source is known to have produced, those that could not be decoded included."""
    delivered: int = 0
    """Frames that `read` returned."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Cause -> number of frames, such as `newest`: a newer frame was there before this one was read."""
    waiting: int = 0
    """Frames that `read` can return now; 0 once the source is closed."""
    reconnects: int = 0


class FrameSource(Protocol):
    """Delivers the frames of one camera, stream, file or other supply, in order and each at most once."""

    @property
    def live(self) -> bool:
        """Whether frames come at their own pace, as from a camera, and not as fast as they are read."""
        ...

    @property
    def ended(self) -> bool:
        """Whether no further frame will come, because the source has ended or was closed.

        It is False while `read` still has an error to raise.
        """
        ...

    def read(self, timeout_s: float) -> Frame | None:
        """Wait for the next frame of the source's policy.

        Returns:
            A frame that no earlier call returned; None if none came in time, or if the source has ended.

        Raises:
            SourceError: the source could not be opened, or is lost for good (`SourceLostError`).
            InputError, MissingDependencyError: it holds nothing that can be read, or a program is missing.
        """
        ...

    def counts(self) -> SourceCounts:
        """Return what became of the frames so far."""
        ...

    def take_events(self) -> list[SourceEvent]:
        """Return the events since the last call, oldest first."""
        ...

    def close(self) -> None:
        """Release the source; calling it twice is fine. A `read` in another thread returns None."""
        ...


State = Literal["searching", "seen", "tracked", "stale", "lost"]
"""How far a mask can be trusted (docs/camera.md):

searching: no key frame has been answered yet. seen: the mask was found in this very frame. tracked: it was
found in an earlier frame and followed to this one. stale: it was followed for too long, or the evidence that
it is still right is weak. lost: there is no mask.
"""

MaskOrigin = Literal["grounded", "tracked", "refined"]
"""What made the mask: the whole pipeline on this frame, points followed to it, or SAM on this frame, prompted
with the followed mask."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetResult:
    """What is known about one phrase at one frame. The mask is one of this frame, never of an older one."""

    phrase: str
    version: int
    """Counts the changes of this phrase while running; answers to an earlier phrase are never shown."""
    state: State
    mask: Bool | None = field(default=None, repr=False)
    """[y, x] of the frame; None where there is none."""
    origin: MaskOrigin | None = None
    """None without a mask."""
    age_s: float | None = None
    """Time from the capture of the key frame that the mask was found in to that of this frame; None without
    a mask."""
    key_number: int | None = None
    """Number of that key frame."""
    confidence: float | None = None
    """Of the key frame's answer, 0..1; None until one is calibrated."""
    score: float | None = None
    """Of the key frame's answer."""
    reason: str | None = None
    """Reason why there is no mask, or why it is stale."""
    cautions: tuple[str, ...] = ()
    """Of the key frame's answer: why the mask may be wrong."""
    evidence: Mapping[str, float] = field(default_factory=dict)
    """What the state was decided by: `inliers` (share of followed points, 0..1), `area_ratio`,
    `forward_backward_px`, `sam_iou`, `scene_change`."""


@dataclass(frozen=True, kw_only=True)
class TargetEvent:
    """A change of one phrase's target."""

    kind: Literal["found", "lost", "switched", "stale", "cut", "phrase", "failed"]
    phrase: str
    frame: int
    """Number of the frame."""
    reason: str
    """One line."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameResult:
    """One frame with what is known about every phrase, in the order of the phrases."""

    frame: Frame
    targets: tuple[TargetResult, ...]
    events: tuple[TargetEvent, ...] = ()
    """Since the last result."""
    latency_s: float = 0.0
    """Time from the frame's capture until this result was ready."""
