"""A disk that loses power: what a program asked of its folder, and what may be there afterwards.

`Recorder` notes every call of `os` that changes a folder while the program runs on a real one.
`Disk` is a disk that was asked the same: sectors, sizes and names stay in a cache until they are
synced, and what is in the cache when the power goes is there, or not, or torn. Nothing in it knows
what the files mean.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SECTOR = 512
PAGE = 4096  # what a file system writes at least
FOLDER = -1  # in the place of a file's number, where a folder is renamed

Content = dict[str, bytes]  # files of a folder by name


@dataclass(frozen=True, slots=True)
class Change:
    """The smallest thing that reaches the disk or does not.

    Attributes:
        file: Number of the file; -1 for a change of names.
        at: Sector, or -1 for the file's size.
        data: What the sector then holds; the size as digits.
        names: Names before and after: ``(old, new)`` of a rename, ``(None, new)`` of a new file,
            ``(old, None)`` of one that is removed.
    """

    file: int
    at: int = -1
    data: bytes = b""
    names: tuple[str | None, str | None] = (None, None)


@dataclass(frozen=True, slots=True)
class Sync:
    """The program waits until the disk has a file, or the names of the folder (``file`` -1)."""

    file: int


@dataclass(frozen=True, slots=True)
class Mark:
    """The program says that something is safe from here on."""

    what: Any


Event = Change | Sync | Mark


@dataclass
class Recorder:
    """Notes what happens to one folder and those in it, whose files are few and small.

    Names are paths below the folder; each folder in it has names of its own, under a negative
    number.

    Attributes:
        folder: The folder.
        events: What happened.
        pages: Pages of 4 KiB that were handed over to be written, by what synced them.
    """

    folder: Path
    events: list[Event] = field(default_factory=list)
    pages: int = 0
    renames: int = 0
    _numbers: dict[int, int] = field(default_factory=dict)  # of files, by inode
    _content: dict[int, bytes] = field(default_factory=dict)
    _count: int = 0
    _folders: dict[str, int] = field(default_factory=lambda: {".": -1})

    def mark(self, what: Any) -> None:
        """Note that something is safe."""
        self.events.append(Mark(what))

    @contextmanager
    def recording(self) -> Iterator[Recorder]:
        """Record everything that this process does inside."""
        own = ("open", "pwrite", "fsync", "fdatasync", "rename", "replace", "unlink", "rmdir")
        real = {name: getattr(os, name) for name in own}
        for name in own:
            setattr(os, name, self._watched(real[name], getattr(self, f"_{name}")))
        try:
            yield self
        finally:
            for name in own:
                setattr(os, name, real[name])

    def _watched(self, real: Callable[..., Any], note: Callable[..., None]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            changes = (self._open, self._rename, self._unlink, self._rmdir)
            before = self._names() if note in changes else {}
            if "dir_fd" in named and named["dir_fd"] is not None:
                above = Path(f"/proc/self/fd/{named['dir_fd']}").readlink()
                answer = real(*args, **named)
                note(before, above / args[0], *args[1:])
                return answer
            answer = real(*args, **named)
            note(before, *args)
            return answer

        return call

    def _names(self) -> dict[str, int]:
        """Inodes of the files by name."""
        names = {}
        for above, _, files in os.walk(self.folder):
            for file in files:
                path = Path(above, file)
                names[path.relative_to(self.folder).as_posix()] = path.lstat().st_ino
        return names

    def _name(self, path: Any) -> str:
        return Path(os.path.abspath(path)).relative_to(self.folder).as_posix()  # noqa: PTH100

    def _folder_of(self, path: Any) -> int:
        """The number of the names that a path's own is among."""
        return self._folders.setdefault(str(Path(self._name(path)).parent), -1 - len(self._folders))

    def _begin(self, name: str, inode: int) -> None:
        self._numbers[inode], self._content[self._count] = self._count, b""
        at = self._folder_of(self.folder / name)
        self.events.append(Change(at, self._count, names=(None, name)))
        self._count += 1

    def _open(self, before: dict[str, int], path: Any, flags: int, *_: Any) -> None:
        if flags & os.O_CREAT and isinstance(path, str | Path) and self._is_in(path):
            name = self._name(path)
            if name not in before:
                self._begin(name, self._names()[name])

    def _rename(self, before: dict[str, int], old: Any, new: Any, *_: Any) -> None:
        if not self._is_in(old):
            return
        names, at = (self._name(old), self._name(new)), self._folder_of(new)
        self.renames += 1
        if names[0] in before:
            number = self._numbers[before[names[0]]]
            self._numbers.pop(before.get(names[1], -1), None)  # its inode is used again
            self.events.append(Change(at, number, names=names))
            return
        # A folder: all that is in it has another name at once, or nothing of it has.
        self.events.append(Change(at, FOLDER, names=names))
        for folder in [f for f in self._folders if (f + "/").startswith(names[0] + "/")]:
            number = self._folders.pop(folder)
            self._folders[names[1] + folder.removeprefix(names[0])] = number

    _replace = _rename

    def _unlink(self, before: dict[str, int], path: Any, *_: Any) -> None:
        if self._is_in(path):
            name = self._name(path)
            number = self._numbers.pop(before[name], None)
            if number is not None:
                self.events.append(Change(self._folder_of(path), number, names=(name, None)))

    def _rmdir(self, before: dict[str, int], path: Any, *_: Any) -> None:
        if self._is_in(path):
            self._folders.pop(self._name(path), None)  # another folder of the name is another one

    def _pwrite(self, _: dict[str, int], file: int, *__: Any) -> None:
        self._look(file)

    def _fsync(self, _: dict[str, int], file: int) -> None:
        path = Path(f"/proc/self/fd/{file}").readlink()
        if path == self.folder or (path.is_dir() and self._is_in(path)):
            self.events.append(Sync(self._folder_of(path / "any")))
            return
        if os.fstat(file).st_ino not in self._numbers and self._is_in(path):
            self._begin(self._name(path), os.fstat(file).st_ino)  # made by open() of Python
        if os.fstat(file).st_ino in self._numbers:
            self._look(file)  # what was written through a buffer
            self.events.append(Sync(self._numbers[os.fstat(file).st_ino]))

    _fdatasync = _fsync

    def _look(self, file: int) -> None:
        """Note which sectors of a file have changed."""
        number = self._numbers.get(os.fstat(file).st_ino)
        if number is None:
            return
        now = Path(f"/proc/self/fd/{file}").read_bytes()
        then, self._content[number] = self._content[number], now
        if len(now) != len(then):
            self.events.append(Change(number, data=b"%d" % len(now)))
        then = then.ljust(len(now), b"\0")[: len(now)]
        for page in range(0, len(now), PAGE):
            if now[page : page + PAGE] == then[page : page + PAGE]:
                continue
            self.pages += 1
            for at in range(page, min(page + PAGE, len(now)), SECTOR):
                if now[at : at + SECTOR] != then[at : at + SECTOR]:
                    self.events.append(Change(number, at // SECTOR, now[at : at + SECTOR]))

    def _is_in(self, path: Any) -> bool:
        return Path(os.path.abspath(path)).is_relative_to(self.folder)  # noqa: PTH100


@dataclass
class Disk:
    """What a disk holds.

    Attributes:
        files: Content by number.
        names: Files by name.
        cache: Changes that were asked for and not synced, in order.
    """

    files: dict[int, bytearray] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    cache: list[Change] = field(default_factory=list)

    def copy(self) -> Disk:
        """Another disk with the same on it, and an empty cache."""
        return Disk({n: bytearray(raw) for n, raw in self.files.items()}, dict(self.names))

    def ask(self, event: Event) -> None:
        """Let the program change something, or sync it."""
        if isinstance(event, Change):
            self.cache.append(event)
        elif isinstance(event, Sync):
            others = [change for change in self.cache if change.file != event.file]
            self.apply(change for change in self.cache if change.file == event.file)
            self.cache = others

    def apply(self, changes: Iterable[Change]) -> None:
        """Let changes reach the disk."""
        for change in changes:
            if change.file < 0:
                old, new = change.names
                if change.at == FOLDER:
                    for name in [n for n in self.names if n.startswith(f"{old}/")]:
                        self.names[f"{new}{name.removeprefix(str(old))}"] = self.names.pop(name)
                    continue
                if old is not None and self.names.get(old) == change.at:
                    del self.names[old]
                if new is not None:
                    self.names[new] = change.at
                continue
            raw = self.files.setdefault(change.file, bytearray())
            if change.at < 0:
                size = int(change.data)
                raw[size:] = b""
                raw.extend(bytes(size - len(raw)))
            else:
                start = change.at * SECTOR
                # A sector beyond the size that the disk knows is there and not seen.
                part = change.data[: max(0, len(raw) - start)]
                raw[start : start + len(part)] = part

    def torn(self, change: Change, at: int) -> Change:
        """A change of which only the first bytes reach the disk."""
        raw = self.files.get(change.file, b"")
        start = change.at * SECTOR
        old = bytes(raw[start : start + SECTOR]).ljust(len(change.data), b"\0")
        return Change(change.file, change.at, change.data[:at] + old[at : len(change.data)])

    def content(self) -> Content:
        """The folder as the next start of the machine finds it."""
        return {name: bytes(self.files.get(file, b"")) for name, file in self.names.items()}


@dataclass(frozen=True, slots=True)
class Cut:
    """What is there after the power went.

    Attributes:
        content: The folder.
        safe: The newest thing that the program had said to be safe; None before the first.
        coming: What it says next; None after the last.
    """

    content: Content
    safe: Any
    coming: Any


def _marks(events: list[Event]) -> list[tuple[Any, Any]]:
    """For each event, what was safe then and what is said next."""
    coming: list[Any] = [None] * len(events)
    following = None
    for i in range(len(events) - 1, -1, -1):
        coming[i] = following
        event = events[i]
        if isinstance(event, Mark):
            following = event.what
    safe, both = None, []
    for event, after in zip(events, coming, strict=True):
        safe = event.what if isinstance(event, Mark) else safe
        both.append((safe, after))
    return both


def cuts_in_order(events: list[Event]) -> Iterator[Cut]:
    """Every cut of a disk that writes in the order in which it was asked.

    After each change; within each sector; and after each sync with nothing of the cache on it.
    """
    ordered, synced = Disk(), Disk()
    for event, (safe, coming) in zip(events, _marks(events), strict=True):
        synced.ask(event)
        if isinstance(event, Change):
            if event.at >= 0 and event.file >= 0:
                torn = ordered.copy()
                torn.apply([ordered.torn(event, len(event.data) // 2)])
                yield Cut(torn.content(), safe, coming)
            ordered.apply([event])
            yield Cut(ordered.content(), safe, coming)
        elif isinstance(event, Sync):
            yield Cut(synced.content(), safe, coming)


def cuts_out_of_order(events: list[Event], seed: int, count: int, lies: float = 0.0) -> list[Cut]:
    """Cuts at random moments, with any part of the cache on the disk in any order, some torn.

    Args:
        events: What the program did.
        seed: Of the random numbers.
        count: How many cuts.
        lies: Share of syncs that do nothing, and of sectors that are never written; 0 for a disk
            that keeps its word.
    """
    rng = random.Random(seed)
    where = sorted(rng.randrange(len(events)) for _ in range(count))
    disk, cuts, marks, done = Disk(), [], _marks(events), 0
    for place in where:
        for event in events[done : place + 1]:
            is_lost = lies > 0 and rng.random() < lies
            if not (is_lost and not isinstance(event, Mark) and _may_lie(event)):
                disk.ask(event)
        done = place + 1
        after = disk.copy()
        lucky = [change for change in disk.cache if rng.random() < 0.5]
        # Names are kept in order by every file system that has a journal; sectors are not.
        sectors = [change for change in lucky if change.file >= 0 and change.at >= 0]
        rng.shuffle(sectors)
        after.apply(change for change in lucky if change not in sectors)
        for change in sectors:
            cut_at = rng.randrange(1, SECTOR) if rng.random() < 0.2 else SECTOR
            after.apply([after.torn(change, cut_at)])
        cuts.append(Cut(after.content(), *marks[place]))
    return cuts


def _may_lie(event: Event) -> bool:
    """Whether a disk can leave it out: a sync, or a sector; names and sizes are many sectors."""
    return isinstance(event, Sync) or (isinstance(event, Change) and event.at >= 0 <= event.file)
