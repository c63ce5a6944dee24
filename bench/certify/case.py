"""One bundle before the tools: what each is given, and a row of the report for what it said."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from stategate.bench.certify.builds import Build, missing
from stategate.bench.certify.counting import Steps
from stategate.contract import Bundle, Episode
from stategate.contract.durable import write_whole

Arrays = Mapping[str, npt.NDArray[np.generic]]
Result = Literal["shown", "explained", "open", "not run"]
# What was found: the result, in words, and texts of evidence by file name.
Finding = tuple[Result, str, dict[str, str]]


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
    """A bundle that is looked at."""

    bundle: Bundle
    golden: Episode
    scratch: Path  # where programs and copies go
    out: Path  # where page and evidence go
    steps: int  # of the comparison of model and code
    limit_s: float  # of one tool
    is_quick: bool  # whether tools of minutes are left out
    sources: list[Path]  # the plain form's C files, without tests
    rows: list[Row] = field(default_factory=list)
    figures: dict[str, float | int | None] = field(default_factory=dict)  # the rows as numbers
    programs: dict[Build, Path] = field(default_factory=dict)  # of the self-test
    counted: dict[str, Steps] = field(default_factory=dict)  # by machine

    def add(self, requirement: str, method: str, finding: Finding) -> None:
        """Add a row, and write its evidence."""
        result, words, evidence = finding
        for name, text in evidence.items():
            write_whole(self.out / "evidence" / name, text.encode())
        names = tuple(f"evidence/{name}" for name in evidence)
        self.rows.append(Row(requirement, method, result, words, names))

    def ask(
        self,
        requirement: str,
        method: str,
        look: Callable[[], Finding],
        *programs: str,
        lacking: str | None = None,
        slow: bool = False,
    ) -> None:
        """Add what a tool finds; whatever goes wrong with it is a row that was not run.

        A tool that crashes, says nothing or says what nobody understands must neither end the
        report nor count as one that found nothing.

        Args:
            requirement: Of the row.
            method: Of the row.
            look: Runs the tool.
            programs: What has to be here.
            lacking: Why it is not run, if that is known already.
            slow: Whether ``--quick`` leaves it out.
        """
        late = "takes minutes: leave --quick away" if slow and self.is_quick else None
        why = late or lacking or missing(*programs)
        try:
            finding = ("not run", why, {}) if why else look()
        except (RuntimeError, OSError, ValueError, LookupError) as problem:
            finding = ("not run", last_line(str(problem)), {})
        self.add(requirement, method, finding)

    def without_scratch(self, text: str) -> str:
        """A tool's words without the folder that was this run's alone."""
        return text.replace(f"{self.scratch}/", "")

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
