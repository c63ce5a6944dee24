"""``stategate detect``: what this machine is, and what no file says."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from stategate.cli.options import json_option
from stategate.contract.errors import MissingDependencyError
from stategate.targets.detect import Host, detect
from stategate.targets.profile import names, recognise


@click.command("detect")
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    default=Path("/"),
    show_default=True,
    help="Where proc, sys and etc lie; a copy of another machine's.",
)
@json_option
def detect_command(root: Path, as_json: bool) -> None:
    """Say what this machine is, which target that is, and what no file says.

    \b
    Example:
      stategate device detect
    """
    host = detect(root)
    target, problem = _target_of(host)
    unknowns = (*host.unknowns, *([f"target: {problem}"] if target is None else []))
    facts = asdict(host) | {"target": target, "unknowns": unknowns}
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for label, value in facts.items():
        if label in ("unknowns", "compatible"):
            continue
        text = "unknown" if value is None else f"{value:,}" if label == "memory_bytes" else value
        click.echo(f"{label:<13} {text}")
    for sentence in unknowns:
        click.echo(f"could not tell {sentence}")


def _target_of(host: Host) -> tuple[str | None, str]:
    """Name of the machine's profile, or None and why there is none."""
    try:
        profile = recognise(host.compatible)
    except MissingDependencyError:
        return None, "the profiles cannot be read without tomli"
    if profile is not None:
        return profile.name, ""
    generic = f"cpu-{(host.machine or '').replace('_', '-')}"
    return (generic, "") if generic in names() else (None, "no profile is for this machine")
