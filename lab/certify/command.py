"""``python -m lab certify``: the evidence of several bundles -> build/certify/."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from stategate.bench.certify.case import version_of
from stategate.bench.certify.misra import DEVIATIONS
from stategate.bench.certify.proof import ASSUMPTIONS
from stategate.bench.certify.report import Report
from stategate.bench.certify.run import TOOLS, certify
from stategate.common.console import progress
from stategate.common.tables import markdown_table
from stategate.contract.durable import check_writable, write_whole

_HEAD = """
# What can be shown of a bundle's C

This is what a safety engineer needs to start. It claims no conformance with any standard.

Written by `make certify-all`, which runs `stategate certify` on each bundle; its page, with every
requirement as a row and the words of each tool, stands in `build/certify/MODEL-PRECISION`, and
[the guide](../guides/certify.md) says what each row means. The C of the first table is the plain
form, `-DSTATEGATE_PORTABLE`: C99 without attributes, vectors, `restrict` or assembler, and with the
bits of every other form, which each run compares. System calls, allocations, stack and
instructions are those of the fast form for x86-64-v3.
"""
_RULES = {
    "warnings": "warnings", "MISRA": "misra_required", "Eva": "eva_alarms",
    "statements": "statement_percent", "branches": "branch_percent", "MC/DC": "mcdc_percent",
    "no reason": "missed_without_reason",
}  # fmt: skip
_COSTS = {
    "system calls": "syscalls_per_step", "allocations": "allocations_per_step",
    "stack": "stack_bytes", "bound": "stack_bound_bytes", "instructions": "instructions_max",
}  # fmt: skip
_COLUMNS = {
    "warnings": "lines of gcc and clang 19 as C99, with `-Wall` `-Wextra` `-Wpedantic` "
    "`-Wconversion` `-Wshadow`",
    "MISRA": "findings of required and mandatory rules of MISRA C:2012 by cppcheck's addon, in "
    "session and black box, beyond the deviations below",
    "Eva": "alarms of Frama-C's Eva in `init`, `step`, `save`, `load`, `chain` and `reset`: "
    "undefined behaviour that it cannot exclude",
    "statements, branches, MC/DC": "percent that the bundle's own self-test reaches, "
    "`native/self_test.c`",
    "no reason": "places that it does not reach and that no reason is listed for",
    "system calls": "of a step under seccomp's strict mode",
    "allocations": "calls of malloc, calloc and realloc in a step",
    "stack, bound": "bytes that a step wrote at most; what the compiler's graph of calls allows",
    "instructions": "of the longest step that was counted",
}


class Summary(msgspec.Struct, frozen=True):
    """All figures, what they rest on and the tools that found them."""

    tools: dict[str, str]
    assumptions: tuple[str, ...]
    deviations: dict[str, str]
    rows: list[dict[str, Any]]


def page_of(summary: Summary, reports: Sequence[tuple[str, Report]]) -> str:
    """The page of the evidence."""

    def rows(columns: dict[str, str]) -> str:
        cells = [
            [r["name"], *(_cell(key, r.get(key)) for key in columns.values())] for r in summary.rows
        ]
        return markdown_table(["bundle", *columns], cells, range(1, len(columns) + 1))

    compared = [
        [name, row.method, row.result, row.words]
        for name, report in reports
        for row in report.rows
        if row.requirement.startswith("Code and model")
    ]
    parts = [
        _HEAD.strip(),
        markdown_table(["column", "what it counts"], list(map(list, _COLUMNS.items()))),
        rows(_RULES),
        "In a step:",
        rows(_COSTS),
        "## Model against code",
        markdown_table(["bundle", "what was compared", "result", "found"], compared),
        "## Deviations\n\nRules of MISRA C that are broken on purpose.",
        markdown_table(["rule", "why"], list(map(list, summary.deviations.items()))),
        "## What Eva's result assumes",
        "\n".join(f"- {line}" for line in summary.assumptions),
        f"Tools: {'; '.join(v for v in summary.tools.values() if v)}.",
    ]
    return "\n\n".join(parts) + "\n"


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return "not run"
    return (
        f"{value} %" if key.endswith("percent") else f"{value:,g}" if value < 1e3 else f"{value:,}"
    )


@click.command("certify")
@click.argument(
    "bundles",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    nargs=-1,
    required=True,
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--page", type=click.Path(dir_okay=False, path_type=Path), help="The page (.md).")
@click.option("--steps", default=100_000, show_default=True)
@click.option("--limit-s", default=900.0, show_default=True, help="Of one tool.")
@click.option("--quick", "is_quick", is_flag=True, help="Leave out what takes minutes.")
def certify_command(bundles: Sequence[Path], out: Path, page: Path | None, **settings: Any) -> None:
    """Ask other people's tools about the C of BUNDLES, each a folder MODEL/PRECISION.

    \b
    Example:
      python -m lab certify build/counts/lstm/float32 --out build/certify
    """
    lacking = [tool for tool in TOOLS if shutil.which(tool) is None]
    if lacking and not settings["is_quick"]:
        raise click.ClickException(f"{', '.join(lacking)}: make certify-tools emulators")
    out.mkdir(parents=True, exist_ok=True)
    for path in (out / "summary.json", page):
        if path is not None:
            check_writable(path)
    reports, rows = [], []
    with progress(len(bundles), "certifying") as report:
        for done, path in enumerate(bundles, 1):
            model, precision = path.resolve().parts[-2:]
            finding = certify(path, out / f"{model}-{precision}", **settings)
            reports.append((f"{model}, {precision}", finding))
            named = {"name": f"{model}, {precision}", "model": model, "precision": precision}
            rows.append(named | finding.figures | {"rows": finding.counts})
            report(done)
    tools = {tool: version_of(tool) for tool in TOOLS}
    summary = Summary(tools, ASSUMPTIONS, DEVIATIONS, rows)
    write_whole(
        out / "summary.json", msgspec.json.format(msgspec.json.encode(summary), indent=1) + b"\n"
    )
    if page is not None:
        write_whole(page, page_of(summary, reports).encode())
    for name, finding in reports:
        for row in finding.rows:
            if row.result == "open":
                click.echo(f"{name}: {row.requirement} ({row.method}): {row.words}")
    click.echo(f"{len(rows)} bundles: {out / 'summary.json'}")
