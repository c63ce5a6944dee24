"""``--safe``: what a session answers where a step fails before its episode has a good answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
import msgspec

if TYPE_CHECKING:
    from stategate.export.candidate import Candidate


def safe_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--safe`` to a command."""
    return click.option(
        "--safe",
        "safe",
        multiple=True,
        metavar="OUTPUT=VALUE",
        help="What an output answers where a step fails before there is a good answer: one number, "
        "or one for each element with commas between. Repeat: for every output or none.",
    )(command)


def with_safe(candidate: Candidate, texts: tuple[str, ...]) -> Candidate:
    """The candidate with declared safe outputs.

    Args:
        candidate: Its step.
        texts: What ``--safe`` was given.

    Raises:
        BadParameter: One is not OUTPUT=VALUE, or there is no such output.
        SpecError: A value does not fit its output, or an output has none.
    """
    if not texts:
        return candidate
    safe: dict[str, float | tuple[float, ...]] = {}
    known = [tensor.name for tensor in candidate.spec.outputs]
    for text in texts:
        name, _, value = text.rpartition("=")
        try:
            numbers = tuple(float(part) for part in value.split(","))
        except ValueError as problem:
            raise click.BadParameter(
                f"{text!r} is not of the form OUTPUT=VALUE", param_hint="--safe"
            ) from problem
        if name not in known or name in safe:
            what = "is given twice" if name in safe else f"is none of {', '.join(known)}"
            raise click.BadParameter(f"{name!r} {what}", param_hint="--safe")
        safe[name] = numbers[0] if len(numbers) == 1 else numbers
    outputs = tuple(
        msgspec.structs.replace(tensor, safe=safe.get(tensor.name, tensor.safe))
        for tensor in candidate.spec.outputs
    )
    return replace(candidate, spec=msgspec.structs.replace(candidate.spec, outputs=outputs))
