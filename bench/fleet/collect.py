"""From robots' folders to one folder of parquet: exact, whoever dies, and however often it is done.

A robot's folder is whatever was copied from it: an installation, snapshot folders, black boxes,
lines of `JsonLines`. It may be collected again and again: what did not change gives the same file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from stategate.bench.fleet.table import PARTS, Row, to_parquet
from stategate.calibration.cluster import Cluster, connected, in_order
from stategate.common.console import progress
from stategate.contract import Bundle
from stategate.contract.bundle import INSTALLED
from stategate.contract.bundle import SLOTS as BUNDLE_SLOTS
from stategate.contract.durable import make_folder, write_whole
from stategate.contract.errors import EpisodeError, SnapshotError, StategateError
from stategate.contract.reading import file_sha256, open_regular, printable
from stategate.runtime.base.ledger import Ledger
from stategate.runtime.check.recording import Keyframe, Recording, Step
from stategate.runtime.install.record import InstallFolder
from stategate.runtime.keep import journal
from stategate.runtime.keep.records import MAGIC
from stategate.runtime.keep.snapshot import Codec
from stategate.runtime.keep.store import SLOTS, look_into

_VERSION = b"stategate fleet 1\n"  # of what a file is made of its sources
_LINES = 64  # of metrics that are kept of one file, the first and the last among them
_WALL = "wall"
_Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_Number = Annotated[float, msgspec.Meta(ge=0, le=1e12)]  # neither NaN nor infinity


@dataclass(frozen=True, slots=True)
class Collected:
    """What was collected; names of robots in their order."""

    robots: tuple[str, ...]
    new: tuple[str, ...]  # whose folder was not collected in this state before
    problems: tuple[str, ...]  # what cannot be read, each with its robot


def collect(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    bundles: Sequence[str | Path] = (),
    cluster: Cluster | None = None,
) -> Collected:
    """Read what robots brought home, and write one table a robot into a folder.

    Given again, it reads what is there anew and writes what is missing.

    Args:
        folders: Each is a robot's folder, or a folder of these.
        out: Folder of the fleet.
        bundles: That the robots step, for snapshots and black boxes; an installation has its own.
        cluster: See `stategate.calibration.cluster`; its workers find the folders under the same
            paths. None for this process.
    """
    robots = robots_in([Path(folder) for folder in folders])
    parts = Path(out) / PARTS
    make_folder(parts)
    named = tuple(str(Path(bundle).resolve()) for bundle in bundles)
    for bundle in named:
        Bundle.open(bundle)
    work = partial(_read, bundles=named)
    new, problems = [], []
    with ExitStack() as opened:
        report = opened.enter_context(progress(len(robots), "collecting"))
        if cluster is None:
            answers: Iterable[Any] = ((item, work(item)) for item in robots.items())
        else:
            client = opened.enter_context(connected(cluster))
            answers = in_order(client, robots.items(), work, lambda item: f"read {item[0]}")
        for done, ((name, _), (key, content, wrong)) in enumerate(answers, 1):
            path = parts / f"{key}.parquet"
            if not path.exists():
                write_whole(path, content)
                new.append(name)
            problems += [f"{name}: {problem}" for problem in wrong]
            report(done)
    return Collected(tuple(robots), tuple(new), tuple(problems))


def robots_in(folders: Sequence[Path]) -> dict[str, Path]:
    """Folders by the names of the robots."""
    robots: dict[str, Path] = {}
    for folder in folders:
        inside = (
            sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
        )
        several = [folder] if any(sources_in(folder, deep=False)) else inside
        if not several:
            raise EpisodeError(f"{folder} holds no robots", expected="a folder for each robot")
        for path in several:
            name = printable(path.resolve().name, 200)
            other = robots.setdefault(name, path.resolve())
            if other != path.resolve():
                raise EpisodeError(
                    f"two robots are called {name}",
                    found=f"{other} and {path.resolve()}",
                    expected="names of their folders that differ: counters of two are never summed",
                    remedy="if both are of one robot, collect the older one first, alone",
                )
    return robots


def sources_in(folder: Path, deep: bool = True) -> Iterator[Path]:
    """Files that say something, in the order of their names; installed bundles are no sources."""
    for path in sorted(folder.rglob("*") if deep else folder.glob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        if path.name in (INSTALLED, *SLOTS, journal.NAME) or (deep and path.suffix == ".jsonl"):
            yield path
        elif path.suffix == ".jsonl":  # a log beside the folders of many makes them no one robot
            if all(name in _begin(path, 4096) for name in (b'"elapsed_s"', b'"steps"')):
                yield path
        elif path.suffix in ("", ".rec", ".box", ".bin") and _begin(path, len(MAGIC)) == MAGIC:
            yield path


def _begin(path: Path, count: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        return MAGIC  # it may be one: whoever reads it whole says why that is not possible


def _read(item: tuple[str, Path], bundles: tuple[str, ...]) -> tuple[str, bytes, list[str]]:
    """Digest of all sources of a robot, its table, and what cannot be read."""
    robot, folder = item
    rows: list[Row] = []
    digest = hashlib.sha256(_VERSION + robot.encode())
    for bundle in bundles:  # with another bundle more can be read
        digest.update(_opened(bundle).digest.encode())
    for path in sources_in(folder):
        place = printable(path.relative_to(folder).as_posix(), 500)
        base = Row(robot=robot, kind="problem", place=place, sha256="")
        try:
            base = msgspec.structs.replace(base, sha256=file_sha256(path)[0])
            rows += _rows(path, folder, base, bundles)
        except (StategateError, OSError) as problem:
            why = problem.reason if isinstance(problem, StategateError) else str(problem)
            rows.append(msgspec.structs.replace(base, problem=printable(why, 1000)))
        digest.update(f"\n{place} {base.sha256}".encode())
    if not rows:
        rows = [Row(robot=robot, kind="problem", place=".", sha256="", problem="nothing to read")]
    wrong = [f"{row.place}: {row.problem}" for row in rows if row.problem]
    return digest.hexdigest(), to_parquet(rows), wrong


def _rows(path: Path, folder: Path, base: Row, bundles: tuple[str, ...]) -> Iterator[Row]:
    if path.suffix == ".jsonl":
        yield from _metrics(path, base)
    elif path.name == INSTALLED:
        retired = InstallFolder(path.parent).read().retired
        if retired.steps:
            yield msgspec.structs.replace(base, kind="retired", ledger=retired)
    elif path.name in SLOTS:
        yield from _snapshot(path, base, _bundles(path, folder, bundles))
    elif path.name != journal.NAME:
        yield _recording(path, base, _bundles(path, folder, bundles))


def _bundles(path: Path, folder: Path, bundles: tuple[str, ...]) -> list[Bundle]:
    """What may have written a file: the bundles of its installation, then those that were named."""
    opened = []
    for above in path.parents:
        if (above / INSTALLED).exists():
            for slot in BUNDLE_SLOTS:
                if (above / slot).is_dir():
                    opened.append(Bundle.open(above / slot))
        if above == folder:
            break
    return [*opened, *map(_opened, bundles)]


@lru_cache(maxsize=16)
def _opened(path: str) -> Bundle:
    return Bundle.open(path)


def _of(base: Row, bundle: Bundle, kind: str, **more: Any) -> Row:
    manifest = bundle.manifest
    gates = {g.name: g.expected_write_rate for g in manifest.gates if g.expected_write_rate}
    return msgspec.structs.replace(
        base,
        kind=kind,
        model=printable(manifest.model.name),
        bundle_sha256=bundle.digest,
        rate_hz=manifest.observation.rate_hz if manifest.observation else None,
        target=manifest.target.name if manifest.target else "",
        writes_per_1000_steps=manifest.budget.writes_per_1000_steps,
        expected=gates,
        **more,
    )


def _snapshot(path: Path, base: Row, bundles: Sequence[Bundle]) -> Iterator[Row]:
    """The ledger of a slot, and of the last commit behind the newest one."""
    problem: SnapshotError | None = None
    for bundle in bundles:
        codec = Codec(bundle.manifest)
        try:
            with open_regular(path, codec.most_bytes) as file:
                header = codec.decode(file.read(codec.most_bytes), path.name).header
        except SnapshotError as refusal:
            problem = problem or refusal
            continue
        when = {"clock": _WALL, "seconds": float(header.unix_s)}
        yield _of(base, bundle, "snapshot", ledger=header.ledger, **when)
        newest = look_into(path.parent, codec).newest
        if newest is not None and newest.slot == path.name:
            entries = journal.read_journal(path.parent, newest).entries
            if entries:
                commit = entries[-1].commit
                when["seconds"] = float(commit.unix_s)
                yield _of(base, bundle, "journal", ledger=commit.ledger, **when)
        return
    if problem is not None:
        raise problem
    raise SnapshotError("no bundle is known that wrote it", remedy="name it with --bundle")


def _metrics(path: Path, base: Row) -> Iterator[Row]:
    """Lines of `JsonLines`, thinned; each process that appended has a clock of its own."""
    rows: list[Row] = []
    problem = ""
    clock = ""
    with open_regular(path, 1 << 30) as file:
        for number, text in enumerate(file, 1):
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                continue  # a process was killed while it wrote it
            if not isinstance(line, dict) or not {"steps", "elapsed_s"} <= line.keys():
                continue
            try:
                row = _row_of(line, base)
            except msgspec.ValidationError as wrong:
                problem = problem or f"line {number}: {wrong}"
                continue
            if not rows or (row.seconds or 0.0) < (rows[-1].seconds or 0.0):
                clock = f"process from {row.seconds} s at step {row.ledger.steps} on"
            rows.append(msgspec.structs.replace(row, clock=clock))
    thinned = np.linspace(0, len(rows) - 1, min(len(rows), _LINES)).round().astype(int)
    yield from (rows[i] for i in thinned.tolist())
    if problem:
        yield msgspec.structs.replace(base, problem=printable(problem, 1000))


def _row_of(line: dict[str, Any], base: Row) -> Row:
    """A line that is strictly what `JsonLines` writes; else it is refused."""
    counters: dict[str, Any] = {}
    for field in fields(Ledger):
        prefix = f"{field.name}."
        inside = {
            printable(n.removeprefix(prefix)): v for n, v in line.items() if n.startswith(prefix)
        }
        counters[field.name] = inside if "dict" in str(field.type) else line.get(field.name, 0)
    flat = [each for v in counters.values() for each in (v.values() if type(v) is dict else [v])]
    msgspec.convert(flat, list[_Count])
    prefix = "expected_write_rate."
    expected = {n.removeprefix(prefix): v for n, v in line.items() if n.startswith(prefix)}
    msgspec.convert([line["elapsed_s"], *expected.values()], list[_Number])
    return msgspec.structs.replace(
        base,
        kind="metrics",
        model=printable(str(line.get("model", ""))),
        bundle_sha256=printable(str(line.get("bundle_sha256", "")), 64),
        seconds=float(line["elapsed_s"]),
        expected={printable(name): float(value) for name, value in expected.items()},
        ledger=Ledger(**counters),
    )


def _recording(path: Path, base: Row, bundles: Sequence[Bundle]) -> Row:
    """How many steps of a black box can be stepped again."""
    recording = Recording(path)
    for bundle in bundles:
        if bundle.manifest.step_graph.file.sha256 == recording.graph_sha256:
            counted, seconds = Ledger(), None
            for event in recording.events(bundle.manifest):
                if isinstance(event, Step):
                    counted = replace(
                        counted,
                        steps=counted.steps + 1,
                        writes=counted.writes + event.wrote,
                        quiet_steps=counted.quiet_steps + (not event.wrote),
                        faults=counted.faults + event.failed,
                    )
                elif isinstance(event, Keyframe):
                    seconds = event.unix_ns / 1e9
            return _of(base, bundle, "recording", ledger=counted, clock=_WALL, seconds=seconds)
    raise EpisodeError("no bundle is known that it records", found=recording.graph_sha256[:12])
