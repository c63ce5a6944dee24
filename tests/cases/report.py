"""Pytest plugin of `make cases`: one line and one record for each row of the case list."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROWS = Path(__file__).with_name("rows.toml")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cases", metavar="JSON", type=Path, help="write what became of each row")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    unknown = {row for item in items for row in _rows_of(item)} - set(_kinds())
    if unknown:
        raise pytest.UsageError(f"no such row in {ROWS.name}: {', '.join(sorted(unknown))}")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome: Any = yield
    outcome.get_result().cases = _rows_of(item)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    path = config.getoption("--cases")
    if path is None:
        return
    tests: dict[str, list[Any]] = {row: [] for row in _kinds()}
    for report in (r for reports in terminalreporter.stats.values() for r in reports):
        if isinstance(report, pytest.TestReport) and (report.when == "call" or not report.passed):
            for row in getattr(report, "cases", ()):
                tests[row].append(report)
    lines = [_line(row, kind, tests[row]) for row, kind in _kinds().items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"rows": lines}, indent=1) + "\n")
    for line in lines:
        mark = {True: "ok", False: "FAILED", None: "open"}[line["ok"]]
        terminalreporter.write_line(f"{line['id']:<4} {mark:<7} {line['kind']}: {line['found']}")


def _line(row: str, kind: str, reports: list[Any]) -> dict[str, Any]:
    """Whether a row holds: None where no test asks, or none that can run here."""
    bad = [report for report in reports if report.failed]
    good = [report for report in reports if report.passed]
    if bad:
        found = f"{bad[0].nodeid}: {_reason(bad[0])}"
    elif good:
        found = f"{len(good)} tests pass"
    else:
        found = "no test yet" if not reports else "every test of it is skipped here"
    return {"id": row, "kind": kind, "ok": not bad if good or bad else None, "found": found}


def _reason(report: Any) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash else report.longrepr).splitlines()[0]


def _rows_of(item: pytest.Item) -> list[str]:
    return [row for mark in item.iter_markers("case") for row in mark.args]


def _kinds() -> dict[str, str]:
    kinds: dict[str, str] = tomllib.loads(ROWS.read_text())
    return kinds
