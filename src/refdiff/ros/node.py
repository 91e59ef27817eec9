"""The ROS 2 node: images and phrases in, masks with the header of the very image they belong to out.

This module needs rclpy; import it in the block of `require_ros`. The executor's thread takes messages, and
waits for graphs only while the node is configured or closed.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from types import MappingProxyType
from typing import Any

import rclpy
from rcl_interfaces.msg import ParameterDescriptor, SetParametersResult
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args
from std_msgs.msg import String

from refdiff.camera.sources.push_source import PushSource
from refdiff.errors import InputError, RefdiffError
from refdiff.ros.parameters import NodeParameters, RunningTracker, open_tracker, read_parameters
from refdiff.ros.publishing import optional_messages
from refdiff.ros.worker import Worker

NAME = "refdiff"

_DIAGNOSTICS_S = 1.0


class SegmentationNode(LifecycleNode):
    """Subscribes to images and prompts, and publishes masks; docs/ros2.md lists topics and parameters.

    Configuring opens the engines; activating subscribes to the images; deactivating stops the work and keeps
    the engines; cleaning up frees them.

    Args:
        given: values of parameters that override those of ROS's arguments.
        open_tracker: makes what answers the images.
        on_end: called when the node has nothing more to do: it has failed, or was shut down.
        options: of `rclpy.node.Node`, such as `context` and `namespace`.
    """

    def __init__(
        self,
        given: Mapping[str, Any] = MappingProxyType({}),
        *,
        open_tracker: Callable[[NodeParameters, PushSource], RunningTracker] = open_tracker,
        on_end: Callable[[], None] = lambda: None,
        **options: Any,
    ) -> None:
        overrides = [Parameter(name, value=value) for name, value in given.items()]
        super().__init__(NAME, parameter_overrides=overrides, **options)
        self.failure: BaseException | None = None
        """What refused the configuration or ended the work; None while all is well."""
        self._refdiff_worker: Worker | None = None  # rclpy's own attributes have short names
        self._refdiff_open, self._refdiff_end = open_tracker, on_end
        for each in fields(NodeParameters):
            descriptor = ParameterDescriptor(
                description=each.metadata["text"], read_only=each.name != "prompt", dynamic_typing=True
            )
            self.declare_parameter(each.name, each.default, descriptor)
        self.add_on_set_parameters_callback(self._take_changes)
        self._diagnostic_msgs = optional_messages("diagnostic_msgs")
        self._diagnostics: Any = None
        if self._diagnostic_msgs is not None:
            kind = self._diagnostic_msgs.DiagnosticArray
            self._diagnostics = self.create_publisher(kind, "~/diagnostics", QoSProfile(depth=10))
        self.create_subscription(String, "~/prompt", self._take_prompt, QoSProfile(depth=10))
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # simulated time may stand still
        self.create_timer(_DIAGNOSTICS_S, self._look_after, clock=steady)

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Read the parameters and open the engines; FAILURE, with the reason in the log, if that fails."""
        try:
            values = {each.name: self.get_parameter(each.name).value for each in fields(NodeParameters)}
            parameters = read_parameters(values)
            self._refdiff_worker = Worker(self, parameters, self._fail, self._refdiff_open)
        except Exception as error:  # rclpy would log it and go on; `run_node` raises it
            self.failure = error
            self.get_logger().error(str(error))
            return TransitionCallbackReturn.FAILURE
        self.failure = None
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe to the images."""
        done = super().on_activate(state)
        if self._refdiff_worker is not None:
            self._refdiff_worker.subscribe()
        return done

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Leave the images; the engines stay open."""
        if self._refdiff_worker is not None:
            self._refdiff_worker.unsubscribe()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the engines."""
        self.close()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the engines and end."""
        self.close()
        self._refdiff_end()
        return super().on_shutdown(state)

    def close(self) -> None:
        """Stop the work and free the engines; waits for the graph that runs. Calling it twice is fine."""
        worker, self._refdiff_worker = self._refdiff_worker, None
        if worker is not None:
            worker.close()

    def _fail(self, failure: BaseException) -> None:
        self.failure = failure
        self.get_logger().fatal(str(failure))
        self._refdiff_end()

    def _take_prompt(self, message: String) -> None:
        """Set the parameter, so that it says what is segmented."""
        done = self.set_parameters([Parameter("prompt", Parameter.Type.STRING, message.data)])[0]
        if not done.successful:
            self.get_logger().error(f"the prompt {message.data!r} is refused: {done.reason}")

    def _take_changes(self, changed: Sequence[Parameter[Any]]) -> SetParametersResult:
        """Follow a new prompt; refuse one that cannot be used, with the reason."""
        try:
            for each in changed:
                if each.name == "prompt" and self._refdiff_worker is not None:
                    self._refdiff_worker.use_prompt(each.value)
        except RefdiffError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _look_after(self) -> None:
        """Log why images cannot be read, and publish diagnostics."""
        if self._refdiff_worker is None:
            return
        for fault in self._refdiff_worker.note_faults():
            self.get_logger().error(f"images are dropped: {fault}")
        if self._diagnostics is None or self._diagnostic_msgs is None:
            return
        messages = self._diagnostic_msgs
        level, message, values = self._refdiff_worker.diagnose()
        status = messages.DiagnosticStatus(
            level=bytes([level]),
            name=f"{self.get_fully_qualified_name().lstrip('/')}: segmentation",
            message=message,
            values=[messages.KeyValue(key=key, value=value) for key, value in values.items()],
        )
        array = messages.DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)


def run_node(given: Mapping[str, Any], arguments: Sequence[str] = ()) -> None:
    """Run the node until SIGINT or SIGTERM, the end of ROS, or a failure.

    Args:
        given: values of parameters.
        arguments: ROS's arguments, such as `--ros-args -p bundle:=mini -r image:=/camera/image_raw`.

    Raises:
        InputError: an argument that ROS does not take, or a parameter that cannot be used.
        RefdiffError: the engines could not be opened, or failed while running.
    """
    _open_ros(["refdiff", *arguments])
    ended = threading.Event()
    node = SegmentationNode(given, on_end=ended.set)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    thread = threading.Thread(target=_spin, args=(executor, ended), name="refdiff-executor", daemon=True)
    try:
        with _stopping_signals(ended):
            _start(node)
            if node.failure is None:
                thread.start()
                ended.wait()
    finally:
        executor.shutdown()
        if thread.ident is not None:
            thread.join()
        node.close()
        node.destroy_node()
        rclpy.try_shutdown()
    if node.failure is not None:
        raise node.failure


def _open_ros(arguments: list[str]) -> None:
    try:
        surplus = remove_ros_args(arguments)[1:]
        if surplus:
            raise InputError(f"got the argument {surplus[0]!r}, expected ROS's arguments, from --ros-args on")
        rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:  # rclpy's errors
        raise InputError(f"ROS refuses its arguments or cannot start: {error}") from error


def _start(node: SegmentationNode) -> None:
    """Configure and activate, unless a lifecycle manager does."""
    if node.get_parameter("autostart").value:
        node.trigger_configure()
        if node.failure is None:
            node.trigger_activate()


def _spin(executor: SingleThreadedExecutor, ended: threading.Event) -> None:
    with suppress(ExternalShutdownException):
        executor.spin()
    ended.set()


@contextmanager
def _stopping_signals(ended: threading.Event) -> Iterator[None]:
    """Set the event on the first SIGINT or SIGTERM; the second one ends the process at once."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def stop(number: int, _frame: object) -> None:
        ended.set()
        signal.signal(number, signal.SIG_DFL)

    for number in numbers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, before[number])
