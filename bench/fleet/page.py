"""What terminal and page say of a fleet: who needs a look first, then everybody."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape

import numpy as np

from stategate.bench.fleet.judge import FleetReport, Robot
from stategate.bench.wear import years_text
from stategate.common.page import document, items, plots, table
from stategate.contract.reading import printable

_SHORTEST = 12  # lives of flash that are listed


def verdict(report: FleetReport) -> str:
    """One sentence."""
    named = len(report.named)
    of = f"{len(report.robots):,} robots"
    text = f"{named} of {of} need a look" if named else f"none of {of} needs a look"
    if rest := len(report.robots) - report.compared:
        text += f"; {rest:,} were not compared with others"
    return text + ("; all together do" if report.together else "")


def first_to_end(report: FleetReport, most: int = _SHORTEST) -> list[Robot]:
    """Robots whose flash ends first."""
    measured = [robot for robot in report.robots if robot.years is not None]
    return sorted(measured, key=lambda robot: (robot.years or 0.0, robot.name))[:most]


def lines(report: FleetReport) -> Iterator[str | tuple[str, str]]:
    """For the terminal."""
    yield verdict(report)
    yield "counted", f"{report.steps:,} steps, {report.writes:,} writes"
    yield "persisted", f"{report.persisted_bytes:,} bytes"
    yield "recorded", f"{sum(r.recorded_steps for r in report.robots):,} steps in black boxes"
    for text in report.together:
        yield "together", text
    for one in report.findings:
        yield one.robot, f"{one.what}: {one.words}"
    for robot in first_to_end(report, 3):
        yield "flash", f"{robot.name}: {years_text(_finite(robot.years))} years"
    for text in report.notes:
        yield "note", text


def html(report: FleetReport, title: str) -> str:
    """One file that loads nothing from anywhere."""
    kind = "failed" if report.findings or report.together else "passed"
    counted = f"{report.steps:,} steps, {report.writes:,} writes, {report.persisted_bytes:,} bytes"
    parts = [f"<h1>{escape(printable(title))}</h1>"]
    parts.append(f'<p class="{kind}"><strong>{escape(verdict(report))}</strong></p>')
    parts.append(f"<p>{escape(counted)} persisted.</p>")
    parts += [items(report.together)]
    if report.findings:
        rows = [(one.robot, f"{one.what}: {one.words}") for one in report.findings]
        parts += ["<h2>Who needs a look</h2>", table((), rows, "facts")]
    if ending := first_to_end(report):
        head = ("robot", "years left", "MB a day")
        cells = [
            (
                robot.name,
                years_text(_finite(robot.years)),
                f"{(robot.bytes_per_day or 0.0) / 1e6:,.1f}",
            )
            for robot in ending
        ]
        parts += ["<h2>Whose flash ends first</h2>", table(head, cells)]
    if figures := _figures(report):
        parts += ["<h2>The fleet</h2>", plots(figures)]
    parts += [items(report.notes)]
    return document(title, parts)


def _figures(report: FleetReport) -> list[str]:
    from stategate.bench.report.plots import histogram  # a terminal draws nothing

    groups: dict[str, list[Robot]] = {}
    for robot in report.robots:
        groups.setdefault(f"{robot.model} {robot.bundle_sha256[:8]}", []).append(robot)
    rates = [
        (name, np.array([100 * r.write_rate for r in robots if r.write_rate is not None]))
        for name, robots in groups.items()
    ]
    years = [
        (name, np.array([r.years for r in robots if r.years and math.isfinite(r.years)]))
        for name, robots in groups.items()
    ]
    drawings = (
        ("Share of steps that write", "% of steps", rates, False),
        ("Years until the flash ends", "years", years, True),
    )
    return [
        histogram(title, unit, several, log)
        for title, unit, pairs, log in drawings
        if (several := [(name, values) for name, values in pairs if len(values) > 1])
    ]


def _finite(years: float | None) -> float | None:
    return years if years is not None and math.isfinite(years) else None


def as_json(report: FleetReport) -> dict[str, object]:
    """What ``--json`` prints: the verdict, and all figures."""
    return {
        "verdict": verdict(report),
        "robots": len(report.robots),
        "named": report.named,
        "findings": report.findings,
        "together": report.together,
        "notes": report.notes,
        "steps": report.steps,
        "writes": report.writes,
        "persisted_bytes": report.persisted_bytes,
        "figures": report.robots,
    }
