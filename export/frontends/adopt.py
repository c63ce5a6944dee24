"""An ONNX file that already carries its state as inputs and outputs becomes a bundle; no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from stategate.contract import ConstantSpec, Episode, StateSpec, StepSpec, TensorSpec
from stategate.contract.errors import GraphError, StatePairingError
from stategate.contract.failures import failures, first_line
from stategate.contract.manifest import ModelRef
from stategate.contract.reading import file_sha256
from stategate.export.candidate import ADOPTED, Candidate, Reference
from stategate.export.frontends.declared import (
    Request,
    context_of,
    filled,
    fitting,
    free_inputs,
    pinned_inputs,
    with_constants,
    with_context,
)
from stategate.export.frontends.file_reference import OnnxReference, Plain
from stategate.export.frontends.forgetting import check_calls_add_up, check_nothing_is_forgotten
from stategate.export.frontends.lifting.find import (
    Question,
    as_stream,
    remedy_for,
    remembered,
)
from stategate.export.frontends.lifting.lift import Lifted
from stategate.export.frontends.lifting.whole import StreamReference
from stategate.export.frontends.lifting.work import title
from stategate.export.frontends.pairing import (
    NO_STATE,
    Evidence,
    check_pairs,
    find_pairs,
    lookalikes,
)
from stategate.export.frontends.recurrent import STATES, carried_by_nodes
from stategate.export.frontends.steering import choices
from stategate.export.frontends.untrusted import load_graph, run_within_limits, unoptimised
from stategate.export.passes.dataflow import copies_of_inputs, read_on, used_inputs
from stategate.export.passes.graph import check_graph

Pairs = dict[str, str]


@dataclass(frozen=True, slots=True)
class Adopted:
    """A file that is ready to become a bundle."""

    candidate: Candidate
    pairs: Pairs  # output by state input
    pairing: str  # what the pairs were found by; empty where they were declared
    lookalikes: Pairs  # undeclared pairs that look like states, next to declared ones
    original: bytes  # the file, untouched
    contexts: Mapping[str, int]  # as in the request
    arrays: Mapping[str, np.ndarray]  # inputs of the file that became constants of the graph
    stream: Lifted | None = None  # how hidden memory became states; None where none was lifted
    notes: tuple[str, ...] = ()  # what the file does otherwise over several frames in one call
    plain: Plain | None = None  # a step of the files that the graph was merged from

    def reference(self, episode: Episode) -> Reference:
        """What the bundle has to equal: the file, in its own plain calls."""
        if self.stream is None:
            return OnnxReference(
                self.candidate, self.original, self.contexts, self.arrays, self.notes, self.plain
            )
        spec, first = self.candidate.spec, self.candidate.initial
        fixed = {**self.arrays, **{c.name: c.array() for c in spec.constants}}
        fixed |= {s.name: first.get(s.name, np.zeros(s.shape, s.dtype)) for s in spec.states}
        for lift in self.stream.lifts:
            del fixed[lift.state.name]
        plain = OnnxReference(self.candidate)
        return StreamReference(self.original, self.stream, fixed, episode, plain, self.pairs)


def adopt(path: Path, request: Request) -> Adopted:
    """Pin what is open in a graph, pair its states, and describe it; the file stays as it is."""
    original, file = load_graph(path)
    fixed = _constants(file, request)
    arrays = {n: value for n, value in fixed.items() if isinstance(value, np.ndarray)}
    constants = [value for value in fixed.values() if isinstance(value, ConstantSpec)]
    model = with_constants(file, arrays) if arrays else file
    numbers = {constant.name: constant.array() for constant in constants}
    question = Question(request.dims, request.shapes, numbers, request.time_axes)
    stream = _stream(model, request, question) if request.lift else None
    axes, hop = (stream.axes, stream.hop) if stream else ({}, 1)
    specs = pinned_inputs(file, request, axes, hop)
    inputs = {name: spec for name, spec in specs.items() if name not in fixed}
    hidden = tuple(lift.state for lift in stream.lifts) if stream else ()
    if stream is not None:
        model = stream.model
        inputs |= {state.name: TensorSpec(state.name, state.shape, state.dtype) for state in hidden}
    graph = original if stream is None and not arrays else _bytes(model)
    outputs = _probe(graph, inputs, constants)
    free = {n: spec for n, spec in inputs.items() if n not in {state.name for state in hidden}}
    answers = {n: t for n, t in outputs.items() if n not in {state.next_name for state in hidden}}
    # A memory that is handed back unchanged would keep its first value for ever.
    changed = {n: t for n, t in answers.items() if n not in copies_of_inputs(model)}
    pairs, pairing = _pairs(model, request, question, stream, free, changed)
    check_pairs(pairs, inputs, outputs)
    if unknown := sorted(set(request.contexts) - (set(free) - set(pairs))):
        raise GraphError(
            "a context is for something that is no input",
            found=", ".join(f"--context {name}" for name in unknown),
            expected=", ".join(sorted(set(free) - set(pairs))),
        )
    windows = [context_of(inputs[name], count) for name, count in request.contexts.items()]
    new_inputs = free | {new.name: new for new, _ in windows}
    spec = StepSpec(
        inputs=tuple(t for t in new_inputs.values() if t.name not in pairs),
        outputs=tuple(t for t in answers.values() if t.name not in pairs.values()),
        states=tuple(
            StateSpec(name, inputs[name].shape, inputs[name].dtype, next_name)
            for name, next_name in pairs.items()
        )
        + hidden
        + tuple(state for _, state in windows),
        constants=tuple(constants),
    )
    for new, state in windows:
        model = with_context(model, new, state)
        graph = _bytes(model)
    check_graph(model, spec, branch_free=False)
    initial = _initial(spec, request, stream)
    notes = check_nothing_is_forgotten(model, spec, question)
    if not (stream or windows):
        notes += check_calls_add_up(model, spec, question, initial)
    candidate = Candidate(
        model=ModelRef(path.stem, ADOPTED, path.name, file_sha256(path)[0]),
        spec=spec,
        graph=graph,
        made_with=("onnx", "onnxruntime"),
        initial=initial,
        metadata={entry.key: entry.value for entry in model.metadata_props},
        attached={f"adopted/{path.name}": original} if graph is not original else {},
    )
    alike = {} if stream else lookalikes(inputs, changed, pairs)
    return Adopted(
        candidate, pairs, pairing, alike, original, request.contexts, arrays, stream, notes
    )


def _bytes(model: onnx.ModelProto) -> bytes:
    raw: bytes = model.SerializeToString(deterministic=True)
    return raw


def _stream(model: onnx.ModelProto, request: Request, question: Question) -> Lifted:
    """What hides in the file as states."""
    if request.contexts:
        raise GraphError(
            "a context and what is lifted cannot be in one bundle yet",
            found=", ".join(f"--context {name}" for name in request.contexts),
            expected="--lift alone, which finds how much of the past each node reads",
        )
    stream = as_stream(model, question)
    if stream.obstacles:
        raise GraphError(
            "the file does not answer frame by frame, and no state can change that",
            found="; ".join(map(str, stream.obstacles)),
            expected="nodes that look at frames up to the present one",
            remedy="export a model with causal parts alone: one direction, padding in front",
        )
    if not stream.lifts:
        raise GraphError(
            "nothing in the file is hidden between the frames of one call",
            found=f"time along {', '.join(f'axis {i} of {n}' for n, i in stream.axes.items())}",
            expected="a recurrent node, a convolution or a sum over it",
            remedy="leave --lift out, or say with --time-axis INPUT=AXIS which axis is time",
        )
    return stream


def _pairs(
    model: onnx.ModelProto,
    request: Request,
    question: Question,
    stream: Lifted | None,
    inputs: Mapping[str, TensorSpec],
    outputs: Mapping[str, TensorSpec],
) -> tuple[Pairs, str]:
    """State pairs of the file itself, and what they were found by."""
    pairs, pairing = dict(request.states), ""
    if stream is not None:
        still = [name for name in inputs if name not in stream.axes]
        if still and not pairs:
            pairs, pairing = find_pairs(inputs, outputs, _evidence(model))
            pairs = {n: o for n, o in pairs.items() if n in still and not stream.results.get(o)}
        if others := [name for name in still if name not in pairs]:
            raise GraphError(
                "an input has no time axis, and is the same for a whole sequence",
                found=", ".join(others),
                expected="a time axis, a state or a constant",
                remedy="; ".join(f"--const {n}=VALUE (a number or a .npy file)" for n in others)
                + ", or --state INPUT=OUTPUT, or --time-axis INPUT=AXIS",
            )
        return pairs, pairing
    if pairs:
        return pairs, pairing
    try:
        return find_pairs(inputs, outputs, _evidence(model))
    except StatePairingError as problem:
        nothing = problem.what == NO_STATE
        memory = remembered(model, question, sure=False) if nothing else None
        nodes = ir.from_proto(model).graph.all_nodes()
        recurrent = [title(node) for node in nodes if node.op_type in STATES]
        if nothing and memory is None and recurrent:
            raise StatePairingError(
                "no input is a state, and the graph has recurrent nodes",
                found=", ".join(recurrent),
                expected="their memory as inputs and outputs",
                remedy="add --lift and say which axis is time, --time-axis INPUT=AXIS; or export "
                "the model with its states as inputs and outputs",
            ) from problem
        if memory is None or not (memory.lifts or memory.obstacles):
            raise
        raise StatePairingError(
            "no input is a state, and the graph forgets between two calls what it remembers "
            "within one",
            found="; ".join(map(str, [*memory.lifts, *memory.obstacles])),
            expected="its memory as inputs and outputs",
            remedy=remedy_for(memory),
        ) from problem


def _evidence(model: onnx.ModelProto) -> Evidence:
    return Evidence(used_inputs(model), read_on(model), carried_by_nodes(model))


def _constants(model: onnx.ModelProto, request: Request) -> dict[str, np.ndarray | ConstantSpec]:
    """Inputs that never change, by name: one number for all elements, or an array."""
    values = free_inputs(model)
    named = {name: values[name] for name in request.constants if name in values}
    # The other inputs may still be open here; a name that is none of them is refused with them.
    only = onnx.ModelProto()
    only.graph.input.extend(
        named.values() if len(named) == len(request.constants) else values.values()
    )
    declared = replace(
        request,
        dims={n: size for n, size in request.dims.items() if n in _axes(only)},
        shapes={n: shape for n, shape in request.shapes.items() if n in named},
    )
    specs = pinned_inputs(only, declared)
    fixed: dict[str, np.ndarray | ConstantSpec] = {}
    for name, value in request.constants.items():
        if isinstance(value, str):
            fixed[name] = filled(specs[name], value, "--const")
        else:
            fixed[name] = fitting(specs[name], value, f"input {name!r} cannot have this value")
    return fixed


def _axes(model: onnx.ModelProto) -> set[str]:
    return {d.dim_param for v in model.graph.input for d in v.type.tensor_type.shape.dim}


def _initial(spec: StepSpec, request: Request, stream: Lifted | None) -> dict[str, np.ndarray]:
    """Initial states, those that are zero left out."""
    lifted = {lift.state.name: lift.initial for lift in stream.lifts} if stream else {}
    states = {state.name: state for state in spec.states if state.name not in lifted}
    unknown = sorted(set(request.initial) - set(states))
    if unknown:
        raise GraphError(
            "an initial value is for an input that is no state of the file",
            found=", ".join(unknown),
            expected=", ".join(states) or "a state that the file has itself",
        )
    arrays = {name: array for name, array in lifted.items() if array.any()}
    for name, value in request.initial.items():
        state = states[name]
        if isinstance(value, str):
            value = filled(state, value, "--init").array()
        value = fitting(state, value, f"state {name!r} cannot start with this value")
        if value.any():
            arrays[name] = value
    return arrays


def _probe(
    graph: bytes, inputs: Mapping[str, TensorSpec], constants: Iterable[ConstantSpec]
) -> dict[str, TensorSpec]:
    """Shapes of the outputs, by running one step: files often leave them open."""
    feed = {t.name: np.zeros(t.shape, t.dtype) for t in inputs.values()}
    feed |= {constant.name: constant.array() for constant in constants}
    # A file may refuse a sample rate of zero.
    others = [
        {name: np.full_like(feed[name], value)}
        for name, values in choices(onnx.load_model_from_string(graph), inputs.values()).items()
        for value in values[:4]
    ]
    problems = []
    for other in ({}, *others):
        try:
            session = unoptimised(graph)
            names = [node.name for node in session.get_outputs()]
            arrays = run_within_limits(session, names, {**feed, **other})
            return {
                name: TensorSpec(name, array.shape, str(array.dtype))
                for name, array in zip(names, arrays, strict=True)
            }
        except GraphError:
            raise
        except failures() as problem:  # ONNX Runtime raises a dozen unrelated types
            problems.append(problem)
    raise GraphError(
        "the graph does not run with these shapes, or gives something that is no tensor",
        found=first_line(problems[0]),
        expected=", ".join(f"{t.name} {t.dtype} {list(t.shape)}" for t in inputs.values()),
        remedy="correct --dim, --shape and --const",
    ) from problems[0]
