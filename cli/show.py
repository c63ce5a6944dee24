"""How a verb prints its result: the record as JSON, or lines for a reader."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import click
import msgspec

from stategate.contract import canonical_json
from stategate.contract.durable import write_whole

Line = str | tuple[str, object]
"""A sentence, or a label and its value."""

_LABEL = 12  # columns of a label, at least


def wants_json() -> bool:
    """Whether the command that runs was given ``--json``; see `stategate.cli.options`."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get("stategate.json"))


def show(record: object, lines: Iterable[Line], out: Path | None = None) -> None:
    """Print a result, and write its record to a file where one is asked for.

    Args:
        record: What JSON shows, keys sorted: builtins, dataclasses and structs.
        lines: What a reader sees; a generator runs only for one. Values of labels are aligned.
        out: The record's file.
    """
    if out is not None:
        write_whole(out, canonical_json(record))
    if wants_json():
        click.echo(_json(record))
        return
    printed = list(lines)
    width = max([_LABEL, *(len(line[0]) for line in printed if isinstance(line, tuple))])
    for line in printed:
        click.echo(line if isinstance(line, str) else f"{line[0]:<{width}} {line[1]}")


def _json(record: object) -> str:
    """JSON in ASCII: names from files steer no terminal, and may be bytes that are no UTF-8."""
    text = json.dumps(msgspec.to_builtins(record, str_keys=True), sort_keys=True)
    # JSON has no number that is not finite.
    return json.dumps(json.loads(text, parse_constant=lambda _: None), indent=2)


def show_paths(paths: Iterable[Path]) -> None:
    """Print which files were written."""
    names = [str(path) for path in paths]
    show(names, names)


def leave_unless(passed: bool) -> None:
    """End with exit code 1 where the answer is no."""
    if not passed:
        click.get_current_context().exit(1)
