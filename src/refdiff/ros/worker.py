"""The work of the node: it owns the tracker, the images' subscription and the thread that publishes results.

This module needs rclpy; import it in the block of `require_ros`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from rclpy.lifecycle import LifecycleNode
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CompressedImage, Image

from refdiff.camera.sources.push_source import PushSource
from refdiff.errors import InputError
from refdiff.ros.images import compressed_to_rgb, image_to_rgb
from refdiff.ros.messages import check_count, diagnostic_values, health, stamp_s
from refdiff.ros.parameters import NodeParameters, RunningTracker, open_tracker, phrases_of
from refdiff.ros.publishing import ResultPublisher, image_qos

_QUEUE = 64
"""Images that wait with the policy `every`."""


class Worker:
    """Answers images of a node that is configured. All methods but the thread's are called by the executor.

    Args:
        node: has the topics.
        parameters: of the node.
        on_failure: called, in the thread that publishes, with the error that ended the work.
        open_tracker: makes what answers the images.

    Raises:
        RefdiffError: a parameter cannot be used, or the engines cannot be opened.
    """

    def __init__(
        self,
        node: LifecycleNode,
        parameters: NodeParameters,
        on_failure: Callable[[BaseException], None],
        open_tracker: Callable[[NodeParameters, PushSource], RunningTracker] = open_tracker,
    ) -> None:
        check_count(parameters.phrases)
        self._node, self._parameters, self._on_failure = node, parameters, on_failure
        self._phrases = parameters.phrases
        self._source = PushSource(
            node.resolve_topic_name(parameters.topic), policy=parameters.frame_policy, capacity=_QUEUE
        )
        self._tracker = open_tracker(parameters, self._source)
        self._tracker.__enter__()
        self._tracker.pause()
        self._publisher = ResultPublisher(node, stale_masks=parameters.stale_masks)
        self._subscription: Any = None
        self._closing = False
        self._states: dict[str, str] = {}
        self._fault: str | None = None
        self._counted = (0, 0)
        self._last_image_s = time.monotonic()
        self._thread = threading.Thread(target=self._publish, name="refdiff-publish", daemon=True)
        self._thread.start()

    @property
    def paused(self) -> bool:
        """Whether there is nothing to do: the node is inactive, or there is no phrase."""
        return self._subscription is None or not self._phrases

    def subscribe(self) -> None:
        """Begin to take images."""
        compressed = self._parameters.transport == "compressed"
        read: Callable[..., Any] = compressed_to_rgb if compressed else image_to_rgb
        self._last_image_s = time.monotonic()
        self._subscription = self._node.create_subscription(
            CompressedImage if compressed else Image,
            self._parameters.topic,
            partial(self._take_image, read),
            image_qos(1 if self._parameters.policy == "newest" else _QUEUE),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        self._pause_or_resume()

    def unsubscribe(self) -> None:
        """Take no further images; the engines stay open."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None
        self._pause_or_resume()

    def use_prompt(self, prompt: object) -> None:
        """Segment the phrases of a prompt, one a line, from the next image on; pause without one.

        Raises:
            InputError: it is no text, or a phrase cannot be used; nothing is changed.
        """
        if not isinstance(prompt, str):
            raise InputError(f"got prompt {prompt!r}, expected text, one phrase a line")
        phrases = phrases_of(prompt)
        check_count(phrases)
        if phrases:
            self._tracker.set_phrases(phrases)
        self._phrases, self._states = phrases, {}
        self._pause_or_resume()

    def close(self) -> None:
        """Free the engines; waits for the graph that runs."""
        self._closing = True
        self.unsubscribe()
        self._tracker.close()
        self._thread.join()
        self._publisher.close()

    def _pause_or_resume(self) -> None:
        if self.paused:
            self._tracker.pause()
        else:
            self._tracker.resume()

    def _take_image(self, read: Callable[..., Any], message: Any) -> None:
        """Hand an image over; it is decoded where it is used, if it is used."""
        self._last_image_s = time.monotonic()
        self._source.push(
            partial(read, message, encoding=self._parameters.encoding),
            captured_s=self._last_image_s,
            pts_s=stamp_s(message.header),
            header=message.header,
        )

    def _publish(self) -> None:
        """Publish results until the tracker ends; the failure of either ends the work."""
        try:
            for result in self._tracker:
                self._publisher.publish(result)
                if not self.paused:
                    self._states = {each.phrase: each.state for each in result.targets}
        except BaseException as error:
            if not self._closing:
                self._on_failure(error)

    def note_faults(self) -> list[str]:
        """Return why images could not be read since the last call, and keep the reason until one can."""
        counts, (delivered, before) = self._source.counts(), self._counted
        undecodable = counts.dropped.get("undecodable", 0)
        self._counted = (counts.delivered, undecodable)
        if counts.delivered > delivered and undecodable == before:
            self._fault = None
        faults = [event.reason for event in self._source.take_events() if event.kind == "failed"]
        self._fault = faults[-1] if faults else self._fault
        return faults

    def diagnose(self) -> tuple[int, str, dict[str, str]]:
        """Return level, message and values for diagnostics; see `health` and `diagnostic_values`."""
        states = {} if self.paused else dict(self._states)
        level, message = health(
            states,
            silent_s=time.monotonic() - self._last_image_s,
            limit_s=self._parameters.silence_s,
            fault=self._fault,
            paused=self.paused,
        )
        return level, message, diagnostic_values(self._tracker.summary(), states)
