"""From an ONNX file that carries its own state to a verified bundle, in one call; no torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from stategate.common import console
from stategate.contract import Bundle, Episode, refuse_to_replace
from stategate.contract.arguments import checks_kinds
from stategate.contract.claims import Observes
from stategate.contract.errors import StatePairingError
from stategate.contract.numbers import whole
from stategate.contract.precision import PrecisionPlan, RangeRecord
from stategate.contract.receipts import InputsRef
from stategate.contract.staging import scratch_folder
from stategate.export.candidate import Candidate
from stategate.export.deploy import (
    Engines,
    SafeOutputs,
    check_choices,
    deployed,
    engines_for,
    with_safe,
)
from stategate.export.frontends.adopt import Adopted
from stategate.export.frontends.adopt import adopt as adopt_file
from stategate.export.frontends.declared import Request
from stategate.export.frontends.leapp import adopt_export
from stategate.export.frontends.observation import observation_of
from stategate.export.frontends.pooled import pooled, rows_of, rows_reference
from stategate.export.frontends.prologue import adopted_prologue, split_request, with_prologue
from stategate.export.frontends.steering import check_steering
from stategate.export.inputs import Range, drawn, recorded
from stategate.export.passes.choose_split import Layout
from stategate.export.precision import StatePrecision, early_limits, in_precision
from stategate.export.seal.pack import seal
from stategate.export.seal.verify import STEPS, STRICT
from stategate.targets import TargetProfile, generic, load


@checks_kinds
def adopt(
    source: str | Path | onnx.ModelProto,
    out: str | Path,
    *,
    states: Mapping[str, str] | None = None,
    accept_pairs: bool | Callable[[Adopted], bool] = False,
    dims: Mapping[str, int] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    constants: Mapping[str, np.ndarray | str | float] | None = None,
    initial: Mapping[str, np.ndarray | str | float] | None = None,
    contexts: Mapping[str, int] | None = None,
    lift: bool = False,
    time_axes: Mapping[str, int] | None = None,
    episode: str | Path | Episode | None = None,
    input_ranges: Mapping[str, Range] | None = None,
    steps: int = STEPS,
    sessions: int = 1,
    session_axes: Mapping[str, int] | None = None,
    precision: str | Path | PrecisionPlan = "float32",
    ranges: RangeRecord | str | Path | None = None,
    state_precision: StatePrecision | None = None,
    error_feedback: bool = False,
    max_output_error: float | None = None,
    max_flip_rate: float | None = None,
    accept: str | None = None,
    engines: Engines = "onnxruntime",
    split: Layout = "auto",
    safe: SafeOutputs | None = None,
    target: str | TargetProfile | None = None,
    observes: Observes | None = None,
    prologue: str | Path | None = None,
    prologue_outputs: Mapping[str, str] | None = None,
    progress: console.Progress | None = None,
) -> Bundle:
    """Make a verified bundle of an ONNX file whose state is among its inputs and outputs.

    The file stays as it is: its plain calls, without optimisations and with the state fed back, are
    what the bundle is held against in closed loop.

        bundle = stategate.adopt("policy.onnx", "build/policy", states={"h": "h_out"})

    Args:
        source: An ONNX file, an ``onnx.ModelProto``, or the YAML of a LEAPP export.
        out: The bundle's folder; an older bundle there is replaced.
        states: Output by the state input that it is fed to. Left out: pairs are looked for.
        accept_pairs: Whether states that were found are taken, or who is asked.
        dims: Sizes of named dynamic axes.
        shapes: Whole shapes of inputs, for axes without a name.
        constants: Inputs that are fixed for ever: an array, or a number for all elements.
        initial: What a state starts with: an array, or a number for all elements; zeros otherwise.
        contexts: Samples of the window before that an input begins with.
        lift: Make states of the memory that hides between the frames of one call: recurrent nodes
            without a state of their own, convolutions over time. The bundle takes one frame a step
            and is held against the untouched file over whole sequences.
        time_axes: Axis of frames by input, where the graph does not show it.
        episode: Inputs of the check; random numbers where it is None. See `stategate.make`.
        input_ranges: See `stategate.make`, like all that follows.
        steps: Closed-loop steps of the check.
        sessions: Sessions that one step serves; more than one makes a bundle for a `Pool`.
        session_axes: Axis of an input, state or output that belongs to the sessions, where that is
            no open axis called batch; counted from 0, as the file has it.
        precision: A preset such as ``int8-weights``, a plan, or a plan's ``.json``. What comes out
            is a candidate: `stategate.compare` judges it beside the float bundle.
        ranges: Of activations, where the precision needs them: `stategate.measure_ranges` of the
            float bundle.
        state_precision: How states are stored between steps.
        error_feedback: Keep what rounding a state to int8 left over.
        max_output_error: In lower precision, largest output error of the check.
        max_flip_rate: In lower precision, largest share of gate decisions that may differ.
        accept: ``"WHO: WHY"`` writes a candidate that is beyond these two limits.
        engines: What the bundle can be stepped with.
        split: One graph or two.
        safe: What each output answers where a step fails before there is a good answer.
        target: The device.
        observes: What inputs and outputs mean; it goes before what the file's metadata says.
        prologue: An ONNX file that gives the first states of an episode, such as an encoder; see
            `Session.begin`. Its axes are ``prologue.NAME`` in ``dims`` and ``shapes``.
        prologue_outputs: Output of it by the state that it fills; those of the states' names where
            it is None.
        progress: Called with stage, steps done and steps in all.

    Raises:
        GraphError: It is no valid ONNX, an axis is still open, or it forgets or draws random
            numbers.
        StatePairingError: Pairs do not fit, none can be found without doubt, or those that were
            found are not accepted.
        ParityError: The bundle does not behave like the file.
        EpisodeError: The inputs do not fit the model.
        BundleError: Something that is not a bundle is at ``out``.
    """
    check_choices(engines=(engines, Engines), split=(split, Layout))
    steps, sessions = whole("steps", steps), whole("sessions", sessions)
    out = Path(out)
    plan = precision if isinstance(precision, PrecisionPlan) else PrecisionPlan.named(precision)
    if ranges is not None and not isinstance(ranges, RangeRecord):
        ranges = RangeRecord.load(ranges)
    lower = not plan.is_float or bool(state_precision)
    limits = early_limits(max_output_error, max_flip_rate, accept, lower=lower)
    request = Request(
        dims=dims or {},
        shapes=shapes or {},
        constants=_arrays_or_texts(constants),
        states=states or {},
        initial=_arrays_or_texts(initial),
        contexts=contexts or {},
        lift=lift,
        time_axes=time_axes or {},
    )
    request, prologue_request = split_request(request)
    profile = target if isinstance(target, TargetProfile) else load(target) if target else generic()
    engines = engines_for(profile, engines)
    profile.check(plan)
    refuse_to_replace(out)
    adopted = _adopted(source, request)
    to_confirm = adopted.pairing or adopted.stream
    if to_confirm and not (accept_pairs(adopted) if callable(accept_pairs) else accept_pairs):
        proposals = [f"{name}={next_name}" for name, next_name in adopted.pairs.items()]
        if adopted.stream:
            proposals += map(str, adopted.stream.lifts)
        raise StatePairingError(
            "the states that were found are not confirmed",
            found="; ".join(proposals),
            remedy="accept them with --yes"
            + ("" if adopted.stream else ", or declare them with --state"),
        )
    for name, next_name in adopted.lookalikes.items():
        console.note(
            f"note: input {name} looks as if it were fed from {next_name}; it is taken for an "
            f"ordinary input unless you say --state {name}={next_name}"
        )
    candidate, axes = adopted.candidate, session_axes or {}
    if sessions > 1 or axes:
        candidate, axes = pooled(candidate, sessions, axes)
        file = f"adopted/{candidate.model.source.rpartition(':')[2]}"
        candidate = replace(candidate, attached={file: adopted.original})
    described = replace(
        candidate,
        observation=observation_of(
            candidate.metadata, candidate.spec, candidate.sessions, observes
        ),
    )
    if prologue is not None:
        encoder = adopted_prologue(
            Path(prologue), prologue_outputs or {}, prologue_request, described.spec
        )
        described = with_prologue(described, encoder)
    candidate = in_precision(described, plan, ranges, state_precision, error_feedback)
    inputs, origin = _inputs(candidate, axes, episode, steps, input_ranges or {})
    candidate = deployed(
        with_safe(candidate, safe or {}), engines, split, inputs, measure=target is None
    )
    with console.progress(inputs.steps, "verifying", listener=progress) as report:
        return seal(
            out,
            candidate,
            adopted.reference(inputs)
            if sessions == 1
            else rows_reference(adopted.reference, inputs, axes, sessions),
            inputs,
            target=profile.ref(this_machine=target is None),
            limits=limits if lower else STRICT,
            report=report,
            inputs=origin,
            measure=True,
        )


def _arrays_or_texts(
    values: Mapping[str, np.ndarray | str | float] | None,
) -> dict[str, np.ndarray | str]:
    return {n: v if isinstance(v, np.ndarray) else str(v) for n, v in (values or {}).items()}


def _adopted(source: str | Path | onnx.ModelProto, request: Request) -> Adopted:
    if isinstance(source, onnx.ModelProto):
        # Judged like a file: by another process, within limits.
        with scratch_folder() as folder:
            name = re.sub(r"\W+", "-", source.graph.name, flags=re.ASCII).strip("-") or "model"
            file = Path(folder) / f"{name[:64]}.onnx"
            file.write_bytes(source.SerializeToString(deterministic=True))
            return adopt_file(file, request)
    file = Path(source)
    return (adopt_export if file.suffix in (".yaml", ".yml") else adopt_file)(file, request)


def _inputs(
    candidate: Candidate,
    axes: Mapping[str, int],
    episode: str | Path | Episode | None,
    steps: int,
    ranges: Mapping[str, Range],
) -> tuple[Episode, InputsRef]:
    spec, sessions = candidate.spec, candidate.sessions
    if episode is None:
        model = onnx.load_model_from_string(candidate.graph)
        check_steering(model, spec.inputs, ranges)
        return drawn(spec, steps, ranges, model)
    inputs, name = recorded(episode, steps * sessions, ranges)
    if sessions > 1:
        inputs = rows_of(inputs, spec, axes, sessions)
    inputs.check(spec, starts=True)
    return inputs.resized(steps), InputsRef("recording", name)
