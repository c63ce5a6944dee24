"""What every command does alike: progress on stderr, files that are whole or not there."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from stategate.contract.errors import OutputError, SpecError
from stategate.contract.reading import text_with_controls


@contextmanager
def progress(total: int, label: str) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr; off a terminal only its label is printed.

    Args:
        total: Units of work.
        label: What is being done.

    Yields:
        A function that takes the number of units done so far.
    """
    with click.progressbar(length=total, label=label, file=sys.stderr) as bar:
        yield lambda done: bar.update(done - bar.pos)


def check_writable(path: Path) -> None:
    """Find out before the work whether a file or folder can be made at ``path`` after it.

    Raises:
        OutputError: It cannot.
    """
    folder = path.absolute().parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(
            "nothing can be written there",
            found=f"{path}: {folder} is {'read-only' if folder.is_dir() else 'not a folder'}",
            expected="a path below a folder that can be written",
        )


def who_and_why(accept: str | None) -> str | None:
    """The value of ``--accept``, which names somebody and a reason.

    Raises:
        SpecError: It does not.
    """
    who, _, why = (accept or "").partition(":")
    plain = text_with_controls(accept) is None  # it is printed wherever the bundle goes
    if accept is not None and not (who.strip() and why.strip() and plain):
        raise SpecError(
            "--accept must say who overrules the limits, and why",
            found=repr(accept),
            expected='"WHO: WHY", on one line',
        )
    return accept
