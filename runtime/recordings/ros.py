"""Bags of ROS 2, and messages in CDR; no ROS is needed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from stategate.contract.errors import EpisodeError, MissingDependencyError
from stategate.runtime.recordings.messages import Decoder
from stategate.runtime.recordings.source import reading
from stategate.runtime.recordings.topics import Message, Topics

try:
    from rosbags import typesys
    from rosbags.rosbag2 import Reader
    from rosbags.rosbag2.reader import DirectoryReader
except ImportError as missing:
    raise MissingDependencyError("rosbags", "recordings") from missing


def ros_decoder(kind: str, definition: str, idl: bool = False) -> Decoder:
    """What decodes a ROS 2 message of CDR, little or big-endian.

    Args:
        kind: Such as ``sensor_msgs/msg/JointState``.
        definition: As the recording has it; that of ROS itself where it is empty.
        idl: Whether the definition is in IDL.
    """
    store = typesys.get_typestore(typesys.Stores.EMPTY if definition else typesys.Stores.LATEST)
    if definition:
        parse: Any = typesys.get_types_from_idl if idl else typesys.get_types_from_msg
        store.register(parse(definition) if idl else parse(definition, kind))
    if kind not in store.types:
        raise EpisodeError(
            f"{kind} is not defined in the recording",
            expected="a definition, as bags of ROS 2 Iron and newer have them",
            remedy="ros2 bag convert writes the bag as MCAP, which has definitions",
        )
    return lambda raw: store.deserialize_cdr(raw, kind)


class Bag(Topics):
    """A bag of ROS 2 in SQLite: a folder with metadata.yaml, or one .db3."""

    form = "a bag of ROS 2 in SQLite"
    clocks = ("log", "header")

    def recorded(self, topics: frozenset[str] | None, order: bool) -> Iterator[Message]:
        """See `Topics.recorded`; the bag's own reader sorts by time, so that is looked at first."""
        if not order:
            for file in [self.path] if self.path.is_file() else sorted(self.path.glob("*.db3")):
                _check_order(file)
        with Reader(self.path) as reader:
            connections = [c for c in reader.connections if topics is None or c.topic in topics]
            for connection, time_ns, raw in reader.messages(connections) if connections else ():
                self.topics.add(connection.topic)
                key = connection.msgtype
                if key not in self.decoders:
                    definition = connection.msgdef
                    idl = definition.format.name == "IDL"
                    self.decoders[key] = ros_decoder(key, definition.data, idl)
                decode = self.decoders[key]
                yield Message(
                    connection.topic, key, time_ns, time_ns,
                    partial(decode, raw),
                )  # fmt: skip


def _check_order(file: Path) -> None:
    backwards = (
        "SELECT name, timestamp, before FROM (SELECT topic_id, timestamp, lag(timestamp) OVER "
        "(PARTITION BY topic_id ORDER BY id) AS before FROM messages) "
        "JOIN topics ON topics.id = topic_id WHERE timestamp < before LIMIT 1"
    )
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
        row = database.execute(backwards).fetchone()
    if row is not None:
        raise EpisodeError(
            f"the times of {row[0]} go backwards in {file.name}",
            found=f"by {(row[2] - row[1]) / 1e9:.6f} s, to {row[1] / 1e9:.6f} s",
            expected="times that never do; a clock that was set in between makes such ones",
            remedy="cut the recording there; or, where messages are only out of their order: "
            "--read order=sort",
        )


def open_bag(folder: Path) -> Topics:
    """A folder with metadata.yaml: its MCAP files, or whatever else it is stored in."""
    text = (folder / "metadata.yaml").read_text(errors="replace")
    if "storage_identifier: mcap" not in text:
        return Bag(folder)
    from stategate.runtime.recordings.mcap_files import McapFiles  # which imports this module

    reader: Any = DirectoryReader(folder)
    with reading(folder, "a bag of ROS 2, whole"):
        reader.open()
        packed = reader.metadata.compression_mode
        files = [storage.path for storage in reader.storages]
        reader.close()
    if packed:
        raise EpisodeError(
            f"{folder.name} is packed as a whole", found=packed,
            expected="MCAP, whose own chunks may be packed", remedy=f"zstd -d {folder}/*.zstd",
        )  # fmt: skip
    return McapFiles(folder, files)
