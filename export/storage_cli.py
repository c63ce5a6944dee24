"""The options of ``stategate export`` that say how states are stored between steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from stategate.contract import StepSpec
from stategate.contract.stored import KINDS
from stategate.export.seal.verify import Limits

if TYPE_CHECKING:
    from stategate.export.candidate import Candidate


def storage_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add these options, and the limits of a candidate in lower precision, to a command."""
    flips = click.option(
        "--max-flip-rate",
        type=click.FloatRange(min=0, max=1),
        help="In lower precision: refuse it at once if a larger share of gate decisions differs in "
        "the parity check; left to the drift test if left out.",
    )
    error = click.option(
        "--max-output-error",
        type=click.FloatRange(min=0, min_open=True),
        help="In lower precision: refuse it at once if an output's error, relative to its size, is "
        "larger in the parity check; left to the drift test if left out.",
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


def early_limits(
    max_output_error: float | None, max_flip_rate: float | None, accept: str | None = None
) -> Limits:
    """What a candidate in lower precision must keep before its drift is looked at."""
    error = math.inf if max_output_error is None else max_output_error
    return Limits(error, 1.0 if max_flip_rate is None else max_flip_rate, accept)


def with_stored_states(
    candidate: Candidate, state_storage: tuple[str, ...], error_feedback: bool
) -> Candidate:
    """The candidate with its states stored as the options say.

    Raises:
        UsageError: The options are malformed, or meet no state.
        ExportError: A state cannot be stored so.
    """
    from stategate.export.passes.state_precision import stored
    from stategate.export.timing import median_us

    if not state_storage and not error_feedback:
        return candidate
    narrow = stored(candidate, _parsed(state_storage, candidate.spec), error_feedback)
    both = candidate, narrow
    bytes_ = [sum(state.bytes for state in c.spec.states) for c in both]
    times = [median_us(c.graph, c.spec) for c in both]
    click.echo(
        f"states: {bytes_[0]:,} bytes become {bytes_[1]:,}, and a step of {times[0]:.0f} us takes "
        f"{times[1]:.0f} us in ONNX Runtime on this machine",
        err=True,
    )
    return narrow


def _parsed(options: tuple[str, ...], spec: StepSpec) -> dict[str, str]:
    storage: dict[str, str] = {}
    every: dict[str, str] = {}  # what a name says counts more than a kind for all, in any order
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
        known = storage if name else every
        if name in known or (every and not name):
            raise click.BadParameter(
                f"{name or 'a kind for every state'} is given twice", param_hint="--state-storage"
            )
        known |= dict.fromkeys([name] if name else guarded, kind)
    storage = every | storage
    if not storage:
        raise click.UsageError(f"--error-feedback needs --state-storage {' or '.join(KINDS[2:])}")
    return storage
