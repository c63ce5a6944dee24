"""``stategate ranges``."""

from __future__ import annotations

import math
from pathlib import Path

import click

from stategate.calibration.ranges import Roller, measured
from stategate.contract import Bundle, Episode, canonical_json
from stategate.contract.console import check_writable, progress, write_whole
from stategate.contract.precision import TensorRange

_GROWTH = 1.25  # of the root mean square, from one decade of steps to the next


@click.command()
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--episode",
    "episode_paths",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    required=True,
    help="Recorded inputs (.npz); repeat for more.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The record (.json).")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def ranges(bundle: Path, episode_paths: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Measure how large the tensors of BUNDLE become, rolled in closed loop on its own state.

    The bundle is the float one; its model's weights are what the record is good for.

    \b
    Examples:
      stategate export aura-hard --out build/aura
      stategate ranges build/aura --episode log.npz --out build/ranges.json
      stategate export aura-hard --precision int8 --ranges build/ranges.json --out build/small
    """
    check_writable(out)
    roller = Roller(Bundle.open(bundle))
    steps = sum(Episode.load(path).steps for path in episode_paths)
    with progress(steps, "rolling") as report:
        record = measured(
            roller, ((path.name, [Episode.load(path)]) for path in episode_paths), report
        )
    raw = canonical_json(record)
    write_whole(out, raw)
    if as_json:
        click.echo(raw, nl=False)
        return
    width = max(len(tensor.name) for tensor in record.tensors)
    for tensor in record.tensors:
        click.echo(f"{tensor.name:<{width}}  {_told(tensor)}")
    click.echo(f"{len(record.tensors)} tensors over {record.steps:,} steps: {out}")


def _told(tensor: TensorRange) -> str:
    """Largest magnitude by decade of steps, and whether the tensor still grows.

    A maximum grows with the number of samples alone, so growth is told by root mean square.
    """
    sizes = [math.hypot(h.mean, h.deviation) for h in tensor.horizons]
    shown = "  ".join(f"to {h.to_step:,}: {max(-h.low, h.high):.4g}" for h in tensor.horizons)
    grows = len(sizes) > 1 and sizes[-1] > _GROWTH * sizes[-2]
    return f"{shown}{'  <- still growing' if grows else ''}"
