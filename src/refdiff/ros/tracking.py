"""What answers the images of a node or a bag: `refdiff.camera.track.Tracker`, or a stand-in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from refdiff.camera.result import FrameResult
from refdiff.camera.sources.push_source import PushSource
from refdiff.camera.summary import CameraSummary
from refdiff.camera.track import Tracker
from refdiff.ros.parameters import NodeParameters

_PLACEHOLDER = "object"
"""Phrase of a node without a prompt; it is paused, so that no image is answered for it."""


class RunningTracker(Protocol):
    """What is needed of a tracker; see `refdiff.camera.track.Tracker`."""

    def __enter__(self) -> RunningTracker:
        """Open the engines and start."""
        ...

    def __iter__(self) -> Iterator[FrameResult]:
        """Yield results until it is closed."""
        ...

    def close(self) -> None:
        """Stop and free everything."""
        ...

    def set_phrases(self, phrases: Sequence[str]) -> None:
        """Follow other phrases."""
        ...

    def pause(self) -> None:
        """Give no result until `resume`."""
        ...

    def resume(self) -> None:
        """Go on with the next frame."""
        ...

    def summary(self) -> CameraSummary:
        """Return what was measured so far."""
        ...


def open_tracker(parameters: NodeParameters, source: PushSource) -> RunningTracker:
    """Return the tracker that the parameters describe; entering it opens the engines."""
    return Tracker(
        parameters.bundle,
        source,
        parameters.phrases or (_PLACEHOLDER,),
        options=parameters.camera_options(),
        backend=parameters.backend_options(),
    )
