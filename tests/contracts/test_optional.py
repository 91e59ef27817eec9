import pytest

from refdiff.contracts.optional import require_bags, require_ros
from refdiff.errors import MissingDependencyError


@pytest.mark.parametrize("name", ["rclpy", "rclpy._rclpy_pybind11", "sensor_msgs"])
def test_missing_ros_names_both_ways_to_get_it(name):
    with (
        pytest.raises(
            MissingDependencyError, match=r"source /opt/ros/DISTRO/setup.bash .* pip install ros-rclpy"
        ),
        require_ros("the node"),
    ):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_a_ros_of_another_python_is_one_that_is_missing():
    with pytest.raises(MissingDependencyError, match="the node needs rclpy"), require_ros("the node"):
        raise ImportError("built for another Python", name="rclpy._rclpy_pybind11")


def test_missing_rosbags_names_the_extra():
    with (
        pytest.raises(MissingDependencyError, match=r"a bag needs rosbags.*\.\[bag\]"),
        require_bags("a bag"),
    ):
        raise ModuleNotFoundError("No module named 'rosbags'", name="rosbags")


@pytest.mark.parametrize("require", [require_ros, require_bags])
def test_a_broken_installation_keeps_its_traceback(require):
    with pytest.raises(ModuleNotFoundError, match=r"numpy\.core"), require("a thing"):
        raise ModuleNotFoundError("No module named 'numpy.core'", name="numpy.core")
