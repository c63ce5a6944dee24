"""``stategate bench-native``: the native engine beside its peers."""

from __future__ import annotations

import json
from pathlib import Path

import click

from stategate.bench.native import ROUNDS, measure_native, ready
from stategate.contract.console import check_writable, progress, write_whole


@click.command("bench-native")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--peers",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Python of an environment with MNN, OpenVINO or LiteRT; without it ONNX Runtime alone "
    "is measured beside it.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=ROUNDS,
    show_default=True,
    help="Bursts of each subject.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for native.json.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def bench_native(
    bundle: Path, peers: Path | None, rounds: int, out: Path | None, as_json: bool
) -> None:
    """Time the native engine of BUNDLE beside other runtimes, by turns on one core.

    \b
    Example:
      stategate bench-native build/aura --out build/bench
    """
    if out is not None:
        check_writable(out / "native.json")
    ready(bundle)
    with progress(rounds, "measuring") as report:
        result = measure_native(bundle, peers_python=peers, rounds=rounds, report=report)
    text = json.dumps(result, indent=2)
    if out is not None:
        write_whole(out / "native.json", f"{text}\n".encode())
    if as_json:
        click.echo(text)
        return
    for name, us in sorted(result["best_burst_p50_us"].items(), key=lambda pair: pair[1]):
        click.echo(f"{us:10.3f} us  {name}")
    for kind, why in result["peers_failed"].items():
        click.echo(f"not measured: {kind}: {why.splitlines()[-1] if why else 'it said nothing'}")
    for key in ("speedup_vs_ort_run", "speedup_vs_best_peer", "c_over_floor", "quiet_over_write"):
        if result[key] is not None:
            click.echo(f"{key:<22} {result[key]:.2f}")
    click.echo(f"library_bytes          {result['library_bytes']}")
    click.echo(f"cold_start_ms          {result['cold_start_ms']:.2f}")
