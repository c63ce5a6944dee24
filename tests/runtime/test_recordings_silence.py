"""What a recording says in silence: each case is a small real file of the format's own library."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from stategate.contract import Episode, EpisodeSet
from stategate.contract.errors import EpisodeError
from stategate.runtime.recordings.convert import convert, open_recordings
from stategate.runtime.recordings.mapping import Map
from stategate.runtime.recordings.source import example
from stategate.runtime.recordings.write import write_run

T0 = 1_700_000_000_000_000_000
STEP = 20_000_000
RATE = "rate_hz=50"


def read(path: Path, inputs: str, *settings: str) -> np.ndarray:
    """Input ``x`` of the only episode, a row a step."""
    out = path.parent / f"out{len(list(path.parent.iterdir()))}"
    convert(path, Map.read([f"x={inputs}"], settings), out)
    ((_, episode),) = EpisodeSet.open(out)
    x: np.ndarray = episode.inputs["x"]
    return x.reshape(len(x), -1)


def mcap(path: Path, messages: Sequence[bytes], schema: tuple[str, str, bytes], encoding: str,
         publish: Callable[[int], int] = lambda i: i * STEP, **more: Any) -> Path:  # fmt: skip
    from mcap.writer import Writer

    with path.open("wb") as file:
        writer = Writer(file, **more)
        writer.start()
        channel = writer.register_channel("/j", encoding, writer.register_schema(*schema))
        for i, data in enumerate(messages):
            writer.add_message(channel, T0 + i * STEP, data, T0 + publish(i))
        writer.finish()
    return path


def mcap_json(path: Path, messages: Sequence[Any], **more: Any) -> Path:
    raw = [json.dumps(one).encode() for one in messages]
    return mcap(path, raw, ("A", "jsonschema", b"{}"), "json", **more)


def table(path: Path, **columns: Any) -> Path:
    parquet.write_table(pyarrow.table(columns), path)
    return path


def protobuf(order: int) -> tuple[Any, bytes]:
    """Class and file descriptors of a message with names, a time and a part of its own."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2

    stamp = descriptor_pb2.FileDescriptorProto()
    timestamp_pb2.DESCRIPTOR.CopyToProto(stamp)
    file = descriptor_pb2.FileDescriptorProto(
        name="j.proto", package="my", syntax="proto3", dependency=[stamp.name]
    )
    vector = file.message_type.add(name="Vector")
    joints = file.message_type.add(name="Joints")
    for number, name in enumerate("xyz", 1):
        vector.field.add(name=name, number=number, type=1, label=1)
    kinds = [("timestamp", 11, 1, ".google.protobuf.Timestamp"), ("position", 1, 3, ""),
             ("name", 9, 3, ""), ("gyro", 11, 1, ".my.Vector")]  # fmt: skip
    for number, (name, kind, label, of) in enumerate(kinds, 1):
        joints.field.add(name=name, number=number, type=kind, label=label, type_name=of or None)
    pool = descriptor_pool.DescriptorPool()
    for one in (stamp, file):
        pool.Add(one)
    every = descriptor_pb2.FileDescriptorSet(file=[stamp, file][::order])
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName("my.Joints"))
    return kind, every.SerializeToString()


@pytest.mark.parametrize("order", [1, -1])
def test_protobuf_is_read_by_names_and_what_was_not_sent_is_no_zero(
    order: int, tmp_path: Path
) -> None:
    kind, definition = protobuf(order)

    def message(i: int, gyro: bool = True) -> bytes:
        one = kind(position=[i, i + 0.5], name=["a", "b"][:: 1 if i % 2 else -1])
        one.timestamp.seconds, one.timestamp.nanos = 1_700_000_000, i * STEP
        if gyro:
            one.gyro.x = i
        return bytes(one.SerializeToString())

    schema = ("my.Joints", "protobuf", definition)
    path = mcap(tmp_path / "p.mcap", [message(i) for i in range(10)], schema, "protobuf")
    for time in ("log", "publish", "header"):
        x = read(path, "/j.position{b,a}+/j.gyro", RATE, f"time={time}")
        assert x[4].tolist() == [4, 4.5, 4, 0, 0] and x[5].tolist() == [5.5, 5, 5, 0, 0]
    partly = [message(i, gyro=i != 5) for i in range(10)]
    path = mcap(tmp_path / "q.mcap", partly, schema, "protobuf")
    with pytest.raises(EpisodeError, match="has no number in /j.gyro"):
        read(path, "/j.gyro", RATE)


def test_each_time_of_a_message_is_its_own_and_one_that_is_not_there_is_refused(
    tmp_path: Path,
) -> None:
    stamps = [{"v": i, "timestamp": {"sec": 5, "nsec": 2 * i * STEP}} for i in range(10)]
    path = mcap_json(tmp_path / "t.mcap", stamps, publish=lambda i: 3 * i * STEP)
    lengths = [len(read(path, "/j.v", RATE, f"time={t}")) for t in ("log", "publish", "header")]
    assert lengths == [10, 28, 19]
    with pytest.raises(EpisodeError, match="no time in a header"):
        read(mcap_json(tmp_path / "u.mcap", [{"v": 1}]), "/j.v", RATE, "time=header")


def bag(path: Path, kind: str, make: Callable[[dict[str, Any], int], Any], plugin: str = "SQLITE3",
        first: int = 0, ahead: int = 0, little: bool = True) -> Path:  # fmt: skip
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS2_HUMBLE)
    types: dict[str, Any] = dict(store.types)
    with Writer(path, version=9, storage_plugin=StoragePlugin[plugin]) as writer:
        connection = writer.add_connection("/j", kind, typestore=store)
        for i in range(first, first + 10):
            raw = store.serialize_cdr(make(types, i), kind, little_endian=little)
            writer.write(connection, T0 + ahead + i * STEP, raw)
    return path


def joints(types: dict[str, Any], i: int) -> Any:
    stamp = types["builtin_interfaces/msg/Time"](1_700_000_000, i * STEP)
    header = types["std_msgs/msg/Header"](stamp, "")
    none = np.empty(0)
    position = np.array([i, i + 0.5])
    return types["sensor_msgs/msg/JointState"](header, ["a", "b"], position, none, none)


JOINTS = "sensor_msgs/msg/JointState"


@pytest.mark.parametrize("plugin", ["SQLITE3", "MCAP"])
def test_big_endian_messages_of_ros_are_read(plugin: str, tmp_path: Path) -> None:
    path = bag(tmp_path / "b", JOINTS, joints, plugin, little=False)
    for time in ("log", "header"):
        x = read(path, "/j.position{b,a}", RATE, f"time={time}")
        assert x.tolist() == [[i + 0.5, i] for i in range(10)]
    if plugin == "SQLITE3":  # which holds one time alone
        with pytest.raises(EpisodeError, match="have no such time"):
            read(path, "/j.position{b,a}", RATE, "time=publish")


@pytest.mark.parametrize("plugin", ["SQLITE3", "MCAP"])
@pytest.mark.parametrize("ahead", [0, -15 * STEP])
def test_a_bag_in_two_files_is_one_recording_unless_the_clock_was_set(
    plugin: str, ahead: int, tmp_path: Path
) -> None:
    one = bag(tmp_path / "one", JOINTS, joints, plugin)
    two = bag(tmp_path / "two", JOINTS, joints, plugin, first=10, ahead=ahead)
    (file,), (other,) = (list(b.glob("*.[dm][bc]*")) for b in (one, two))
    other.rename(one / f"a{other.suffix}")  # whose name comes first
    facts = (one / "metadata.yaml").read_text()
    listed = re.sub(rf"( *- ){file.name}", rf"\g<0>\n\g<1>a{other.suffix}", facts, count=1)
    (one / "metadata.yaml").write_text(listed)
    if ahead:
        with pytest.raises(EpisodeError, match="go backwards"):
            read(one, "/j.position{a}", RATE)
    else:
        assert read(one, "/j.position{a}", RATE)[:, 0].tolist() == list(range(20))


@pytest.mark.parametrize(("encoding", "channels"), [("bgr8", 3), ("mono16", 2), ("bayer_rggb8", 1)])
def test_rows_of_an_image_lose_their_padding_and_others_are_no_numbers(
    encoding: str, channels: int, tmp_path: Path
) -> None:
    def image(types: dict[str, Any], i: int) -> Any:
        stamp = types["builtin_interfaces/msg/Time"](1, i)
        header = types["std_msgs/msg/Header"](stamp, "")
        rows = np.full((2, 3 * channels + 2), 99, np.uint8)
        rows[:, :-2] = np.arange(6 * channels).reshape(2, -1) + i
        kind = types["sensor_msgs/msg/Image"]
        return kind(header, 2, 3, encoding, 0, rows.shape[1], rows.ravel())

    path = bag(tmp_path / "i", "sensor_msgs/msg/Image", image)
    if encoding == "bgr8":
        assert read(path, "/j.image", RATE)[3].tolist() == [*range(3, 21)]
    for field in ("/j.data", "/j.image")[: 1 if encoding == "bgr8" else 2]:
        with pytest.raises(EpisodeError, match="has no field"):
            read(path, field, RATE)


def test_a_dataset_without_one_of_its_frames_is_refused(tmp_path: Path, tiny_bundle: Path) -> None:
    x = np.zeros((20, 1, 4), np.float32)
    (tmp_path / "e.npz").write_bytes(Episode({"x": x}).to_bytes())
    dataset = tmp_path / "dataset"
    write_run(tmp_path / "e.npz", tiny_bundle, dataset, 50)
    (file,) = (dataset / "data").rglob("*.parquet")
    rows, facts = parquet.read_table(file), dataset / "meta" / "info.json"
    parquet.write_table(pyarrow.concat_tables([rows[:7], rows[8:]]), file)
    with pytest.raises(EpisodeError, match="is not whole"):
        read(dataset, "observation.x")
    facts.write_text(facts.read_text().replace('"total_frames": 20', '"total_frames": 19'))
    with pytest.raises(EpisodeError, match="missing or out of order"):
        read(dataset, "observation.x")


def test_a_flipped_bit_is_refused_and_only_a_file_without_an_end_is_recovered(
    tmp_path: Path,
) -> None:
    from mcap.writer import CompressionType

    path = mcap_json(tmp_path / "c.mcap", [{"v": 1000 + i} for i in range(9)],
                     compression=CompressionType.NONE)  # fmt: skip
    whole = path.read_bytes()
    for raw, is_cut in ((whole.replace(b"1007", b"1009"), False), (whole[:-30], True),
                        (b"hello" * 9, False), (b"", False)):  # fmt: skip
        path.write_bytes(raw)
        with pytest.raises(EpisodeError, match="cannot be read") as refused:
            read(path, "/j.v", RATE)
        assert ("mcap recover" in str(refused.value)) is is_cut


def test_a_setting_that_a_recording_would_pass_over_is_refused(tmp_path: Path) -> None:
    messages = mcap_json(tmp_path / "m.mcap", [{"v": 1.5}] * 3)
    rows = table(tmp_path / "t.parquet", t=np.arange(3) / 50, v=np.arange(3.0))
    for path, field, settings in (
        (messages, "/j.v", (RATE, "episode=run")),
        (rows, "v", ("time=t[s]", RATE, "order=sort")),
        (rows, "v", ("time=rows", "resample=linear")),
        (rows, "v", ("time=rows", "gap_s=1")),
    ):
        with pytest.raises(EpisodeError, match="says nothing about"):
            read(path, field, *settings)


def test_no_line_goes_between_modes_quaternions_and_the_two_ends_of_a_turn(tmp_path: Path) -> None:
    t, angle = np.arange(10) / 25, np.array([170.0, -170.0] * 5)
    path = table(tmp_path / "l.parquet", t=t, mode=np.arange(10) % 2, angle=angle)
    linear = (RATE, "time=t[s]", "resample=linear")
    with pytest.raises(EpisodeError, match="in a line"):
        read(path, "mode", *linear)
    with pytest.raises(EpisodeError, match="half a turn"):
        read(path, "angle[deg>rad]", *linear)
    assert len(read(path, "angle[rad]", RATE, "time=t[s]")) == 19  # which holds
    quaternion = dict.fromkeys("xyzw", 0.5)
    path = mcap_json(tmp_path / "q.mcap", [{"orientation": quaternion}] * 3)
    with pytest.raises(EpisodeError, match="quaternions"):
        read(path, "/j.orientation", RATE, "resample=linear")


def test_times_that_their_type_or_unit_cannot_hold_are_refused(tmp_path: Path) -> None:
    times = T0 + np.arange(5) * STEP
    path = table(tmp_path / "t.parquet", stamp=times, v=np.arange(5.0))
    with pytest.raises(EpisodeError, match="too far from 1970"):
        read(path, "v", RATE, "time=stamp[s]")
    path = table(tmp_path / "f.parquet", t=(times / 1e9).astype(np.float32), v=np.arange(5.0))
    with pytest.raises(EpisodeError, match="too few digits"):
        read(path, "v", RATE, "time=t[s]")
    # A clock that was set by fifty years is a gap, and takes no longer than another one.
    path = table(tmp_path / "g.parquet", t=np.array([0, 0.02, 1.7e9, 1.7e9 + 0.02]), v=np.ones(4))
    done = convert(path, Map.read(["x=v"], [RATE, "time=t[s]"]), tmp_path / "gap")
    assert (done[0].gaps, done[0].steps) == (1, 4)


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        ({"t": np.arange(4) / 50, "v": np.arange(4)}, "--map x=v --read 'time=t[s]'"),
        ({"t_ms": np.arange(4) * 20.0, "v": np.arange(4.0)}, "--map x=v --read 'time=t_ms[ms]'"),
        ({"stamp": T0 + np.arange(4) * STEP, "v": np.ones(4)}, "--map x=v --read 'time=stamp[ns]'"),
        ({"v": np.arange(4.0)}, "--map x=v --read time=rows"),
    ],
)
def test_the_line_to_paste_names_the_time_and_takes_no_time_as_input(
    columns: dict[str, Any], line: str, tmp_path: Path
) -> None:
    path = table(tmp_path / "t.parquet", **columns)
    (source,) = open_recordings(path)
    words = example(source, source.fields()).partition(", with")[0]
    assert words == f"{line} --read rate_hz=50"
    _, mapping, *rest = shlex.split(words)
    assert len(read(path, mapping.removeprefix("x="), *rest[1::2])) == 4
