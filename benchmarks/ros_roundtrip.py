"""The ROS node over the real middleware: 30 images a second, masks back, with a slow subscriber and without.

    python -m benchmarks.ros_roundtrip            counts and times; refused while other programs run
    python -m benchmarks.ros_roundtrip --counts   what does not depend on other programs

This process sends a clip of moving objects and receives the masks; the node is a process of its own with the
miniature's engines; the slow subscriber, which takes two masks a second, is a third one.
"""

from __future__ import annotations

import argparse
import array
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import Image
from std_msgs.msg import String

from benchmarks.records import RESULTS, QuietMachine, add_entry
from refdiff.contracts.session import ImageArray
from refdiff.data.moving_scenes import MovingScene
from refdiff.ros.publishing import image_qos

PROFILE = Path(__file__).parents[1] / "ros2" / "refdiff_ros2" / "config" / "fastdds_images.xml"
FPS = 30.0
RENDERED = 240
"""Frames that are rendered before; they are played forward and backward, so that there is no jump."""
SLOW_S = 0.5
PATIENCE_S = 60.0


class Camera:
    """Sends images and keeps the time of every answer."""

    def __init__(self, frames: list[ImageArray]) -> None:
        self.node = rclpy.create_node("camera")
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self.images = self.node.create_publisher(Image, "/image", image_qos())
        self.prompts = self.node.create_publisher(String, "/refdiff/prompt", 10)
        self.sent_s: dict[int, float] = {}
        self.received_s: dict[int, float] = {}
        self.order: list[int] = []
        self.results: list[dict[str, Any]] = []
        self.status: dict[str, str] = {}
        self.messages = [_message(frame) for frame in frames]
        self.node.create_subscription(Image, "/refdiff/mask", self._take_mask, image_qos(10))
        self.node.create_subscription(
            String, "/refdiff/result", lambda message: self.results.append(json.loads(message.data)), 100
        )
        self.node.create_subscription(DiagnosticArray, "/refdiff/diagnostics", self._take_status, 10)

    def _take_mask(self, message: Image) -> None:
        number = _number(message.header.stamp)
        self.received_s[number] = time.monotonic()
        self.order.append(number)

    def _take_status(self, message: DiagnosticArray) -> None:
        self.status = {pair.key: pair.value for status in message.status for pair in status.values}

    def wait_for(self, subscribers: int) -> None:
        """Wait until the node is there, with this many subscribers of the masks."""
        end = time.monotonic() + PATIENCE_S
        while not (
            self.images.get_subscription_count()
            and self.node.count_subscribers("/refdiff/mask") == subscribers
            and self.node.count_publishers("/refdiff/mask")
        ):
            if time.monotonic() > end:
                raise SystemExit(f"no node within {PATIENCE_S:g} s")
            self.executor.spin_once(timeout_sec=0.05)

    def send(self, number: int) -> None:
        """Send one image, with its number as its time."""
        period = 2 * len(self.messages) - 2
        at = number % period
        message = self.messages[at if at < len(self.messages) else period - at]
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(number * 33_333_333, 1_000_000_000)
        self.sent_s[number] = time.monotonic()
        self.images.publish(message)

    def spin(self, until_s: float) -> None:
        """Take answers until a time."""
        while (left := until_s - time.monotonic()) > 0:
            self.executor.spin_once(timeout_sec=left)


def _message(pixels: ImageArray) -> Image:
    height, width = pixels.shape[:2]
    message = Image(height=height, width=width, encoding="rgb8", step=3 * width)
    message.header.frame_id = "camera"
    message.data = array.array("B", pixels.tobytes())
    return message


def _number(stamp: Any) -> int:
    return int((stamp.sec * 1_000_000_000 + stamp.nanosec) // 33_333_333)


@contextmanager
def _running(*command: str) -> Iterator[None]:
    with subprocess.Popen([sys.executable, *command]) as process:  # noqa: S603 - this program's own modules
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)
            if process.wait(PATIENCE_S) != 0:
                raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")


def measure(frames: list[ImageArray], phrases: tuple[str, str], count: int, *, slow: bool) -> dict[str, Any]:
    """Send images at the camera's rate, change the prompt in the middle, and describe what came back."""
    camera = Camera(frames)
    node = ("-m", "refdiff.ros", "--ros-args", "-p", "bundle:=mini", "-p", f"prompt:={phrases[0]}")
    other = _running("-m", "benchmarks.ros_roundtrip", "--slow-subscriber") if slow else nullcontext()
    with _running(*node), other:
        camera.wait_for(2 if slow else 1)
        begin, changed_s = time.monotonic(), 0.0
        for number in range(count):
            camera.send(number)
            if number == count // 2:
                changed_s = time.monotonic()
                camera.prompts.publish(String(data=phrases[1]))
            camera.spin(begin + (number + 1) / FPS)
        camera.spin(time.monotonic() + 3.0)  # the last diagnostics
    camera.node.destroy_node()
    return _describe(camera, phrases, count, changed_s)


def _describe(camera: Camera, phrases: tuple[str, str], count: int, changed_s: float) -> dict[str, Any]:
    named = [each["targets"][0]["phrase"] for each in camera.results]
    first = named.index(phrases[1]) if phrases[1] in named else len(named)
    numbers = [_number_of(each) for each in camera.results]
    delays = np.array([camera.received_s[each] - camera.sent_s[each] for each in camera.order])
    after = [
        camera.received_s[_number_of(each)] - changed_s
        for each in camera.results[first:]
        if each["targets"][0]["mask"] is not None and _number_of(each) in camera.received_s
    ]
    taken = int(camera.status["images"])
    drops = {name.removeprefix("dropped "): int(n) for name, n in camera.status.items() if "dropped" in name}
    return {
        "images": {
            "sent": count,
            "lost_by_the_middleware": count - taken,
            "taken_by_the_node": taken,
            "results": len(numbers),
        },
        "dropped_by_the_node": drops,
        "unexplained": taken - len(numbers) - sum(drops.values()),
        "masks": len(camera.order),
        "stamps_are_those_of_images": set(camera.order) <= set(camera.sent_s)
        and set(numbers) <= set(camera.sent_s),
        "in_order_and_once": all(a < b for order in (camera.order, numbers) for a, b in pairwise(order)),
        "old_phrase_after_the_new_one": named[first:].count(phrases[0]),
        "states": {
            state: sum(each["targets"][0]["state"] == state for each in camera.results)
            for state in ("searching", "seen", "tracked", "stale", "lost")
        },
        "round_trip_ms": {
            name: round(1000 * float(np.quantile(delays, share)), 2)
            for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
        },
        "prompt_to_first_mask_s": round(min(after), 3) if after else None,
        "node": {name: value for name, value in camera.status.items() if "ms" in name or "fps" in name},
    }


def _number_of(result: dict[str, Any]) -> int:
    stamp = result["header"]["stamp"]
    return int((stamp["sec"] * 1_000_000_000 + stamp["nanosec"]) // 33_333_333)


TIMES = ("round_trip_ms", "prompt_to_first_mask_s", "node", "states")


def subscribe_slowly() -> None:
    """Take masks, and sleep for each, until SIGINT."""
    rclpy.init()
    node = rclpy.create_node("slow")
    node.create_subscription(Image, "/refdiff/mask", lambda _: time.sleep(SLOW_S), image_qos())
    node.create_subscription(String, "/refdiff/result", lambda _: time.sleep(SLOW_S), 10)
    try:
        rclpy.spin(node)
    except KeyboardInterrupt:
        return


def main() -> None:
    """Run both cases and record them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", action="store_true", help="record no times, on a machine that does more")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=RESULTS / "ros.json")
    parser.add_argument("--slow-subscriber", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    os.environ["FASTDDS_DEFAULT_PROFILES_FILE"] = str(PROFILE)
    if given.slow_subscriber:
        subscribe_slowly()
        return
    clip = MovingScene(18, "slow", cut=False)
    frames = [clip.frame(number).pixels for number in range(RENDERED)]
    phrases = (clip.phrases[0].phrase, clip.phrases[1].phrase)
    rclpy.init()
    for name, slow in (("one subscriber", False), ("a slow subscriber", True)):
        with nullcontext() if given.counts else QuietMachine():
            found = measure(frames, phrases, given.images, slow=slow)
        if given.counts:
            found = {key: value for key, value in found.items() if key not in TIMES}
        sys.stderr.write(json.dumps(found, indent=1) + "\n")
        size = f"{clip.size_yx[1]}x{clip.size_yx[0]}"
        add_entry(
            given.output,
            name,
            {"size": size, "fps": FPS, "phrases": phrases, "timed": not given.counts, **found},
        )
    rclpy.shutdown()


if __name__ == "__main__":
    main()
