"""Masks of the images in a bag, written to a bag; ROS is not needed.

In: an MCAP file, or a folder or file of rosbag2 (MCAP or SQLite); bags of ROS 1 too. Out: an MCAP file or a
rosbag2 folder with one mask, image of labels and result for each image, under its header and its time. The
same bag gives the same output.

Axes: y/x = image rows/columns.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refdiff.camera.frame import FrameResult
from refdiff.camera.options import DEFAULT_CAMERA, CameraOptions
from refdiff.camera.overlay import draw_frame
from refdiff.camera.sources.push_source import PushSource
from refdiff.camera.track import Tracker
from refdiff.contracts.optional import require_bags
from refdiff.contracts.options import DEFAULT_BACKEND, BackendOptions
from refdiff.contracts.progress import Progress, Step, silent
from refdiff.errors import InputError, RefdiffError
from refdiff.ros.bag_file import BagWriter, messages_of, open_bag, read_message
from refdiff.ros.images import compressed_to_rgb, image_fields, image_to_rgb
from refdiff.ros.messages import check_count, label_image, result_record, shown_mask
from refdiff.ros.parameters import RunningTracker

if TYPE_CHECKING:
    from rosbags.highlevel import AnyReader
    from rosbags.interfaces import Connection

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"


@dataclass(frozen=True, kw_only=True)
class BagOptions:
    """Options of a run over a bag."""

    topic: str | None = None
    """Topic of the images; None: the only one in the bag."""
    camera: CameraOptions = DEFAULT_CAMERA
    """How the images are answered; `key=0` answers every one by itself."""
    every: int = 1
    """Every how many-th image is answered; the others have no mask."""
    copy: bool = False
    """Copy all messages of the bag too."""
    overlay: bool = False
    """Write overlays too."""
    stale_masks: bool = False
    """Keep stale masks in the masks and labels."""
    encoding: str = ""
    """Read the images as this encoding, whatever they say; empty: as they say."""
    prefix: str = "/refdiff"
    """Namespace of the topics that are written."""
    overwrite: bool = False
    """Replace what is at the output's place."""


@dataclass(frozen=True, kw_only=True)
class BagReport:
    """What became of a bag's images."""

    topic: str
    output: Path
    images: int
    """On the topic."""
    answered: int
    matched: int
    """Images where the first phrase has a mask."""
    failures: dict[str, int] = field(default_factory=dict)
    """Why images could not be read -> how many."""
    backend: str = ""
    copied: int = 0
    """Messages of the bag that were copied."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "topic": self.topic,
            "output": str(self.output),
            "images": self.images,
            "answered": self.answered,
            "matched": self.matched,
            "failures": self.failures,
            "backend": self.backend,
            "copied": self.copied,
        }


DEFAULT_BAG = BagOptions()


def segment_bag(
    bundle: Path | str,
    bag: Path,
    phrases: Sequence[str],
    output: Path,
    *,
    options: BagOptions = DEFAULT_BAG,
    backend: BackendOptions = DEFAULT_BACKEND,
    progress: Progress = silent,
    open_tracker: Callable[[PushSource], RunningTracker] | None = None,
) -> BagReport:
    """Segment the images of a bag and write the masks to another one, whole or not at all.

    Args:
        bundle: its folder, or "mini" for the built-in one.
        bag: an .mcap, .db3 or .bag file, or a rosbag2 folder.
        phrases: English; each is followed by itself.
        output: a name that ends in .mcap becomes a file, any other a rosbag2 folder with SQLite.
        options: which images, how they are answered, and what is written.
        backend: where and how the graphs run.
        progress: notified of each image.
        open_tracker: makes what answers the images; None: the bundle.

    Raises:
        InputError: the bag has no such topic or cannot be read, or the output's place is taken.
        MissingDependencyError: rosbags or OpenCV is not installed.
        RefdiffError: see `refdiff.camera.track.track`.
    """
    if options.every < 1:
        raise InputError(f"got every {options.every}, expected 1 or more")
    check_count(phrases)
    with require_bags("a bag"), open_bag(bag) as reader:
        images = choose_topic(reader, options.topic)
        source = PushSource(images.topic, policy="every", live=False)
        make = open_tracker or (
            lambda given: Tracker(bundle, given, phrases, options=options.camera, backend=backend)
        )
        with BagWriter(output, overwrite=options.overwrite) as writer, closing(make(source)) as tracker:
            tracker.__enter__()
            run = _Run(reader, images, writer, options, source, iter(tracker))
            run.work(progress)
            named = tracker.summary().backend
        return BagReport(
            topic=images.topic,
            output=output,
            images=run.images,
            answered=run.answered,
            matched=run.matched,
            failures=run.failures,
            backend=named,
            copied=run.copied,
        )


def choose_topic(reader: AnyReader, wanted: str | None) -> Connection:
    """Return the connection of the topic with the images.

    Raises:
        InputError: there is none, there are several, or the one that was named is none of them.
    """
    found = {each.topic: each for each in reader.connections if each.msgtype in (IMAGE, COMPRESSED)}
    listed = ", ".join(sorted(found))
    if not found:
        others = ", ".join(sorted({f"{each.topic} ({each.msgtype})" for each in reader.connections}))
        raise InputError(
            f"got a bag without images, expected {IMAGE} or {COMPRESSED}; it has: {others or '-'}"
        )
    if wanted is None and len(found) > 1:
        raise InputError(f"the bag has {len(found)} topics of images; choose one with --topic: {listed}")
    topic = next(iter(found)) if wanted is None else wanted
    if topic not in found:
        raise InputError(f"got topic {topic!r}, expected one of images: {listed}")
    if not found[topic].msgcount:
        raise InputError(f"topic {topic} has no message; choose another one of: {listed}")
    return found[topic]


class _Run:
    """One pass over a bag: each image is answered before the next message is read."""

    def __init__(
        self,
        reader: AnyReader,
        topic: Connection,
        writer: BagWriter,
        options: BagOptions,
        source: PushSource,
        results: Iterator[FrameResult],
    ) -> None:
        self._reader, self._topic, self._writer, self._options = reader, topic, writer, options
        self._source, self._results = source, results
        self.images = self.answered = self.matched = self.copied = 0
        self.failures: dict[str, int] = {}

    def work(self, progress: Progress) -> None:
        """Read the bag to its end."""
        total = self._topic.msgcount
        wanted = (
            [] if self._options.copy else [each for each in self._reader.connections if self._is_ours(each)]
        )
        if self._options.copy:
            self._writer.declare(self._reader, self._options.prefix)
        for connection, time_ns, data in messages_of(self._reader, wanted):
            if self._options.copy:
                self._writer.copy(connection, time_ns, data)
                self.copied += 1
            if not self._is_ours(connection):
                continue
            self.images += 1
            if (self.images - 1) % self._options.every == 0:
                self._answer(time_ns, data)
            progress(Step(self._topic.topic, done=self.images, total=total, unit="images"))
        self._source.finish()
        if not self.answered:
            raise InputError(f"no image of {self._topic.topic} can be read: {next(iter(self.failures))}")

    def _is_ours(self, connection: Connection) -> bool:
        return connection.topic == self._topic.topic

    def _answer(self, time_ns: int, data: bytes) -> None:
        read: Callable[..., Any] = image_to_rgb if self._topic.msgtype == IMAGE else compressed_to_rgb
        try:
            message = read_message(self._reader, self._topic, data)
            pixels = read(message, encoding=self._options.encoding)
        except InputError as error:
            self.failures[str(error)] = self.failures.get(str(error), 0) + 1
            return
        # The bag's time, not the header's: some drivers leave that at 0, and key frames go by it.
        self._source.push(lambda: pixels, pts_s=1e-9 * time_ns, header=message.header)
        result = next(self._results, None)
        if result is None:
            raise RefdiffError("tracking ended before the bag; run again with --debug, and report it")
        self._write(result, time_ns)
        self.answered += 1
        self.matched += result.targets[0].mask is not None

    def _write(self, result: FrameResult, time_ns: int) -> None:
        """Write what is known about one image, under its header and time."""
        header: Any = result.frame.header
        size_yx, prefix = result.frame.size_yx, self._options.prefix
        masks = [shown_mask(each, size_yx, stale_masks=self._options.stale_masks) for each in result.targets]
        record = json.dumps(result_record(result, header, repeatable=True), allow_nan=False)
        self._writer.write_image(f"{prefix}/mask", time_ns, header, image_fields(masks[0]))
        self._writer.write_image(
            f"{prefix}/labels", time_ns, header, image_fields(label_image(masks, size_yx))
        )
        self._writer.write_text(f"{prefix}/result", time_ns, record)
        if self._options.overlay:
            self._writer.write_image(f"{prefix}/overlay", time_ns, header, image_fields(draw_frame(result)))
