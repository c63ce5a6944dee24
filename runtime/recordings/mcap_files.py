"""MCAP files: messages of ROS 2, JSON and protobuf, in the order in which they were recorded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from stategate.contract.errors import EpisodeError, MissingDependencyError
from stategate.runtime.recordings.messages import Decoder, json_decoder, protobuf_decoder
from stategate.runtime.recordings.topics import Message, Topics


class McapFiles(Topics):
    """MCAP: one file, or the files of one bag in their order."""

    def __init__(self, path: Path, files: Sequence[Path] | None = None) -> None:
        super().__init__(path)
        self.form = "an MCAP file" if files is None else "a bag of ROS 2 in MCAP"
        self._files = files or [path]

    def recorded(self, topics: frozenset[str] | None, order: bool) -> Iterator[Message]:
        """See `Topics.recorded`."""
        try:
            from mcap.reader import make_reader
        except ImportError as missing:
            raise MissingDependencyError("mcap", "recordings") from missing
        for path in self._files:
            with path.open("rb") as file:
                reader = make_reader(file)
                names = sorted(topics) if topics is not None else None
                for schema, channel, raw in reader.iter_messages(names, log_time_order=order):
                    self.topics.add(channel.topic)
                    decode = self._decoder(schema, channel.message_encoding)
                    kind = schema.name if schema is not None else channel.message_encoding
                    yield Message(
                        channel.topic, kind, raw.log_time, raw.publish_time,
                        partial(decode, raw.data),
                    )  # fmt: skip

    def _decoder(self, schema: Any, encoding: str) -> Decoder:
        key = encoding, schema and (schema.name, schema.data)
        if key not in self.decoders:
            self.decoders[key] = _mcap_decoder(schema, encoding)
        decoder: Decoder = self.decoders[key]
        return decoder


def _mcap_decoder(schema: Any, encoding: str) -> Decoder:
    if encoding == "json":
        return json_decoder
    if encoding == "protobuf" and schema is not None:
        return protobuf_decoder(schema.name, schema.data)
    if encoding == "cdr" and schema is not None and schema.encoding in ("ros2msg", "ros2idl"):
        from stategate.runtime.recordings.ros import ros_decoder  # needs rosbags

        idl = schema.encoding == "ros2idl"
        return ros_decoder(schema.name, schema.data.decode(), idl)

    def refuse(_: bytes) -> Any:
        raise EpisodeError(
            "messages of this encoding cannot be read",
            found=f"{encoding}, described by {schema.encoding if schema else 'nothing'}",
            expected="json, protobuf, or cdr described by ros2msg or ros2idl",
        )

    return refuse
