"""Start the node: ros2 launch refdiff_ros2 refdiff.launch.py image:=/camera/image_raw prompt:="the mug"."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

PARAMETERS = {"bundle": "bundle", "prompt": "prompt", "image_topic": "image", "transport": "transport"}
"""Parameter of the node -> argument of the launch."""


def generate_launch_description() -> LaunchDescription:
    """Return the node, its parameters from the file and from the launch's arguments."""
    config = PathJoinSubstitution([FindPackageShare("refdiff_ros2"), "config"])
    arguments = {
        "bundle": ("mini", "the bundle's folder, or mini"),
        "prompt": ("", "phrases, one a line; empty: wait for one on ~/prompt"),
        "image": ("/camera/image_raw", "topic of the images"),
        "transport": ("raw", "raw or compressed"),
    }
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(name, default_value=default, description=text)
                for name, (default, text) in arguments.items()
            ),
            # Images of more than half a megabyte are lost without it, where the camera is on this machine.
            SetEnvironmentVariable(
                "FASTDDS_DEFAULT_PROFILES_FILE", PathJoinSubstitution([config, "fastdds_images.xml"])
            ),
            Node(
                package="refdiff_ros2",
                executable="node",
                name="refdiff",
                output="screen",
                respawn=True,
                respawn_delay=2.0,
                parameters=[
                    PathJoinSubstitution([config, "refdiff.yaml"]),
                    {
                        parameter: ParameterValue(LaunchConfiguration(name), value_type=str)
                        for parameter, name in PARAMETERS.items()
                    },
                ],
                remappings=[("~/diagnostics", "/diagnostics")],
            ),
        ]
    )
