"""From a model to a verified bundle, in one call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, SupportsIndex, TypeAlias

from stategate.common import console
from stategate.contract import Budget, Bundle, CalibrationRecord, Episode, refuse_to_replace
from stategate.contract.arguments import checks_kinds
from stategate.contract.claims import Observes
from stategate.contract.numbers import whole
from stategate.contract.precision import PrecisionPlan, RangeRecord
from stategate.contract.staging import scratch_folder
from stategate.export.candidates import candidate_from, episode_for, reference_for
from stategate.export.deferred import DeferredReference, check_deferred, deferred
from stategate.export.deploy import (
    Engines,
    SafeOutputs,
    check_choices,
    deployed,
    engines_for,
    with_safe,
)
from stategate.export.frontends.observation import observation_of
from stategate.export.frontends.prologue import with_prologue
from stategate.export.frontends.trace_prologue import Encoder, traced_prologue
from stategate.export.inputs import Range
from stategate.export.passes.choose_split import Layout
from stategate.export.precision import StatePrecision, early_limits, in_precision
from stategate.export.seal.answers import readable_errors
from stategate.export.seal.length import WISHES, choose_length
from stategate.export.seal.pack import seal
from stategate.export.seal.rounding import strict_limits
from stategate.export.seal.verify import STEPS
from stategate.models.deferral import DeferredStep
from stategate.models.load import evaluating
from stategate.targets import TargetProfile, generic, load

Record: TypeAlias = CalibrationRecord | str | Path
Form = Literal["portable", "onnx-27", "ort"]


@checks_kinds
def make(
    model: object,
    out: str | Path,
    *,
    episode: str | Path | Episode | None = None,
    input_ranges: Mapping[str, Range] | None = None,
    steps: int = STEPS,
    calibration: Record | Iterable[Record] = (),
    precision: str | Path | PrecisionPlan = "float32",
    ranges: RangeRecord | str | Path | None = None,
    state_precision: StatePrecision | None = None,
    error_feedback: bool = False,
    max_output_error: float | None = None,
    max_flip_rate: float | None = None,
    accept: str | None = None,
    engines: Engines = "onnxruntime",
    split: Layout = "auto",
    operators: Form = "portable",
    sessions: int = 1,
    safe: SafeOutputs | None = None,
    target: str | TargetProfile | None = None,
    require_tensorrt: bool = False,
    max_state_bytes: int | None = None,
    observes: Observes | None = None,
    prologue: Encoder | None = None,
    defer: int | str | None = None,
    progress: console.Progress | None = None,
) -> Bundle:
    """Make a verified bundle of a torch model.

    One step is traced, and stepped in closed loop beside the model, which is left as it was. The
    bundle is written only where outputs, states and every gate decision agree.

        bundle = stategate.make(MyPolicy(), "build/policy", episode="log.npz")
        print(bundle.receipt)

    Args:
        model: A module with ``step_spec()`` and ``step(inputs, states)``, what `stategate.models.
            lift` makes of one, a recurrent policy of rsl_rl or stable-baselines3, a class or
            function without arguments that makes one, a zoo name, or ``"file.py:factory"``.
        out: The bundle's folder; an older bundle there is replaced.
        episode: Inputs of the check, an `Episode`, a ``.npz`` or a folder of them, repeated where
            they are short. Left out: the benchmark of a zoo model, or random numbers.
        input_ranges: Lowest and highest number by input, where random numbers are drawn.
        steps: Closed-loop steps of the check.
        calibration: A record with a gate's threshold, of `stategate.calibrate`, or several.
        precision: A preset such as ``int8-weights``, a plan, or a plan's ``.json``.
        ranges: Of activations, where the precision needs them; `stategate.quantise` measures them.
        state_precision: How states are stored between steps: ``float16``, ``int8`` (a scale a row)
            or ``int8-tensor``, for every guarded state or by name.
        error_feedback: Keep what rounding a state to int8 left over.
        max_output_error: In lower precision, largest output error of the check, as a share of the
            output's size; left to `stategate.compare` where it is None.
        max_flip_rate: In lower precision, largest share of gate decisions that may differ.
        accept: ``"WHO: WHY"`` writes a candidate that is beyond these two limits.
        engines: What the bundle can be stepped with; ``native`` alone refuses one without C.
        split: One graph, or one that reads and one that writes where a gate opens.
        operators: Primitive operators, opset 27's, or ONNX Runtime's own.
        sessions: Sessions that one step serves; more than one makes a bundle for a `Pool`.
        safe: What each output answers where a step fails before there is a good answer.
        target: The device, by its name or profile; this machine's kind where it is None.
        require_tensorrt: Refuse a step that a TensorRT of the target would not take.
        max_state_bytes: Budget: refuse a larger memory, all sessions together.
        observes: What inputs and outputs mean: an `ObservationContract`, names of the elements,
            names by input, or a YAML or JSON file; it goes before what an adapter says.
        prologue: A module that gives the first states of an episode, and an example of each of its
            inputs; the model's attribute ``prologue`` where it is None. See `Session.begin`.
        defer: Write the matrices of a delta-rule memory once in so many writes, with the same
            answers; ``auto`` for the fastest on this machine, which may be the plain form, or
            ``fewest-bytes``. See docs/guides/defer.md.
        progress: Called with stage, steps done and steps in all; a bar is shown on a terminal
            where it is None.

    Raises:
        TraceError: The model cannot be stepped or traced, or has memory that it does not declare.
        ParityError: The candidate does not behave like the model.
        ExportError: Anything else about the graph; see its subclasses.
        SpecError: An argument names something that the model lacks, or the budget is passed.
        EpisodeError: The inputs do not fit the model.
        CalibrationError: A record or ranges are missing, or are for another model.
        BundleError: Something that is not a bundle is at ``out``.
        TargetError: There is no such target, or it lacks an element type.
    """
    check_choices(engines=(engines, Engines), split=(split, Layout), operators=(operators, Form))
    steps, sessions = whole("steps", steps), whole("sessions", sessions)
    budget = None if max_state_bytes is None else whole("max_state_bytes", max_state_bytes)
    out = Path(out)
    plan = precision if isinstance(precision, PrecisionPlan) else PrecisionPlan.named(precision)
    if ranges is not None and not isinstance(ranges, RangeRecord):
        ranges = RangeRecord.load(ranges)
    lower = not plan.is_float or bool(state_precision)
    limits = early_limits(max_output_error, max_flip_rate, accept, lower=lower)
    profile = target if isinstance(target, TargetProfile) else load(target) if target else generic()
    engines = engines_for(profile, engines)
    this_machine = target is None
    refuse_to_replace(out)
    with evaluating(model) as loaded:
        stepped, why = loaded, ""
        length: SupportsIndex | str | None
        if defer is not None:
            check_deferred(sessions, operators, lower)
            length = defer
            if defer in WISHES:
                with scratch_folder() as scratch:
                    length, why = choose_length(
                        str(defer),
                        DeferredStep(loaded.module, 2).model.rings(),
                        lambda n: make(
                            model,
                            Path(scratch) / str(n),
                            episode=episode,
                            input_ranges=input_ranges,
                            steps=64,
                            calibration=calibration,
                            engines=engines,
                            split=split,
                            defer=n,
                        ),
                    )
                console.note(why)
            stepped = loaded if length is None else deferred(loaded, length)
        candidate = with_safe(candidate_from(stepped, sessions, operators), safe or {})
        if why:
            candidate = replace(candidate, metadata={**candidate.metadata, "deferral": why})
        records = [calibration] if isinstance(calibration, Record) else calibration
        for record in records:
            if not isinstance(record, CalibrationRecord):
                record = CalibrationRecord.load(Path(record))
            candidate = candidate.calibrated(record)
        candidate = replace(
            candidate,
            observation=observation_of(
                {}, candidate.spec, sessions, observes, candidate.observation
            ),
        )
        reference = reference_for(loaded.model, candidate)
        if isinstance(stepped.model, DeferredStep):
            reference = DeferredReference(reference, stepped.model.model.rings(), candidate)
        profile.check(plan)
        candidate = in_precision(candidate, plan, ranges, state_precision, error_feedback)
        if require_tensorrt or profile.jetpack is not None:
            from stategate.export.tensorrt.target import note_tensorrt  # for a Jetson only

            candidate = note_tensorrt(candidate, profile, required=require_tensorrt)
        encoder = prologue or getattr(loaded.model, "prologue", None)
        if encoder is not None:
            candidate = with_prologue(candidate, traced_prologue(encoder, candidate.spec))
        inputs, source = episode_for(loaded, candidate, episode, steps, input_ranges)
        candidate = deployed(candidate, engines, split, inputs, this_machine)
        if candidate.float_sizes is None:
            with readable_errors(loaded.name, inputs, source, 0):
                limits = strict_limits(loaded.model, candidate, inputs)
        if limits.because:
            console.note(f"errors may be {limits.error:.2g}: {limits.because}")
        with console.progress(inputs.steps, "verifying", listener=progress) as report:
            return seal(
                out,
                candidate,
                reference,
                inputs,
                target=profile.ref(this_machine=this_machine),
                budget=Budget(budget),
                limits=limits,
                report=report,
                inputs=source,
                measure=True,
            )
