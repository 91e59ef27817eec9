"""The parameters of the node: names, defaults and meanings, and options and tracker they stand for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol, cast

from refdiff.camera.frame import FrameResult
from refdiff.camera.options import CameraOptions
from refdiff.camera.sources.push_source import PushPolicy, PushSource
from refdiff.camera.summary import CameraSummary
from refdiff.camera.track import Tracker
from refdiff.camera.verdict import Level, TrackOptions
from refdiff.contracts.options import BackendOptions, RunOptions
from refdiff.errors import InputError
from refdiff.ros.images import ENCODINGS


def _parameter(text: str, default: Any) -> Any:
    return field(default=default, metadata={"text": text})


@dataclass(frozen=True, kw_only=True)
class NodeParameters:
    """The parameters, each with the type, default and description that ROS shows."""

    bundle: str = _parameter('the bundle\'s folder, or "mini" for the built-in models', "")
    prompt: str = _parameter("phrases, one a line; empty: wait for one; the only one that can change", "")
    image_topic: str = _parameter("topic of the images; compressed ones are at TOPIC/compressed", "image")
    transport: str = _parameter("raw (sensor_msgs/Image) or compressed (sensor_msgs/CompressedImage)", "raw")
    encoding: str = _parameter("read images as this encoding, whatever they say; empty: as they say", "")
    policy: str = _parameter("newest: drop images that come too fast; every: queue up to 64", "newest")
    backend: str = _parameter("what runs the graphs, as refdiff segment --backend", "auto")
    memory: str = _parameter('device memory for plans, such as "8GB"; empty: what fits', "")
    threads: int = _parameter("CPU threads; 0: the back-end's choice", 0)
    run_limit_s: float = _parameter("end the process if one graph takes longer: it hangs; 0: no limit", 0.0)
    variant: str = _parameter("edge or official", "edge")
    mode: str = _parameter("gen, gen+seg, disc+seg or full", "full")
    min_confidence: float = _parameter("no mask below this confidence, 0..1; negative: no minimum", -1.0)
    key: str = _parameter("time between key frames: auto, change, or a number of seconds", "auto")
    level: str = _parameter("how masks are followed: off, points, sam or auto", "auto")
    stale_after_s: float = _parameter("age from which a mask is stale, in s", 4.0)
    stale_masks: bool = _parameter("keep stale masks in ~/mask and ~/labels", default=False)
    silence_s: float = _parameter("time without an image after which ~/diagnostics warns, in s", 5.0)
    autostart: bool = _parameter(
        "configure and activate at the start; else a lifecycle manager does", default=True
    )

    @property
    def phrases(self) -> tuple[str, ...]:
        """The phrases of the prompt."""
        return phrases_of(self.prompt)

    @property
    def frame_policy(self) -> PushPolicy:
        """The policy of the source."""
        return "newest" if self.policy == "newest" else "every"

    @property
    def topic(self) -> str:
        """The topic that is subscribed to."""
        return f"{self.image_topic}/compressed" if self.transport == "compressed" else self.image_topic

    def camera_options(self) -> CameraOptions:
        """Return the options of tracking.

        Raises:
            InputError: one of them has no meaning.
        """
        options = CameraOptions(
            run=RunOptions(
                variant=self.variant,
                mode=self.mode,
                min_confidence=None if self.min_confidence < 0 else self.min_confidence,
            ),
            track=TrackOptions(level=cast("Level", self.level), stale_after_s=self.stale_after_s),
            key=key_of(self.key),
        )
        options.check()
        return options

    def backend_options(self) -> BackendOptions:
        """Return where and how the graphs run."""
        return BackendOptions(
            name=self.backend,
            threads=self.threads or None,
            memory=self.memory or None,
            run_limit_s=self.run_limit_s or None,
        )


def read_parameters(values: Mapping[str, Any]) -> NodeParameters:
    """Build the parameters from what ROS delivers, name -> value; those left out keep their defaults.

    Raises:
        InputError: names the first one that cannot be used.
    """
    given = {
        each.name: _read(each.name, each.default, values[each.name])
        for each in fields(NodeParameters)
        if each.name in values
    }
    parameters = NodeParameters(**given)
    if not parameters.bundle:
        raise InputError("got no bundle; set the parameter bundle, such as -p bundle:=mini")
    _choice("transport", parameters.transport, ("raw", "compressed"))
    _choice("policy", parameters.policy, ("newest", "every"))
    if parameters.encoding:
        allowed = ENCODINGS if parameters.transport == "raw" else ("rgb8", "bgr8", "mono16")
        _choice("encoding", parameters.encoding.lower(), allowed)
    if parameters.threads < 0 or parameters.run_limit_s < 0 or not parameters.silence_s > 0:
        raise InputError("got a negative number, expected threads and run_limit_s from 0, silence_s above 0")
    parameters.camera_options()
    return parameters


def phrases_of(prompt: str) -> tuple[str, ...]:
    """Return the phrases of a prompt: its lines, without blank ones."""
    return tuple(line.strip() for line in prompt.splitlines() if line.strip())


def _read(name: str, default: Any, value: Any) -> Any:
    """Return a value in the type of the default: YAML writes 1 for a float and 0.5 for a text."""
    if type(value) is type(default):
        return value
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if name == "key" and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise InputError(
        f"parameter {name}: got {value!r}, expected {type(default).__name__}, such as {default!r}"
    )


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"parameter {name}: got {value!r}, expected one of: {', '.join(allowed)}")


def key_of(text: str) -> float | Literal["auto", "change"]:
    """Return the time between key frames: a name, or seconds.

    Raises:
        InputError: it is neither.
    """
    if text == "auto":
        return "auto"
    if text == "change":
        return "change"
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise InputError(f"got key {text!r}, expected auto, change, or seconds from 0")
    return seconds


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
