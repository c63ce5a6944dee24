"""Precision on the command line: a plan, its ranges, and what may be lost by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from stategate.common.console import who_and_why
from stategate.contract.errors import ExportError
from stategate.contract.precision import PRESETS, PrecisionPlan, RangeRecord
from stategate.export.seal.verify import STRICT, Limits
from stategate.export.storage_cli import early_limits, with_stored_states
from stategate.targets.profile import TargetProfile

if TYPE_CHECKING:
    from stategate.export.candidate import Candidate
_Command = TypeVar("_Command", bound=Callable[..., object])

_OPTIONS = (
    click.option(
        "--precision",
        default="float32",
        show_default=True,
        help=f"{', '.join(PRESETS)}, or a plan's .json file.",
    ),
    click.option(
        "--ranges",
        "ranges_path",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Ranges of activations, from: stategate ranges.",
    ),
    click.option(
        "--accept",
        metavar="WHO: WHY",
        help="Write a candidate that is beyond these two; the receipt keeps who did, and why.",
    ),
)


def precision_options(command: _Command) -> _Command:
    """Give a command the options that make a `Lower`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True)
class Lower:
    """What was asked for on the command line.

    Attributes:
        plan: What becomes smaller.
        ranges: Ranges of activations, where they were given.
        limits: How far the candidate may part from the float model.
        state_storage: ``STATE=KIND`` or ``KIND``, beside what the plan says of states.
        error_feedback: As in the plan.
    """

    plan: PrecisionPlan
    ranges: RangeRecord | None
    limits: Limits
    state_storage: tuple[str, ...]
    error_feedback: bool

    @classmethod
    def asked(
        cls,
        precision: str,
        ranges_path: Path | None,
        max_output_error: float | None,
        max_flip_rate: float | None,
        accept: str | None,
        state_storage: tuple[str, ...] = (),
        error_feedback: bool = False,
    ) -> Lower:
        """From the options' values.

        Raises:
            SpecError: No such plan, or nobody is named who accepts.
            CalibrationError: The ranges cannot be read.
        """
        plan = PrecisionPlan.named(precision)
        ranges = RangeRecord.load(ranges_path) if ranges_path else None
        strict = plan.is_float and not state_storage
        wide = early_limits(max_output_error, max_flip_rate, who_and_why(accept))
        limits = STRICT if strict else wide
        return cls(plan, ranges, limits, state_storage, error_feedback or plan.error_feedback)

    def of(self, candidate: Candidate, target: TargetProfile) -> Candidate:
        """The candidate in this precision; it has no chunk graph then.

        Raises:
            TargetError: The target does not have one of the plan's element types.
            CalibrationError: Ranges are missing, or are for another model.
            SpecError: The plan names something that the model lacks.
            ExportError: The plan quantises nothing.
        """
        target.check(self.plan)
        if {self.plan.weights, self.plan.activations} != {"float32"}:
            limits = None
            if self.ranges is not None:
                limits = self.ranges.limits(candidate.model.sha256, self.plan.method)
            wide, candidate = candidate, lowered(candidate, self.plan, limits)
            click.echo(_what_became_smaller(wide, candidate), err=True)
        again = {option.rpartition("=")[0] for option in self.state_storage}
        planned = self.plan.narrow_states.items()
        named = tuple(f"{name}={kind}" for name, kind in planned if name not in again)
        return with_stored_states(candidate, named + self.state_storage, self.error_feedback)


def _what_became_smaller(wide: Candidate, narrow: Candidate) -> str:
    """How many weights and bytes, or an error where these are not fewer."""
    import onnx

    from stategate.export.passes.quantise import chosen, projections, weight_bytes

    graphs = [onnx.load_model_from_string(c.graph) for c in (wide, narrow)]
    every = projections(graphs[0], wide.spec)
    before, after = map(weight_bytes, graphs)
    if after >= before:
        raise ExportError(
            "the plan makes nothing smaller",
            found=f"{after:,} bytes of weights and scales, and {before:,} in float32",
            expected="fewer bytes",
            remedy="export in float32, or leave projections with few inputs in keep_float",
        )
    return (
        f"weights: {len(chosen(narrow.plan, every))} of {len(every)} projections in "
        f"{narrow.plan.weights}, {before:,} bytes of constants become {after:,}"
    )


def lowered(
    candidate: Candidate, plan: PrecisionPlan, limits: Mapping[str, float] | None
) -> Candidate:
    """A float candidate with its step quantised.

    Args:
        candidate: In float32.
        plan: What becomes smaller.
        limits: Range of each activation, where the plan quantises those.

    Raises:
        CalibrationError: Ranges are missing.
        SpecError: The plan names something that the model lacks.
        ExportError: The plan quantises nothing.
    """
    import onnx

    from stategate.export.passes.quantise import quantised

    graph = quantised(onnx.load_model_from_string(candidate.graph), candidate.spec, plan, limits)
    return replace(
        candidate,
        graph=graph.SerializeToString(deterministic=True),
        plan=plan,
        float_sizes=candidate.sizes,
        made_with=(*candidate.made_with, "onnxruntime"),
        chunk=None,
        chunk_steps=0,
    )
