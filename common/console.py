"""What is said while work goes on: a bar where a person looks, and notes.

Notes go to the logger ``stategate``: silent in a program that does not ask for them, lines on
stderr in a command.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import click

from stategate.common.ending import Stopped
from stategate.contract import errors
from stategate.contract.errors import SpecError
from stategate.contract.reading import text_with_controls

_FRAME_S = 0.1
_WIDEST_BAR = 30
_NOTES = logging.getLogger("stategate")

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the units that are done, and the units in all."""


class Report(Protocol):
    """Called with the units done so far, and with figures that are shown beside the bar."""

    def __call__(self, done: int, figures: str = "") -> None:
        """So many units are done."""
        ...


def note(text: str) -> None:
    """Say something that a person may want to know, and that is no result."""
    _NOTES.info(text)


class _NotesOnStderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        click.echo(record.getMessage(), err=True)


@contextmanager
def notes_on_stderr() -> Iterator[None]:
    """Print notes while a command runs."""
    if any(isinstance(handler, _NotesOnStderr) for handler in _NOTES.handlers):
        yield  # a group within a group
        return
    handler, level, formatted = _NotesOnStderr(), _NOTES.level, warnings.formatwarning
    _NOTES.addHandler(handler)
    _NOTES.setLevel(logging.INFO)

    def sentence(
        message: Warning | str, category: type[Warning], filename: str, lineno: int,
        line: str | None = None,
    ) -> str:  # fmt: skip
        """A warning of stategate without the line of code, which says nothing to who typed."""
        if category.__module__ == errors.__name__:
            return f"{category.__name__}: {message}\n"
        return formatted(message, category, filename, lineno, line)

    warnings.formatwarning = sentence
    try:
        yield
    finally:
        warnings.formatwarning = formatted
        _NOTES.setLevel(level)
        _NOTES.removeHandler(handler)


@contextmanager
def progress(
    total: int, label: str, remains: str = "nothing was written", listener: Progress | None = None
) -> Iterator[Report]:
    """Show a bar on stderr, on one line of the terminal; off a terminal its label is a note.

    Args:
        total: Units of work, or the most that it can be: a bar ends full where its work ends well.
        label: What is being done.
        remains: What is left of the work if a signal ends it.
        listener: Called in place of showing a bar.

    Yields:
        A function that takes the number of units done so far.
    """
    try:
        if listener is not None:
            listener(label, 0, total)
            yield lambda done, figures="": listener(label, done, total)
            return
        with _shown(total, label) as report:
            yield report
    except Stopped as problem:
        problem.remains = problem.remains or remains
        raise


@contextmanager
def _shown(total: int, label: str) -> Iterator[Report]:
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        note(label)
        yield lambda done, figures="": None
        return
    start = shown = time.monotonic()
    done_last, text = 0, label

    def draw(done: int) -> None:
        try:
            columns = os.get_terminal_size(sys.stderr.fileno()).columns
        except OSError:
            columns = 0
        line = bar_line(text, done, total, time.monotonic() - start, columns or 80)
        click.echo(f"\r{line}\x1b[K", err=True, nl=False)

    def report(done: int, figures: str = "") -> None:
        nonlocal done_last, shown, text
        done_last, text = done, f"{label}: {figures}" if figures else label
        if (now := time.monotonic()) - shown >= _FRAME_S:
            shown = now
            draw(done)

    draw(0)
    try:
        yield report
        done_last = total
    finally:
        draw(done_last)
        click.echo(err=True)


def bar_line(label: str, done: int, total: int, elapsed_s: float, columns: int) -> str:
    """A bar that leaves the last column free; in little room, the bar and the time go first."""
    share = 1.0 if total <= 0 else min(1.0, max(0.0, done / total))
    percent = f" {share:4.0%}"
    room = max(0, columns - 1 - len(percent))
    text = label if len(label) <= room else f"{label[: max(0, room - 3)]}..."[:room]
    seconds = elapsed_s if share == 1.0 else elapsed_s / share - elapsed_s if share else 0.0
    clock = f"{int(seconds) // 60}:{int(seconds) % 60:02}" if share else ""
    clock = f" {clock} left" if clock and share < 1.0 else f" in {clock}" if clock else ""
    if len(text) + len(clock) > room:
        clock = ""
    width = min(_WIDEST_BAR, room - len(text) - len(clock) - 3)
    bar = f" [{'#' * int(share * width):.<{width}}]" if width >= 4 else ""
    return f"{text}{bar}{percent}{clock}"


def who_and_why(accept: str | None) -> str | None:
    """The value of ``--accept``, which names somebody and a reason."""
    who, _, why = (accept or "").partition(":")
    plain = text_with_controls(accept) is None  # it is printed wherever the bundle goes
    if accept is not None and not (who.strip() and why.strip() and plain):
        raise SpecError(
            "--accept must say who overrules the limits, and why",
            found=repr(accept),
            expected='"WHO: WHY", on one line',
        )
    return accept
