"""``stategate plot`` and ``stategate bench``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from stategate.bench.overhead import BURST, ROUNDS, measure_overhead
from stategate.bench.picture import draw, read_run
from stategate.contract.console import check_writable, progress, write_whole


@click.command()
@click.argument("ledger", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the paths as JSON.")
def plot(ledger: Path, as_json: bool) -> None:
    """Draw memory and writes over the horizon of a run, beside its LEDGER, as PNG and SVG.

    \b
    Example:
      stategate plot build/run/ledger.json
    """
    paths = draw(read_run(ledger), ledger.with_name("memory"))
    click.echo(json.dumps([str(p) for p in paths]) if as_json else "\n".join(map(str, paths)))


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=ROUNDS,
    show_default=True,
    help="Bursts of each way.",
)
@click.option(
    "--burst",
    type=click.IntRange(min=1),
    default=BURST,
    show_default=True,
    help="Steps in a burst.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for overhead.json.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def bench(bundle: Path, rounds: int, burst: int, out: Path | None, as_json: bool) -> None:
    """Time a counted step of BUNDLE beside plain ONNX Runtime, in turns and in one run.

    \b
    Example:
      stategate bench build/aura --out build/bench
    """
    if out is not None:
        check_writable(out / "overhead.json")
    with progress(rounds + 1, "measuring") as report:
        result = measure_overhead(bundle, rounds, burst, report)
    record = json.dumps(asdict(result), indent=2)
    if out is not None:
        write_whole(out / "overhead.json", record.encode() + b"\n")
    if as_json:
        click.echo(record)
        return
    for way in result.ways:
        click.echo(
            f"{way.name:<46} p50 {way.p50_us:6.1f} us  p99 {way.p99_us:6.1f} us  "
            f"best round {way.best_round_p50_us:6.1f} us"
        )
    click.echo(f"session over run()  {result.session_over_run:.2f}")
    click.echo(f"session over bound  {result.session_over_bound:.2f}")
