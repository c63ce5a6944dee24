"""Numbers of messages: ROS 2 in CDR, JSON, protobuf; by name, whatever decoded them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from stategate.contract.errors import EpisodeError, MissingDependencyError
from stategate.contract.failures import failures
from stategate.runtime.base.buffers import Array
from stategate.runtime.recordings.mapping import Part
from stategate.runtime.recordings.source import Field, period_of

Decoder = Callable[[bytes], Any]
IMAGES = {"mono8": 1, "8UC1": 1, "rgb8": 3, "bgr8": 3, "8UC3": 3, "rgba8": 4, "bgra8": 4}
_DEEP = 8


def protobuf_decoder(kind: str, definition: bytes) -> Decoder:
    """What decodes a protobuf message, from its set of file descriptors."""
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ImportError as missing:
        raise MissingDependencyError("protobuf", "recordings") from missing
    pool = descriptor_pool.DescriptorPool()
    files = descriptor_pb2.FileDescriptorSet.FromString(definition).file
    message_factory.GetMessages(files, pool)  # in the order in which they import each other
    decode: Decoder = message_factory.GetMessageClass(pool.FindMessageTypeByName(kind)).FromString
    return decode


def json_decoder(raw: bytes) -> Any:
    """A message of JSON; a number that is not finite is refused where it is used."""
    return json.loads(raw, parse_int=float)  # JSON writes 1 for 1.0


def child(message: Any, name: str) -> Any:
    """A field of a message, or None."""
    if isinstance(message, Mapping):
        return message.get(name)
    if hasattr(message, "DESCRIPTOR"):  # what was not sent would else be read as zeros
        field = message.DESCRIPTOR.fields_by_name.get(name)
        if field is None or (field.has_presence and not message.HasField(name)):
            return None
    return getattr(message, name, None)


def children(message: Any) -> list[str]:
    """Names of a message's fields, in the order of its definition."""
    if isinstance(message, Mapping):
        return [str(key) for key in message]
    if hasattr(message, "DESCRIPTOR"):
        return [field.name for field in message.DESCRIPTOR.fields]
    return [n for n in getattr(message, "__dataclass_fields__", {}) if not n.startswith("__")]


def numbers(value: Any) -> Array | None:
    """A value as an array, where it is numbers."""
    if isinstance(value, bool | int | float | np.ndarray | np.generic):
        array = np.asarray(value)
    elif isinstance(value, bytes | bytearray):
        array = np.frombuffer(value, np.uint8)
    elif isinstance(value, str | Mapping) or not isinstance(value, Iterable):
        return None
    else:
        try:
            array = np.asarray(list(value))
        except failures(ValueError, TypeError):  # rows of different lengths
            return None
    return array if array.dtype.kind in "biuf" else None


def fields_of(topic: str, kind: str, message: Any, times: Sequence[int], count: int) -> list[Field]:
    """The fields of a topic, as its first message has them."""
    fields: list[Field] = []

    def add(name: str, array: Array, names: tuple[str, ...] = (), by_name: bool = False) -> None:
        period = period_of(times)
        dtype = str(array.dtype)
        fields.append(Field(name, kind, dtype, array.shape, count, period, names, by_name))

    def walk(name: str, at: Any, depth: int) -> None:
        if (image := _image(at)) is not None:
            add(f"{name}.image", image, (), False)
            return
        names = _names(at)
        scalars = []
        for key in children(at):
            value = child(at, key)
            array = numbers(value)
            if key == "data" and array is not None and _is_packed(at, array):
                continue
            if array is None:
                if depth < _DEEP and not isinstance(value, str | list | None):
                    walk(f"{name}.{key}", value, depth + 1)
            elif array.size:
                own = array.ndim == 1 and len(array) == len(names)
                add(f"{name}.{key}", array, names if own else (), own)
                scalars += [key] * (array.ndim == 0)
        if len(scalars) > 1 and len(scalars) == len(children(at)):
            add(name, np.array([float(child(at, key)) for key in scalars]), tuple(scalars))

    walk(topic, message, 0)
    return fields


def picker(topic: str, part: Part, first: Field) -> Callable[[Any], Array | None]:
    """What takes a part out of each message of its topic; None where the message lacks it.

    Elements are found by their names in each message, wherever they stand in it.
    """
    path = [key for key in part.field.removeprefix(topic).split(".") if key]
    is_image = bool(path) and path[-1] == "image" and len(first.shape) == 3

    def pick(message: Any) -> Array | None:
        at = message
        for key in path[: len(path) - 1 if path else 0]:
            at = child(at, key)
        if is_image:
            image = _image(at)
            if image is None:
                raise EpisodeError(f"a message of {topic} is no image that is known")
            return image
        value = child(at, path[-1]) if path else at
        if first.by_name:
            return _by_name(topic, part, _names(at), numbers(value))
        array = numbers(value)
        if array is None:
            scalars = [child(value, key) for key in first.elements]
            if not scalars or not all(isinstance(one, bool | int | float) for one in scalars):
                raise EpisodeError(
                    f"a message of {topic} has no number in {part.field}",
                    found=f"{value!r:.80}",
                    expected=", ".join(first.elements) or "numbers, as in the first message",
                    remedy="map what comes in different messages from topics of their own",
                )
            array = np.array([float(one) for one in scalars])
        if part.elements:
            array = array[[first.elements.index(name) for name in part.elements]]
        return array

    return pick


def _by_name(topic: str, part: Part, names: tuple[str, ...], values: Array | None) -> Array | None:
    at = {name: i for i, name in enumerate(names)}
    missing = [name for name in part.elements if name not in at]
    if len(missing) == len(part.elements):
        return None  # a message of another publisher, such as that of a gripper
    if missing or values is None or len(values) != len(names) or len(at) < len(names):
        raise EpisodeError(
            f"a message of {topic} has not every element of {part}",
            found=f"{', '.join(names)} with {0 if values is None else len(values)} values",
            expected=", ".join(part.elements),
            remedy="map what comes in different messages as parts: INPUT=FIELD{a,b}+FIELD{c}",
        )
    return values[[at[name] for name in part.elements]]


def _names(message: Any) -> tuple[str, ...]:
    """Names that a message gives its elements, as JointState does."""
    for key in ("name", "names", "joint_names"):
        value = child(message, key)
        several = isinstance(value, Sequence) and not isinstance(value, str | bytes)
        if several and value and all(isinstance(one, str) for one in value):
            return tuple(value)
    return ()


def _image(message: Any) -> Array | None:
    """An uncompressed image of 8 bits, (height, width, channels), as it was recorded."""
    keys = ("encoding", "height", "width", "step", "data")
    encoding, height, width, step, data = (child(message, key) for key in keys)
    channels = IMAGES.get(encoding) if isinstance(encoding, str) else None
    if channels is None or data is None:
        return None
    flat = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else np.asarray(data, np.uint8)
    rows = flat[: height * step].reshape(height, step)[:, : width * channels]
    return rows.reshape(height, width, channels)


def _is_packed(message: Any, data: Array) -> bool:
    """Whether bytes are those of a picture or of points, which are no numbers by themselves."""
    says = any(child(message, key) is not None for key in ("encoding", "format", "point_step"))
    return says and data.dtype == np.uint8


def time_of(message: Any) -> int | None:
    """The time in a message's header, or its own timestamp, in nanoseconds."""
    stamp = child(child(message, "header"), "stamp") or child(message, "timestamp")
    seconds = child(stamp, "sec")
    if seconds is None:
        seconds = child(stamp, "seconds")
    rest = next((r for k in ("nanosec", "nsec", "nanos") if (r := child(stamp, k)) is not None), 0)
    return None if seconds is None else int(seconds) * 10**9 + int(rest)
