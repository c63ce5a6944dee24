"""A candidate in fewer bits: weights and activations by a plan, states by kind, and its limits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import msgspec
import onnx

from stategate.common.console import note, who_and_why
from stategate.contract import StepSpec
from stategate.contract.errors import ExportError, SpecError
from stategate.contract.numbers import bounded
from stategate.contract.precision import PrecisionPlan, RangeRecord
from stategate.contract.stored import KINDS
from stategate.export.candidate import ADOPTED, Candidate
from stategate.export.passes.graph import serialised
from stategate.export.passes.pinned import pinned
from stategate.export.passes.projections import chosen, left_in_float, projections, weight_bytes
from stategate.export.passes.quantise import quantised
from stategate.export.passes.state_precision import stored
from stategate.export.seal.verify import Limits
from stategate.export.timing import median_us

StateKind = Literal["float32", "float16", "int8", "int8-tensor"]
StatePrecision = StateKind | Mapping[str, StateKind]
"""How states are stored between steps: a kind for every guarded float32 state, or a kind by name,
where the name ``*`` stands for every guarded float32 state that is not named."""


def in_precision(
    candidate: Candidate,
    plan: PrecisionPlan,
    ranges: RangeRecord | None = None,
    states: StatePrecision | None = None,
    error_feedback: bool = False,
) -> Candidate:
    """The candidate in a plan's precision; it has no chunk graph then."""
    if {plan.weights, plan.activations} != {"float32"}:
        limits = None if ranges is None else ranges.limits(candidate.model.sha256, plan.method)
        graph, spec = with_constant_weights(candidate.graph, candidate.spec, candidate.model.family)
        sizes = candidate.sizes
        wide = replace(candidate, graph=graph, spec=spec, attached={})
        candidate = replace(lowered(wide, plan, limits), float_sizes=sizes)
        note(_savings(wide, candidate))
    kinds = dict(plan.narrow_states) | by_name(states, candidate.spec)
    feedback = error_feedback or plan.error_feedback
    if feedback and not kinds:
        raise SpecError(
            "error feedback needs states that are stored in fewer bits",
            expected=f"--state-storage {' or '.join(KINDS[2:])} with --error-feedback",
        )
    return with_stored_states(candidate, kinds, feedback)


def with_constant_weights(graph: bytes, spec: StepSpec, family: str) -> tuple[bytes, StepSpec]:
    """An adopted step, and its signature, with weights that a plan can find; others as they are.

    A stranger's file computes weights from constants, hides them in branches that a constant input
    decides, or stores them in fewer bits. Here that is done once, and nothing constant is fed.
    """
    if family != ADOPTED:
        return graph, spec
    model = pinned(onnx.load_model_from_string(graph), spec, widened=True)
    return serialised(model), msgspec.structs.replace(spec, constants=())


def early_limits(
    max_output_error: float | None,
    max_flip_rate: float | None,
    accept: str | None = None,
    *,
    lower: bool = True,
) -> Limits:
    """What a candidate in lower precision must keep before its drift is looked at."""
    error = bounded("max_output_error", math.inf if max_output_error is None else max_output_error)
    flips = bounded("max_flip_rate", 1.0 if max_flip_rate is None else max_flip_rate, 1.0)
    who = who_and_why(accept)
    if not lower and (max_output_error, max_flip_rate, accept) != (None, None, None):
        raise SpecError(
            "limits of the check are for a candidate in lower precision",
            found="float32, which has limits of its own, and nobody can accept more",
            remedy="leave --max-output-error, --max-flip-rate and --accept out",
        )
    return Limits(error, flips, who)


def with_stored_states(
    candidate: Candidate, kinds: Mapping[str, str], error_feedback: bool = False
) -> Candidate:
    """The candidate with states stored in fewer bits between steps; the same without any."""
    if not kinds:
        return candidate
    narrow = stored(candidate, kinds, error_feedback)
    sizes = [sum(state.bytes for state in c.spec.states) for c in (candidate, narrow)]
    times = [median_us(c.graph, c.spec) for c in (candidate, narrow)]
    note(
        f"states: {sizes[0]:,} bytes become {sizes[1]:,}, and a step of {times[0]:.0f} us takes "
        f"{times[1]:.0f} us in ONNX Runtime on this machine"
    )
    return narrow


def by_name(states: StatePrecision | None, spec: StepSpec) -> dict[str, str]:
    """The kind of each state; ``*`` stands for guarded float32 states that are not named."""
    kinds: dict[str, str] = dict({"*": states} if isinstance(states, str) else states or {})
    every = kinds.pop("*", None)
    if every is None:
        return kinds
    guarded = [s.name for s in spec.states if s.gate is not None and s.dtype == "float32"]
    if not guarded:
        raise SpecError(
            "no gate guards a float32 state",
            found=f"{every} for every guarded state",
            expected=", ".join(s.name for s in spec.states),
            remedy=f"name states: --state-storage {spec.states[0].name}={every}"
            if spec.states
            else None,
        )
    return dict.fromkeys(guarded, every) | kinds


def _savings(wide: Candidate, narrow: Candidate) -> str:
    """How many weights and bytes, or an error where these are not fewer."""
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
    smaller = chosen(narrow.plan, every)
    floats = left_in_float(smaller, every, graphs[0])
    return (
        f"weights: {len(smaller)} of {len(every)} projections in "
        f"{narrow.plan.weights}, {before:,} bytes of constants become {after:,}"
        + (f"; in float stay {floats}" if floats else "")
    )


def lowered(
    candidate: Candidate, plan: PrecisionPlan, limits: Mapping[str, float] | None
) -> Candidate:
    """A float candidate with its step quantised."""
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
