"""``stategate device targets`` and ``detect``, ``doctor``: devices that are known, and this one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import msgspec

from stategate.cli.options import flag, root_option, verb, with_json
from stategate.cli.show import leave_unless
from stategate.cli.show import show as print_result
from stategate.common.ending import CommandGroup
from stategate.common.tables import markdown_table, text_table
from stategate.contract.errors import MissingDependencyError
from stategate.targets.detect import Host, detect
from stategate.targets.doctor import examine
from stategate.targets.ladder import load_ladder
from stategate.targets.profile import Figure, Sourced, TargetProfile, load, names, recognise

_UNKNOWN = "unknown"
HEADS = ("target", "memory", "reserve", "bandwidth", "dense int8", "CPU", "onnxruntime", "tensorrt")


@with_json
@click.group(cls=CommandGroup, invoke_without_command=True)
@flag("--markdown", "Print the table as Markdown.")
@click.pass_context
def targets(context: click.Context, markdown: bool) -> None:
    """List the devices that are known, or show one with `show`.

    \b
    Examples:
      stategate device targets
      stategate device targets show jetson-orin-nano-8gb
    """
    if context.invoked_subcommand is not None:
        return
    profiles = [load(name) for name in names()]
    rows = [row(profile) for profile in profiles]
    table = markdown_table(HEADS, rows) if markdown else text_table([HEADS, *rows])
    print_result(profiles, [table])


@with_json
@targets.command()
@click.argument("target")
def show(target: str) -> None:
    """Show every figure of TARGET with its source and date.

    \b
    Example:
      stategate device targets show raspberry-pi-5
    """
    profile = load(target)
    print_result(profile, _figures(profile))


def _figures(profile: TargetProfile) -> Iterator[str]:
    yield f"{profile.name}: {profile.description} ({profile.machine})"
    for field in profile.__struct_fields__:
        value = getattr(profile, field)
        if isinstance(value, Sourced):
            yield _sourced(field, value)
        elif isinstance(value, dict):
            for engine, figure in value.items():
                yield _sourced(f"{field}.{engine}", figure)
        elif isinstance(value, tuple):
            for one in value:
                yield _sourced(field, one)
    releases = (profile.jetpack.value if profile.jetpack else None) or ()
    for release in load_ladder().release:
        if release.jetpack in releases:
            l4t = ", ".join(release.l4t) or _UNKNOWN
            yield (
                f"  JetPack {release.jetpack}: L4T {l4t}, CUDA {release.cuda or _UNKNOWN}, "
                f"TensorRT {release.tensorrt or _UNKNOWN}, Python {release.python}"
            )


def row(profile: TargetProfile) -> tuple[str, ...]:
    """The cells of one device in the table; `HEADS` names them."""
    tops = profile.dense_tops("int8")
    bandwidth = profile.peak_bandwidth_gb_per_s
    cores = profile.cores.value
    return (
        profile.name,
        gigabytes(profile.memory_bytes.value),
        gigabytes(profile.system_reserve_bytes.value),
        _UNKNOWN if bandwidth is None else f"{bandwidth:g} GB/s",
        _UNKNOWN if tops is None else f"{tops:g} TOPS",
        _UNKNOWN if profile.cpu.value is None else f"{cores or '?'} x {profile.cpu.value}",
        *(_legal(profile.engines.get(engine)) for engine in ("onnxruntime", "tensorrt")),
    )


def gigabytes(value: int | None) -> str:
    """Bytes in GiB, or the word for what nobody tells."""
    return _UNKNOWN if value is None else f"{value / 2**30:.3g} GiB"


def _legal(figure: Figure[tuple[str, ...]] | None) -> str:
    return ", ".join((figure.value if figure else None) or ()) or "none"


def _sourced(label: str, value: Sourced) -> str:
    fields: dict[str, Any] = msgspec.to_builtins(value)
    source, date = fields.pop("source"), fields.pop("date")
    if set(fields) == {"value"}:
        text = _word(fields["value"])
    else:
        text = ", ".join(f"{name} {_word(inner)}" for name, inner in fields.items())
    return f"  {label:<22} {text}\n  {'':<22} ({source}; {date})"


def _word(value: Any) -> str:
    if value is None:
        return _UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


@verb("detect")
@root_option
def detect_command(root: Path) -> None:
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
    print_result(facts, [*lines, *(f"could not tell {sentence}" for sentence in unknowns)])


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


@verb("doctor")
@root_option
def doctor(root: Path) -> None:
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
    print_result(findings, lines)
    leave_unless(all(one.level != "missing" for one in findings))
