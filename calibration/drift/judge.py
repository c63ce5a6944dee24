"""The float side of a comparison: what a candidate is judged by is sealed, and in float32."""

from __future__ import annotations

import shlex

import click
from click.core import ParameterSource

from stategate.contract import Bundle
from stategate.contract.errors import CalibrationError


def check_judge(reference: Bundle, candidate: Bundle | None = None, swapped: str = "") -> None:
    """Refuse a float side that is none.

    Args:
        reference: What stands in its place.
        candidate: What was to be judged by it.
        swapped: The command with the two exchanged, for a reader who mixed them up.

    Raises:
        CalibrationError: It is in lower precision, or not sealed.
    """
    if can_judge(reference):
        return
    manifest = reference.manifest
    mixed_up = candidate is not None and can_judge(candidate)
    raise CalibrationError(
        "a candidate is judged by the sealed float model"
        + (", which comes first: the two bundles are the wrong way round" if mixed_up else ""),
        found=f"{reference.path} in {manifest.step_graph.precision}, {manifest.standing}",
        expected="a sealed bundle in float32",
        remedy=swapped
        if mixed_up and swapped
        else "export the model without --precision and --state-storage",
    )


def command_with(ctx: click.Context, *arguments: object) -> str:
    """The command that is running, with the options that were given and other arguments."""
    words = ["stategate", str(ctx.info_name), *map(str, arguments)]
    for parameter in ctx.command.params:
        name = str(parameter.name)
        given = ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if not isinstance(parameter, click.Option) or not given:
            continue
        value = ctx.params[name]
        values = value if parameter.multiple else [value]
        for each in values:
            words += [parameter.opts[0]] if parameter.is_flag else [parameter.opts[0], str(each)]
    return shlex.join(words)


def can_judge(bundle: Bundle) -> bool:
    """Whether it is sealed and in float32."""
    return not bundle.manifest.is_lower and bundle.manifest.standing == "sealed"
