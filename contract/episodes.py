"""A folder of episodes: opened by its headers, read a file or a block of steps at a time."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np

from stategate.contract.episode import Array, Episode, facts, refuse_start, tensor_keys
from stategate.contract.errors import EpisodeError
from stategate.contract.npz import FILE_BYTES, Npz, refuse_too_large
from stategate.contract.reading import file_sha256

BLOCK_STEPS = 4096
BLOCK_BYTES = 1 << 24
_TIMED = ("input.", "label.")
_BEGINNING = ("start.", "prologue.")

Form = dict[str, tuple[str, tuple[int, ...]]]
"""By key, such as ``input.x``: dtype, and the shape of one step."""


@dataclass(frozen=True, slots=True)
class EpisodeFile:
    """One recorded episode on disk, known by its headers alone.

    Attributes:
        path: The ``.npz``.
        steps: Number of steps, at least one.
        form: What a step of it consists of.
        rate_hz: Steps per second; None where that is not known.
        provenance: Where it comes from, in words.
        start: Keys of the states that it starts from, and of what a prologue takes.
        fresh: Whether it does not go on from the file before it.
    """

    path: Path
    steps: int
    form: Form
    rate_hz: float | None
    provenance: str
    start: tuple[str, ...] = ()
    fresh: bool = False

    @property
    def name(self) -> str:
        """The file's name, which is the episode's."""
        return self.path.name

    @classmethod
    def open(cls, path: Path) -> EpisodeFile:
        """Read the headers of a file.

        Raises:
            EpisodeError: It is no episode, is empty, or its arrays differ in length.
        """
        with Npz(path) as file:
            every = tensor_keys(file)
            keys = [key for key in every if key.startswith(_TIMED)]
            start = tuple(key for key in every if key.startswith(_BEGINNING))
            rate_hz, provenance, fresh = facts(file)
            shapes = {key: file.members[key].shape for key in keys}
            dtypes = {key: str(file.members[key].dtype) for key in keys}
        lengths = {key: shape[0] if shape else 0 for key, shape in shapes.items()}
        if not any(key.startswith("input.") for key in keys) or min(lengths.values()) == 0:
            raise EpisodeError(
                f"{path} is empty", found=lengths or "no arrays", expected="at least one step"
            )
        if len(set(lengths.values())) > 1:
            raise EpisodeError(
                f"the arrays of {path} differ in length",
                found=lengths,
                expected="one length for all",
            )
        form = {key: (dtypes[key], shapes[key][1:]) for key in sorted(keys)}
        episode = Episode({}, rate_hz=rate_hz, provenance=provenance)  # which checks the rate
        steps = min(lengths.values())
        return cls(path, steps, form, episode.rate_hz, episode.provenance, start, fresh)

    def load(self) -> Episode:
        """All of its inputs and labels.

        Raises:
            EpisodeError: It cannot be read, is too large for that, or has changed.
        """
        return _joined((self,), self.steps)

    def blocks(self, steps: int | None = None, *, starts: bool = False) -> Iterator[Episode]:
        """The episode in pieces: inputs and labels of so many steps, the last piece shorter.

        Memory stays at one piece, however long the file is.

        Args:
            steps: Of one piece; as many as fit into 16 MiB if left out, 4,096 at most.
            starts: Whether it may start from states of its own, which are part of no piece.

        Raises:
            EpisodeError: The file is gone, damaged, not the one that was opened, or has an input
                that is not finite; or it starts from states that nobody would load.
        """
        if not starts:
            refuse_start(str(self.path), self.start)
        if not self.path.exists():
            raise EpisodeError(
                f"{self.path} is gone", expected="files that stay while they are read"
            )
        if EpisodeFile.open(self.path) != self:
            raise EpisodeError(
                f"{self.path} has changed since it was opened",
                expected="files that stay as they are while they are read",
            )
        if steps is None:
            step_bytes = sum(math.prod(s) * np.dtype(d).itemsize for d, s in self.form.values())
            steps = min(BLOCK_STEPS, max(1, BLOCK_BYTES // max(1, step_bytes)))
        first = 0
        with Npz(self.path) as file:
            for block in file.blocks(self.form, steps):
                episode = _episode(block, self.rate_hz, self.provenance)
                episode.check_finite(str(self.path), first)
                first += episode.steps
                yield episode

    def sha256(self) -> str:
        """Hex digest of the file."""
        return file_sha256(self.path, FILE_BYTES)[0]


@dataclass(frozen=True)
class EpisodeSet:
    """Episodes of one form; iterating loads one of them at a time, in the order of their names.

        for name, episode in EpisodeSet.open("recordings"):
            ...

    Attributes:
        files: The episodes; their `EpisodeFile.blocks` read what is too large for one piece.
    """

    files: tuple[EpisodeFile, ...]

    @classmethod
    def open(cls, *paths: str | Path) -> EpisodeSet:
        """Open ``.npz`` files, and every ``.npz`` that lies in a folder, by the headers alone.

        Args:
            paths: Files and folders; files of one folder are in the order of their names.

        Raises:
            EpisodeError: There are none, one cannot be read, or they differ in names, dtypes,
                shapes or rate.
        """
        episode_paths: list[Path] = []
        for one in paths:
            path = _path_of(one)
            inside = sorted(path.glob("*.npz")) if path.is_dir() else [path]
            if not inside:
                raise EpisodeError(f"{path} holds no episodes", expected="files called *.npz")
            episode_paths += inside
        if not episode_paths:
            raise EpisodeError("there are no episodes", expected="files called *.npz")
        files = tuple(EpisodeFile.open(p) for p in episode_paths)
        first = files[0]
        for other in files[1:]:
            if other.form != first.form or other.rate_hz != first.rate_hz:
                raise EpisodeError(
                    f"the episodes of {other.path.parent} are not of one form",
                    found=f"{other.name}: {_form_in_words(other)}",
                    expected=f"as in {first.name}: {_form_in_words(first)}",
                    remedy="put them into folders of their own",
                )
        return cls(files)

    @property
    def names(self) -> tuple[str, ...]:
        """File names, in order."""
        return tuple(file.name for file in self.files)

    @property
    def steps(self) -> int:
        """Of all episodes together."""
        return sum(file.steps for file in self.files)

    @property
    def rate_hz(self) -> float | None:
        """Steps per second, the same for all; None where that is not known."""
        return self.files[0].rate_hz

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the names and digests of all files, which are read through for it."""
        lines = "".join(f"{file.sha256()}  {file.name}\n" for file in self.files)
        return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()

    @property
    def loaded(self) -> Iterable[Episode]:
        """The whole episodes without their names, to be gone through as often as one likes."""
        return _Loaded(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[tuple[str, Episode]]:
        """Name and whole episode, one file in memory at a time."""
        for file in self.files:
            yield file.name, file.load()


@dataclass(frozen=True, slots=True)
class _Loaded:
    files: tuple[EpisodeFile, ...]

    def __iter__(self) -> Iterator[Episode]:
        return (file.load() for file in self.files)


def load_episode(path: str | Path, steps: int | None = None) -> Episode:
    """What a command steps through: one file, or the files of a folder as one stream.

    Args:
        path: One ``.npz``, or a folder of them, which follow one another in the order of names;
            whoever steps them resets the memory at `Episode.resets`, or asks `load_stream`.
        steps: Read no more than so many.

    Raises:
        EpisodeError: There are none, they do not fit together, or are too large for one piece.
    """
    episodes = EpisodeSet.open(path)
    return _joined(episodes.files, min(steps or episodes.steps, episodes.steps))


def load_stream(path: str | Path, steps: int | None = None) -> Episode:
    """What a command steps through that never resets the memory: one recording of a path.

    That is the longest of those that begin with a fresh memory, and among several the first. Files
    that go on from one another are one recording.

    Args:
        path: One ``.npz``, or a folder of them.
        steps: Read no more than so many.

    Raises:
        EpisodeError: As of `load_episode`.
    """
    streams: list[list[EpisodeFile]] = []
    for file in EpisodeSet.open(path).files:
        if file.fresh or not streams:
            streams.append([])
        streams[-1].append(file)

    def length(files: list[EpisodeFile]) -> int:
        whole = sum(file.steps for file in files)
        return min(steps or whole, whole)

    chosen = max(streams, key=length)
    return replace(_joined(tuple(chosen), length(chosen)), resets=())


def _path_of(recording: str | Path) -> Path:
    try:
        return Path(recording)
    except TypeError:
        raise EpisodeError(
            "this is not a recording",
            found=f"a {type(recording).__name__}",
            expected="an Episode, a .npz file, or a folder of them",
            remedy="arrays of the form [steps, 1, ...] make one: "
            'stategate.contract.Episode({"NAME": array})',
        ) from None


def _joined(files: tuple[EpisodeFile, ...], steps: int) -> Episode:
    """The first ``steps`` of several files, each read in blocks into one allocation."""
    first = files[0]
    for other in files[1:]:
        if other.start:
            raise EpisodeError(
                f"{other.name} starts from given states, and the memory goes on from {first.name}",
                found=", ".join(other.start),
                remedy="step each episode by itself",
            )
    size = steps * sum(math.prod(s) * np.dtype(d).itemsize for d, s in first.form.values())
    refuse_too_large(first.path, size, "ask for fewer steps, or read it with EpisodeFile.blocks")
    arrays = {key: np.empty((steps, *shape), dtype) for key, (dtype, shape) in first.form.items()}
    begins = accumulate([0, *(file.steps for file in files[:-1])])
    provenances = dict.fromkeys(file.provenance for file in files if file.provenance)
    whole = replace(
        _episode(arrays, first.rate_hz, "; ".join(provenances)),
        start=_beginning(first, "start."),
        prologue=_beginning(first, "prologue."),
        resets=tuple(
            at for file, at in zip(files, begins, strict=True) if file.fresh and at < steps
        ),
    )
    done = 0
    for block in (block for file in files for block in file.blocks(starts=True)):
        count = min(block.steps, steps - done)
        for into, group in ((whole.inputs, block.inputs), (whole.labels, block.labels)):
            for name, array in group.items():
                into[name][done : done + count] = array[:count]
        done += count
        if done == steps:
            break
    return whole


def _beginning(file: EpisodeFile, part: str) -> dict[str, Array]:
    keys = [key for key in file.start if key.startswith(part)]
    if not keys:
        return {}
    with Npz(file.path) as opened:
        return {key.removeprefix(part): opened.load(key) for key in keys}


def _episode(arrays: dict[str, Array], rate_hz: float | None, provenance: str) -> Episode:
    inputs, labels = (
        {key.removeprefix(part): array for key, array in arrays.items() if key.startswith(part)}
        for part in _TIMED
    )
    return Episode(inputs, labels, rate_hz=rate_hz, provenance=provenance)


def _form_in_words(file: EpisodeFile) -> str:
    forms = (f"{key} {dtype} {list(shape)}" for key, (dtype, shape) in file.form.items())
    rate = f" at {file.rate_hz:g} Hz" if file.rate_hz is not None else ""
    return ", ".join(forms) + rate
