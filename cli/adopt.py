"""``stategate adopt``: an ONNX file or a LEAPP export with state becomes a verified bundle."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from stategate.common.console import progress
from stategate.contract import InputsRef, load_episode, refuse_to_replace
from stategate.contract.errors import StatePairingError
from stategate.contract.npz import load_npy
from stategate.export.engines_cli import deployed, engine_options
from stategate.export.frontends.adopt_request import Request
from stategate.export.inputs import drawn, input_options, parsed_ranges
from stategate.export.safe import safe_option, with_safe
from stategate.export.seal.verify import STRICT
from stategate.export.storage_cli import early_limits, storage_options, with_stored_states
from stategate.targets import generic, load

if TYPE_CHECKING:
    from stategate.export.frontends.adopt import Adopted
    from stategate.export.passes.choose_split import Asked


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The bundle's folder.")
@click.option("--state", "states", multiple=True, metavar="IN=OUT", help="A state pair; repeat.")
@click.option(
    "--dim", "dims", multiple=True, metavar="NAME=N", help="Pin a named dynamic axis; repeat."
)
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="INPUT=1,2,3",
    help="Pin the shape of an input; repeat.",
)
@click.option(
    "--const",
    "constants",
    multiple=True,
    metavar="INPUT=VALUE",
    help="Fix an input for ever; repeat.",
)
@click.option(
    "--init",
    "initial",
    multiple=True,
    metavar="STATE=VALUE",
    help="What a state starts with, a number or a .npy file; zeros if left out; repeat.",
)
@click.option(
    "--context",
    "contexts",
    multiple=True,
    metavar="INPUT=N",
    help="Keep the last N samples of an input as a state and put them in front of the next ones; "
    "the file takes both along the last axis; repeat for other inputs.",
)
@click.option("--yes", is_flag=True, help="Accept the state pairs that were found.")
@engine_options
@safe_option
@storage_options
@click.option("--target", help="Device it is for; this machine's if left out.")
@input_options
@click.option("--json", "as_json", is_flag=True, help="Print the receipt as JSON.")
def adopt(
    file: Path,
    out: Path,
    states: tuple[str, ...],
    dims: tuple[str, ...],
    shapes: tuple[str, ...],
    constants: tuple[str, ...],
    initial: tuple[str, ...],
    contexts: tuple[str, ...],
    yes: bool,
    engines: str,
    safe: tuple[str, ...],
    split: Asked,
    target: str | None,
    episode_path: Path | None,
    input_ranges: tuple[str, ...],
    steps: int,
    as_json: bool,
    state_storage: tuple[str, ...],
    error_feedback: bool,
    max_output_error: float | None,
    max_flip_rate: float | None,
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
    request = Request(
        dims={name: _integer(value, "--dim") for name, value in _pairs(dims, "--dim")},
        shapes={
            name: tuple(_integer(part, "--shape") for part in value.split(","))
            for name, value in _pairs(shapes, "--shape")
        },
        constants=dict(_pairs(constants, "--const")),
        states=dict(_pairs(states, "--state")),
        initial={name: _start(value) for name, value in _pairs(initial, "--init")},
        contexts={n: _integer(value, "--context") for n, value in _pairs(contexts, "--context")},
    )
    ranges = parsed_ranges(input_ranges)
    profile = load(target) if target else generic()
    refuse_to_replace(out)

    import onnx

    from stategate.export.frontends.adopt import OnnxReference
    from stategate.export.frontends.adopt import adopt as adopt_file
    from stategate.export.frontends.leapp import adopt_export
    from stategate.export.frontends.steering import check_steering, choices
    from stategate.export.seal.pack import seal
    from stategate.export.seal.receipt import print_receipt

    is_leapp = file.suffix in (".yaml", ".yml")
    adopted = adopt_export(file, request) if is_leapp else adopt_file(file, request)
    if adopted.found:
        _confirm(adopted, yes)
    for name, next_name in adopted.lookalikes.items():
        click.echo(
            f"note: input {name} looks as if it were fed from {next_name}; it is taken for an "
            f"ordinary input unless you say --state {name}={next_name}",
            err=True,
        )
    candidate = with_stored_states(adopted.candidate, state_storage, error_feedback)
    narrow = candidate is not adopted.candidate
    limits = early_limits(max_output_error, max_flip_rate) if narrow else STRICT
    model = onnx.load_model_from_string(candidate.graph)
    if episode_path is None:
        check_steering(model, candidate.spec.inputs, ranges)
        episode, inputs = drawn(
            candidate.spec, steps, ranges, choices(model, candidate.spec.inputs)
        )
    else:
        recorded = load_episode(episode_path, steps)
        recorded.check(candidate.spec)
        episode, inputs = recorded.resized(steps), InputsRef("recording", episode_path.name)
    candidate = deployed(with_safe(candidate, safe), engines, split, episode, here=target is None)
    reference = OnnxReference(adopted.candidate, request.contexts)
    with progress(episode.steps, "verifying") as report:
        bundle = seal(
            out,
            candidate,
            reference,
            episode,
            target=profile.ref(this_machine=target is None),
            limits=limits,
            report=report,
            inputs=inputs,
            measure=True,
        )
    print_receipt(bundle, as_json)


def _pairs(texts: Iterable[str], option: str) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise click.BadParameter(f"{text!r} is not of the form NAME=VALUE", param_hint=option)
        if name in dict(pairs):
            raise click.BadParameter(f"{name!r} is given twice", param_hint=option)
        pairs.append((name, value))
    return pairs


def _integer(text: str, option: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) == 0:
        raise click.BadParameter(f"{text!r} is not a positive integer", param_hint=option)
    return int(text)


def _start(text: str) -> np.ndarray | str:
    """The array of a ``.npy`` file; anything else is a number's text."""
    if not text.endswith(".npy"):
        return text
    return load_npy(text)


def _confirm(adopted: Adopted, yes: bool) -> None:
    states = {state.name: state for state in adopted.candidate.spec.states}
    for name, next_name in adopted.pairs.items():
        shown = f"{states[name].dtype} {list(states[name].shape)}"
        click.echo(f"state {name} is fed from {next_name} ({shown}, {adopted.found})", err=True)
    if yes or (sys.stdin.isatty() and click.confirm("Is that right?", err=True)):
        return
    raise StatePairingError(
        "the state pairs that were found are not confirmed",
        found=", ".join(f"{name}={next_name}" for name, next_name in adopted.pairs.items()),
        remedy="accept them with --yes, or declare them with --state",
    )
