import json
from pathlib import Path

import numpy as np
import pytest

from refdiff.cli import main
from refdiff.cli.ros import split_arguments
from refdiff.ros.images import image_fields

COUNT = 5


@pytest.mark.parametrize(
    ("words", "phrases", "arguments"),
    [
        (["the mug", "the cup"], ["the mug", "the cup"], []),
        (["the mug", "--ros-args", "-r", "image:=/cam"], ["the mug"], ["--ros-args", "-r", "image:=/cam"]),
        (["--ros-args"], [], ["--ros-args"]),
        ([], [], []),
    ],
)
def test_the_arguments_of_ros_come_after_the_phrases(words, phrases, arguments):
    assert split_arguments(words) == (phrases, arguments)


@pytest.mark.slow
def test_a_bag_is_segmented_the_same_way_twice(tmp_path, capsys):
    """The miniature's engines and the real tracker, from the command line."""
    typesys = pytest.importorskip("rosbags.typesys", reason="rosbags is not installed: pip install '.[bag]'")
    from rosbags.highlevel import AnyReader
    from rosbags.rosbag2 import StoragePlugin, Writer

    from refdiff.data.synthetic import demo_samples

    (sample,) = demo_samples(1)
    types, kind = typesys.get_typestore(typesys.Stores.ROS2_HUMBLE), "sensor_msgs/msg/Image"
    with Writer(tmp_path / "in", version=8, storage_plugin=StoragePlugin.SQLITE3) as writer:
        images = writer.add_connection("/image", kind, typestore=types)
        for number in range(COUNT):
            stamp = types.types["builtin_interfaces/msg/Time"](sec=0, nanosec=number)
            header = types.types["std_msgs/msg/Header"](stamp=stamp, frame_id="camera")
            message = types.types[kind](header=header, **image_fields(sample.image))
            writer.write(images, 1_000_000_000 + number, types.serialize_cdr(message, kind))

    def run(place: Path) -> bytes:
        place.mkdir()
        output = place / "out.mcap"
        command = ["bag", "mini", str(tmp_path / "in"), sample.phrase, "-o", str(output), "--json"]
        assert main(command) == 0
        report = json.loads(capsys.readouterr().out)
        assert (report["images"], report["answered"], report["matched"]) == (COUNT, COUNT, COUNT)
        return output.read_bytes()

    assert run(tmp_path / "one") == run(tmp_path / "two")
    with AnyReader([tmp_path / "one" / "out.mcap"]) as reader:
        (topic,) = (each for each in reader.connections if each.topic == "/refdiff/mask")
        for _, _, data in reader.messages(connections=[topic]):
            mask = reader.deserialize(data, kind)
            shown = mask.data.reshape(mask.height, mask.width) > 0
            assert np.sum(shown & sample.truth) / np.sum(shown | sample.truth) > 0.8


def test_a_bag_that_is_missing_is_refused_before_engines_are_opened(tmp_path, capsys):
    assert main(["bag", "mini", str(tmp_path / "in.mcap"), "the mug", "-o", str(tmp_path / "out.mcap")]) == 2
    assert "in.mcap does not exist, expected a bag" in capsys.readouterr().err
