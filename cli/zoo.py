"""``stategate model list`` and ``stategate episodes zoo``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from stategate.cli.options import FILE, out_option, seed_option, steps_option, verb
from stategate.cli.show import show
from stategate.contract.durable import write_whole
from stategate.models.zoo.catalogue import HELD_OUT_SEED, ZOO, entry


@verb()
def zoo() -> None:
    """List the models that come with stategate.

    \b
    Example:
      stategate model list
    """
    rows: list[dict[str, Any]] = []
    for item in ZOO.values():
        spec = item.build().step_spec()
        rows.append(
            {
                "name": item.name,
                "family": item.family,
                "summary": item.summary,
                "state_bytes": spec.state_bytes,
                "gates": [
                    {"name": g.name, "kind": g.kind, "granularity": g.granularity}
                    for g in spec.gates
                ],
                "write": item.write,
                "paper": item.paper,
                "weights": item.weights,
                "published": {
                    name: config.step_spec().state_bytes for name, config in item.published.items()
                },
            }
        )
    show(rows, _models(rows))


def _models(rows: list[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        yield f"{row['name']}: {row['summary']}"
        yield f"  memory  {row['state_bytes']:,} bytes ({row['family']}, {row['paper']})"
        for gate in row["gates"]:
            yield f"  gate    {gate['name']}, {gate['kind']}, by {gate['granularity']}"
        yield f"  write   {row['write']}"
        for name, state_bytes in row["published"].items():
            yield f"  as in   {name}: {state_bytes:,} bytes in float32"


@verb()
@click.argument("name")
@steps_option("Length; all of it is held in memory.", 4096, click.IntRange(1, 10_000_000))
@seed_option("Of the stream.", HELD_OUT_SEED)
@out_option("The .npz to write.", FILE)
def episode(name: str, steps: int, seed: int, out: Path) -> None:
    """Write a held-out episode of the zoo model NAME: inputs, and labels to judge it by.

    \b
    Example:
      stategate episodes zoo aura-hard --steps 100000 --out build/episode.npz
    """
    model = entry(name)
    stream = f"held-out stream of {name}, seed {seed}"
    raw = replace(model.episode(steps, seed), provenance=stream).to_bytes()
    write_whole(out, raw)
    facts = {"model": name, "steps": steps, "seed": seed, "bytes": len(raw), "path": str(out)}
    show(facts, [f"{out}: {steps:,} steps, seed {seed}"])
