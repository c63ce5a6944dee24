"""The page that is alive, for a terminal: over ssh, or as lines in a file."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import click

from stategate.contract.errors import MissingDependencyError
from stategate.contract.reading import printable
from stategate.runtime.watch.server import Source
from stategate.runtime.watch.tap import FAULT, SUPPRESSED, WROTE, Row

try:
    from rich.console import Group
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text
except ImportError as missing:
    raise MissingDependencyError("rich", "watch") from missing

_BARS = " ▁▂▃▄▅▆▇█"
_TURN_S = 0.25
_NAME = 60  # characters of a name


def show_in_terminal(source: Source, stop: Callable[[], bool]) -> None:
    """Draw until it is stopped, or as long as a recording lasts; a line a second into a file."""
    about, rows, count = source.about(), deque[Row](maxlen=1000), 0
    is_terminal = sys.stdout.isatty()
    source.look(1)
    try:
        with Live(auto_refresh=False) if is_terminal else nullcontext() as screen:
            while True:
                news, count = source.since(count)
                rows.extend(news)
                status = source.status()
                if screen is not None:
                    screen.update(_screen(about, status, rows), refresh=True)
                else:
                    click.echo(_line(status, rows))
                if stop() or about["is_recording"]:
                    return
                time.sleep(_TURN_S if is_terminal else 1.0)
    finally:
        source.look(-1)


def _line(status: dict[str, Any], rows: deque[Row]) -> str:
    ledger = status["ledger"]
    names = ("steps", "writes", "suppressed_writes", "faults", "deadline_misses")
    figures = [f"{name} {ledger.get(name, 0):,}" for name in names]
    return ", ".join([*figures, *_alarms(status)])


def _alarms(status: dict[str, Any]) -> Iterator[str]:
    health = status.get("health") or {}
    for text in (status.get("problem"), health.get("alarm")):
        if text:
            yield printable(text)


def _screen(about: dict[str, Any], status: dict[str, Any], rows: deque[Row]) -> Group:
    ledger, facts = status["ledger"], Table.grid(padding=(0, 2))
    steps, writes = ledger.get("steps", 0), ledger.get("writes", 0)
    facts.add_row("model", Text(printable(about["model"], _NAME), style="bold"))
    facts.add_row("engine", Text(printable(about["engine"], _NAME)))
    cache = about.get("kv_bytes_per_step")
    against = f"; the cache it replaces {cache * steps:,} bytes" if cache else ""
    facts.add_row("memory", f"{about['state_bytes']:,} bytes, constant{against}")
    facts.add_row("steps", f"{steps:,}")
    facts.add_row("writes", f"{writes:,}, {writes / steps:.2%} of steps" if steps else "0")
    for name in ("suppressed_writes", "faults", "deadline_misses", "persisted_bytes"):
        if ledger.get(name):
            facts.add_row(name.replace("_", " "), Text(f"{ledger[name]:,}", style="red"))
    for i, gate in enumerate(about["gates"]):
        values = [row[3 + i] for row in rows if len(row) > 3 + i and row[3 + i] is not None]
        threshold = status.get("thresholds", {}).get(gate["name"], gate["threshold"])
        facts.add_row(Text(printable(gate["name"], 20)), _sparks(values, threshold))
    facts.add_row("", _ticks(rows))
    for gauge in status["gauges"]:
        bar = ProgressBar(total=1.0, completed=gauge["share"], width=30)
        facts.add_row(Text(printable(gauge["label"], 20)), bar)
    alarms = [Text(text, style="bold red") for text in _alarms(status)]
    return Group(facts, *alarms, Text("Ctrl-C ends it", style="dim"))


def _sparks(values: list[float], threshold: float | None) -> Text:
    shown, text = values[-_NAME:], Text()
    if not shown:
        return text
    low, high = min(shown), max(shown)
    for value in shown:
        level = (value - low) / (high - low) if high > low else 0.0
        is_open = threshold is not None and value > threshold
        text.append(_BARS[1 + round(7 * level)], style="red" if is_open else "blue")
    return text


def _ticks(rows: deque[Row]) -> Text:
    marks = ((FAULT, "x"), (SUPPRESSED, "-"), (WROTE, "w"))
    shown = list(rows)[-_NAME:]
    return Text("".join(next((m for flag, m in marks if row[2] & flag), " ") for row in shown))
