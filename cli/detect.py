"""``stategate device detect``: what this machine is, and what no file says."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from stategate.cli.options import json_option, root_option
from stategate.cli.show import show
from stategate.contract.errors import MissingDependencyError
from stategate.targets.detect import Host, detect
from stategate.targets.profile import names, recognise


@click.command("detect")
@root_option
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
    memory = None if host.memory_bytes is None else f"{host.memory_bytes:,}"
    lines = [
        (label, "unknown" if value is None else value)
        for label, value in (facts | {"memory_bytes": memory}).items()
        if label not in ("unknowns", "compatible")
    ]
    show(facts, as_json, [*lines, *(f"could not tell {sentence}" for sentence in unknowns)])


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
