"""``--map`` and ``--read``: how the recordings of other tools become the episodes of a verb."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import click

Verb = TypeVar("Verb", bound=Callable[..., Any])


def _remember(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> None:
    ctx.meta[f"stategate.{param.name}"] = texts


_OPTIONS = (
    click.option(
        "--map",
        "map",
        multiple=True,
        metavar="INPUT=FIELD",
        is_eager=True,
        expose_value=False,
        callback=_remember,
        help="Of a recording (MCAP, ROS 2 bag, LeRobot, HDF5, zarr, CSV, Parquet): which field "
        "becomes an input, FIELD{ELEMENT,...}[UNIT] or [FROM>TO], joined by +; or a file in TOML "
        "that says so. Repeat.",
    ),
    click.option(
        "--read",
        "read",
        multiple=True,
        metavar="NAME=VALUE",
        is_eager=True,
        expose_value=False,
        callback=_remember,
        help="How a recording is read: rate_hz, resample, gap_s, gaps, time, episode, order. "
        "Repeat.",
    ),
)


def recording_options(verb: Verb) -> Verb:
    """``--map`` and ``--read``."""
    return reduce(lambda command, option: option(command), reversed(_OPTIONS), verb)


def convert_recording(path: Path, out: Path) -> list[Any]:
    """Write a recording as episodes, as ``--map`` and ``--read`` of the running command say."""
    from stategate.common.console import progress
    from stategate.runtime.recordings.convert import convert
    from stategate.runtime.recordings.mapping import Map

    meta = click.get_current_context().meta
    plan = Map.read(meta.get("stategate.map", ()), meta.get("stategate.read", ()))
    with progress(1000, f"reading {path.name}") as report:
        return convert(
            path, plan, out, lambda done, of: report(min(1000, 1000 * done // max(1, of)))
        )


def episodes_given(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Callback of ``--episode``: recordings of other tools become episodes."""
    paths = [value] if isinstance(value, Path) else list(value or ())
    options = [f"--{n}" for n in ("map", "read") if ctx.meta.get(f"stategate.{n}")]
    if not paths or ctx.resilient_parsing:
        if options and not ctx.resilient_parsing:
            raise click.UsageError(f"{options[0]} is about a recording, which --episode names.")
        return value
    ctx.meta[f"stategate.typed.{param.name}"] = value
    changed = [as_episodes(path) for path in paths]
    if options and changed == paths:
        raise click.UsageError(f"{options[0]} is about a recording, and .npz files are none.")
    return changed[0] if isinstance(value, Path) else tuple(changed)


def as_episodes(path: Path) -> Path:
    """A recording as a folder of episodes that is gone after the command; all else as it is."""
    from stategate.common.console import note
    from stategate.contract.reading import printable
    from stategate.contract.staging import scratch_folder
    from stategate.runtime.recordings.convert import is_recording

    if not is_recording(path):
        return path
    folder = Path(click.get_current_context().with_resource(scratch_folder())) / path.name
    for done in convert_recording(path, folder):
        note("\n".join(map(printable, done.lines())))
    return folder
