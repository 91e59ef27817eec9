"""The node on the real middleware: in this process without engines, and as a process with the miniature."""

import array
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture

from refdiff.errors import EngineError, InputError
from refdiff.ros.images import image_fields
from tests.support.fake_tracker import FakeTracker

# Robots have the packages from their distribution; for tests they come from wheels, where there are some.
rclpy = pytest.importorskip("rclpy", reason="ROS 2 is not installed: no wheels for this Python or platform")

from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from refdiff.ros.node import SegmentationNode, run_node
from refdiff.ros.publishing import image_qos

pytestmark = pytest.mark.filterwarnings("ignore:module 'sre_:DeprecationWarning")  # lark, for rosidl

PATIENCE_S = 30.0


class Robot:
    """Another node, which sends images and prompts and keeps what it receives."""

    def __init__(self, context: Any, executor: SingleThreadedExecutor) -> None:
        self.node = rclpy.create_node("robot", context=context)
        self.executor = executor
        executor.add_node(self.node)
        self.images = self.node.create_publisher(Image, "/image", image_qos(10))
        self.compressed = self.node.create_publisher(CompressedImage, "/image/compressed", image_qos(10))
        self.prompts = self.node.create_publisher(String, "/refdiff/prompt", 10)
        self.masks: list[Image] = []
        self.labels: list[Image] = []
        self.results: list[dict[str, Any]] = []
        self.node.create_subscription(Image, "/refdiff/mask", self.masks.append, image_qos(10))
        self.node.create_subscription(Image, "/refdiff/labels", self.labels.append, image_qos(10))
        self.node.create_subscription(
            String, "/refdiff/result", lambda message: self.results.append(json.loads(message.data)), 10
        )

    def wait(self, done: Callable[[], Any], what: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not done():
            assert time.monotonic() < end, f"waited {PATIENCE_S:g} s for {what}"
            self.executor.spin_once(timeout_sec=0.02)

    def wait_for_node(self, images: Any = None) -> None:
        """Wait until both sides have found each other, so that no message is lost to that."""
        images = images or self.images
        self.wait(
            lambda: (
                images.get_subscription_count()
                and self.prompts.get_subscription_count()
                and all(
                    self.node.count_publishers(f"/refdiff/{name}") for name in ("mask", "labels", "result")
                )
            ),
            "the node",
        )

    def send(self, pixels: np.ndarray, sec: int) -> None:
        message = Image()
        message.header.stamp.sec, message.header.stamp.nanosec = sec, 5
        message.header.frame_id = "camera"
        for name, value in image_fields(pixels).items():
            setattr(message, name, array.array("B", value.tobytes()) if name == "data" else value)
        self.images.publish(message)

    def ask(self, pixels: np.ndarray, sec: int) -> tuple[Image, Image, dict[str, Any]]:
        """Send an image, again until its answer comes: the first ones may find no subscriber yet."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            self.send(pixels, sec)
            again = time.monotonic() + 0.5
            while time.monotonic() < again:
                self.executor.spin_once(timeout_sec=0.02)
                found = [
                    next((each for each in kept if stamp(each) == sec), None)
                    for kept in (self.masks, self.labels, self.results)
                ]
                if all(each is not None for each in found):
                    return found[0], found[1], found[2]  # type: ignore[return-value]
        raise AssertionError(f"no answer within {PATIENCE_S:g} s")


def stamp(message: Any) -> int:
    if isinstance(message, dict):
        return message["header"]["stamp"]["sec"]
    return message.header.stamp.sec


def pixels_of(message: Image) -> np.ndarray:
    return np.frombuffer(message.data, dtype=np.uint8).reshape(message.height, message.step)


SQUARE = np.full((12, 16, 3), 40, dtype=np.uint8)
SQUARE[2:6, 3:9, 0] = 250


@pytest.fixture(scope="module")
def domain() -> Iterator[int]:
    """A domain of this process on this machine alone, so that runs side by side do not meet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
        patch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
        yield 1 + os.getpid() % 100


@pytest.fixture(scope="module")
def context(domain: int) -> Iterator[Any]:
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    yield context
    rclpy.shutdown(context=context)


@pytest.fixture
def started(context: Any) -> Iterator[Callable[..., SimpleNamespace]]:
    """Start a node with a stand-in for the engines, and a robot that talks to it."""
    running: list[SimpleNamespace] = []

    def start(*, robot: bool = True, **given: Any) -> SimpleNamespace:
        made: list[FakeTracker] = []

        def open_tracker(parameters: Any, source: Any) -> FakeTracker:
            made.append(FakeTracker(source, parameters.phrases or ("none",), fails_at=fails_at))
            return made[-1]

        fails_at = given.pop("fails_at", None)
        executor, ends = SingleThreadedExecutor(context=context), []
        node = SegmentationNode(
            {"bundle": "mini", **given},
            open_tracker=open_tracker,
            on_end=lambda: ends.append(True),
            context=context,
        )
        executor.add_node(node)
        other = Robot(context, executor) if robot else None
        running.append(SimpleNamespace(node=node, executor=executor, robot=other, made=made, ends=ends))
        return running[-1]

    yield start
    for each in running:
        each.node.close()
        each.executor.shutdown()
        each.node.destroy_node()
        if each.robot is not None:
            each.robot.node.destroy_node()


def activate(started: SimpleNamespace) -> None:
    started.node.trigger_configure()
    assert started.node.failure is None
    started.node.trigger_activate()


def test_a_mask_has_the_header_of_its_image(started):
    run = started(prompt="the square\nthe tile")
    activate(run)
    run.robot.wait_for_node()
    mask, labels, result = run.robot.ask(SQUARE, 7)
    for message in (mask, labels):
        assert (message.header.stamp.sec, message.header.stamp.nanosec) == (7, 5)
        assert (message.header.frame_id, message.encoding) == ("camera", "mono8")
    expected = SQUARE[:, :, 0] > 128
    np.testing.assert_array_equal(pixels_of(mask), expected * 255)
    assert set(pixels_of(labels)[expected]) <= {1, 2}
    assert result["header"] == {"stamp": {"sec": 7, "nanosec": 5}, "frame_id": "camera"}
    assert [each["phrase"] for each in result["targets"]] == ["the square", "the tile"]


def test_a_prompt_is_followed_from_the_topic_and_from_the_parameter(started):
    run = started()
    activate(run)
    (tracker,) = run.made
    assert tracker.paused  # there is no prompt yet
    run.robot.wait_for_node()
    run.robot.prompts.publish(String(data="the mug"))
    run.robot.wait(lambda: not tracker.paused, "the prompt")
    assert run.robot.ask(SQUARE, 1)[2]["targets"][0]["phrase"] == "the mug"
    assert run.node.get_parameter("prompt").value == "the mug"
    assert run.node.set_parameters([Parameter("prompt", value="the cup")])[0].successful
    assert run.robot.ask(SQUARE, 2)[2]["targets"][0]["phrase"] == "the cup"
    assert run.node.set_parameters([Parameter("prompt", value="")])[0].successful
    assert tracker.paused


@pytest.mark.parametrize("prompt", ["refused", 5])
def test_a_prompt_that_cannot_be_used_changes_nothing(started, prompt):
    run = started(robot=False, prompt="the mug")
    activate(run)
    done = run.node.set_parameters([Parameter("prompt", value=prompt)])[0]
    assert not done.successful
    assert "got " in done.reason
    assert run.node.get_parameter("prompt").value == "the mug"
    assert run.made[0].phrases == ("the mug",)


def test_other_parameters_cannot_change(started):
    run = started(robot=False)
    assert not run.node.set_parameters([Parameter("bundle", value="other")])[0].successful


def test_the_states_of_the_lifecycle_open_and_close_the_engines(started):
    run = started(prompt="the square")
    run.node.trigger_configure()
    (tracker,) = run.made
    assert (tracker.opened, tracker.paused) == (True, True)
    run.node.trigger_activate()
    assert not tracker.paused
    run.robot.wait_for_node()
    run.robot.ask(SQUARE, 1)
    run.node.trigger_deactivate()
    assert (tracker.paused, tracker.closed) == (True, False)
    run.robot.wait(lambda: not run.robot.images.get_subscription_count(), "the subscription's end")
    run.node.trigger_activate()
    assert not tracker.paused
    run.robot.wait_for_node()
    run.robot.ask(SQUARE, 2)
    run.node.trigger_deactivate()
    run.node.trigger_cleanup()
    assert tracker.closed
    run.node.trigger_configure()
    assert len(run.made) == 2
    run.node.trigger_shutdown()
    assert run.made[1].closed
    assert run.ends == [True]


def test_a_configuration_that_fails_can_be_tried_again(started):
    run = started(robot=False, policy="oldest")
    run.node.trigger_configure()
    assert isinstance(run.node.failure, InputError)
    assert "policy" in str(run.node.failure)
    assert run.made == []


def test_engines_that_fail_end_the_node(started):
    run = started(prompt="the square", fails_at=0)
    activate(run)
    run.robot.wait_for_node()
    run.robot.send(SQUARE, 1)
    run.robot.wait(lambda: run.ends, "the end")
    assert isinstance(run.node.failure, EngineError)


@pytest.mark.slow
def test_diagnostics_say_why_images_cannot_be_read(started):
    messages = pytest.importorskip("diagnostic_msgs.msg")
    run = started(prompt="the square")
    activate(run)
    heard: list[Any] = []
    run.robot.node.create_subscription(
        messages.DiagnosticArray, "/refdiff/diagnostics", lambda each: heard.extend(each.status), 10
    )
    run.robot.wait_for_node()
    run.robot.ask(SQUARE, 1)
    run.robot.wait(lambda: any(each.level == b"\x00" for each in heard), "a good status")
    assert {pair.key: pair.value for pair in heard[-1].values}["state of the square"] == "seen"
    bad = Image(height=2, width=2, encoding="8UC3", step=6, data=array.array("B", bytes(12)))
    run.robot.images.publish(bad)
    run.robot.wait(lambda: any(each.level == b"\x02" for each in heard), "an error")
    assert "8UC3 does not say" in heard[-1].message
    assert {pair.key: pair.value for pair in heard[-1].values}["dropped undecodable"] == "1"


def test_compressed_images_are_read(started):
    run = started(prompt="the square", transport="compressed")
    activate(run)
    run.robot.wait_for_node(run.robot.compressed)
    buffer = io.BytesIO()
    Picture.fromarray(SQUARE).save(buffer, "PNG")
    message = CompressedImage(format="png", data=array.array("B", buffer.getvalue()))
    message.header.stamp.sec = 3
    run.robot.compressed.publish(message)
    run.robot.wait(lambda: run.robot.masks, "the mask")
    assert run.robot.masks[0].header.stamp.sec == 3
    np.testing.assert_array_equal(pixels_of(run.robot.masks[0]), (SQUARE[:, :, 0] > 128) * 255)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["mini"], "got the argument 'mini'"), (["--ros-args", "--remap", "x"], "ROS refuses its arguments")],
)
def test_arguments_that_are_none_of_ros_are_refused(domain, arguments, said):
    with pytest.raises(InputError, match=said):
        run_node({}, arguments)


@pytest.mark.slow
def test_a_process_of_its_own_segments_what_another_one_sends(context):
    """The miniature's engines, the real middleware, two processes; SIGINT ends the node with exit code 0."""
    from refdiff.data.synthetic import demo_samples

    (sample,) = demo_samples(1)
    command = [sys.executable, "-m", "refdiff.ros", "--ros-args", "-p", "bundle:=mini"]
    executor = SingleThreadedExecutor(context=context)
    robot = Robot(context, executor)
    with subprocess.Popen([*command, "-p", f"prompt:={sample.phrase}"]) as process:
        try:
            robot.wait_for_node()
            end = time.monotonic() + PATIENCE_S
            mask, sec = np.zeros_like(sample.truth), 0
            while not mask.any():  # until the first key frame is answered
                assert time.monotonic() < end, robot.results[-1]
                sec += 1
                mask = pixels_of(robot.ask(sample.image, sec)[0]) > 0
            target = robot.results[-1]["targets"][0]
            assert target["state"] in ("seen", "tracked")
            assert (mask & sample.truth).sum() / (mask | sample.truth).sum() > 0.8
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()
            robot.node.destroy_node()
            executor.shutdown()
