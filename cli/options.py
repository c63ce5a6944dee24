"""Options that several verbs have, and what their texts mean."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterable
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

Verb = TypeVar("Verb", bound=Callable[..., Any])
Option = Callable[[Verb], Verb]
Value = TypeVar("Value")

STEPS = 1000

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
target_option = click.option("--target", help="Device it is for; this machine's if left out.")


def group_of(*options: Callable[[Any], Any]) -> Callable[[Verb], Verb]:
    """Several options as one decorator, in the order in which help shows them."""

    def add(verb: Verb) -> Verb:
        return reduce(lambda command, option: option(command), reversed(options), verb)

    return add


def out_option(text: str, *, folder: bool = True) -> Callable[[Verb], Verb]:
    """``--out``, which every verb needs that has it."""
    kind = click.Path(path_type=Path) if folder else click.Path(dir_okay=False, path_type=Path)
    return click.option("--out", type=kind, required=True, help=text)


ranges_option = click.option(
    "--ranges",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Ranges of activations, from: stategate ranges.",
)
precision_options = group_of(
    click.option(
        "--precision",
        default="float32",
        show_default=True,
        help="float32, float16-weights, int8-weights, int4-weights, int8, or a plan's .json file.",
    ),
    ranges_option,
)
accept_option = click.option(
    "--accept",
    metavar="WHO: WHY",
    help="Write a candidate that is beyond its limits; the receipt keeps who did, and why.",
)
state_options = group_of(
    click.option(
        "--state-storage",
        multiple=True,
        metavar="STATE=KIND",
        help="How a state is stored between steps: float16, int8 (a scale for each row) or "
        "int8-tensor; repeat. KIND alone is for every guarded float32 state.",
    ),
    click.option(
        "--error-feedback",
        is_flag=True,
        help="Keep what rounding to int8 left over, one more int8 for each element.",
    ),
    click.option(
        "--max-output-error",
        type=click.FloatRange(min=0, min_open=True),
        help="In lower precision: refuse it at once if an output's error, relative to its size, is "
        "larger in the check; left to the drift test if left out.",
    ),
    click.option(
        "--max-flip-rate",
        type=click.FloatRange(min=0, max=1),
        help="In lower precision: refuse it at once if a larger share of gate decisions differs in "
        "the check; left to the drift test if left out.",
    ),
)
engines_option = click.option(
    "--engines",
    type=click.Choice(["onnxruntime", "onnxruntime,native", "native"]),
    default="onnxruntime",
    show_default=True,
    help="What the bundle can be stepped with; onnxruntime,native adds C source and a library "
    "made of it, where that can be had, and native alone refuses a bundle without it.",
)
safe_option = click.option(
    "--safe",
    multiple=True,
    metavar="OUTPUT=VALUE",
    help="What an output answers where a step fails before there is a good answer: one number, "
    "or one for each element with commas between. Repeat: for every output or none.",
)
engine_options = group_of(
    click.option(
        "--split",
        type=click.Choice(["auto", "read-write", "quiet", "fused"]),
        default="auto",
        show_default=True,
        help="Whether a step is run in one graph, or in one that reads and one that writes where "
        "a gate opens; auto takes what is cheaper, by measurement where no --target is given.",
    ),
    engines_option,
    safe_option,
)
input_options = group_of(
    click.option(
        "--episode",
        type=click.Path(exists=True, path_type=Path),
        help="Inputs of the check, a .npz or a folder of them, repeated if short; the benchmark "
        "of a zoo model or random numbers if left out.",
    ),
    click.option(
        "--range",
        "input_ranges",
        multiple=True,
        metavar="INPUT=LOW:HIGH",
        help="Draw random numbers of an input evenly from LOW to HIGH, both included for "
        "integers; repeat.",
    ),
    click.option(
        "--steps",
        type=click.IntRange(min=1),
        default=STEPS,
        show_default=True,
        help="Closed-loop steps of the check.",
    ),
)


BUNDLE = click.Path(exists=True, file_okay=False, path_type=Path)
gate_option = click.option("--gate", help="Which hard gate, where there are several.")
cluster_option = click.option(
    "--cluster",
    metavar="ADDRESS",
    help="Roll the episodes on a Dask cluster, which finds the files under the same paths: local "
    "for the cores of this machine, or a scheduler such as tcp://10.0.0.7:8786.",
)
seed_option = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of everything drawn."
)


def episodes_option(text: str, *, required: bool = False) -> Callable[[Verb], Verb]:
    """``--episode``, files and folders, as often as one likes."""
    return click.option(
        "--episode",
        "episodes",
        multiple=True,
        required=required,
        type=click.Path(exists=True, path_type=Path),
        help=f"{text} (.npz, or a folder of them); repeat for more."
        + ("" if required else " For a zoo model its own benchmark, if left out."),
    )


def zoo_options(least: int) -> Callable[[Verb], Verb]:
    """``--steps`` and ``--episodes`` of a zoo model's own benchmark."""
    return group_of(
        click.option(
            "--steps",
            type=click.IntRange(min=1),
            default=2048,
            show_default=True,
            help="Of each episode, for the zoo.",
        ),
        click.option(
            "--episodes",
            "count",
            type=click.IntRange(min=least),
            default=4,
            show_default=True,
            help="How many, for the zoo.",
        ),
    )


def by_name(
    texts: Iterable[str],
    option: str,
    value: Callable[[str], Value],
    form: str = "NAME=VALUE",
    everything: str | None = None,
    last: bool = False,
) -> dict[str, Value]:
    """What a repeated option of the form ``NAME=VALUE`` says.

    Args:
        texts: As they were typed.
        option: Its name, for messages.
        value: Reads the text behind the equals sign; ValueError where it is no value.
        form: For messages.
        everything: The name that a value alone is for; None where a name is needed.
        last: Whether the last equals sign divides the two, because names may hold others.

    Raises:
        BadParameter: One is not of its form, or a name is given twice.
    """
    values: dict[str, Value] = {}
    for text in texts:
        name, equals, content = text.rpartition("=") if last else text.partition("=")
        if not equals and everything is not None:
            name, content = everything, text
        try:
            if not (name and content):
                raise ValueError("a name and a value are needed")
            read = value(content)
        except ValueError as problem:
            raise click.BadParameter(
                f"{text!r} is not of the form {form}: {problem}", param_hint=option
            ) from problem
        if name in values:
            raise click.BadParameter(f"{name!r} is given twice", param_hint=option)
        values[name] = read
    return values


def integer(text: str) -> int:
    """A positive integer."""
    if not (text.isascii() and text.isdecimal()) or int(text) == 0:
        raise ValueError(f"{text!r} is not a positive integer")
    return int(text)


def span(text: str) -> tuple[float, float]:
    """``LOW:HIGH``, two finite numbers in their order."""
    low, _, high = text.partition(":")
    numbers = float(low), float(high)
    if not (-math.inf < numbers[0] <= numbers[1] < math.inf):
        raise ValueError("two finite numbers in their order are needed")
    return numbers


def safe_value(text: str) -> float | tuple[float, ...]:
    """One number, or one for each element with commas between."""
    numbers = tuple(float(part) for part in text.split(","))
    return numbers[0] if len(numbers) == 1 else numbers


def input_ranges_of(texts: Iterable[str]) -> dict[str, tuple[float, float]]:
    """Ranges by input, of ``--range``."""
    return by_name(texts, "--range", span, "INPUT=LOW:HIGH, such as x=0:1")


def safe_of(texts: Iterable[str]) -> dict[str, float | tuple[float, ...]]:
    """Safe answers by output, of ``--safe``."""
    return by_name(texts, "--safe", safe_value, "OUTPUT=VALUE", last=True)


def kinds_of(texts: Iterable[str]) -> dict[str, Any]:
    """How states are stored, of ``--state-storage``; ``*`` is every guarded state."""
    return by_name(texts, "--state-storage", str, "STATE=KIND", everything="*", last=True)


def command_with(*arguments: object) -> str:
    """The command that is running, with the same options and other arguments."""
    ctx = click.get_current_context()
    words = ["stategate", *ctx.command_path.split()[1:], *map(str, arguments)]
    for option in ctx.command.params:
        typed = ctx.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE
        if isinstance(option, click.Option) and typed:
            value = ctx.params[str(option.name)]
            for each in value if option.multiple else [value]:
                words += [option.opts[0]] if option.is_flag else [option.opts[0], str(each)]
    return shlex.join(words)
