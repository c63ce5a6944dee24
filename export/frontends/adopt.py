"""An ONNX file that already carries its state as inputs and outputs becomes a bundle; no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from stategate.contract import ConstantSpec, ModelRef, StateSpec, StepSpec, TensorSpec
from stategate.contract.dtypes import dtype_from_onnx
from stategate.contract.errors import GraphError
from stategate.contract.failures import failures, first_line
from stategate.contract.reading import file_sha256
from stategate.export.candidate import ADOPTED, Candidate
from stategate.export.frontends.context import context_of, with_context
from stategate.export.frontends.forgetting import check_nothing_is_forgotten
from stategate.export.frontends.pairing import Evidence, check_pairs, find_pairs, lookalikes
from stategate.export.frontends.steering import Branches, choices
from stategate.export.frontends.untrusted import load_graph, run_within_limits, unoptimised
from stategate.export.passes.dataflow import copies_of_inputs, read_on, used_inputs
from stategate.export.passes.graph import check_graph


@dataclass(frozen=True, slots=True)
class Request:
    """What the user says about a file."""

    dims: Mapping[str, int]  # sizes of named dynamic axes
    shapes: Mapping[str, tuple[int, ...]]  # whole shapes of inputs, for axes without a name
    constants: Mapping[str, str]  # inputs that shall be fixed for ever, as text
    states: Mapping[str, str]  # output by state input; empty to look for pairs
    # What states start with: an array, or one number as text for all elements; else zeros.
    initial: Mapping[str, np.ndarray | str] = field(default_factory=dict)
    # Samples of the window before that an input begins with; see `export.frontends.context`.
    contexts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Adopted:
    """A file that is ready to become a bundle."""

    candidate: Candidate
    pairs: dict[str, str]  # output by state input
    pairing: str  # what the pairs were found by; empty where they were declared
    lookalikes: dict[str, str]  # undeclared pairs that look like states, next to declared ones


def adopt(path: Path, request: Request) -> Adopted:
    """Pin what is open in a graph, pair its states, and describe it; the file stays as it is.

    Args:
        path: The ONNX file.
        request: Declared axes, constants and states.

    Raises:
        GraphError: The file is no valid ONNX, an axis is still open, a constant or an initial
            value does not fit, or it forgets or draws random numbers.
        StatePairingError: Declared pairs do not fit, or none can be found without doubt.
    """
    graph, model = load_graph(path)
    specs = _pinned_inputs(model, request)
    constants = [_filled(specs[n], text, "--const") for n, text in request.constants.items()]
    inputs = {name: spec for name, spec in specs.items() if name not in request.constants}
    outputs = _probe(graph, inputs, constants)
    # A memory that is handed back unchanged would keep its first value for ever.
    changed = {name: t for name, t in outputs.items() if name not in copies_of_inputs(model)}
    pairs, pairing = dict(request.states), ""
    if not pairs:
        pairs, pairing = find_pairs(inputs, changed, Evidence(used_inputs(model), read_on(model)))
    check_pairs(pairs, inputs, outputs)
    if unknown := sorted(set(request.contexts) - (set(inputs) - set(pairs))):
        raise GraphError(
            "a context is for something that is no input",
            found=", ".join(f"--context {name}" for name in unknown),
            expected=", ".join(sorted(set(inputs) - set(pairs))),
        )
    windows = [context_of(inputs[name], count) for name, count in request.contexts.items()]
    free = inputs | {new.name: new for new, _ in windows}
    spec = StepSpec(
        inputs=tuple(t for t in free.values() if t.name not in pairs),
        outputs=tuple(t for t in outputs.values() if t.name not in pairs.values()),
        states=tuple(
            StateSpec(name, inputs[name].shape, inputs[name].dtype, next_name)
            for name, next_name in pairs.items()
        )
        + tuple(state for _, state in windows),
        constants=tuple(constants),
    )
    original = {f"adopted/{path.name}": graph} if windows else {}
    for new, state in windows:
        model = with_context(model, new, state)
        graph = model.SerializeToString(deterministic=True)
    check_graph(model, spec, branch_free=False)
    check_nothing_is_forgotten(model, spec)
    candidate = Candidate(
        model=ModelRef(path.stem, ADOPTED, path.name, file_sha256(path)[0]),
        spec=spec,
        graph=graph,
        made_with=("onnx", "onnxruntime"),
        initial=_initial(spec, request),
        metadata={entry.key: entry.value for entry in model.metadata_props},
        attached=original,
    )
    return Adopted(candidate, pairs, pairing, lookalikes(inputs, changed, pairs))


class OnnxReference:
    """The graph as its author would run it: plain calls, no optimisation, state fed back.

    Args:
        candidate: Of `adopt`.
        contexts: As in the request; the file itself is run, with the samples put in front here.
    """

    def __init__(self, candidate: Candidate, contexts: Mapping[str, int] | None = None) -> None:
        self.name = f"onnxruntime {onnxruntime.__version__} run(), optimisations off"
        spec = candidate.spec
        raw = next(iter(candidate.attached.values()), candidate.graph)
        model = onnx.load_model_from_string(raw)
        self._branches = Branches(model, (c.name for c in spec.constants))
        self._contexts = {f"{name}.context": name for name in contexts or {}}
        self._session = unoptimised(_with_outputs(model, self._branches.conditions) or raw)
        self._states = {s.name: np.zeros(s.shape, s.dtype) for s in spec.states}
        self._states |= candidate.initial
        self._fixed = {c.name: c.array() for c in spec.constants}
        self._next = {s.name: s.next_name for s in spec.states if s.name not in self._contexts}
        outputs = [t.name for t in spec.outputs] + [*self._next.values()]
        self._promised = {name: spec.graph_outputs()[name].shape for name in outputs}
        self._names = [*dict.fromkeys([*outputs, *self._branches.conditions])]

    @property
    def notes(self) -> tuple[str, ...]:
        """What the steps so far did not show."""
        return self._branches.notes()

    def step(
        self, inputs: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Outputs, states after the step, and no gates.

        Raises:
            GraphError: An output came in another shape than in the step before.
        """
        feed = {**inputs, **self._fixed, **self._states}
        after = {}
        for context, name in self._contexts.items():
            before = feed.pop(context)
            feed[name] = np.concatenate([before, feed[name]], axis=-1)
            after[context] = feed[name][..., -before.shape[-1] :]
        arrays = run_within_limits(self._session, self._names, feed)
        results = dict(zip(self._names, arrays, strict=True))
        self._branches.add({**feed, **results})
        for name, shape in self._promised.items():
            if results[name].shape != shape:
                raise GraphError(
                    f"output {name!r} changes its shape from call to call",
                    found=f"{list(results[name].shape)} after {list(shape)}",
                    expected="one shape for ever",
                    remedy="a memory of changing size is no state; pad it to a fixed shape",
                )
        self._states = after | {name: results[output] for name, output in self._next.items()}
        states = {*self._next.values()}
        outputs = {name: results[name] for name in self._promised if name not in states}
        return outputs, self._states, {}


def _pinned_inputs(model: onnx.ModelProto, request: Request) -> dict[str, TensorSpec]:
    """Every input with the shape that the user pins it to; the graph itself stays untouched."""
    constants = {tensor.name for tensor in model.graph.initializer}
    values = {v.name: v for v in model.graph.input if v.name not in constants}
    dims = [dim for value in values.values() for dim in value.type.tensor_type.shape.dim]
    axes = dict.fromkeys(sorted(dim.dim_param for dim in dims if dim.dim_param))
    for option, names, candidates, error, hint in (
        ("--shape", request.shapes, values, "the graph has no such input", ""),
        ("--const", request.constants, values, "the graph has no such input", ""),
        (
            "--dim",
            request.dims,
            axes,
            "no input has a dynamic axis of that name",
            "none of its axes has a name; use --shape",
        ),
    ):
        unknown = [f"{option} {name}" for name in sorted(set(names) - set(candidates))]
        if unknown:
            raise GraphError(
                error, found=", ".join(unknown), expected=", ".join(candidates) or hint
            )
    return {name: _pinned(value, request) for name, value in values.items()}


def _pinned(value: onnx.ValueInfoProto, request: Request) -> TensorSpec:
    dims = value.type.tensor_type.shape.dim
    shown = f"{value.name}[{', '.join(str(d.dim_value or d.dim_param or '?') for d in dims)}]"
    shape = tuple(d.dim_value or request.dims.get(d.dim_param, 0) for d in dims)
    wish = request.shapes.get(value.name, shape)
    if len(wish) != len(shape) or any(a != s for a, s in zip(wish, shape, strict=True) if s):
        raise GraphError(
            f"input {value.name!r} cannot take this shape",
            found=f"--shape {value.name}={','.join(map(str, wish))}",
            expected=shown,
        )
    if 0 in wish:
        raise GraphError(
            f"input {value.name!r} has open axes",
            found=shown,
            expected="a fixed shape",
            remedy="--dim NAME=SIZE for named axes, --shape NAME=1,2,3 for others, or "
            "--const NAME=VALUE to fix the input itself",
        )
    return TensorSpec(value.name, wish, dtype_from_onnx(value.type.tensor_type.elem_type).name)


def _filled(spec: TensorSpec | StateSpec, text: str, option: str) -> ConstantSpec:
    """A tensor with one value everywhere.

    A constant stays an input: baked into the graph, it makes ONNX Runtime 1.32 inline the branches
    that it decides, and that crashes on silero-vad's graph.
    """
    try:
        if spec.dtype == "bool":
            value: bool | float = {"true": True, "1": True, "false": False, "0": False}[text]
        else:
            value = float(text) if spec.dtype.startswith("float") else int(text)
        return ConstantSpec(spec.name, spec.shape, spec.dtype, value)
    except (KeyError, ValueError) as problem:
        raise GraphError(
            f"input {spec.name!r} cannot have this value",
            found=f"{option} {spec.name}={text}",
            expected=f"one finite {spec.dtype}",
        ) from problem


def _initial(spec: StepSpec, request: Request) -> dict[str, np.ndarray]:
    """Initial states, those that are zero left out."""
    states = {state.name: state for state in spec.states}
    unknown = sorted(set(request.initial) - set(states))
    if unknown:
        raise GraphError(
            "an initial value is for an input that is no state",
            found=", ".join(unknown),
            expected=", ".join(states),
        )
    arrays = {}
    for name, value in request.initial.items():
        state = states[name]
        if isinstance(value, str):
            value = _filled(state, value, "--init").array()
        fits = value.shape == state.shape and value.dtype == state.dtype
        if not fits or not np.isfinite(value).all():
            raise GraphError(
                f"state {name!r} cannot start with this value",
                found=f"{value.dtype} {list(value.shape)}{', not finite' if fits else ''}",
                expected=f"finite {state.dtype} {list(state.shape)}",
            )
        if value.any():
            arrays[name] = value
    return arrays


def _with_outputs(model: onnx.ModelProto, conditions: Iterable[str]) -> bytes | None:
    """The file with the conditions of its branches as outputs; None where it has them all."""
    visible = {value.name for value in (*model.graph.input, *model.graph.output)}
    hidden = [name for name in conditions if name not in visible]
    for name in hidden:
        value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.BOOL, None)
        model.graph.output.append(value)
    return model.SerializeToString() if hidden else None


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
