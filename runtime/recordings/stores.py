"""HDF5 as robomimic and ACT write it, and zarr as diffusion policies do: arrays of rows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stategate.contract.errors import EpisodeError, MissingDependencyError
from stategate.contract.failures import failures
from stategate.runtime.recordings.mapping import Map, Part
from stategate.runtime.recordings.source import (
    BLOCK_BYTES,
    Batch,
    Block,
    Field,
    Progress,
    Source,
    chosen,
    reading,
)

Arrays = dict[str, Any]


class Store(Source):
    """Episodes that are arrays of rows by name, read some rows at a time.

    Args:
        path: The file or folder.
        form: In words.
        parts: Name, first row and row behind the last one of each episode, and its arrays.
        rate_hz: Of the rows, where the recording says so.
    """

    def __init__(
        self, path: Path, form: str, parts: list[tuple[str, int, int, Arrays]],
        rate_hz: float | None,
    ) -> None:  # fmt: skip
        super().__init__(path)
        self.form, self.rate_hz = form, rate_hz
        self._parts, self.size = parts, sum(end - first for _, first, end, _ in parts)

    def fields(self) -> list[Field]:
        """Arrays that every episode has."""
        _, _, _, arrays = self._parts[0]
        return [
            Field(name, "array", str(array.dtype), tuple(array.shape[1:]), self.size)
            for name, array in sorted(arrays.items())
            if array.dtype.kind in "biuf" and all(name in others for *_, others in self._parts)
        ]

    def episodes(
        self, parts: Sequence[Part], plan: Map, report: Progress
    ) -> Iterator[tuple[str, Iterator[Block]]]:
        """In the order of their numbers."""
        names = [one.name for one in chosen(self, self.fields(), parts)]
        done = 0
        for name, first, end, arrays in self._parts:
            yield f"{self.path.stem}-{name}", self._batches(name, first, end, arrays, names)
            report(done := done + end - first)

    def _batches(
        self, name: str, first: int, end: int, arrays: Arrays, names: list[str]
    ) -> Iterator[Block]:
        row_bytes = sum(int(np.prod(arrays[n].shape[1:])) * arrays[n].dtype.itemsize for n in names)
        rows = max(1, BLOCK_BYTES // max(1, row_bytes))
        for n in names:
            if arrays[n].shape[0] < end:
                raise EpisodeError(
                    f"arrays of {name} differ in length",
                    found=f"{n} has {arrays[n].shape[0]} rows", expected=f"{end}",
                )  # fmt: skip
        for at in range(first, end, rows):
            until = min(at + rows, end)
            numbers = np.arange(at - first, until - first, dtype=np.int64)
            values = [np.asarray(arrays[n][at:until]) for n in names]
            native = [array.astype(array.dtype.newbyteorder("=")) for array in values]
            yield [Batch(i, numbers, array) for i, array in enumerate(native)]


def open_store(path: Path) -> Store:
    """An HDF5 file or a zarr store."""
    if path.suffix.lower() in (".hdf5", ".h5"):
        try:
            import h5py as library
        except ImportError as missing:
            raise MissingDependencyError("h5py", "recordings") from missing
        opened: Any = library.File
    else:
        try:
            import zarr as library
        except ImportError as missing:
            raise MissingDependencyError("zarr", "recordings") from missing
        opened = library.open_group
    with reading(path, "HDF5 or zarr, whole"):
        root = opened(path, mode="r")
    return _hdf5(path, root) if library.__name__ == "h5py" else _zarr(path, root)


def _hdf5(path: Path, root: Any) -> Store:
    data = root.get("data")
    demos = [n for _, n in sorted((_number(n), n) for n in data or () if _number(n) >= 0)]
    rate = _robomimic_rate(data) if demos else None
    if not demos:
        arrays = _arrays(root)
        episode = _whole(path, arrays)
        return Store(path, "HDF5 with one episode", [episode], None)
    parts = []
    for name in demos:
        arrays = _arrays(data[name])
        rows = data[name].attrs.get("num_samples")
        _, _, end, arrays = _whole(path, arrays, name)
        if rows is not None and int(rows) != end:
            raise EpisodeError(
                f"{name} of {path.name} is not whole", found=f"{end} rows", expected=int(rows)
            )
        parts.append((name, 0, end, arrays))
    return Store(path, "robomimic HDF5", parts, rate)


def _robomimic_rate(data: Any) -> float | None:
    """Control rate of the environment, which robomimic writes down as JSON."""
    try:
        return float(json.loads(data.attrs["env_args"])["env_kwargs"]["control_freq"])
    except failures(KeyError, TypeError, ValueError):
        return None


def _zarr(path: Path, root: Any) -> Store:
    ends = _arrays(root.get("meta", {})).get("episode_ends") if "meta" in root else None
    arrays = _arrays(root.get("data", root))
    if ends is None:
        store = Store(path, "zarr with one episode", [_whole(path, arrays)], None)
        store.notes.append("it has no meta/episode_ends, so all its rows are one episode")
        return store
    edges = [0, *(int(end) for end in ends[:])]
    rows = max((array.shape[0] for array in arrays.values()), default=0)
    if sorted(set(edges)) != edges or edges[-1] != rows:
        raise EpisodeError(
            f"episode_ends of {path.name} do not fit its rows",
            found=f"{edges[-4:]} at the end", expected=f"rising numbers up to {rows}",
        )  # fmt: skip
    pairs = zip(edges, edges[1:], strict=False)
    parts = [(f"episode-{i}", first, end, arrays) for i, (first, end) in enumerate(pairs)]
    return Store(path, "zarr", parts, None)


def _whole(path: Path, arrays: Arrays, name: str = "rows") -> tuple[str, int, int, Arrays]:
    """One episode: the arrays as long as most are; scalars and settings are left out."""
    lengths = [array.shape[0] for array in arrays.values()]
    if not lengths:
        raise EpisodeError(f"{path.name} holds no arrays of rows", found=name)
    rows = max(lengths, key=lengths.count)
    return name, 0, rows, {n: a for n, a in arrays.items() if a.shape[0] == rows}


def _number(name: str) -> int:
    """That of ``demo_10``, which comes after ``demo_2``; -1 for another name."""
    match = re.fullmatch(r"[a-z]+_(\d+)", name)
    return int(match[1]) if match else -1


def _arrays(group: Any, prefix: str = "") -> Arrays:
    arrays: Arrays = {}
    for name, one in group.items() if hasattr(group, "items") else group.members():
        if hasattr(one, "shape"):
            if one.shape:
                arrays[prefix + name] = one
        else:
            arrays |= _arrays(one, f"{prefix}{name}/")
    return arrays
