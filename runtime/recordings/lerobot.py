"""LeRobotDataset v3: Parquet files, and a folder of facts about them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stategate.contract import canonical_json
from stategate.contract.durable import write_whole
from stategate.contract.errors import EpisodeError
from stategate.runtime.base.buffers import Array
from stategate.runtime.recordings.mapping import Map, Part
from stategate.runtime.recordings.source import Block, Field, Progress, Steps, reading
from stategate.runtime.recordings.tables import Table, TableWriter, column, rows_of

_VERSION = "v3"
_BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
_FILE = "chunk-000/file-000.parquet"
# What pandas writes of a table whose index is the texts of the tasks.
_PANDAS = {
    "index_columns": ["__index_level_0__"],
    "column_indexes": [],
    "columns": [
        {"name": name, "field_name": field, "pandas_type": kind, "numpy_type": numpy}
        | {"metadata": None}
        for name, field, kind, numpy in (
            ("task_index", "task_index", "int64", "int64"),
            (None, "__index_level_0__", "unicode", "object"),
        )
    ],
}


class LeRobot(Table):
    """A LeRobotDataset v3: rows at a fixed rate, episodes by their numbers."""

    settings = frozenset[str]()

    def __init__(self, path: Path) -> None:
        with reading(path, "a LeRobotDataset v3, whole"):
            info = json.loads((path / "meta" / "info.json").read_text())
            version, self._features = str(info["codebase_version"]), dict(info["features"])
            files = sorted((path / "data").rglob("*.parquet"))
            rate, self._episodes = float(info["fps"]), int(info["total_episodes"])
            frames = int(info["total_frames"])
        super().__init__(path, files, f"a LeRobotDataset {version}")
        self.rate_hz = rate
        if not version.startswith(_VERSION):
            raise EpisodeError(
                f"{path.name} is a LeRobotDataset of another version",
                found=version,
                expected="v3.0",
                remedy="python -m lerobot.datasets.v30.convert_dataset_v21_to_v30 converts it",
            )
        rows = rows_of(files)
        if rows != frames:
            raise EpisodeError(
                f"{path.name} is not whole", found=f"{rows:,} rows in {len(files)} files",
                expected=f"{frames:,}, as meta/info.json says",
            )  # fmt: skip
        for name, feature in self._features.items():
            names = feature.get("names")
            names = next(iter(names.values()), None) if isinstance(names, dict) else names
            if names and all(isinstance(one, str) for one in names):
                self.elements[name] = tuple(names)

    def fields(self) -> list[Field]:
        """Columns but those of bookkeeping."""
        result = [one for one in super().fields() if one.name not in _BOOKKEEPING]
        videos = [n for n, f in self._features.items() if f.get("dtype") in ("video", "image")]
        self.notes = [f"{n} is pictures, which need a decoder and are not read" for n in videos]
        return result

    def episodes(
        self, parts: Sequence[Part], plan: Map, report: Progress
    ) -> Iterator[tuple[str, Iterator[Block]]]:
        """By number; each is held against what the dataset says of it."""
        for part in parts:
            if self._features.get(part.field, {}).get("dtype") in ("video", "image"):
                raise EpisodeError(
                    f"{part.field} of {self.path.name} is pictures",
                    found="frames that need a decoder",
                    expected="a field of numbers",
                    remedy="embed the pictures first, and record the vectors that come out",
                )
        yield from super().episodes(parts, plan, report)

    def _marks(self, plan: Map, fields: list[Field]) -> list[str]:
        return ["episode_index", "frame_index"]

    def _batches(
        self, blocks: Iterator[Any], parts: Sequence[Part], columns: list[Field],
        clock: Part | None,
    ) -> Iterator[Block]:  # fmt: skip
        def checked() -> Iterator[Any]:
            row = 0
            for block in blocks:
                frames = column("frame_index", block.column("frame_index"))
                wrong = frames != np.arange(row, row + len(frames))
                if np.any(wrong):
                    raise EpisodeError(
                        f"frames of an episode of {self.path.name} are missing or out of order",
                        found=f"frame {frames[np.argmax(wrong)]}",
                        expected=f"frame {row + np.argmax(wrong)}",
                    )
                row += len(frames)
                yield block

        return super()._batches(checked(), parts, columns, clock)


class LeRobotWriter:
    """A LeRobotDataset of what a bundle took and gave; pictures are numbers like all else.

    Args:
        path: The folder.
        rate_hz: Steps per second.
        task: What the robot was to do, in words.
    """

    def __init__(self, path: Path, rate_hz: float, task: str) -> None:
        self._path, self._rate, self._task = path, rate_hz, task
        self._data = TableWriter(path / "data" / _FILE)
        self._ends: list[int] = []
        self._rows, self._features = 0, dict[str, Any]()
        self._moments: dict[str, list[Array]] = {}

    def add(self, block: Steps) -> None:
        """More steps, all of one episode."""
        episode = np.full(block.count, block.episode, np.int64)
        frames = np.arange(block.frame, block.frame + block.count, dtype=np.int64)
        index = np.arange(self._rows, self._rows + block.count, dtype=np.int64)
        columns = {
            _feature(name): rows.reshape(-1) if rows.size == block.count else rows
            for name, rows in block.columns.items()
        }
        columns |= {
            "timestamp": (frames / self._rate).astype(np.float32),
            "frame_index": frames,
            "episode_index": episode,
            "index": index,
            "task_index": np.zeros(block.count, np.int64),
        }
        for name, rows in columns.items():
            shape = [rows.shape[1]] if rows.ndim > 1 else [1]
            form = {"dtype": str(rows.dtype), "shape": shape, "names": None}
            self._features.setdefault(name, form)
            wide = rows.reshape(block.count, -1).astype(np.float64)
            parts = [wide.min(0), wide.max(0), wide.sum(0), (wide * wide).sum(0)]
            low, high, total, squares = self._moments.get(name, parts)
            if name in self._moments:
                parts = [np.minimum(low, parts[0]), np.maximum(high, parts[1]),
                         total + parts[2], squares + parts[3]]  # fmt: skip
            self._moments[name] = parts
        self._data.add(columns)
        self._rows += block.count
        if block.episode == len(self._ends):
            self._ends.append(self._rows)
        self._ends[block.episode] = self._rows

    def close(self) -> None:
        """Write the facts, without which it is no dataset."""
        self._data.close()
        meta, begins = self._path / "meta", [0, *self._ends[:-1]]
        zeros = np.zeros(len(self._ends), np.int64)
        lengths = np.subtract(self._ends, begins)
        episodes = TableWriter(meta / "episodes" / _FILE)
        episodes.add({
            "episode_index": np.arange(len(lengths)), "tasks": [[self._task]] * len(lengths),
            "length": lengths, "dataset_from_index": np.array(begins),
            "dataset_to_index": np.array(self._ends), "data/chunk_index": zeros,
            "data/file_index": zeros, "meta/episodes/chunk_index": zeros,
            "meta/episodes/file_index": zeros,
        })  # fmt: skip
        episodes.close()
        tasks = TableWriter(meta / "tasks.parquet", {"pandas": json.dumps(_PANDAS)})
        tasks.add({"task_index": np.zeros(1, np.int64), "__index_level_0__": [self._task]})
        tasks.close()
        write_whole(meta / "stats.json", canonical_json(self._statistics()))
        info = {
            "codebase_version": "v3.0", "robot_type": None, "total_episodes": len(lengths),
            "total_frames": self._rows, "total_tasks": 1, "chunks_size": 1000,
            "data_files_size_in_mb": 100, "video_files_size_in_mb": 200,
            "fps": int(self._rate) if self._rate == int(self._rate) else self._rate,
            "splits": {"train": f"0:{len(lengths)}"}, "features": self._features,
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": None,
        }  # fmt: skip
        write_whole(meta / "info.json", json.dumps(info, indent=4).encode())

    def _statistics(self) -> dict[str, dict[str, list[float]]]:
        by_name = {}
        for name, (low, high, total, squares) in self._moments.items():
            mean = total / self._rows
            deviation = np.sqrt(np.maximum(squares / self._rows - mean * mean, 0))
            figures = {"min": low, "max": high, "mean": mean, "std": deviation}
            by_name[name] = {key: array.tolist() for key, array in figures.items()}
            by_name[name]["count"] = [self._rows]
        return by_name


def _feature(name: str) -> str:
    """``observation.x`` for an input, ``action`` for the one output, as LeRobot's policies ask."""
    part, _, rest = name.partition(".")
    words = {"input": "observation", "output": "action"}.get(part, part)
    return words if part == "output" and rest == "action" else f"{words}.{rest}" if rest else words
