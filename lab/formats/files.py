"""One stretch of joint angles as other people's tools would have recorded it.

Each function writes a recording with the format's own library and says how to read it: options of
the command line, as docs/guides/episodes.md has them. The joints are in another order than the
model takes them wherever the format names them.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Options = tuple[str, ...]
JOINTS = ("hip", "knee", "ankle", "wheel")  # as the model takes them
ORDER = (2, 0, 3, 1)  # in which a driver publishes them
RATE_HZ = 50
START_NS = 1_700_000_000_000_000_000
_PARTS = "{hip,knee,ankle,wheel}"


def joint_angles(steps: int, seed: int = 7) -> Array:
    """``(steps, 4)``, slow waves and a little noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(steps)[:, None] / RATE_HZ
    waves = np.sin(t * (1.0 + np.arange(4)) + np.arange(4))
    return (waves + 0.1 * rng.normal(size=(steps, 4))).astype(np.float32)


def times_ns(steps: int) -> list[int]:
    """Of messages that come exactly at the rate."""
    return [START_NS + i * 10**9 // RATE_HZ for i in range(steps)]


def ros_definition() -> str:
    """sensor_msgs/JointState with all that it uses, as bags carry it."""
    rule = "=" * 80
    return (
        "std_msgs/Header header\nstring[] name\nfloat64[] position\nfloat64[] velocity\n"
        f"float64[] effort\n{rule}\nMSG: std_msgs/Header\nbuiltin_interfaces/Time stamp\n"
        f"string frame_id\n{rule}\nMSG: builtin_interfaces/Time\nint32 sec\nuint32 nanosec\n"
    )


def joint_state(row: Sequence[float], time_ns: int, order: Sequence[int] = ORDER) -> dict[str, Any]:
    """The fields of one JointState, its joints in another order than the model's."""
    return {
        "header": {
            "stamp": {"sec": time_ns // 10**9, "nanosec": time_ns % 10**9},
            "frame_id": "base",
        },
        "name": [JOINTS[i] for i in order],
        "position": [float(row[i]) for i in order],
        "velocity": [],
        "effort": [],
    }


def mcap_ros2(path: Path, x: Array, stamps: Sequence[int] | None = None) -> Options:
    """MCAP as ``ros2 bag record`` writes it; by the writer of mcap-ros2-support."""
    from mcap_ros2.writer import Writer

    with path.open("wb") as file, Writer(file) as writer:
        schema = writer.register_msgdef("sensor_msgs/msg/JointState", ros_definition())
        for i, (row, at) in enumerate(zip(x, stamps or times_ns(len(x)), strict=True)):
            order = ORDER if i % 2 else ORDER[::-1]  # drivers promise no order
            writer.write_message(
                "/joint_states", schema, joint_state(row, at, order), log_time=at, publish_time=at
            )
    return ("--map", f"x=/joint_states.position{_PARTS}[rad]", "--read", f"rate_hz={RATE_HZ}")


def mcap_json(path: Path, x: Array) -> Options:
    """MCAP with JSON messages, as Foxglove's own tools write it."""
    from mcap.writer import Writer

    with path.open("wb") as file:
        writer: Any = Writer(file)
        writer.start()
        schema = writer.register_schema(
            "Joints", "jsonschema", json.dumps({"type": "object"}).encode()
        )
        channel = writer.register_channel("/joints", "json", schema)
        for row, at in zip(x, times_ns(len(x)), strict=True):
            data = {name: float(np.rad2deg(row[i])) for i, name in enumerate(JOINTS)}
            writer.add_message(channel, at, json.dumps(data).encode(), at)
        writer.finish()
    return ("--map", f"x=/joints{_PARTS}[deg>rad]", "--read", f"rate_hz={RATE_HZ}")


def _bag(path: Path, x: Array, plugin: str) -> Options:
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS2_HUMBLE)
    types = store.types
    with Writer(path, version=9, storage_plugin=StoragePlugin[plugin]) as writer:
        kind = "sensor_msgs/msg/JointState"
        connection = writer.add_connection("/joint_states", kind, typestore=store)
        for row, at in zip(x, times_ns(len(x)), strict=True):
            stamp = types["builtin_interfaces/msg/Time"](at // 10**9, at % 10**9)
            message = types[kind](
                types["std_msgs/msg/Header"](stamp, "base"),
                [JOINTS[i] for i in ORDER],
                np.array([row[i] for i in ORDER], np.float64),
                np.empty(0),
                np.empty(0),
            )
            writer.write(connection, at, store.serialize_cdr(message, kind))
    return ("--map", f"x=/joint_states.position{_PARTS}[rad]", "--read", f"rate_hz={RATE_HZ}")


def bag_sqlite(path: Path, x: Array) -> Options:
    """A bag of ROS 2 in SQLite; by rosbags."""
    return _bag(path, x, "SQLITE3")


def bag_mcap(path: Path, x: Array) -> Options:
    """A bag of ROS 2 in MCAP; by rosbags."""
    return _bag(path, x, "MCAP")


def table_csv(path: Path, x: Array) -> Options:
    """CSV with a column of milliseconds; by Python's own module."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["t_ms", *(JOINTS[i] for i in ORDER)])
        for i, row in enumerate(x):
            writer.writerow([i * 1000 / RATE_HZ, *(repr(float(row[j])) for j in ORDER)])
    return ("--map", f"x={'+'.join(JOINTS)}", "--read", "time=t_ms[ms]",
            "--read", f"rate_hz={RATE_HZ}")  # fmt: skip


def table_parquet(path: Path, x: Array) -> Options:
    """Parquet with a list in each row; by pyarrow."""
    import pyarrow
    from pyarrow import parquet

    columns = {"stamp": pyarrow.array(times_ns(len(x)), pyarrow.timestamp("ns")),
               "state": pyarrow.array(list(x), pyarrow.list_(pyarrow.float32()))}  # fmt: skip
    parquet.write_table(pyarrow.table(columns), path)
    return ("--map", "x=state[rad]", "--read", "time=stamp", "--read", f"rate_hz={RATE_HZ}")


def robomimic(path: Path, x: Array, demos: int = 1) -> Options:
    """HDF5 as robomimic writes it; by h5py."""
    import h5py

    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": RATE_HZ}})
        for i, rows in enumerate(np.array_split(x, demos)):
            demo = data.create_group(f"demo_{i}")
            demo.attrs["num_samples"] = len(rows)
            demo["obs/joint_pos"] = rows.astype(">f8")
            demo["actions"] = rows
    return ("--map", "x=obs/joint_pos[rad]")


def zarr_store(path: Path, x: Array, ends: Sequence[int] = ()) -> Options:
    """Zarr as diffusion policies are trained on; by zarr."""
    import zarr

    root: Any = zarr.open_group(path, mode="w")
    root.create_group("data").create_array("state", data=x, chunks=(64, 4))
    root.create_group("meta").create_array(
        "episode_ends", data=np.array(ends or [len(x)], np.int64)
    )
    return ("--map", "x=state[rad]", "--read", f"rate_hz={RATE_HZ}")


@contextmanager
def lerobot_package() -> Iterator[None]:
    """LeRobot's own package, without the decoders of pictures and the trainer that it imports."""
    names = ("torchvision", "torchvision.transforms", "av", "accelerate")
    absent = {n: MagicMock(__spec__=ModuleSpec(n, None)) for n in names if n not in sys.modules}
    sys.modules.update(absent)
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


def lerobot(path: Path, x: Array, ends: Sequence[int] = ()) -> Options:
    """A LeRobotDataset v3; by LeRobot's own package."""
    with lerobot_package():
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        state = {"dtype": "float32", "shape": (4,), "names": [JOINTS[i] for i in ORDER]}
        dataset = LeRobotDataset.create(
            "me/joints", RATE_HZ, {"observation.state": state}, root=path, use_videos=False
        )
        for rows in np.split(x, list(ends)):
            for row in rows:
                dataset.add_frame({"observation.state": row[list(ORDER)], "task": "walk"})
            dataset.save_episode()
        dataset.finalize()
    return ("--map", f"x=observation.state{_PARTS}[rad]")


FORMATS: dict[str, tuple[str, Callable[[Path, Array], Options]]] = {
    "MCAP (ROS 2)": ("drive.mcap", mcap_ros2),
    "MCAP (JSON)": ("joints.mcap", mcap_json),
    "rosbag2 (SQLite)": ("bag", bag_sqlite),
    "rosbag2 (MCAP)": ("bag-mcap", bag_mcap),
    "CSV": ("log.csv", table_csv),
    "Parquet": ("log.parquet", table_parquet),
    "robomimic HDF5": ("demos.hdf5", robomimic),
    "zarr": ("replay.zarr", zarr_store),
    "LeRobotDataset v3": ("dataset", lerobot),
}
