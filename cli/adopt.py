"""``stategate adopt``: an ONNX file or a LEAPP export with state becomes a verified bundle."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stategate.cli.options import (
    ANY_PATH,
    by_name,
    engines_option,
    flag,
    input_options,
    input_ranges_of,
    integer,
    json_option,
    kinds_of,
    out_option,
    repeated,
    safe_of,
    safe_option,
    split_option,
    state_options,
    target_option,
)
from stategate.contract import refuse_to_replace
from stategate.contract.npz import load_npy
from stategate.targets import load

if TYPE_CHECKING:
    import numpy as np

    from stategate.export.frontends.adopt import Adopted


@click.command()
@click.argument("file", type=ANY_PATH)
@out_option("The bundle's folder.")
@repeated("--state", "IN=OUT", "A state pair; repeat.")
@repeated("--dim", "NAME=N", "Pin a named dynamic axis; repeat.")
@repeated("--shape", "INPUT=1,2,3", "Pin the shape of an input; repeat.")
@repeated("--const", "INPUT=VALUE", "Fix an input for ever; repeat.")
@repeated(
    "--init",
    "STATE=VALUE",
    "What a state starts with, a number or a .npy file; zeros if left out; repeat.",
)
@repeated(
    "--context",
    "INPUT=N",
    "Keep the last N samples of an input as a state and put them in front of the next ones; the "
    "file takes both along the last axis; repeat.",
)
@flag("--yes", "Accept the state pairs that were found.")
@split_option
@engines_option
@safe_option
@state_options
@target_option
@input_options
@json_option
def adopt(
    file: Path,
    out: Path,
    state: tuple[str, ...],
    dim: tuple[str, ...],
    shape: tuple[str, ...],
    const: tuple[str, ...],
    init: tuple[str, ...],
    context: tuple[str, ...],
    yes: bool,
    safe: tuple[str, ...],
    state_storage: tuple[str, ...],
    target: str | None,
    input_ranges: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Make a bundle from FILE, whose state is among its inputs and outputs. Needs no torch.

    FILE is an ONNX file, or the YAML of a LEAPP export, whose feedback edges name the states. State
    pairs of an ONNX file that are not declared are looked for by shape, dtype and name, and shown
    for confirmation.

    \b
    Examples:
      stategate adopt policy.onnx --state h=h_out --dim batch=1 --out build/policy
      stategate adopt silero_vad.onnx --shape input=1,576 --shape state=2,1,128 \\
          --const sr=16000 --state state=stateN --out build/silero
      stategate adopt exported/policy.yaml --engines onnxruntime,native --out build/policy
    """
    options |= {
        "states": by_name(state, "--state", str),
        "dims": by_name(dim, "--dim", integer),
        "shapes": by_name(
            shape, "--shape", lambda text: tuple(integer(part) for part in text.split(","))
        ),
        "constants": by_name(const, "--const", str),
        "initial": by_name(init, "--init", _start),
        "contexts": by_name(context, "--context", integer),
        "input_ranges": input_ranges_of(input_ranges),
        "safe": safe_of(safe),
        "state_precision": kinds_of(state_storage),
        "target": load(target) if target else None,
        "accept_pairs": lambda adopted: _accepted(adopted, yes),
    }
    refuse_to_replace(out)  # what is refused here is refused before onnx is imported

    import stategate
    from stategate.cli.receipt import print_receipt

    print_receipt(stategate.adopt(file, out, **options), as_json)


def _start(text: str) -> np.ndarray | str:
    """The array of a ``.npy`` file; anything else is a number's text."""
    return load_npy(text) if text.endswith(".npy") else text


def _accepted(adopted: Adopted, yes: bool) -> bool:
    states = {state.name: state for state in adopted.candidate.spec.states}
    for name, next_name in adopted.pairs.items():
        shown = f"{states[name].dtype} {list(states[name].shape)}"
        click.echo(f"state {name} is fed from {next_name} ({shown}, {adopted.pairing})", err=True)
    return yes or (sys.stdin.isatty() and click.confirm("Is that right?", err=True))
