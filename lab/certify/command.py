"""``python -m lab certify``: what can be shown of a bundle's C -> build/certify/."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from lab.bits import WARNINGS, compare
from lab.builds import PLAIN, Build, checked, records
from lab.certify.coverage import coverage
from lab.certify.misra import DEVIATIONS, misra, warnings
from lab.certify.portable import portable_source
from lab.certify.proof import ASSUMPTIONS, eva
from lab.counts import MACHINES, count, version_of
from lab.counts import Row as Counted
from stategate.common.console import progress
from stategate.common.tables import markdown_table
from stategate.contract import Bundle
from stategate.contract.durable import check_writable, write_whole
from stategate.contract.staging import scratch_folder

_SEALED_STEP = Path(__file__).with_name("sealed_step.c")
_WRAPS = "-Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc"
_HOST = Build("gcc", "-O3", "x86-64-v3")
_FORMS = (_HOST, *(Build(cc, "-O2", "x86-64", (PLAIN,)) for cc in ("gcc", "clang-19")))
TOOLS = ("cppcheck", "clang-19", "gcc", "frama-c")


class Row(msgspec.Struct, frozen=True):
    """What was shown of one bundle.

    Attributes:
        model: Name of the model.
        precision: As ``float32``.
        warnings: Lines of gcc and clang at ``-Wall -Wextra -Wpedantic -Wconversion -Wshadow``, C99.
        misra_required: Findings of required and mandatory rules beyond the deviations.
        misra_deviations: Findings of each rule that is deviated from.
        eva_alarms: Possible undefined behaviour; None where the analysis did not end.
        statement_percent: Reached by the self-test.
        branch_percent: The same of ways out of branches.
        mcdc_percent: The same of conditions that were shown to decide alone.
        syscalls_per_step: Calls of the kernel but read and write, which the kernel then ended.
        allocations_per_step: Calls of malloc, calloc and realloc.
        stack_bytes: Deepest byte of stack that a step wrote, x86-64-v3.
        instructions_max: Of the longest step that was counted, x86-64-v3.
        notes: What an alarm, a finding or a missed line says; why a figure is missing.
    """

    model: str
    precision: str
    warnings: int
    misra_required: int
    misra_deviations: dict[str, int]
    eva_alarms: int | None
    statement_percent: float
    branch_percent: float
    mcdc_percent: float
    syscalls_per_step: float
    allocations_per_step: float
    stack_bytes: int
    instructions_max: int
    notes: dict[str, list[str]]


class Summary(msgspec.Struct, frozen=True):
    """All rows, what they rest on and the tools that found them."""

    tools: dict[str, str]
    assumptions: tuple[str, ...]
    deviations: dict[str, str]
    rows: list[Row]


def certify(path: Path, model: str, precision: str, eva_precision: int, limit_s: float) -> Row:
    """Ask every tool about one bundle.

    Raises:
        RuntimeError: It has no golden episode, does not compile, its self-test fails, or its plain
            form has other bits than are promised.
    """
    bundle = Bundle.open(path)
    golden = bundle.golden()
    if golden is None:
        raise RuntimeError("the bundle has no golden episode")
    inputs = records(bundle, golden.inputs)
    with scratch_folder() as scratch:
        folder = Path(scratch) / "native"
        folder.mkdir()
        forms = compare(bundle, _FORMS, Path(scratch))
        if forms["lacking"] or forms["digests"] != [forms["promised"]]:
            raise RuntimeError(f"the plain form has other bits: {forms}")
        sources = portable_source(bundle, folder)
        broken, deviating = misra(sources)
        lines = warnings(sources)
        covered = coverage(sources, records(bundle, golden.inputs, is_plain=True))
        alarms, words = eva(sources, eva_precision, limit_s)
        steps, calls = _sealed_steps(path, inputs, Path(scratch))
    counted = count(path, model, precision, "x86-64-v3")
    return Row(
        model, precision, len(lines), len(broken), deviating, alarms,
        covered.statements, covered.branches, covered.mcdc, 0.0, calls / steps,
        counted.stack_bytes, _longest(counted),
        {"warnings": lines, "misra": broken, "eva": words, "missed": covered.missed,
         "self-test": [covered.checks]},
    )  # fmt: skip


def _sealed_steps(path: Path, inputs: bytes, scratch: Path) -> tuple[int, int]:
    """Steps without a call of the kernel, and calls of an allocator in them.

    Raises:
        RuntimeError: The kernel ended the program, because it called it.
    """
    program = _HOST.compile(path, _SEALED_STEP, scratch, (_WRAPS,))
    figures = re.findall(rb"\d+", _HOST.run(program, inputs))
    return int(figures[0]), int(figures[1])


def _longest(counted: Counted) -> int:
    return max(counted.instructions_quiet or 0, counted.instructions_write or 0)


_HEAD = """
# What can be shown of a bundle's C

This is what a safety engineer needs to start. It claims no conformance with any standard.

Written by `make certify-all`; every finding stands in `build/certify/summary.json`. The C is the
plain form, `-DSTATEGATE_PORTABLE`: C99 without attributes, vectors, `restrict` or assembler, and
with the bits of every other form, which each run compares. It is the C of a session, without the
black box. System calls, allocations, stack and instructions are those of the fast form for
x86-64-v3.
"""
_MISSED = """
Each line that the self-test does not reach stands under `notes` in the summary. The session is the
same for every model: a model without a gate cannot reach what asks gates, one without declared safe
outputs not what gives them, and branches of kernels depend on sizes that are the model's constants.
"""
_COLUMNS = {
    "warnings": "gcc and clang 19 as C99, with " + " ".join(f"`{flag}`" for flag in WARNINGS[:-1]),
    "MISRA": "required and mandatory rules of MISRA C:2012 by cppcheck's addon, beyond the "
    "deviations below",
    "Eva": "alarms of Frama-C's Eva in `init`, `step`, `save`, `load`, `chain` and `reset`: "
    "undefined behaviour that it cannot exclude",
    "statements, branches, MC/DC": "what `docs/examples/self_test.c` reaches over the golden "
    "episode, of the functions that a program holds",
    "system calls": "steps and saves under seccomp's strict mode, where any call but read, write "
    "and exit ends the program",
    "allocations": "calls of malloc, calloc and realloc in these steps",
}


def page_of(summary: Summary) -> str:
    """The page of the evidence."""
    rules = [
        [f"{r.model}, {r.precision}", f"{r.warnings}", f"{r.misra_required}",
         "not done" if r.eva_alarms is None else f"{r.eva_alarms}",
         f"{r.statement_percent} %", f"{r.branch_percent} %", f"{r.mcdc_percent} %"]
        for r in summary.rows
    ]  # fmt: skip
    costs = [
        [f"{r.model}, {r.precision}", f"{r.syscalls_per_step:g}", f"{r.allocations_per_step:g}",
         f"{r.stack_bytes:,}", f"{r.instructions_max:,}"]
        for r in summary.rows
    ]  # fmt: skip
    deviations = [
        [rule, why, f"{max(r.misra_deviations[rule] for r in summary.rows)}"]
        for rule, why in summary.deviations.items()
    ]
    parts = [
        _HEAD.strip(),
        markdown_table(["column", "what was done"], list(map(list, _COLUMNS.items()))),
        markdown_table(
            ["bundle", "warnings", "MISRA", "Eva", "statements", "branches", "MC/DC"],
            rules,
            range(1, 7),
        ),
        "In a step:",
        markdown_table(
            ["bundle", "system calls", "allocations", "stack, bytes", "instructions"],
            costs,
            range(1, 5),
        ),
        "## Deviations\n\nRules that are broken on purpose, and the most findings in one bundle.",
        markdown_table(["rule", "why", "findings"], deviations, [2]),
        "## What Eva's result assumes",
        "\n".join(f"- {line}" for line in summary.assumptions),
        "## What was not reached",
        _MISSED.strip(),
        f"Tools: {'; '.join(summary.tools.values())}.",
    ]
    return "\n\n".join(parts) + "\n"


@click.command("certify")
@click.argument(
    "bundles",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    nargs=-1,
    required=True,
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--page", type=click.Path(dir_okay=False, path_type=Path), help="The page (.md).")
@click.option("--eva-precision", default=2, show_default=True, help="0 to 11; more is slower.")
@click.option("--limit-s", default=900.0, show_default=True, help="Of one analysis by Eva.")
def certify_command(
    bundles: Sequence[Path], out: Path, page: Path | None, eva_precision: int, limit_s: float
) -> None:
    """Ask other people's tools about the C of BUNDLES, each a folder MODEL/PRECISION.

    \b
    Example:
      python -m lab certify build/counts/lstm/float32 --out build/certify
    """
    lacking = [tool for tool in TOOLS if shutil.which(tool) is None]
    if lacking or (why := MACHINES["x86-64-v3"].lacking):
        raise click.ClickException(
            f"{', '.join(lacking) or why} is not here: make certify-tools emulators"
        )
    out.mkdir(parents=True, exist_ok=True)
    for path in (out / "summary.json", page):
        if path is not None:
            check_writable(path)
    rows = []
    with progress(len(bundles), "certifying") as report:
        for done, path in enumerate(bundles, 1):
            model, precision = path.resolve().parts[-2:]
            rows.append(certify(path, model, precision, eva_precision, limit_s))
            report(done)
    tools = {tool: version_of(tool) if tool != "frama-c" else _frama_c() for tool in TOOLS}
    summary = Summary(tools, ASSUMPTIONS, DEVIATIONS, rows)
    write_whole(
        out / "summary.json", msgspec.json.format(msgspec.json.encode(summary), indent=1) + b"\n"
    )
    if page is not None:
        write_whole(page, page_of(summary).encode())
    click.echo(f"{len(rows)} bundles: {out / 'summary.json'}")


def _frama_c() -> str:
    return "Frama-C " + checked(["frama-c", "-version"]).stdout.decode().strip()
