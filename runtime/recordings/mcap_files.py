"""MCAP files: messages of ROS 2, JSON and protobuf, in the order in which they were recorded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from stategate.contract.errors import EpisodeError, MissingDependencyError
from stategate.runtime.recordings.messages import Decoder, json_decoder, protobuf_decoder
from stategate.runtime.recordings.source import Steps
from stategate.runtime.recordings.topics import Message, Topics

try:
    from mcap.reader import make_reader
    from mcap.writer import Writer
except ImportError as missing:
    raise MissingDependencyError("mcap", "recordings") from missing

_STAMP = {"type": "object", "properties": {"sec": {"type": "integer"}, "nsec": {"type": "integer"}}}
_NUMBERS = {"type": "array", "items": {"type": "number"}}
_TYPES = {"b": "boolean", "f": "number"}
_NAMES = {"type": "array", "items": {"type": "string"}}


class McapFiles(Topics):
    """MCAP: one file, or the files of one bag in their order."""

    def __init__(self, path: Path, files: Sequence[Path] | None = None) -> None:
        super().__init__(path)
        self.form = "an MCAP file" if files is None else "a bag of ROS 2 in MCAP"
        self._files = files or [path]

    def recorded(self, topics: frozenset[str] | None, order: bool) -> Iterator[Message]:
        """See `Topics.recorded`."""
        for path in self._files:
            with path.open("rb") as file:
                reader = make_reader(file, validate_crcs=True)
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


class McapWriter:
    """What a bundle took and gave as MCAP with JSON: a topic for each tensor, and one that counts.

    Args:
        path: The file.
        names: Of the elements of a tensor, where the bundle has them.
    """

    def __init__(self, path: Path, names: Mapping[str, Sequence[str]]) -> None:
        self._names, self._file = names, path.open("wb")
        self._writer: Any = Writer(self._file)
        self._writer.start("", "stategate")
        self._channels: dict[str, int] = {}
        tensor = {"timestamp": _STAMP, "step": {"type": "integer"}, "values": _NUMBERS}
        self._tensor = self._schema("stategate.Tensor", {**tensor, "name": _NAMES})
        self._sequence = 0

    def _schema(self, title: str, properties: dict[str, Any]) -> int:
        text = json.dumps({"title": title, "type": "object", "properties": properties})
        return int(self._writer.register_schema(title, "jsonschema", text.encode()))

    def add(self, block: Steps) -> None:
        """More steps."""
        singles = {n: rows for n, rows in block.columns.items() if "." not in n}
        vectors = {n: rows for n, rows in block.columns.items() if "." in n}
        if "counts" not in self._channels:
            kinds = {n: {"type": _TYPES.get(r.dtype.kind, "integer")} for n, r in singles.items()}
            schema = self._schema("stategate.Counts", {"timestamp": _STAMP, **kinds})
            self._open("counts", "/stategate/counts", schema)
        for i, time_ns in enumerate(block.times):
            stamp = {"timestamp": {"sec": time_ns // 10**9, "nsec": time_ns % 10**9}}
            self._put("counts", time_ns, stamp | {n: rows[i].item() for n, rows in singles.items()})
            step = stamp | {"step": singles["step"][i].item()}
            for name, rows in vectors.items():
                if name not in self._channels:
                    self._open(name, f"/stategate/{name.replace('.', '/', 1)}", self._tensor)
                values = {"values": rows[i].ravel().tolist()}
                own = self._names.get(name, ())
                self._put(name, time_ns, step | values | ({"name": [*own]} if own else {}))

    def _open(self, name: str, topic: str, schema: int) -> None:
        self._channels[name] = self._writer.register_channel(topic, "json", schema)

    def _put(self, name: str, time_ns: int, message: dict[str, Any]) -> None:
        self._sequence += 1
        data = json.dumps(message).encode()
        self._writer.add_message(self._channels[name], time_ns, data, time_ns, self._sequence)

    def close(self) -> None:
        """Write the index, without which viewers read the file from end to end."""
        self._writer.finish()
        self._file.close()
