"""What the node and the bags publish about a frame: masks, labels, results, detections, diagnostics.

Axes: y/x = image rows/columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from refdiff.camera.frame import FrameResult, TargetResult
from refdiff.camera.recording import frame_record
from refdiff.camera.summary import CameraSummary
from refdiff.contracts.session import Bool
from refdiff.errors import InputError
from refdiff.runtime.segmentation import mask_box

MOST_LABELS = 255
"""Phrases that an image of labels can tell apart."""

_OF_THE_RUN = ("captured_s", "wall_s", "latency_ms")
"""Fields of a record that differ from run to run."""


class Stamp(Protocol):
    """`builtin_interfaces/Time`."""

    sec: int
    nanosec: int


class Header(Protocol):
    """The fields of `std_msgs/Header` that are read."""

    stamp: Stamp
    frame_id: str


def stamp_s(header: Header) -> float:
    """Return a header's time in s."""
    return header.stamp.sec + 1e-9 * header.stamp.nanosec


def check_count(phrases: Sequence[str]) -> None:
    """Refuse more phrases than labels.

    Raises:
        InputError: with their number.
    """
    if len(phrases) > MOST_LABELS:
        raise InputError(f"got {len(phrases)} phrases, expected at most {MOST_LABELS}, the values of a label")


def shown_mask(target: TargetResult, size_yx: tuple[int, int], *, stale_masks: bool) -> Bool:
    """Return the mask [y, x] to act on: empty without one, and for a stale one unless wanted."""
    if target.mask is None or (target.state == "stale" and not stale_masks):
        return np.zeros(size_yx, dtype=np.bool_)
    return target.mask


def label_image(masks: Sequence[Bool], size_yx: tuple[int, int]) -> NDArray[np.uint8]:
    """Return [y, x]: 0, or 1 + the place of the phrase whose mask is there; of several, the smallest mask."""
    labels = np.zeros(size_yx, dtype=np.uint8)
    for at in sorted(range(len(masks)), key=lambda at: int(np.count_nonzero(masks[at])), reverse=True):
        labels[masks[at]] = at + 1
    return labels


def result_record(result: FrameResult, header: Header, *, repeatable: bool = False) -> dict[str, Any]:
    """Return what is known about a frame as a JSON-ready dictionary, with the header of its image.

    Args:
        result: one frame.
        header: of the frame's image.
        repeatable: leave out times that differ from run to run.
    """
    record = frame_record(result, result.events)
    if repeatable:
        record = {name: value for name, value in record.items() if name not in _OF_THE_RUN}
    stamp = {"sec": header.stamp.sec, "nanosec": header.stamp.nanosec}
    return {"header": {"stamp": stamp, "frame_id": header.frame_id}, **record}


def fill_detections(
    array: Any, result: FrameResult, header: Header, vision: Any, *, stale_masks: bool
) -> Any:
    """Fill a `vision_msgs/Detection2DArray` with the box of every mask to act on.

    Args:
        array: an empty message.
        result: one frame.
        header: of the frame's image.
        vision: the module `vision_msgs.msg`, of version 4 or later (Humble).
        stale_masks: see `shown_mask`.

    Returns:
        The message. A score is the confidence, and 0 where none is calibrated; `id` is the phrase's label.
    """
    array.header = header
    for at, target in enumerate(result.targets):
        box = mask_box(shown_mask(target, result.frame.size_yx, stale_masks=stale_masks))
        if box is None:
            continue
        hypothesis = vision.ObjectHypothesisWithPose()
        hypothesis.hypothesis.class_id = target.phrase
        hypothesis.hypothesis.score = float(target.confidence or 0.0)
        found = vision.Detection2D()
        found.header, found.id = header, str(at + 1)
        found.results.append(hypothesis)
        x0, y0, x1, y1 = box
        found.bbox.center.position.x, found.bbox.center.position.y = (x0 + x1) / 2, (y0 + y1) / 2
        found.bbox.size_x, found.bbox.size_y = float(x1 - x0), float(y1 - y0)
        array.detections.append(found)
    return array


def health(
    states: Mapping[str, str], *, silent_s: float, limit_s: float, fault: str | None, paused: bool
) -> tuple[int, str]:
    """Return level and message for diagnostics: 0 OK, 1 warning, 2 error, as in `DiagnosticStatus`.

    Args:
        states: phrase -> state in the last frame.
        silent_s: time since the last image in s.
        limit_s: time without one that is still fine.
        fault: why the last image could not be read, or why tracking ended.
        paused: nothing is wanted.
    """
    if fault is not None:
        return 2, fault
    if paused:
        return 0, "paused: no prompt, or inactive"
    if silent_s > limit_s:
        return 1, f"no image for {silent_s:.0f} s; check the topic, and that its QoS fits"
    bad = [f"{phrase} is {state}" for phrase, state in states.items() if state in ("stale", "lost")]
    return (1, "; ".join(bad)) if bad else (0, "tracking" if states else "waiting for the first image")


def diagnostic_values(summary: CameraSummary, states: Mapping[str, str]) -> dict[str, str]:
    """Return what diagnostics show, name -> text: rates, delays, ages, drops by cause, states."""
    values = {f"fps {name}": f"{value:.1f}" for name, value in summary.fps.items()}
    for name, delay in summary.delays_ms.items():
        for share in ("p50", "p99"):
            value = delay[share]
            values[f"{name} {share} ms"] = "" if value is None or not math.isfinite(value) else f"{value:.1f}"
    values |= {f"dropped {cause}": str(count) for cause, count in summary.dropped.items()}
    values |= {f"state of {phrase}": state for phrase, state in states.items()}
    return {**values, "back-end": summary.backend, "images": str(summary.frames_captured)}
