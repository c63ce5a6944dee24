"""The options of ``stategate export`` that say how states are stored between steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from stategate.contract import StepSpec
from stategate.contract.stored import KINDS
from stategate.export.pack import Candidate
from stategate.export.storage import stored

MAX_OUTPUT_ERROR = 0.05
MAX_FLIP_RATE = 0.001


def storage_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add these options, and the limits of a candidate in lower precision, to a command."""
    flips = click.option(
        "--max-flip-rate",
        type=click.FloatRange(min=0, max=1),
        default=MAX_FLIP_RATE,
        show_default=True,
        help="In lower precision: share of gate decisions that may differ.",
    )
    error = click.option(
        "--max-output-error",
        type=click.FloatRange(min=0, min_open=True),
        default=MAX_OUTPUT_ERROR,
        show_default=True,
        help="In lower precision: largest error of an output, relative to its size.",
    )
    feedback = click.option(
        "--error-feedback",
        is_flag=True,
        help="Keep what rounding to int8 left over, one more int8 for each element.",
    )
    storage = click.option(
        "--state-storage",
        multiple=True,
        metavar="STATE=KIND",
        help="How a state is stored between steps: float16, int8 (a scale for each row) or "
        "int8-tensor; repeat. KIND alone is for every guarded float32 state.",
    )
    return storage(feedback(error(flips(command))))


def with_stored_states(
    candidate: Candidate, state_storage: tuple[str, ...], error_feedback: bool
) -> Candidate:
    """The candidate with its states stored as the options say.

    Raises:
        UsageError: The options are malformed, or meet no state.
        ExportError: A state cannot be stored so.
    """
    if not state_storage and not error_feedback:
        return candidate
    return stored(candidate, _parsed(state_storage, candidate.spec), error_feedback)


def _parsed(options: tuple[str, ...], spec: StepSpec) -> dict[str, str]:
    storage: dict[str, str] = {}
    for option in options:
        name, equals, kind = option.rpartition("=")
        if equals and not name:
            raise click.BadParameter(f"{option!r} names no state", param_hint="--state-storage")
        guarded = [s.name for s in spec.states if s.gate is not None and s.dtype == "float32"]
        if not name and not guarded:
            raise click.BadParameter(
                f"no gate guards a float32 state; name states: STATE={kind}",
                param_hint="--state-storage",
            )
        storage |= dict.fromkeys([name] if name else guarded, kind)
    if not storage:
        raise click.UsageError(f"--error-feedback needs --state-storage {' or '.join(KINDS[2:])}")
    return storage
