"""``stategate ranges``."""

from __future__ import annotations

import math
from pathlib import Path

import click

from stategate.cli.episode_options import (
    BUNDLE,
    cluster_option,
    episodes_option,
    record_options,
)
from stategate.common.console import progress
from stategate.contract import Bundle, EpisodeSet, canonical_json
from stategate.contract.durable import check_writable, write_whole
from stategate.contract.precision import TensorRange

_GROWTH = 1.25  # of the root mean square, from one decade of steps to the next


@click.command()
@click.argument("bundle", type=BUNDLE)
@episodes_option("Recorded inputs", required=True)
@cluster_option
@record_options
def ranges(
    bundle: Path, episode_paths: tuple[Path, ...], cluster: str | None, out: Path, as_json: bool
) -> None:
    """Measure how large the tensors of BUNDLE become, rolled in closed loop on its own state.

    The bundle is the float one; its model's weights are what the record is good for. Recordings
    are read a block at a time, however long they are.

    \b
    Examples:
      stategate export aura-hard --out build/aura
      stategate ranges build/aura --episode log.npz --out build/ranges.json
      stategate export aura-hard --precision int8 --ranges build/ranges.json --out build/small
    """
    check_writable(out)

    from stategate.calibration.ranges.record import Roller, measured

    roller = Roller(Bundle.open(bundle.resolve()))  # where a cluster finds it too
    episodes = EpisodeSet.open(*episode_paths)
    with progress(episodes.steps, "rolling") as report:
        record = measured(roller, episodes, cluster, report)
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
