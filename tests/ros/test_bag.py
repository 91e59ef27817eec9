import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refdiff.errors import InputError
from refdiff.ros.bag import BagOptions, BagReport, segment_bag
from refdiff.ros.images import image_fields
from refdiff.runtime.image import png
from tests.support.fake_tracker import FakeTracker

pytest.importorskip("rosbags", reason="rosbags is not installed: pip install '.[bag]'")

from rosbags.highlevel import AnyReader
from rosbags.rosbag1 import Writer as OldWriter
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

TYPES = get_typestore(Stores.ROS2_HUMBLE)
IMAGE, TEXT = "sensor_msgs/msg/Image", "std_msgs/msg/String"
TOPIC = "/camera/image_raw"
COUNT, START_NS = 7, 1_700_000_000_000_000_000


def picture(number: int) -> np.ndarray:
    """A bright square that moves; none in the fourth image."""
    pixels = np.full((12, 16, 3), 40, dtype=np.uint8)
    if number != 3:
        pixels[2:6, number : number + 5, 0] = 250
    return pixels


def image(number: int, **changes: Any) -> Any:
    stamp = TYPES.types["builtin_interfaces/msg/Time"](sec=100 + number, nanosec=number)
    header = TYPES.types["std_msgs/msg/Header"](stamp=stamp, frame_id="camera")
    return TYPES.types[IMAGE](header=header, **{**image_fields(picture(number)), **changes})


def make_bag(
    path: Path,
    *,
    plugin: StoragePlugin = StoragePlugin.MCAP,
    topics: tuple[str, ...] = (TOPIC,),
    changes: dict[int, dict[str, Any]] | None = None,
) -> Path:
    """Write a bag of moving squares and of texts; return the folder, or the MCAP file in it."""
    with Writer(path, version=8, storage_plugin=plugin) as writer:
        text = writer.add_connection("/chatter", TEXT, typestore=TYPES)
        for topic in topics:
            images = writer.add_connection(topic, IMAGE, typestore=TYPES)
            for number in range(COUNT):
                message = image(number, **(changes or {}).get(number, {}))
                time_ns = START_NS + number * 100_000_000
                writer.write(images, time_ns, TYPES.serialize_cdr(message, IMAGE))
                spoken = TYPES.types[TEXT](data=f"{topic} {number}")
                writer.write(text, time_ns + 1, TYPES.serialize_cdr(spoken, TEXT))
    return next(path.glob("*.mcap"), path)


def read_bag(path: Path) -> dict[str, list[tuple[int, Any]]]:
    """Return topic -> time and message of each."""
    found: dict[str, list[tuple[int, Any]]] = {}
    with AnyReader([path]) as reader:
        for connection, time_ns, data in reader.messages():
            message = reader.deserialize(data, connection.msgtype)
            found.setdefault(connection.topic, []).append((time_ns, message))
    return found


def run(bag: Path, output: Path, phrases: tuple[str, ...] = ("the square",), **options: Any) -> BagReport:
    state = options.pop("state", "seen")
    return segment_bag(
        "mini",
        bag,
        phrases,
        output,
        options=BagOptions(**options),
        open_tracker=lambda source: FakeTracker(source, phrases, state=state),
    )


@pytest.fixture(scope="module")
def mcap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bag(tmp_path_factory.mktemp("bag") / "in")


@pytest.mark.parametrize("plugin", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
@pytest.mark.parametrize("name", ["out.mcap", "out"])
def test_each_image_has_a_mask_with_its_header_and_its_time(tmp_path, plugin, name):
    bag = make_bag(tmp_path / "in", plugin=plugin)
    report = run(bag, tmp_path / name)
    assert (report.images, report.answered, report.matched, report.failures) == (COUNT, COUNT, COUNT - 1, {})
    assert (tmp_path / name).is_file() == name.endswith(".mcap")
    found = read_bag(tmp_path / name)
    assert sorted(found) == ["/refdiff/labels", "/refdiff/mask", "/refdiff/result"]
    for number, (time_ns, mask) in enumerate(found["/refdiff/mask"]):
        assert time_ns == START_NS + number * 100_000_000
        assert (mask.header.stamp.sec, mask.header.stamp.nanosec) == (100 + number, number)
        assert (mask.header.frame_id, mask.encoding, mask.step) == ("camera", "mono8", 16)
        expected = np.where(picture(number)[:, :, 0] > 128, 255, 0)
        np.testing.assert_array_equal(mask.data.reshape(12, 16), expected)
    records = [json.loads(message.data) for _, message in found["/refdiff/result"]]
    assert [record["header"]["stamp"]["sec"] for record in records] == list(range(100, 100 + COUNT))
    assert [record["targets"][0]["state"] for record in records] == ["seen"] * 3 + ["lost"] + ["seen"] * 3


def test_the_same_bag_gives_the_same_bytes(mcap, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        run(mcap, tmp_path / name / "out.mcap", copy=True, overlay=True)
    one, two = ((tmp_path / name / "out.mcap").read_bytes() for name in ("one", "two"))
    assert one == two


def test_only_every_nth_image_is_answered(mcap, tmp_path):
    report = run(mcap, tmp_path / "out.mcap", every=3)
    assert (report.images, report.answered) == (7, 3)
    masks = read_bag(tmp_path / "out.mcap")["/refdiff/mask"]
    assert [message.header.stamp.sec for _, message in masks] == [100, 103, 106]


def test_copied_messages_are_the_bag_s_own(mcap, tmp_path):
    report = run(mcap, tmp_path / "out.mcap", copy=True)
    assert report.copied == 2 * COUNT
    before, after = read_bag(mcap), read_bag(tmp_path / "out.mcap")
    for topic, messages in before.items():
        assert [time_ns for time_ns, _ in after[topic]] == [time_ns for time_ns, _ in messages]
        for (_, one), (_, other) in zip(messages, after[topic], strict=True):
            assert TYPES.serialize_cdr(one, one.__msgtype__) == TYPES.serialize_cdr(other, one.__msgtype__)


def test_a_bag_that_was_made_by_this_is_not_copied_into_itself(mcap, tmp_path):
    run(mcap, tmp_path / "one.mcap", copy=True)
    with pytest.raises(InputError, match=r"/refdiff/labels, /refdiff/mask, .*choose another --prefix"):
        run(tmp_path / "one.mcap", tmp_path / "two.mcap", copy=True, topic=TOPIC)
    run(tmp_path / "one.mcap", tmp_path / "two.mcap", copy=True, topic=TOPIC, prefix="/again")
    assert "/again/mask" in read_bag(tmp_path / "two.mcap")


def test_a_bag_of_ros_1_is_read_and_not_copied(tmp_path):
    types = get_typestore(Stores.ROS1_NOETIC)
    with OldWriter(tmp_path / "in.bag") as writer:
        images = writer.add_connection(TOPIC, IMAGE, typestore=types)
        stamp = types.types["builtin_interfaces/msg/Time"](sec=100, nanosec=4)
        header = types.types["std_msgs/msg/Header"](seq=9, stamp=stamp, frame_id="camera")
        message = types.types[IMAGE](header=header, **image_fields(picture(0)))
        writer.write(images, START_NS, types.serialize_ros1(message, IMAGE))
    run(tmp_path / "in.bag", tmp_path / "out.mcap")
    ((time_ns, mask),) = read_bag(tmp_path / "out.mcap")["/refdiff/mask"]
    assert (time_ns, mask.header.stamp.nanosec, mask.header.frame_id) == (START_NS, 4, "camera")
    with pytest.raises(InputError, match="messages of ROS 1 cannot be copied"):
        run(tmp_path / "in.bag", tmp_path / "other.mcap", copy=True)


def test_compressed_images_are_read(tmp_path):
    kind = "sensor_msgs/msg/CompressedImage"
    with Writer(tmp_path / "in", version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        images = writer.add_connection(f"{TOPIC}/compressed", kind, typestore=TYPES)
        data = np.frombuffer(png(picture(0)), dtype=np.uint8)
        message = TYPES.types[kind](header=image(0).header, format="rgb8; png compressed bgr8", data=data)
        writer.write(images, START_NS, TYPES.serialize_cdr(message, kind))
    run(tmp_path / "in", tmp_path / "out.mcap")
    ((_, mask),) = read_bag(tmp_path / "out.mcap")["/refdiff/mask"]
    np.testing.assert_array_equal(mask.data.reshape(12, 16) > 0, picture(0)[:, :, 0] > 128)


def test_a_stale_mask_is_empty_unless_it_is_wanted(mcap, tmp_path):
    for wanted in (False, True):
        run(mcap, tmp_path / "out.mcap", state="stale", stale_masks=wanted, overwrite=True)
        masks = read_bag(tmp_path / "out.mcap")["/refdiff/mask"]
        assert bool(masks[0][1].data.any()) == wanted


def test_the_topic_has_to_be_chosen_among_several(tmp_path):
    bag = make_bag(tmp_path / "in", topics=("/left", "/right"))
    with pytest.raises(InputError, match="2 topics of images; choose one with --topic: /left, /right"):
        run(bag, tmp_path / "out.mcap")
    with pytest.raises(InputError, match="got topic '/chatter', expected one of images: /left, /right"):
        run(bag, tmp_path / "out.mcap", topic="/chatter")
    assert run(bag, tmp_path / "out.mcap", topic="/right").topic == "/right"


def test_a_bag_without_images_lists_its_topics(tmp_path):
    bag = make_bag(tmp_path / "in", topics=())
    with pytest.raises(InputError, match=r"got a bag without images.*/chatter"):
        run(bag, tmp_path / "out.mcap")


def test_images_that_cannot_be_read_are_counted_and_the_others_answered(tmp_path):
    bag = make_bag(tmp_path / "in", changes={1: {"step": 3}, 4: {"encoding": "8UC3"}})
    report = run(bag, tmp_path / "out.mcap")
    assert (report.images, report.answered) == (COUNT, COUNT - 2)
    assert sorted(report.failures.values()) == [1, 1]
    masks = read_bag(tmp_path / "out.mcap")["/refdiff/mask"]
    assert [message.header.stamp.sec - 100 for _, message in masks] == [0, 2, 3, 5, 6]


def test_nothing_is_written_if_no_image_can_be_read(tmp_path):
    bag = make_bag(tmp_path / "in", changes={number: {"encoding": "16UC1"} for number in range(COUNT)})
    with pytest.raises(InputError, match="no image of /camera/image_raw can be read: encoding 16UC1"):
        run(bag, tmp_path / "out.mcap")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_the_caller_can_state_the_encoding(tmp_path):
    bag = make_bag(tmp_path / "in", changes={number: {"encoding": "8UC3"} for number in range(COUNT)})
    assert run(bag, tmp_path / "out.mcap", encoding="rgb8").answered == COUNT


@pytest.mark.parametrize("name", ["out.mcap", "out"])
def test_nothing_is_left_of_a_run_that_fails(mcap, tmp_path, name):
    with pytest.raises(RuntimeError, match="cable"):
        segment_bag(
            "mini", mcap, ["x"], tmp_path / name, open_tracker=lambda source: CutTracker(source, ["x"])
        )
    assert list(tmp_path.iterdir()) == []


class CutTracker(FakeTracker):
    def __iter__(self):
        yield next(super().__iter__())
        raise RuntimeError("cable")


def test_what_is_there_is_replaced_only_if_that_is_allowed(mcap, tmp_path):
    (tmp_path / "out.mcap").write_text("kept")
    with pytest.raises(InputError, match=r"out.mcap exists; .*--overwrite"):
        run(mcap, tmp_path / "out.mcap")
    assert (tmp_path / "out.mcap").read_text() == "kept"
    run(mcap, tmp_path / "out.mcap", overwrite=True)
    assert len(read_bag(tmp_path / "out.mcap")["/refdiff/mask"]) == COUNT
    run(mcap, tmp_path / "folder")
    run(mcap, tmp_path / "folder", overwrite=True)
    assert len(read_bag(tmp_path / "folder")["/refdiff/mask"]) == COUNT


@pytest.mark.parametrize(
    ("output", "said"),
    [("missing/out.mcap", "is not a folder"), ("out.db3", "expected a name that ends in .mcap")],
)
def test_a_place_that_cannot_be_written_is_refused(mcap, tmp_path, output, said):
    with pytest.raises(InputError, match=said):
        run(mcap, tmp_path / output)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing.mcap", None, "does not exist"),
        ("empty.mcap", b"", "cannot be read as a bag"),
        ("damaged.mcap", b"\x89MCAP0\r\n" + bytes(300), "cannot be read as a bag"),
        ("damaged.db3", b"SQLite format 3\0" + bytes(300), "cannot be read as a bag"),
        ("photo.png", b"x", "expected a bag: a folder, or a file that ends in"),
    ],
)
def test_what_is_no_bag_is_refused_by_name(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        run(tmp_path / name, tmp_path / "out.mcap")
    assert not (tmp_path / "out.mcap").exists()


def test_a_bag_that_was_cut_off_is_refused_and_nothing_is_written(mcap, tmp_path):
    (tmp_path / "cut.mcap").write_bytes(mcap.read_bytes()[:-400])
    with pytest.raises(InputError, match=r"cut.mcap cannot be read as a bag"):
        run(tmp_path / "cut.mcap", tmp_path / "out.mcap")
    assert [path.name for path in tmp_path.iterdir()] == ["cut.mcap"]


def test_a_folder_without_metadata_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"has no metadata.yaml"):
        run(tmp_path, tmp_path / "out.mcap")
