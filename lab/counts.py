"""What a step costs that no neighbour changes: instructions, stack, flash and RAM, by machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median_low

import click
import msgspec

from stategate.bench.certify.builds import version_of
from stategate.bench.certify.counting import MACHINES, count_steps
from stategate.common.console import progress
from stategate.common.tables import markdown_table
from stategate.contract.durable import check_writable, write_whole

EXPECTED = Path(__file__).parents[1] / "docs/evidence/counts.json"
RENEWS = "make bench-counts"
TOLERANCE = 0.02


class Row(msgspec.Struct, frozen=True):
    """A bundle's step on a machine.

    Attributes:
        model: Name of the model.
        precision: As ``float32``.
        isa: Key of `MACHINES`.
        instructions_quiet: Of a quiet step; None if no step of the episode is quiet.
        instructions_write: Of a step that writes; None if none does.
        stack_bytes: Deepest byte of stack that a step wrote.
        flash_bytes: Code and constants of the bundle's C.
        ram_bytes: Its static memory, and one session with its inputs and outputs.
    """

    model: str
    precision: str
    isa: str
    instructions_quiet: int | None
    instructions_write: int | None
    stack_bytes: int
    flash_bytes: int
    ram_bytes: int

    @property
    def name(self) -> str:
        """As ``lstm, int8, aarch64``."""
        return f"{self.model}, {self.precision}, {self.isa}"


def count(path: Path, model: str, precision: str, isa: str) -> Row:
    """The middle step of each answer, as a row."""
    steps = count_steps(path, isa)
    middle = {kind: median_low(values) for kind, values in steps.instructions.items()}
    return Row(
        model, precision, isa, middle.get(0), middle.get(1),
        steps.stack_bytes, steps.flash_bytes, steps.ram_bytes,
    )  # fmt: skip


class Counts(msgspec.Struct, frozen=True):
    """All rows, and what they depend on.

    Attributes:
        compilers: First line of each compiler's version, by its name.
        rows: What was counted.
        not_counted: Why a row is missing, by its name.
        older: Names of rows of an earlier C, which were not counted again.
    """

    compilers: dict[str, str]
    rows: list[Row]
    not_counted: dict[str, str]
    older: list[str] = []


def deviations(expected: Iterable[Row], rows: Iterable[Row]) -> list[str]:
    """What parts by more than `TOLERANCE`, a sentence a figure."""
    before_by_name = {row.name: row for row in expected}
    lines = []
    for row in rows:
        for field in row.__struct_fields__[3:]:
            before, now = getattr(before_by_name.get(row.name), field, None), getattr(row, field)
            if before == now:
                continue
            if not before or now is None or abs(now / before - 1) > TOLERANCE:
                lines.append(f"{row.name}: {field} is {now}, and {before} in {EXPECTED.name}")
    return lines


_HEAD = """
# Counts of a step

Instructions of a step do not depend on neighbours, clocks or caches: the same C, compiler and
inputs give the same count. A figure is the middle one of the first five quiet or written steps of
the golden episode, from the call of `stategate_step` to its return. Stack, flash and RAM are
bytes: the deepest byte of stack that a step writes; code and constants; static memory with one
session, its inputs and outputs. The C library's own code is not in flash.

Written by `{renews}`, with the figures in [counts.json](counts.json). `tests/lab/test_counts.py`
counts some rows again, and fails where one parts by more than {tolerance:.0%}.

QEMU and a plugin of a few lines count x86-64 up to -v3, aarch64, and a Cortex-M7 without an
operating system (`mps2-an500`). x86-64-v4 is counted on a CPU that has it, by a trap after each
instruction. A model without a hard gate has no quiet step. `aarch64 without NEON` is the same C
compiled with `-march=armv8-a+nosimd`.
"""


_OLDER = """\
**{n} of {rows} rows are of an earlier C**, and were not counted again; `older` in counts.json names
them."""


def _cell(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def page_of(counts: Counts) -> str:
    """The page of the evidence."""
    head = ["model", "precision", "machine", "quiet step", "written step", "stack", "flash", "RAM"]
    lines, last = [], ("", "")
    for row in counts.rows:
        named = (row.model, row.precision)
        figures = [_cell(getattr(row, field)) for field in row.__struct_fields__[3:]]
        lines.append([*(("", "") if named == last else named), row.isa, *figures])
        last = named
    parts = [
        _HEAD.format(renews=RENEWS, tolerance=TOLERANCE).strip(),
        f"Compilers: {'; '.join(sorted(counts.compilers.values()))}.",
        *([_OLDER.format(n=len(counts.older), rows=len(counts.rows))] if counts.older else []),
        markdown_table(head, lines, range(3, 8)),
    ]
    if counts.not_counted:
        missing = (f"- {name}: {why}" for name, why in counts.not_counted.items())
        parts += ["Not counted:", "\n".join(missing)]
    return "\n\n".join(parts) + "\n"


def _together(earlier: Counts, now: Counts) -> Counts:
    """Rows of both, in the order of the earlier ones; a row that was counted again is the new one.

    Raises:
        ClickException: A compiler is another one, whose rows must not stand beside these.
    """
    for compiler, version in now.compilers.items():
        if earlier.compilers.get(compiler, version) != version:
            raise click.ClickException(f"the kept rows are of {earlier.compilers[compiler]}")
    by_name = {row.name: row for row in earlier.rows} | {row.name: row for row in now.rows}
    counted = {row.name for row in now.rows}
    missing = {
        n: why for n, why in (earlier.not_counted | now.not_counted).items() if n not in by_name
    }
    older = [name for name in by_name if name not in counted]
    return Counts(earlier.compilers | now.compilers, list(by_name.values()), missing, older)


@click.command("counts")
@click.argument(
    "bundles",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    nargs=-1,
    required=True,
)
@click.option("--isa", "isas", multiple=True, type=click.Choice(list(MACHINES)), help="Repeat.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="The counts (.json).")
@click.option("--page", type=click.Path(dir_okay=False, path_type=Path), help="The page (.md).")
@click.option(
    "--keep",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Counts whose other rows stay, named as older.",
)
def counts_command(
    bundles: Sequence[Path],
    isas: Sequence[str],
    out: Path | None,
    page: Path | None,
    keep: Path | None,
) -> None:
    """Count a step of BUNDLES, each a folder MODEL/PRECISION.

    \b
    Example:
      python -m lab counts build/counts/lstm/int8 --isa aarch64
    """
    for path in (out, page):
        if path is not None:
            check_writable(path)
    rows, refused = [], {}
    jobs = [(bundle, isa) for bundle in bundles for isa in isas or MACHINES]
    with progress(len(jobs), "counting") as report:
        for done, (bundle, isa) in enumerate(jobs, 1):
            model, precision = bundle.resolve().parts[-2:]
            why = MACHINES[isa].lacking
            try:
                if why is None:
                    rows.append(count(bundle, model, precision, isa))
            except RuntimeError as problem:
                why = str(problem).strip().splitlines()[-1]
            if why is not None:
                refused[f"{model}, {precision}, {isa}"] = why
            report(done)
    used = {MACHINES[row.isa].compiler for row in rows}
    compilers = {cc: version_of(cc) for cc in sorted(used)}
    counts = Counts(compilers, rows, refused)
    if keep is not None:
        counts = _together(msgspec.json.decode(keep.read_bytes(), type=Counts), counts)
    raw = msgspec.json.format(msgspec.json.encode(counts), indent=1) + b"\n"
    if page is not None:
        write_whole(page, page_of(counts).encode())
    if out is None:
        click.echo(raw, nl=False)
        return
    write_whole(out, raw)
    click.echo(f"{len(rows)} rows, {len(refused)} not counted: {out}")
