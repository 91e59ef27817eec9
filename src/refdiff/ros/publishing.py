"""The topics of results.

This module needs rclpy; import it in the block of `require_ros`.
"""

from __future__ import annotations

import array
import json
from importlib import import_module
from typing import Any

from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import Image
from std_msgs.msg import String

from refdiff.camera.frame import FrameResult
from refdiff.camera.overlay import draw_frame
from refdiff.ros.images import ImageFields, image_fields
from refdiff.ros.messages import fill_detections, label_image, result_record, shown_mask


def image_qos(depth: int = 1) -> QoSProfile:
    """Return the quality of service of images: best effort, so that no receiver holds up a sender."""
    return QoSProfile(depth=depth, reliability=ReliabilityPolicy.BEST_EFFORT)


def optional_messages(package: str) -> Any:
    """Return the messages of a package that not every installation has; None where it is missing."""
    try:
        return import_module(f"{package}.msg")
    except ModuleNotFoundError:
        return None


class ResultPublisher:
    """Publishes what is known about a frame, under the header of its image, while the node is active.

    What has no subscriber is not computed.

    Args:
        node: owns the publishers.
        stale_masks: publish stale masks as if they could be trusted.
    """

    def __init__(self, node: LifecycleNode, *, stale_masks: bool) -> None:
        self._node = node
        self._stale_masks = stale_masks
        self._vision = optional_messages("vision_msgs")
        self._mask = self._add("mask", Image, image_qos())
        self._labels = self._add("labels", Image, image_qos())
        self._overlay = self._add("overlay", Image, image_qos())
        self._result = self._add("result", String, QoSProfile(depth=10))
        self._detections = None
        if self._vision is not None:
            self._detections = self._add("detections", self._vision.Detection2DArray, QoSProfile(depth=10))

    def _add(self, name: str, kind: Any, qos: QoSProfile) -> Any:
        return self._node.create_lifecycle_publisher(
            kind, f"~/{name}", qos, qos_overriding_options=QoSOverridingOptions.with_default_policies()
        )

    def close(self) -> None:
        """Remove the topics."""
        for each in (self._mask, self._labels, self._overlay, self._result, self._detections):
            if each is not None:
                self._node.destroy_publisher(each)

    def publish(self, result: FrameResult) -> None:
        """Publish one frame's result; its frame carries the header of the image."""
        header: Any = result.frame.header
        self._publish_masks(result, header)
        if self._result.get_subscription_count():
            self._result.publish(String(data=json.dumps(result_record(result, header), allow_nan=False)))
        if self._detections is not None and self._detections.get_subscription_count():
            found = fill_detections(
                self._vision.Detection2DArray(), result, header, self._vision, stale_masks=self._stale_masks
            )
            self._detections.publish(found)
        if self._overlay.get_subscription_count():
            self._overlay.publish(image_message(image_fields(draw_frame(result)), header))

    def _publish_masks(self, result: FrameResult, header: Any) -> None:
        size_yx = result.frame.size_yx
        masks = [shown_mask(each, size_yx, stale_masks=self._stale_masks) for each in result.targets]
        if self._mask.get_subscription_count():
            self._mask.publish(image_message(image_fields(masks[0]), header))
        if self._labels.get_subscription_count():
            self._labels.publish(image_message(image_fields(label_image(masks, size_yx)), header))


def image_message(fields: ImageFields, header: Any) -> Image:
    """Return the `sensor_msgs/Image` of rclpy with these fields."""
    message = Image()
    message.header = header
    message.height, message.width, message.step = fields["height"], fields["width"], fields["step"]
    message.encoding, message.is_bigendian = fields["encoding"], fields["is_bigendian"]
    message.data = array.array("B", fields["data"].tobytes())  # rclpy checks other types byte by byte
    return message
