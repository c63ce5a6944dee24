"""``stategate run``: step a bundle through an episode, count its writes, leave a ledger."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from stategate.cli.options import json_option
from stategate.common.console import progress
from stategate.common.ending import stop_request
from stategate.contract import Bundle, Episode, load_episode
from stategate.contract.durable import check_writable, write_whole
from stategate.contract.errors import EpisodeError
from stategate.runtime.episodes.run import RunResult, run_episode
from stategate.runtime.session import Session


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--episode",
    "episode_path",
    type=click.Path(exists=True, path_type=Path),
    help="Recorded inputs, a .npz or a folder of them; the bundle's golden episode, "
    "over and over, if left out.",
)
@click.option(
    "--steps", type=click.IntRange(1, 100_000_000), help="How many steps; default: the episode."
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for ledger.json; default: none."
)
@click.option(
    "--snapshots",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to go on from, and to save to at the end.",
)
@click.option(
    "--engine",
    default="auto",
    show_default=True,
    help="What steps it, such as native or tensorrt; several by commas are tried in turn.",
)
@json_option
def run(
    bundle: Path,
    episode_path: Path | None,
    steps: int | None,
    out: Path | None,
    snapshots: Path | None,
    engine: str,
    as_json: bool,
) -> None:
    """Step BUNDLE on this machine and print what its memory did.

    Ctrl-C and SIGTERM end it after the step at hand: snapshot and ledger so far are saved.

    \b
    Examples:
      stategate run build/aura --steps 10000
      stategate run build/aura --episode episode.npz --out build/run
    """
    if out is not None:
        check_writable(out / "ledger.json")
    episode = load_episode(episode_path, steps) if episode_path else _golden(Bundle.open(bundle))
    with (
        stop_request() as stop,
        Session.open(bundle, snapshots=snapshots, engine=engine) as session,
    ):
        restored = session.restore() if snapshots is not None else None
        if restored is not None:
            click.echo(f"going on after {restored.steps:,} steps ({restored.reason})", err=True)
        total = steps or episode.steps
        with progress(total, "stepping") as report:
            result = run_episode(session, episode, total, report=report, stop=lambda: bool(stop))
        if snapshots is not None:
            session.save()
        record = as_report(result)
        if out is not None:
            write_whole(out / "ledger.json", json.dumps(record, indent=2).encode() + b"\n")
    if as_json:
        click.echo(json.dumps(record, indent=2))
    else:
        for label, text in table(result):
            click.echo(f"{label:<22} {text}")
        if out is not None:
            click.echo(f"{'ledger':<22} {out / 'ledger.json'}")
    if result.done_steps < result.asked_steps:
        kept = [name for name, place in (("snapshot", snapshots), ("ledger", out)) if place]
        raise stop.stopped(
            f"{result.done_steps:,} of {result.asked_steps:,} steps; "
            f"{' and '.join(kept) or 'nothing'} saved"
        )


def as_report(result: RunResult) -> dict[str, Any]:
    """The result with the ledger's counters at the top level."""
    report = asdict(result)
    return {**report.pop("ledger"), **report}


def table(result: RunResult) -> list[tuple[str, str]]:
    """Label and text of each line about a run."""
    ledger = result.ledger
    rows = [
        ("model", f"{result.model} on {result.engine}"),
        ("steps", f"{ledger.steps:,}" + _cut_short(result)),
    ]
    if result.accuracy is not None:
        rows.append(("accuracy", f"{result.accuracy:.2%} of {result.judged_steps:,} answers"))
    rows += [
        ("state", f"{result.state_bytes:,} bytes, constant"),
        ("writes", f"{ledger.writes:,}"),
        ("quiet steps", f"{ledger.quiet_steps:,}"),
        ("suppressed writes", f"{ledger.suppressed_writes:,}"),
    ]
    if result.write_ratio is not None:
        rows.append(("against always-write", f"{result.write_ratio:.2f} times fewer writes"))
    rows.append(("memory written", f"{ledger.memory_bytes_written:,} bytes"))
    rows.append(("step time", f"p50 {result.p50_us:.1f} us, p99 {result.p99_us:.1f} us"))
    if result.kv_bytes_end is not None:
        rows.append(
            (
                "KV cache it replaces",
                f"{result.kv_bytes_per_step} bytes a step, {result.kv_bytes_end:,} bytes at the "
                f"end, {result.kv_over_state:,.0f} times the state",
            )
        )
    grown = result.rss_end_bytes - result.rss_start_bytes
    late = result.rss_end_bytes - result.rss_warm_bytes
    rows.append(
        (
            "resident memory",
            f"{result.rss_start_bytes / 2**20:.2f} MiB at the start, "
            f"{result.rss_end_bytes / 2**20:.2f} MiB at the end "
            f"({grown:+,} bytes; {late:+,} after the first 1 % of steps)",
        )
    )
    return rows


def _cut_short(result: RunResult) -> str:
    if result.done_steps == result.asked_steps:
        return ""
    return f"; ended early, after {result.done_steps:,} of {result.asked_steps:,} in this run"


def _golden(bundle: Bundle) -> Episode:
    golden = bundle.golden()
    if golden is None:
        raise EpisodeError(
            "the bundle carries no golden episode", remedy="give one with --episode FILE.npz"
        )
    return Episode(golden.inputs)
