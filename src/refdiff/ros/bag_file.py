"""Bag files: opened for reading with clear errors, and written whole or not at all."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from refdiff.contracts.atomic_io import open_draft_folder, place_folder, report_write_errors, sync
from refdiff.errors import InputError
from refdiff.ros.images import ImageFields

if TYPE_CHECKING:
    from rosbags.highlevel import AnyReader
    from rosbags.interfaces import Connection
    from rosbags.rosbag2 import Writer

_ENDINGS = (".mcap", ".db3", ".bag")


@contextmanager
def open_bag(path: Path) -> Iterator[AnyReader]:
    """Open a bag for reading.

    Args:
        path: an .mcap, .db3 or .bag file, or a rosbag2 folder.

    Raises:
        InputError: missing, no bag, damaged, or of message types that are not known.
        ModuleNotFoundError: rosbags is not installed.
    """
    from rosbags.highlevel import AnyReader
    from rosbags.typesys import Stores, get_typestore

    _check_place(path)
    older = get_typestore(Stores.ROS2_FOXY)  # whose bags have no definitions of their messages
    with ExitStack() as stack:
        with _report_damage(path):
            reader = stack.enter_context(AnyReader([path], default_typestore=older))
        yield reader


def messages_of(
    reader: AnyReader, connections: Sequence[Connection]
) -> Iterator[tuple[Connection, int, bytes]]:
    """Yield connection, time in ns and data of each message, in the order of time.

    Args:
        reader: an open bag.
        connections: to be read; empty: all.

    Raises:
        InputError: the bag is damaged.
    """
    found = iter(reader.messages(connections=connections))
    while True:
        with _report_damage(reader.paths[0]):
            item = next(found, None)
        if item is None:
            return
        yield item


def read_message(reader: AnyReader, connection: Connection, data: bytes) -> Any:
    """Return a message.

    Raises:
        InputError: the data are not of the connection's type.
    """
    with _report_damage(connection.topic):
        return reader.deserialize(data, connection.msgtype)


@contextmanager
def _report_damage(what: object) -> Iterator[None]:
    """Turn what rosbags raises on damaged files into one line for the user."""
    from rosbags.highlevel import AnyReaderError

    damage = (AnyReaderError, OSError, EOFError, struct.error, sqlite3.Error, LookupError, ValueError)
    try:
        yield
    except (*damage, AssertionError, TypeError) as error:
        reason = str(error) or type(error).__name__
        raise InputError(
            f"{what} cannot be read as a bag: {reason}; check it with `ros2 bag info`"
        ) from error


def _check_place(path: Path) -> None:
    if not path.exists():
        raise InputError(f"{path} does not exist, expected a bag; check the path")
    if path.is_dir() and not (path / "metadata.yaml").is_file():
        raise InputError(f"{path} has no metadata.yaml, expected a folder of rosbag2; name a file in it")
    if path.is_file() and path.suffix not in _ENDINGS:
        raise InputError(
            f"got {path}, expected a bag: a folder, or a file that ends in {', '.join(_ENDINGS)}"
        )


class BagWriter:
    """Writes a bag; use it in a `with` block: the bag appears when the block ends well.

    Args:
        output: a name that ends in .mcap becomes a file, any other a rosbag2 folder with SQLite.
        overwrite: replace what is there.

    Raises:
        InputError: the place is taken or cannot be written.
    """

    def __init__(self, output: Path, *, overwrite: bool) -> None:
        if output.suffix in (".db3", ".bag"):
            raise InputError(f"got output {output}, expected a name that ends in .mcap, or a folder's name")
        if not output.parent.is_dir():
            raise InputError(f"cannot write {output}: {output.parent} is not a folder; make it first")
        if output.exists() and not overwrite:
            raise InputError(f"{output} exists; choose another place, or allow overwriting (--overwrite)")
        self._output = output
        self._single = output.suffix == ".mcap"
        if output.exists() and output.is_dir() == self._single:
            raise InputError(f"cannot write {output}: what is there is of another kind; choose another place")
        self._stack = ExitStack()
        self._connections: dict[object, Connection] = {}

    def __enter__(self) -> BagWriter:
        from rosbags.rosbag2 import StoragePlugin, Writer
        from rosbags.typesys import Stores, get_typestore

        self._types = get_typestore(Stores.ROS2_HUMBLE)
        plugin = StoragePlugin.MCAP if self._single else StoragePlugin.SQLITE3
        with report_write_errors(self._output), ExitStack() as undo:
            self._draft = undo.enter_context(open_draft_folder(self._output))
            self._folder = self._draft / (self._output.stem if self._single else self._output.name)
            self._writer: Writer = Writer(self._folder, version=8, storage_plugin=plugin)
            self._writer.open()
            self._stack = undo.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with report_write_errors(self._output), self._stack:
            if error is not None:
                self._writer.abort()
                return
            self._writer.close()
            self._place()

    def _place(self) -> None:
        for path in self._folder.iterdir():
            sync(path)
        if self._single:
            next(self._folder.glob("*.mcap")).replace(self._output)
            sync(self._output.parent)
        else:
            place_folder(self._folder, self._output)

    def declare(self, reader: AnyReader, prefix: str) -> None:
        """Prepare to copy the messages of a bag.

        Raises:
            InputError: it is of ROS 1, or has topics below `prefix`.
        """
        if not reader.is2:
            raise InputError("messages of ROS 1 cannot be copied to a bag of ROS 2; leave out --copy")
        taken = sorted({each.topic for each in reader.connections if each.topic.startswith(f"{prefix}/")})
        if taken:
            raise InputError(f"the bag has {', '.join(taken)} already; choose another --prefix")
        for each in reader.connections:
            definition, digest = each.msgdef.data, each.digest
            if not definition or not digest:
                definition, _ = reader.typestore.generate_msgdef(each.msgtype, ros_version=2)
                digest = reader.typestore.hash_rihs01(each.msgtype)
            self._connections[_key(each)] = self._writer.add_connection(
                each.topic,
                each.msgtype,
                msgdef=definition,
                rihs01=digest,
                offered_qos_profiles=each.ext.offered_qos_profiles,  # type: ignore[union-attr]  # of ROS 2
            )

    def copy(self, connection: Connection, time_ns: int, data: bytes) -> None:
        """Write a message of the bag as it is."""
        self._put(self._connections[_key(connection)], time_ns, data)

    def write_image(self, topic: str, time_ns: int, header: Any, fields: ImageFields) -> None:
        """Write a `sensor_msgs/Image` under a header, of whatever version of ROS it is."""
        types = self._types.types
        stamp = types["builtin_interfaces/msg/Time"](sec=header.stamp.sec, nanosec=header.stamp.nanosec)
        own = types["std_msgs/msg/Header"](stamp=stamp, frame_id=header.frame_id)
        self._write(topic, time_ns, "sensor_msgs/msg/Image", {"header": own, **fields})

    def write_text(self, topic: str, time_ns: int, text: str) -> None:
        """Write a `std_msgs/String`."""
        self._write(topic, time_ns, "std_msgs/msg/String", {"data": text})

    def _write(self, topic: str, time_ns: int, kind: str, fields: dict[str, Any]) -> None:
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(topic, kind, typestore=self._types)
        message = self._types.types[kind](**fields)
        self._put(self._connections[topic], time_ns, self._types.serialize_cdr(message, kind))

    def _put(self, connection: Connection, time_ns: int, data: bytes | memoryview) -> None:
        with report_write_errors(self._output):
            try:
                self._writer.write(connection, time_ns, data)
            except sqlite3.Error as error:  # of a full disk, for one
                raise OSError(str(error)) from error


def _key(connection: Connection) -> tuple[object, ...]:
    """Tell connections of a reader apart."""
    return (id(connection.owner), connection.id)
