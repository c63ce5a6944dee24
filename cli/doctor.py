"""``stategate doctor``: what this machine lacks, and what to do about it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from stategate.cli.options import json_option
from stategate.targets.doctor import examine


@click.command("doctor")
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    default=Path("/"),
    show_default=True,
    help="Where etc, usr and dev lie; a copy of another machine's.",
)
@json_option
@click.pass_context
def doctor(ctx: click.Context, root: Path, as_json: bool) -> None:
    """Look this machine over, one line a finding with its remedy.

    Exits with 1 where something is missing that an engine of this machine needs.

    \b
    Example:
      stategate doctor
    """
    findings = examine(root)
    if as_json:
        click.echo(json.dumps([asdict(one) for one in findings], indent=2))
    else:
        for one in findings:
            remedy = f"; what to do: {one.remedy}" if one.remedy else ""
            click.echo(f"{one.level:<8} {one.what:<12} {one.found}{remedy}")
    ctx.exit(1 if any(one.level == "missing" for one in findings) else 0)
