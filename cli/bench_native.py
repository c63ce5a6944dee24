"""``stategate bench-native``: the native engine beside its peers."""

from __future__ import annotations

import json
from pathlib import Path

import click

from stategate.bench.native import measure_native, ready
from stategate.bench.peers.entries import peers_of
from stategate.bench.peers.race import BURST, TOLERANCE, lines
from stategate.common.console import progress
from stategate.contract import Bundle
from stategate.contract.durable import check_writable, write_whole

_RATIOS = (
    "speedup_vs_ort_run",
    "speedup_vs_best_peer",
    "best_peer_over_ours",
    "c_over_floor",
    "quiet_over_write",
)


@click.command("bench-native")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--envs",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of environments that `make bench-native` makes; all in this one if left out.",
)
@click.option(
    "--rounds", type=click.IntRange(min=1), default=16, show_default=True, help="Bursts of each."
)
@click.option(
    "--burst",
    type=click.IntRange(min=1),
    default=BURST,
    show_default=True,
    help="Steps of a burst.",
)
@click.option(
    "--float",
    "source",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The same model in float32, for runtimes that make their own int8 of it.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, min_open=True),
    default=TOLERANCE,
    show_default=True,
    help="How far answers may be from the golden ones; wider for who rounds weights by himself.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for native.json.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def bench_native(
    bundle: Path,
    envs: Path | None,
    rounds: int,
    burst: int,
    source: Path | None,
    tolerance: float,
    out: Path | None,
    as_json: bool,
) -> None:
    """Time the native engine of BUNDLE beside other runtimes and plain C, by turns on one core.

    Who runs beside it depends on the model: AURA-Mem has rivals written by hand for it, any other
    is given to the runtimes that take its graph.

    \b
    Example:
      stategate bench-native build/aura --envs build/peers --out build/bench
      stategate bench-native build/small --float build/large --burst 100 --tolerance 0.02
    """
    if out is not None:
        check_writable(out / "native.json")
    peers = peers_of(Bundle.open(ready(bundle)), source and Bundle.open(source).path)
    with progress(rounds, "measuring") as report:
        found, result = measure_native(bundle, envs, rounds, report, peers, burst, tolerance)
    text = json.dumps(result, indent=2)
    if out is not None:
        write_whole(out / "native.json", f"{text}\n".encode())
    if as_json:
        click.echo(text)
        return
    click.echo("\n".join(lines(found)))
    for key in _RATIOS:
        told = "not measured" if result[key] is None else f"{result[key]:.2f}"
        click.echo(f"{key:<22} {told}")
    click.echo(f"library_bytes          {result['library_bytes']}")
    click.echo(f"cold_start_ms          {result['cold_start_ms']:.2f}")
