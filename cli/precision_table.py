"""``stategate precision-table``."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from stategate.contract.durable import check_writable, write_whole


@click.command("precision-table")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The rows (.json).",
)
@click.option(
    "--page",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A Markdown page whose table is replaced.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
def precision_table(folder: Path, out: Path, page: Path | None, as_json: bool) -> None:
    """Collect what plans cost from FOLDER: bundles, drift reports, paces and refusals.

    \b
    Example:
      stategate precision-table build/precision --out build/bench/precision.json
    """
    check_writable(out)

    from stategate.calibration.precision_table import on_page, rows_of

    rows = rows_of(folder)
    raw = msgspec.json.format(msgspec.json.encode(rows), indent=1) + b"\n"
    text = None if page is None else on_page(page.read_text(), rows)
    write_whole(out, raw)
    if page is not None and text is not None:
        write_whole(page, text.encode())
    if as_json:
        click.echo(raw, nl=False)
        return
    for row in rows:
        click.echo(f"{row.model}, {row.plan}: {row.verdict}{row.reason and f', {row.reason}'}")
    click.echo(f"written: {out}")
