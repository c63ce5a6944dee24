"""``python -m lab formats``: a recording of each format becomes a bundle that drift has judged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

from lab.formats.files import FORMATS, joint_angles
from stategate.common.console import note, progress
from stategate.contract.durable import write_whole
from stategate.contract.errors import ResultError
from stategate.contract.records import canonical_json

# A model of a user, whose gate asks how far the hip is bent.
MODEL = """\
import torch
from stategate.contract import GateSpec, StateSpec, StepSpec, TensorSpec
from stategate.models import StepResult


class Walker(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.mix, self.out = torch.nn.Linear(4 + 16, 16), torch.nn.Linear(16, 3)

    def step_spec(self):
        return StepSpec(
            inputs=(TensorSpec("x", (1, 4)),),
            outputs=(TensorSpec("action", (1, 3)),),
            states=(StateSpec("memory", (1, 16), gate="bent"),),
            gates=(GateSpec("bent", shape=(1, 1), threshold=0.0),),
        )

    def step(self, inputs, states):
        x, memory = inputs["x"], states["memory"]
        new = torch.tanh(self.mix(torch.cat((x, memory), dim=-1)))
        return StepResult({"action": self.out(memory)}, {"memory": new}, {"bent": x[:, :1]})
"""
# As docs/guides/episodes.md and the tutorial have them; RECORDING stands for --episode and --map.
COMMANDS = (
    "calibrate walker.py:Walker RECORDING --write-rate 0.2 --out gate.json",
    "export walker.py:Walker --calibration gate.json RECORDING --out float",
    "quantise walker.py:Walker --calibration gate.json RECORDING --out candidate",
    "drift float candidate RECORDING --out drift --seal small",
    "verify small",
)


def commands(recording: str, options: tuple[str, ...]) -> list[list[str]]:
    """The words of each command for one recording."""
    words = ["--episode", recording, *options]
    return [
        [part for word in line.split() for part in (words if word == "RECORDING" else [word])]
        for line in COMMANDS
    ]


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The .json.")
@click.option("--scratch", type=click.Path(path_type=Path), required=True, help="Working folder.")
@click.option("--steps", type=click.IntRange(min=10), default=3000, help="Of each recording.")
@click.option("--only", multiple=True, type=click.Choice(list(FORMATS)), help="These alone.")
def formats(out: Path, scratch: Path, steps: int, only: tuple[str, ...]) -> None:
    """Make a recording in each format, and a calibrated, drift-judged bundle of it."""
    x = joint_angles(steps)
    rows: list[dict[str, Any]] = []
    names = list(only or FORMATS)
    with progress(len(names), "formats") as report:
        for name in names:
            folder = scratch / name.replace(" ", "-")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            (folder / "walker.py").write_text(MODEL)
            file, make = FORMATS[name]
            options = make(folder / file, x)
            start = time.perf_counter()
            failure = _run(folder, commands(file, options))
            seconds = round(time.perf_counter() - start, 2)
            row = {"format": name, "steps": steps, "seconds": seconds, "sealed": failure is None}
            if failure is None:
                drift = json.loads((folder / "drift" / "drift.json").read_text())
                row |= {"judged_steps": drift["total"]["steps"], "findings": drift["findings"]}
            else:
                note(f"{name}: {failure}")
            rows.append(row)
            report(len(rows))
    write_whole(out, canonical_json(rows))
    click.echo("\n".join(f"{row['format']}: {row}" for row in rows))
    if not all(row["sealed"] for row in rows):
        raise ResultError("a format ends without a sealed bundle", found=out)


def _run(folder: Path, lines: list[list[str]]) -> str | None:
    for words in lines:
        command = [str(Path(sys.executable).with_name("stategate")), *words]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            return f"{' '.join(words)}\n{done.stderr[-2000:]}"
    return None
