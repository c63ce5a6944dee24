"""The one door: a recording of any form becomes episodes, in memory that does not grow with it."""

from __future__ import annotations

import importlib
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import numpy as np

from stategate.contract.durable import whole_file
from stategate.contract.episode import FRESH, PROVENANCE, RATE, Episode
from stategate.contract.errors import EpisodeError
from stategate.runtime.base.buffers import Array
from stategate.runtime.recordings.mapping import Input, Map, Part, as_input
from stategate.runtime.recordings.resample import Piece, Rule, resampled
from stategate.runtime.recordings.source import (
    Block,
    Field,
    Source,
    chosen,
    refuse,
)

FORMS = (
    ".npz, .mcap, .db3, .csv, .parquet, .hdf5, .h5, .zarr, a bag of ROS 2 (metadata.yaml), a "
    "LeRobotDataset (meta/info.json), or a folder of one of these"
)
_GAP = 3  # usual times between two messages, or steps, that may pass before it is one


def _opener(path: Path) -> str | None:
    """What opens a recording of this name, as module:function; None for what is none."""
    suffix = path.suffix.lower()
    if suffix == ".mcap":
        return "mcap_files:McapFiles"
    if suffix == ".db3":
        return "ros:Bag"
    if (path / "metadata.yaml").is_file():
        return "ros:open_bag"
    if suffix in (".csv", ".parquet"):
        return "tables:open_table"
    if (path / "meta" / "info.json").is_file():
        return "lerobot:LeRobot"
    is_zarr = any((path / name).is_file() for name in (".zgroup", "zarr.json"))
    return "stores:open_store" if is_zarr or suffix in (".hdf5", ".h5") else None


def _parts_of(path: Path) -> list[Path]:
    """Recordings at a path: itself, or those that lie in a folder without episodes."""
    if _opener(path) or not path.is_dir() or any(path.glob("*.npz")):
        return [path] * bool(_opener(path))
    return [inside for inside in sorted(path.iterdir()) if _opener(inside)]


def is_recording(path: Path) -> bool:
    """Whether something is a recording of another tool, by its name."""
    return bool(_parts_of(path))


def open_recordings(path: Path) -> list[Source]:
    """Open a recording, or a folder of several, each an episode or more by itself."""
    sources: list[Source] = []
    for one in _parts_of(path):
        module, _, attribute = str(_opener(one)).partition(":")
        room = importlib.import_module(f"stategate.runtime.recordings.{module}")
        sources.append(getattr(room, attribute)(one))
    if not sources:
        raise EpisodeError(
            f"{path} is no recording that is read",
            found="a folder" if path.is_dir() else f"a file called *{path.suffix}",
            expected=FORMS,
        )
    return sources


@dataclass
class Conversion:
    """What became of a recording."""

    form: str  # what it was
    rate_hz: float | None  # steps per second of its episodes
    inputs: dict[str, str]  # where each comes from, in words
    files: list[Path] = field(default_factory=list)  # episodes that were written
    steps: int = 0  # of all of them
    gaps: int = 0  # places where an episode was cut, because the recording has nothing there
    notes: list[str] = field(default_factory=list)  # what else a reader should know

    def lines(self) -> Iterator[str]:
        """For a reader."""
        rate = f" at {self.rate_hz:g} Hz" if self.rate_hz else ""
        gaps = f"; {self.gaps} gaps, each begins a new episode" if self.gaps else ""
        yield f"{len(self.files)} episodes, {self.steps:,} steps{rate} from {self.form}{gaps}"
        yield from (f"  {name}: {words}" for name, words in self.inputs.items())
        yield from (f"  note: {note}" for note in self.notes)


def convert(
    path: str | Path,
    plan: Map,
    out: str | Path,
    report: Callable[[int, int], None] = lambda done, of: None,
) -> list[Conversion]:
    """Write a recording as episodes, each in a file that begins with a fresh memory.

        convert("drive.mcap", Map.read(["x=/joint_states.position{hip,knee}[rad]"],
                                       ["rate_hz=50"]), "logs")

    Args:
        path: A recording, or a folder of several.
        plan: Which fields become which inputs; without inputs, what is there is said in the error.
        out: Folder for the episodes.
        report: Called with messages or rows done, and how many there are.

    Raises:
        EpisodeError: It is no recording, a field is not there, times go backwards, a number is
            not finite, or a gap was met and is to be refused.
    """
    done: list[Conversion] = []
    try:
        for source in open_recordings(Path(path)):
            fields = source.fields()
            if not plan.inputs:
                raise refuse(source, f"which fields of {source.path.name} become inputs?", fields)
            converter = _Converter(source, fields, plan, Path(out))
            done.append(converter.result)
            converter.run(report)
    except BaseException:  # half a recording is none
        for file in (file for one in done for file in one.files):
            file.unlink(missing_ok=True)
        raise
    return done


class _Converter:
    def __init__(self, source: Source, fields: list[Field], plan: Map, out: Path) -> None:
        self._source, self._plan, self._out = source, plan, out
        self._inputs: dict[str, Input] = plan.chosen
        self._parts = [part for one in self._inputs.values() for part in one.parts]
        fields = chosen(source, source.follow(plan, fields), self._parts)
        rate = plan.rate_hz or source.rate_hz
        if source.is_timed and rate is None:
            raise refuse(source, "at which rate does the model step?", fields)
        # Rows of a recording that says its rate are resampled where another one is asked for.
        self._timed = source.is_timed or bool(
            source.rate_hz and plan.rate_hz and source.rate_hz != plan.rate_hz
        )
        self._check_settings()
        self.result = Conversion(source.form, rate, {})
        self._rules = []
        can_sort = "order" in source.settings and plan.order != "sort"
        owners = [(name, one) for name, one in self._inputs.items() for _ in one.parts]
        for part, one, (name, owner) in zip(self._parts, fields, owners, strict=True):
            way = owner.resample or plan.resample
            period = one.period_s or (1 / source.rate_hz if source.rate_hz else 0.0)
            gap = owner.gap_s or plan.gap_s or _GAP * max(period, 1 / rate if rate else 0.0)
            if way == "linear":
                _check_linear(name, part, one, gap)
            self._rules.append(Rule(part.field, way, gap * 1e9, part.turn, can_sort))
            words = f"{part}"
            if self._timed:
                words += f", {1 / period:.4g} Hz, {way}" if period else f", {way}"
                words += f", gaps above {gap:.3g} s"
            joined = [self.result.inputs[name]] if name in self.result.inputs else []
            self.result.inputs[name] = "; ".join([*joined, words])

    def _check_settings(self) -> None:
        """Refuse a setting that this recording would pass over in silence."""
        plan, source = self._plan, self._source
        changed = {"time": plan.time, "episode": plan.episode, "order": plan.order == "sort"}
        idle = [name for name, value in changed.items() if value and name not in source.settings]
        if not self._timed:
            ways = [plan.resample, *(one.resample for one in self._inputs.values())]
            gaps = [plan.gap_s, *(one.gap_s for one in self._inputs.values())]
            idle += ["resample"] * ("linear" in ways) + ["gap_s"] * any(gaps)
        if idle:
            raise EpisodeError(
                f"this setting says nothing about {source.form}",
                found=", ".join(idle),
                expected="settings that change how it is read"
                + ("" if self._timed else "; its rows are steps as they are"),
                remedy="leave it out",
            )

    def run(self, report: Callable[[int, int], None]) -> None:
        source, result = self._source, self.result

        def progress(done: int) -> None:
            report(done, source.size)

        for name, blocks in source.episodes(self._parts, self._plan, progress):
            number = len(result.files)
            for writer in self._written(name, self._pieces(blocks)):
                result.files.append(writer.path)
                result.steps += writer.steps
            result.gaps += max(0, len(result.files) - number - 1)
        result.notes += source.notes
        if not result.files:
            raise EpisodeError(
                f"{source.path.name} has no step at which every input has a value",
                found="; ".join(result.inputs.values()),
                expected="fields that were recorded at the same time",
                remedy="--read gap_s=SECONDS says how long a value may be missing",
            )

    def _pieces(self, blocks: Iterator[Block]) -> Iterator[Piece]:
        if not self._timed:  # rows are steps
            return (Piece([b.values for b in block], i > 0) for i, block in enumerate(blocks))
        if not self._source.is_timed:
            own = self._source.rate_hz or 1.0
            blocks = (
                [b._replace(times=np.round(b.times * (1e9 / own)).astype(np.int64)) for b in block]
                for block in blocks
            )
        return resampled(blocks, self._rules, self.result.rate_hz or 1.0)

    def _written(self, name: str, pieces: Iterator[Piece]) -> Iterator[EpisodeWriter]:
        """The episodes of pieces, one file after the other."""
        inputs = "; ".join(f"{n} from {words}" for n, words in self.result.inputs.items())
        where = f"{self._source.path.name}, {name}: {inputs}"
        with ExitStack() as opened:
            writer, index = None, 0
            for piece in pieces:
                if writer is not None and not piece.follows:
                    if self._plan.gaps == "refuse":
                        raise EpisodeError(
                            f"{self._source.path.name} has a gap",
                            found=f"after step {writer.steps - 1} of {writer.path.name}",
                            expected="a recording without one, because of gaps=refuse",
                            remedy="--read gaps=split begins a new episode there",
                        )
                    yield writer.finished()
                    writer = None
                if writer is None:
                    path = self._out / f"{_plain(name)}-{index:06d}.npz"
                    index += 1
                    writer = EpisodeWriter(path, opened, self.result.rate_hz, where)
                writer.add(self._arrays(piece.values), name)
            if writer is not None:
                yield writer.finished()

    def _arrays(self, values: Sequence[Array]) -> dict[str, Array]:
        arrays, at = {}, 0
        for name, one in self._inputs.items():
            count = len(one.parts)
            key = name if name.startswith("label.") else f"input.{name}"
            arrays[key] = as_input(list(values[at : at + count]), one, name)
            at += count
        return arrays


def _check_linear(name: str, part: Part, one: Field, gap_s: float) -> None:
    """Refuse a line between two values that has no meaning."""
    elements = set(part.elements or one.elements)
    why = (
        "holds its last value for ever" if gap_s == np.inf
        else f"is {one.dtype}, such as a mode or a count" if not one.dtype.startswith("float")
        else "is a rotation, and between two quaternions lies none" if elements >= set("xyzw")
        else ""
    )  # fmt: skip
    if why:
        raise EpisodeError(
            f"{name!r} cannot go in a line from value to value",
            found=f"{part} {why}",
            remedy=f'resample = "hold" below [inputs.{name}] in the file of the mapping',
        )


class EpisodeWriter:
    """One episode, written step by step; what it holds in memory is one block."""

    def __init__(
        self, path: Path, opened: ExitStack, rate_hz: float | None, provenance: str
    ) -> None:
        self.path, self.steps, self._opened = path, 0, opened
        self._facts = {RATE: rate_hz, PROVENANCE: provenance, FRESH: True}
        self._files: dict[str, IO[bytes]] = {}
        self._forms: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
        if path.exists():
            raise EpisodeError("an episode of that name is there", found=path)

    def add(self, arrays: dict[str, Array], name: str) -> None:
        """More steps."""
        inputs = {k.removeprefix("input."): a for k, a in arrays.items() if k.startswith("input.")}
        Episode(inputs).check_finite(name, self.steps)
        for key, array in arrays.items():
            if key not in self._files:
                self._files[key] = self._opened.enter_context(TemporaryFile())  # noqa: SIM115
                self._forms[key] = array.dtype, array.shape[1:]
            if self._forms[key] != (array.dtype, array.shape[1:]):
                raise EpisodeError(
                    f"{key} changes its shape or type in {name}",
                    found=f"{array.dtype} {list(array.shape[1:])}",
                    expected=f"{self._forms[key][0]} {list(self._forms[key][1])}",
                )
            array.tofile(self._files[key])
        self.steps += len(next(iter(arrays.values())))

    def finished(self) -> EpisodeWriter:
        """Put the file in its place."""
        with whole_file(self.path) as file, zipfile.ZipFile(file, "w", allowZip64=True) as packed:
            for key, (dtype, shape) in self._forms.items():
                with packed.open(f"{key}.npy", "w", force_zip64=True) as member:
                    header = {
                        "descr": np.lib.format.dtype_to_descr(dtype),
                        "fortran_order": False,
                        "shape": (self.steps, *shape),
                    }
                    np.lib.format.write_array_header_1_0(member, header)
                    with self._files[key] as raw:
                        raw.seek(0)
                        shutil.copyfileobj(raw, member, 1 << 20)
            for key, fact in self._facts.items():
                if fact is not None:
                    with packed.open(f"{key}.npy", "w") as member:
                        np.lib.format.write_array(member, np.array(fact))
        return self


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name) or "episode"
