"""``stategate adopt``: an ONNX file or a LEAPP export with state becomes a verified bundle."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stategate.cli.options import (
    ANY_PATH,
    EXISTING_FILE,
    Verb,
    by_name,
    flag,
    integer,
    making_options,
    option,
    repeated,
    verb,
    whole_options,
)
from stategate.contract.npz import load_npy

if TYPE_CHECKING:
    import numpy as np

    from stategate.export.frontends.adopt import Adopted


def _pairs(
    name: str, dest: str, metavar: str, text: str, read: Callable[[str], Any] = str
) -> Callable[[Verb], Verb]:
    def pairs(texts: tuple[str, ...]) -> dict[str, Any]:
        return by_name(texts, name, read, metavar)

    return repeated(name, metavar, f"{text}; repeat.", dest, read=pairs)


def _start(text: str) -> np.ndarray | str:
    """The array of a ``.npy`` file; anything else is a number's text."""
    return load_npy(text) if text.endswith(".npy") else text


def _shape(text: str) -> tuple[int, ...]:
    return tuple(integer(part) for part in text.split(","))


def _axis(text: str) -> int:
    return 0 if text == "0" else integer(text)


@verb()
@click.argument("file", type=ANY_PATH)
@making_options("float32")
@whole_options
@_pairs("--state", "states", "IN=OUT", "A state pair")
@_pairs("--dim", "dims", "NAME=N", "Pin a named dynamic axis", integer)
@_pairs("--shape", "shapes", "INPUT=1,2,3", "Pin the shape of an input", _shape)
@_pairs(
    "--const", "constants", "INPUT=VALUE", "Fix an input for ever, a number or a .npy file", _start
)
@_pairs(
    "--init",
    "initial",
    "STATE=VALUE",
    "What a state starts with, a number or a .npy file; zeros if left out",
    _start,
)
@_pairs(
    "--context",
    "contexts",
    "INPUT=N",
    "Keep the last N samples of an input as a state and put them in front of the next ones; the "
    "file takes both along the last axis",
    integer,
)
@flag(
    "--lift",
    "Make states of the memory that hides between the frames of one call; a step takes one frame.",
)
@_pairs("--time-axis", "time_axes", "INPUT=AXIS", "Which axis of an input is time, from 0", _axis)
@_pairs(
    "--session-axis",
    "session_axes",
    "NAME=AXIS",
    "Axis of an input, state or output that belongs to the sessions, from 0, where that is no open "
    "axis called batch",
    _axis,
)
@option(
    "--prologue",
    type=EXISTING_FILE,
    help="An ONNX file that gives the first states of an episode, such as an encoder; its axes are "
    "prologue.NAME for --dim and --shape.",
)
@_pairs(
    "--prologue-output",
    "prologue_outputs",
    "STATE=NAME",
    "The output of the prologue that fills a state; those of one name if left out",
)
@flag("--yes", "Accept the states that were found.")
def adopt(file: Path, out: Path, yes: bool, **options: Any) -> None:
    """Make a bundle from FILE, whose state is among its inputs and outputs. Needs no torch.

    FILE is an ONNX file, or the YAML of a LEAPP export, whose feedback edges name the states. State
    pairs of an ONNX file that are not declared are looked for by shape, dtype and name, and shown
    for confirmation.

    \b
    Examples:
      stategate adopt policy.onnx --state h=h_out --dim batch=1 --out build/policy
      stategate adopt silero_vad.onnx --shape input=1,576 --shape state=2,1,128 \\
          --const sr=16000 --state state=stateN --out build/silero
      stategate adopt sequence.onnx --lift --dim batch=1 --yes --out build/stream
      stategate adopt exported/policy.yaml --engines onnxruntime,native --out build/policy
    """
    import stategate
    from stategate.cli.receipt import print_receipt

    bundle = stategate.adopt(
        file, out, accept_pairs=lambda adopted: _accepted(adopted, yes), **options
    )
    print_receipt(bundle)


def _accepted(adopted: Adopted, yes: bool) -> bool:
    states = {state.name: state for state in adopted.candidate.spec.states}
    for name, next_name in adopted.pairs.items():
        shown = f"{states[name].dtype} {list(states[name].shape)}"
        how = adopted.pairing or "declared"
        click.echo(f"state {name} is fed from {next_name} ({shown}, {how})", err=True)
    if adopted.stream:
        for lift in adopted.stream.lifts:
            click.echo(str(lift), err=True)
        frames = ", ".join(f"axis {axis} of {n}" for n, axis in adopted.stream.axes.items())
        click.echo(f"time is {frames}; a step takes {adopted.stream.hop} of it", err=True)
    return yes or (sys.stdin.isatty() and click.confirm("Is that right?", err=True))
