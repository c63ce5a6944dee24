"""``stategate doctor``: what this machine lacks, and what to do about it."""

from __future__ import annotations

from pathlib import Path

import click

from stategate.cli.options import json_option, root_option
from stategate.cli.show import leave_unless, show
from stategate.targets.doctor import examine


@click.command("doctor")
@root_option
@json_option
def doctor(root: Path, as_json: bool) -> None:
    """Look this machine over, one line a finding with its remedy.

    Exits with 1 where something is missing that an engine of this machine needs.

    \b
    Example:
      stategate doctor
    """
    findings = examine(root)
    lines = (
        f"{one.level:<8} {one.what:<12} {one.fact}"
        + (f"; what to do: {one.remedy}" if one.remedy else "")
        for one in findings
    )
    show(findings, as_json, lines)
    leave_unless(all(one.level != "missing" for one in findings))
