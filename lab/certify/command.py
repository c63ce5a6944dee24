"""``python -m lab certify``: the reports of several bundles as one page and one summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from stategate.bench.certify.misra import DEVIATIONS
from stategate.bench.certify.proof import ASSUMPTIONS
from stategate.bench.certify.report import Report
from stategate.common.tables import markdown_table
from stategate.contract.durable import write_whole

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
    "undefined behaviour that it cannot exclude; black box and `stategate_install.h` are below",
    "statements, branches, MC/DC": "percent that the bundle's own self-test reaches, "
    "`native/self_test.c`",
    "no reason": "places that it does not reach and that no reason is listed for",
    "system calls": "of a step under seccomp's strict mode",
    "allocations": "calls of malloc, calloc and realloc in a step",
    "stack, bound": "bytes that a step wrote at most; what the compiler's graph of calls allows, "
    "and the C library's memcpy adds up to 64",
    "instructions": "of the longest step that was counted",
}


def page_of(reports: Mapping[str, Report], missing: Sequence[str] = ()) -> str:
    """The page of the evidence; reports by the name of their bundle, and who has none yet."""

    def figures(columns: dict[str, str]) -> str:
        cells = [
            [name, *(_cell(key, report.figures.get(key)) for key in columns.values())]
            for name, report in reports.items()
        ]
        return markdown_table(["bundle", *columns], cells, range(1, len(columns) + 1))

    rows = [(name, row) for name, report in reports.items() for row in report.rows]
    compared, others = [], []
    for name, row in rows:
        if row.requirement.startswith(("Code and model", "No undefined")):
            compared.append([name, row.method, row.result, row.words])
        elif row.result != "shown":
            others.append([name, row.requirement, row.method, row.result, row.words])
    tools = {name: version for report in reports.values() for name, version in report.tools.items()}
    parts = [
        _HEAD.strip(),
        markdown_table(["column", "what it counts"], list(map(list, _COLUMNS.items()))),
        *([f"**Without a report of this C: {'; '.join(missing)}.**"] if missing else []),
        figures(_RULES),
        "In a step:",
        figures(_COSTS),
        "## Model against code, and what Eva looked at",
        markdown_table(["bundle", "what was looked at", "result", "found"], compared),
        "## Other rows that were not shown",
        markdown_table(["bundle", "requirement", "how", "result", "found"], others)
        if others
        else "None.",
        "## Deviations\n\nRules of MISRA C that are broken on purpose.",
        markdown_table(["rule", "why"], list(map(list, DEVIATIONS.items()))),
        "## What Eva's result assumes",
        "\n".join(f"- {line}" for line in ASSUMPTIONS),
        f"Tools: {'; '.join(version for version in tools.values() if version)}.",
    ]
    return "\n\n".join(parts) + "\n"


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return "not run"
    return (
        f"{value} %" if key.endswith("percent") else f"{value:,g}" if value < 1e3 else f"{value:,}"
    )


def summary_of(reports: Mapping[str, Report]) -> list[dict[str, Any]]:
    """The figures of each report, by the names that the evidence is measured by."""
    return [
        {"name": name, "digest": report.digest, **report.figures, "rows": report.counts}
        for name, report in reports.items()
    ]


@click.command("certify")
@click.argument(
    "folders",
    type=click.Path(file_okay=False, path_type=Path),
    nargs=-1,
    required=True,
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True)
@click.option("--page", type=click.Path(dir_okay=False, path_type=Path), help="The page (.md).")
def certify_command(folders: tuple[Path, ...], out: Path, page: Path | None) -> None:
    """Put the reports in FOLDERS together, each written by `stategate certify`; name those without.

    \b
    Example:
      python -m lab certify build/certify/lstm-float32 --out build/certify/summary.json
    """
    reports, missing = {}, []
    for folder in folders:
        name = folder.name.replace("-float32", ", float32").replace("-int8", ", int8")
        if (folder / "certify.json").is_file():
            raw = (folder / "certify.json").read_bytes()
            reports[name] = msgspec.json.decode(raw, type=Report)
        else:
            missing.append(name)
    encoded = msgspec.json.encode({"rows": summary_of(reports)})
    write_whole(out, msgspec.json.format(encoded, indent=1) + b"\n")
    if page is not None:
        write_whole(page, page_of(reports, missing).encode())
    click.echo(f"{len(reports)} bundles: {out}")
