"""``stategate run``: step a bundle through an episode, count its writes, leave a ledger."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from stategate.cli.options import (
    FILE,
    FOLDER,
    POSITIVE,
    bundle_verb,
    engine_option,
    episode_option,
    flag,
    option,
    out_option,
    steps_option,
    trust_option,
)
from stategate.cli.show import Line, show
from stategate.common.console import progress
from stategate.common.ending import stop_request
from stategate.contract import Bundle, Episode, load_episode
from stategate.contract.errors import EpisodeError
from stategate.runtime.episodes.run import RunResult, run_episode
from stategate.runtime.keep.black_box import BlackBox
from stategate.runtime.session import Session


@bundle_verb()
@episode_option("; the bundle's golden episode, over and over, if left out.", "episode_path")
@steps_option("How many steps; default: the episode.", None, click.IntRange(1, 100_000_000))
@out_option("Folder for ledger.json; default: none.", FOLDER, required=False)
@option("--snapshots", type=FOLDER, help="Folder to go on from, and to save to at the end.")
@option(
    "--black-box",
    type=FILE,
    help="File of fixed size for the last steps, for: stategate replay.",
)
@option(
    "--minutes",
    type=POSITIVE,
    help="How many the black box keeps, by the rate of episode or bundle; 16 MiB if left out.",
)
@engine_option
@trust_option
@flag("--realtime", "Ask for priority and locked memory first, and say what could not be had.")
def run(
    bundle: Path,
    episode_path: Path | None,
    steps: int | None,
    out: Path | None,
    snapshots: Path | None,
    black_box: Path | None,
    minutes: float | None,
    **opening: Any,
) -> None:
    """Step BUNDLE on this machine and print what its memory did.

    Ctrl-C and SIGTERM end it after the step at hand: snapshot and ledger so far are saved.

    \b
    Examples:
      stategate run build/aura --steps 10000
      stategate run build/aura --episode episode.npz --out build/run
    """
    episode = load_episode(episode_path, steps) if episode_path else golden(Bundle.open(bundle))
    if minutes is not None and black_box is None:
        raise click.UsageError("--minutes needs --black-box FILE.")
    box = None
    if black_box is not None:
        box = BlackBox(black_box, minutes, rate_hz=episode.rate_hz)
    with (
        stop_request() as stop,
        Session.open(bundle, snapshots=snapshots, black_box=box, **opening) as session,
    ):
        restored = session.restore() if snapshots is not None else None
        if restored is not None:
            fresh = f"; its rule {restored.fresh} begins the memory anew" if restored.fresh else ""
            text = f"going on after {restored.steps:,} steps ({restored.reason}){fresh}"
            click.echo(text, err=True)
        total = steps or episode.steps
        with progress(total, "stepping") as report:
            result = run_episode(session, episode, total, report=report, stop=lambda: bool(stop))
        if snapshots is not None:
            session.save()
        record = asdict(result)
        record = record.pop("ledger") | record  # counters stand at the top level
        ledger = None if out is None else out / "ledger.json"
        lines: list[Line] = [*table(result)]
        show(record, [*lines, ("ledger", ledger)] if ledger else lines, ledger)
    if result.done_steps < result.asked_steps:
        files = [name for name, place in (("snapshot", snapshots), ("ledger", out)) if place]
        raise stop.stopped(
            f"{result.done_steps:,} of {result.asked_steps:,} steps; "
            f"{' and '.join(files) or 'nothing'} saved"
        )


def table(result: RunResult) -> Iterator[Line]:
    """Label and text of each line about a run."""
    ledger = result.ledger
    yield "model", f"{result.model} on {result.engine}"
    yield "steps", f"{ledger.steps:,}" + _cut_short(result)
    if result.accuracy is not None:
        yield "accuracy", f"{result.accuracy:.2%} of {result.judged_steps:,} answers"
    yield "state", f"{result.state_bytes:,} bytes, constant"
    yield "writes", f"{ledger.writes:,}"
    yield "quiet steps", f"{ledger.quiet_steps:,}"
    yield "suppressed writes", f"{ledger.suppressed_writes:,}"
    if result.write_ratio is not None:
        yield "against always-write", f"{result.write_ratio:.2f} times fewer writes"
    yield "memory written", f"{ledger.memory_bytes_written:,} bytes"
    if ledger.appends:
        yield "of that appended", f"{ledger.appended_bytes:,} bytes in {ledger.appends:,} steps"
        yield "of that folded", f"{ledger.folded_bytes:,} bytes"
    if ledger.health_alarms:
        yield (
            "health alarms",
            f"{ledger.health_alarms:,}; the last: {result.health_alarm or 'over'}",
        )
    if ledger.persisted_bytes:
        yield "persisted", f"{ledger.persisted_bytes:,} bytes"
    yield "step time", f"p50 {result.p50_us:.1f} us, p99 {result.p99_us:.1f} us"
    if result.kv_bytes_end is not None:
        yield (
            "KV cache it replaces",
            f"{result.kv_bytes_per_step} bytes a step, {result.kv_bytes_end:,} bytes at the "
            f"end, {result.kv_over_state:,.0f} times the state",
        )
    grown = result.rss_end_bytes - result.rss_start_bytes
    late = result.rss_end_bytes - result.rss_warm_bytes
    yield (
        "resident memory",
        f"{result.rss_start_bytes / 2**20:.2f} MiB at the start, "
        f"{result.rss_end_bytes / 2**20:.2f} MiB at the end "
        f"({grown:+,} bytes; {late:+,} after the first 1 % of steps)",
    )


def _cut_short(result: RunResult) -> str:
    if result.done_steps == result.asked_steps:
        return ""
    return f"; ended early, after {result.done_steps:,} of {result.asked_steps:,} in this run"


def golden(bundle: Bundle) -> Episode:
    """The inputs that travel in a bundle, without their answers."""
    own = bundle.golden()
    if own is None:
        raise EpisodeError(
            "the bundle carries no golden episode", remedy="give one with --episode FILE.npz"
        )
    return Episode(own.inputs, start=own.start, prologue=own.prologue, rate_hz=own.rate_hz)
