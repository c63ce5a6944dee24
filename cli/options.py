"""Options that several verbs have, and what their texts mean."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterable
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from stategate.cli.recordings import episodes_given, recording_options
from stategate.contract.bundle import refuse_inside_bundle, refuse_to_replace
from stategate.contract.durable import check_writable
from stategate.contract.precision import PrecisionPlan

if TYPE_CHECKING:
    from stategate.targets import TargetProfile

Verb = TypeVar("Verb", bound=Callable[..., Any])
Value = TypeVar("Value")
Command = TypeVar("Command", bound=click.Command)


class Number(click.FloatRange):
    """A finite number of a range."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Refuse NaN, which is neither too small nor too large, and infinity."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


COUNT, INDEX = click.IntRange(min=1), click.IntRange(min=0)
SHARE, PRICE, POSITIVE = Number(0, 1), Number(min=0), Number(min=0, min_open=True)
ANY_PATH = click.Path(path_type=Path)
EXISTING = click.Path(exists=True, path_type=Path)
EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
BUNDLE = click.Path(exists=True, file_okay=False, path_type=Path)


def with_json(command: Command) -> Command:
    """A command that prints its result as JSON on ``--json``; see `stategate.cli.show`."""
    command.params.append(_JSON)
    return command


def verb(name: str | None = None) -> Callable[[Callable[..., Any]], click.Command]:
    """A verb that shows a result."""
    return lambda function: with_json(click.command(name)(function))


def bundle_verb(name: str | None = None) -> Callable[[Callable[..., Any]], click.Command]:
    """A verb whose first argument is a bundle."""
    return lambda function: verb(name)(bundle_argument(function))


def option(*names: str, **settings: Any) -> Callable[[Verb], Verb]:
    """An option whose help shows its default."""
    return click.option(*names, show_default=True, **settings)


def flag(name: str, text: str, *names: str) -> Callable[[Verb], Verb]:
    """An option without a value."""
    return click.option(name, *names, is_flag=True, help=text)


def repeated(
    name: str, metavar: str, text: str, *names: str, read: Callable[[Any], Any] = tuple
) -> Callable[[Verb], Verb]:
    """An option that may stand several times; ``read`` makes of all texts what the verb takes."""
    return click.option(
        name,
        *names,
        multiple=True,
        metavar=metavar,
        callback=lambda ctx, param, texts: read(texts),
        help=text,
    )


def group_of(*options: Callable[[Any], Any]) -> Callable[[Verb], Verb]:
    """Several options as one decorator, in the order in which help shows them."""

    def add(verb: Verb) -> Verb:
        return reduce(lambda command, option: option(command), reversed(options), verb)

    return add


def out_option(text: str, kind: click.Path = ANY_PATH, **settings: Any) -> Callable[[Verb], Verb]:
    """``--out``, which a verb needs unless ``required`` says otherwise."""
    rest = {"required": True, "callback": _writable, **settings}
    return option("--out", type=kind, help=text, **rest)


def _writable(ctx: click.Context, param: click.Parameter, out: Path | None) -> Path | None:
    """Refuse at once what could not be written after the work."""
    if out is not None:
        is_filled = param.type is FOLDER
        refuse_inside_bundle(out, is_filled=is_filled)
        check_writable(out / "x" if is_filled or out.is_dir() else out)
    return out


def _profile(ctx: click.Context, param: click.Parameter, name: str | None) -> TargetProfile | None:
    from stategate.targets import load  # a device with Python 3.10 has no reader of its files

    return load(name) if name else None


def _replaceable(ctx: click.Context, param: click.Parameter, out: Path) -> Path:
    refuse_to_replace(refuse_inside_bundle(out))
    return out


def bundle_out_option(text: str = "The bundle's folder.") -> Callable[[Verb], Verb]:
    """``--out`` of a verb that makes a bundle: what is there is a bundle, or nothing."""
    return out_option(text, callback=_replaceable)


def episode_option(text: str, *names: str, **settings: Any) -> Callable[[Verb], Verb]:
    """``--episode``, one file or folder."""
    help_ = f"Recorded inputs: a .npz, a folder of them, or a recording{text}"
    return group_of(
        click.option(
            "--episode",
            *names,
            type=EXISTING,
            callback=episodes_given,
            **{"help": help_, **settings},
        ),
        recording_options,
    )


def steps_option(
    text: str, default: int | None, kind: click.IntRange = COUNT
) -> Callable[[Verb], Verb]:
    """``--steps``."""
    return option("--steps", type=kind, default=default, help=text)


def seed_option(text: str = "Of everything drawn.", default: int = 0) -> Callable[[Verb], Verb]:
    """``--seed``."""
    return option("--seed", type=INDEX, default=default, help=text)


bundle_argument = click.argument("bundle", type=ANY_PATH)
_JSON = click.Option(
    ["--json"],
    is_flag=True,
    expose_value=False,
    callback=lambda ctx, param, is_given: is_given and ctx.meta.update({"stategate.json": True}),
    help="Print the result as JSON.",
)
bundles_argument = click.argument("bundles", nargs=-1, required=True, type=ANY_PATH)
root_option = option(
    "--root",
    type=ANY_PATH,
    default=Path("/"),
    help="Where etc, proc, sys, usr and dev lie; a copy of another machine's.",
)
target_option = click.option(
    "--target",
    callback=_profile,
    help="Device it is for; this machine's if left out.",
)
engine_option = option(
    "--engine",
    default="auto",
    help="What steps it, such as native or tensorrt; several by commas are tried in turn.",
)
ranges_option = click.option(
    "--ranges", type=EXISTING_FILE, help="Ranges of activations, from: stategate model ranges."
)
accept_option = click.option(
    "--accept",
    metavar="WHO: WHY",
    help="Take a candidate that is beyond its limits; the receipt keeps who did, and why.",
)


def precision_option(
    default: str,
    text: str = "float32, float16-weights, int8-weights, int4-weights, int8, or a plan's .json "
    "file.",
) -> Callable[[Verb], Verb]:
    """``--precision``."""
    return option(
        "--precision",
        default=default,
        callback=lambda ctx, param, text: PrecisionPlan.named(text),
        help=text,
    )


state_options = group_of(
    repeated(
        "--state-storage",
        "STATE=KIND",
        "How a state is stored between steps: float16, int8 (a scale for each row) or "
        "int8-tensor; repeat. KIND alone is for every guarded float32 state.",
        "state_precision",
        read=lambda texts: kinds_of(texts),
    ),
    flag("--error-feedback", "Keep what rounding to int8 left over, one more int8 an element."),
    option(
        "--max-output-error",
        type=POSITIVE,
        help="In lower precision: refuse it at once if an output's error, relative to its size, is "
        "larger in the check; left to the drift test if left out.",
    ),
    option(
        "--max-flip-rate",
        type=SHARE,
        help="In lower precision: refuse it at once if a larger share of gate decisions differs in "
        "the check; left to the drift test if left out.",
    ),
)
engines_option = option(
    "--engines",
    type=click.Choice(["onnxruntime", "onnxruntime,native", "native"]),
    default="onnxruntime",
    help="What the bundle can be stepped with; onnxruntime,native adds C source and a library "
    "made of it, where that can be had, and native alone refuses a bundle without it.",
)
safe_option = repeated(
    "--safe",
    "OUTPUT=VALUE",
    "What an output answers where a step fails before there is a good answer: one number, "
    "or one for each element with commas between. Repeat: for every output or none.",
    read=lambda texts: by_name(texts, "--safe", safe_value, "OUTPUT=VALUE", last=True),
)
split_option = option(
    "--split",
    type=click.Choice(["auto", "read-write", "quiet", "fused"]),
    default="auto",
    help="Whether a step is run in one graph, or in one that reads and one that writes where "
    "a gate opens; auto takes what is cheaper, by measurement where no --target is given.",
)
observes_option = click.option(
    "--observes",
    type=EXISTING_FILE,
    help="What the numbers of inputs and outputs mean: names in order, scales, history, joints, "
    "rate, reset rules; a YAML or JSON file, or the env.yaml of an Isaac Lab or mjlab training.",
)
check_steps_option = steps_option("Closed-loop steps of the check.", 1000)
input_options = group_of(
    episode_option(
        "",
        help="Inputs of the check, a .npz or a folder of them, repeated if short; the benchmark "
        "of a zoo model or random numbers if left out.",
    ),
    repeated(
        "--range",
        "INPUT=LOW:HIGH",
        "Draw random numbers of an input evenly from LOW to HIGH, both included for "
        "integers; repeat.",
        "input_ranges",
        read=lambda texts: by_name(texts, "--range", span, "INPUT=LOW:HIGH, such as x=0:1"),
    ),
    check_steps_option,
)


def making_options(precision: str) -> Callable[[Verb], Verb]:
    """What every verb that makes a bundle of a model takes; ``precision`` is the default."""
    return group_of(
        bundle_out_option(),
        engines_option,
        safe_option,
        precision_option(precision),
        ranges_option,
        state_options,
        accept_option,
        target_option,
        observes_option,
    )


sessions_option = option(
    "--sessions",
    type=COUNT,
    default=1,
    help="Sessions that one step serves; more than one makes a bundle for a pool.",
)
whole_options = group_of(sessions_option, split_option, input_options)
cluster_option = click.option(
    "--cluster",
    metavar="ADDRESS",
    help="Roll the episodes on a Dask cluster, which finds the files under the same paths: local "
    "for the cores of this machine, or a scheduler such as tcp://10.0.0.7:8786.",
)


def episodes_option(text: str, *, required: bool = False) -> Callable[[Verb], Verb]:
    """``--episode``, files and folders, as often as one likes."""
    help_ = f"{text} (.npz, a folder of them, or a recording); repeat for more."
    help_ += "" if required else " For a zoo model its own benchmark, if left out."
    return episode_option("", "episodes", multiple=True, required=required, help=help_)


def zoo_options(least: int) -> Callable[[Verb], Verb]:
    """``--steps`` and ``--episodes`` of a zoo model's own benchmark."""
    most = click.IntRange(min=least)
    return group_of(
        steps_option("Of each episode, for the zoo.", 2048),
        option("--episodes", "count", type=most, default=4, help="How many, for the zoo."),
    )


def by_name(
    texts: Iterable[str],
    option: str,
    value: Callable[[str], Value],
    form: str,
    everything: str | None = None,
    last: bool = False,
) -> dict[str, Value]:
    """What a repeated option says whose texts have a ``form`` such as ``NAME=VALUE``.

    ``everything`` is the name that a value alone is for; with ``last`` the last equals sign divides
    name and value, because names may hold others.
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


trust_option = option(
    "--trust",
    type=EXISTING_FILE,
    help="Public key, certificate or policy: refuse a bundle that none of them signed.",
)


def safe_value(text: str) -> float | tuple[float, ...]:
    """One number, or one for each element with commas between."""
    numbers = tuple(float(part) for part in text.split(","))
    return numbers[0] if len(numbers) == 1 else numbers


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
            name = str(option.name)
            shown = ctx.meta.get(f"stategate.typed.{name}", ctx.meta.get(f"stategate.{name}"))
            value = ctx.params[name] if shown is None else shown
            for each in value if option.multiple else [value]:
                words += [option.opts[0]] if option.is_flag else [option.opts[0], str(each)]
    return shlex.join(words)
