"""The options of ``export`` and ``adopt`` that say what steps a bundle, and in how many graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from stategate.contract import Episode
from stategate.contract.errors import LowerError

if TYPE_CHECKING:
    from stategate.export.candidate import Candidate
    from stategate.export.passes.choose_split import Asked


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--split`` and ``--engines`` to a command."""
    split = click.option(
        "--split",
        type=click.Choice(["auto", "read-write", "quiet", "fused"]),
        default="auto",
        show_default=True,
        help="Whether a step is run in one graph, or in one that reads and one that writes where "
        "a gate opens; auto takes what is cheaper, by measurement where no --target is given.",
    )
    engines = click.option(
        "--engines",
        type=click.Choice(["onnxruntime", "onnxruntime,native", "native"]),
        default="onnxruntime",
        show_default=True,
        help="What the bundle can be stepped with; onnxruntime,native adds C source and a library "
        "made of it, where that can be had, and native alone refuses a bundle without it.",
    )
    return split(engines(command))


def deployed(
    candidate: Candidate, engines: str, split: Asked, episode: Episode, here: bool
) -> Candidate:
    """The candidate with what the options ask for.

    Args:
        candidate: Its step in the precision in which it is deployed.
        engines: ``--engines``.
        split: ``--split``.
        episode: See `in_its_way`.
        here: See `in_its_way`.

    Raises:
        SplitError: The way that was asked for is none for this model, or gives other bits.
        LowerError: Native alone was asked for, and C cannot say this step.
    """
    from stategate.export.passes.choose_split import in_its_way

    if engines != "onnxruntime":
        candidate = with_c(candidate, required=engines == "native")
    return in_its_way(candidate, split, episode, here)


def with_c(candidate: Candidate, *, required: bool = False) -> Candidate:
    """The candidate with its step as C source, or with the reason why C cannot say it.

    Args:
        candidate: Its step in the precision in which it is deployed.
        required: Whether a bundle without a native engine is refused.

    Raises:
        LowerError: C cannot say it, and that is required.
    """
    from stategate.export.c.lower import lower

    try:
        source = lower(candidate.graph, candidate.spec, candidate.initial)
    except LowerError as problem:
        if required:
            raise
        return replace(candidate, no_native=" ".join(str(problem).split()))
    return replace(candidate, c_source=source, needs_native=required)
