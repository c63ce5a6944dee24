"""One bundle before the tools: what each is given, and a row of the report for what it said."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from stategate.bench.certify.builds import Build, checked, ended, package_of
from stategate.contract import Bundle, Episode
from stategate.contract.durable import write_whole

Arrays = Mapping[str, npt.NDArray[np.generic]]
Result = Literal["shown", "explained", "open", "not run"]
# Debian's packages, where a program does not name its own.
_PACKAGES = {"clang-19": "clang-19 llvm-19 libclang-rt-19-dev", "frama-c": "frama-c-base"}


class Row(msgspec.Struct, frozen=True):
    """A requirement, and what was found.

    Attributes:
        requirement: What shall be so.
        method: How it was looked at.
        result: ``shown``, ``explained`` (what is left is listed with a reason), ``open`` or
            ``not run``.
        words: The finding; why it was not run, and the command that changes that.
        evidence: Files beside the page.
    """

    requirement: str
    method: str
    result: Result
    words: str
    evidence: tuple[str, ...] = ()


@dataclass(slots=True)
class Case:
    """A bundle that is looked at.

    Attributes:
        bundle: The bundle.
        golden: Its golden episode.
        scratch: Where programs and copies go.
        out: Where page and evidence go.
        steps: Of the comparison of model and code.
        limit_s: Of one tool.
        is_quick: Whether tools of minutes are left out.
        sources: The plain form's C files, without tests.
        rows: What was found so far.
        figures: The same as numbers, for `make certify-all`.
        programs: The bundle with its self-test, by the build that made it.
    """

    bundle: Bundle
    golden: Episode
    scratch: Path
    out: Path
    steps: int
    limit_s: float
    is_quick: bool
    sources: list[Path]
    rows: list[Row] = field(default_factory=list)
    figures: dict[str, float | int | None] = field(default_factory=dict)
    programs: dict[Build, Path] = field(default_factory=dict)

    def add(
        self, requirement: str, method: str, result: Result, words: str, **evidence: str
    ) -> None:
        """Add a row; evidence is text by the name of its file, an underscore for the dot."""
        names = []
        for name, text in evidence.items():
            stem, _, kind = name.rpartition("_")
            names.append(f"evidence/{stem.replace('_', '-')}.{kind}")
            write_whole(self.out / names[-1], text.encode())
        self.rows.append(Row(requirement, method, result, words, tuple(names)))

    @contextmanager
    def asking(self, requirement: str, method: str) -> Iterator[None]:
        """Whatever goes wrong with a tool in the block is a row that was not run.

        A tool that crashes, says nothing or says what nobody understands must neither end the
        report nor count as one that found nothing.
        """
        try:
            yield
        except (RuntimeError, OSError, ValueError, LookupError) as problem:
            self.add(requirement, method, "not run", last_line(str(problem)))

    def lacks(self, requirement: str, method: str, *programs: str, slow: bool = False) -> bool:
        """Whether a tool is not here, or left out; then the row says so, and what changes it."""
        if slow and self.is_quick:
            self.add(requirement, method, "not run", "takes minutes: leave --quick away")
            return True
        missing = [program for program in programs if shutil.which(program) is None]
        if missing:
            packages = " ".join(_PACKAGES.get(p, package_of(p)) for p in missing)
            command = f"{', '.join(missing)} is not here: apt-get install {packages}"
            self.add(requirement, method, "not run", command)
        return bool(missing)

    def episode_bytes(
        self, inputs: Arrays, start: bytes, digest: str = "", shows_steps: bool = False
    ) -> bytes:
        """``golden.bin``, as the self-test in the bundle reads it."""
        columns = [
            np.ascontiguousarray(inputs[t.name], np.dtype(t.dtype).newbyteorder("<"))
            for t in self.bundle.manifest.inputs
        ]
        flat = [c.reshape(len(c), -1).view(np.uint8) for c in columns]
        head = struct.pack("<QQQ", int(digest or "0", 16), len(start), shows_steps)
        return head + start + np.concatenate(flat, axis=1).tobytes()


def last_line(text: str) -> str:
    """What a tool said last, cut to what fits into a row."""
    lines = text.strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"


def words_of(command: list[str], limit_s: float, data: bytes = b"") -> tuple[int, str]:
    """Exit code and all words of a command.

    Raises:
        RuntimeError: It cannot be started, or did not end.
    """
    done = ended(command, data, limit_s=limit_s)
    return done.returncode, (done.stdout + done.stderr).decode(errors="replace")


def version_of(program: str) -> str:
    """What a tool says of its version; empty where it is not here."""
    if shutil.which(program) is None:
        return ""
    word = "-version" if program == "frama-c" else "--version"
    try:
        printed = checked([program, word], limit_s=60.0).stdout.decode(errors="replace")
    except RuntimeError:
        printed = ""
    first = printed.strip().partition("\n")[0] or "is here, but does not say its version"
    return first if program != "frama-c" else f"Frama-C {first}"
