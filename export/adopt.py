"""An ONNX file that already carries its state as inputs and outputs becomes a bundle; no torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from stategate.contract import ConstantSpec, ModelRef, StateSpec, StepSpec, TensorSpec, sha256
from stategate.contract.dtypes import dtype_from_onnx
from stategate.contract.errors import GraphError, StatePairingError
from stategate.export.graph import check_graph
from stategate.export.pack import Candidate

_DIRECTIONS = re.compile(r"(past|present|prev|next|new|input|output|out|in|_?n$|[^a-z0-9])")
_ALIKE = 0.6


@dataclass(frozen=True, slots=True)
class Request:
    """What the user says about a file.

    Attributes:
        dims: Sizes of named dynamic axes.
        shapes: Whole shapes of inputs, for axes without a name.
        constants: Inputs that shall be fixed for ever, as text.
        states: Output name by state input name; empty to look for pairs.
    """

    dims: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]
    constants: Mapping[str, str]
    states: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Adopted:
    """A file that is ready to become a bundle.

    Attributes:
        candidate: For `stategate.export.pack.seal`.
        pairs: State input to state output.
        found: Whether the pairs were found rather than declared.
        lookalikes: Undeclared inputs that look like states beside declared ones.
    """

    candidate: Candidate
    pairs: dict[str, str]
    found: bool
    lookalikes: dict[str, str]


def adopt(path: Path, request: Request) -> Adopted:
    """Pin what is open in a graph, pair its states, and describe it; the file stays as it is.

    Args:
        path: The ONNX file.
        request: Declared axes, constants and states.

    Raises:
        GraphError: The file is no valid ONNX, or an axis is still open.
        StatePairingError: Declared pairs do not fit, or none can be found without doubt.
    """
    graph, model = _load(path)
    specs = _pinned_inputs(model, request)
    constants = [_constant(specs, name, text) for name, text in request.constants.items()]
    inputs = {name: spec for name, spec in specs.items() if name not in request.constants}
    outputs = _probe(graph, inputs, constants)
    pairs = dict(request.states) or find_pairs(inputs, outputs)
    _check_pairs(pairs, inputs, outputs)
    spec = StepSpec(
        inputs=tuple(t for t in inputs.values() if t.name not in pairs),
        outputs=tuple(t for t in outputs.values() if t.name not in pairs.values()),
        states=tuple(
            StateSpec(name, inputs[name].shape, inputs[name].dtype, next_name)
            for name, next_name in pairs.items()
        ),
        constants=tuple(constants),
    )
    check_graph(model, spec, branch_free=False)
    candidate = Candidate(
        model=ModelRef(path.stem, "adopted", path.name, sha256(path.read_bytes())),
        spec=spec,
        graph=graph,
        made_with=("onnx", "onnxruntime"),
        metadata={entry.key: entry.value for entry in model.metadata_props},
    )
    return Adopted(candidate, pairs, not request.states, _lookalikes(inputs, outputs, pairs))


def _lookalikes(
    inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec], pairs: Mapping[str, str]
) -> dict[str, str]:
    free_inputs = {n: t for n, t in inputs.items() if n not in pairs}
    free_outputs = {n: t for n, t in outputs.items() if n not in pairs.values()}
    try:
        return find_pairs(free_inputs, free_outputs)
    except StatePairingError:
        return {}


class OnnxReference:
    """The graph as its author would run it: plain calls, no optimisation, state fed back."""

    def __init__(self, candidate: Candidate) -> None:
        self.name = f"onnxruntime {onnxruntime.__version__} run(), optimisations off"
        self._session = _unoptimised(candidate.graph)
        self._spec = candidate.spec
        self._fixed = _arrays(candidate.spec.constants)
        self._states = {s.name: np.zeros(s.shape, s.dtype) for s in candidate.spec.states}

    def step(
        self, inputs: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Outputs, states after the step, and no gates."""
        names = [t.name for t in self._spec.outputs] + [s.next_name for s in self._spec.states]
        feed = {**inputs, **self._fixed, **self._states}
        given = dict(zip(names, self._session.run(names, feed), strict=True))
        self._states = {s.name: given.pop(s.next_name) for s in self._spec.states}
        return given, self._states, {}


def find_pairs(
    inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec]
) -> dict[str, str]:
    """State pairs by shape, dtype and likeness of names.

    Raises:
        StatePairingError: Nothing fits, or something fits twice.
    """
    candidates = {
        i.name: [o.name for o in outputs.values() if (o.shape, o.dtype) == (i.shape, i.dtype)]
        for i in inputs.values()
    }
    pairs: dict[str, str] = {}
    for name, possible in candidates.items():
        ranked = sorted(((_likeness(name, o), o) for o in possible), reverse=True)
        alike = [(score, o) for score, o in ranked if score >= _ALIKE]
        if not alike:
            continue
        if len(alike) > 1 and alike[0][0] == alike[1][0]:
            raise _undecided(f"input {name!r} fits several outputs equally well", candidates)
        pairs[name] = alike[0][1]
    if not pairs or len(set(pairs.values())) < len(pairs):
        what = "no input looks like a state" if not pairs else "two inputs fit the same output best"
        raise _undecided(what, candidates)
    return pairs


def _likeness(a: str, b: str) -> float:
    plain_a, plain_b = (_DIRECTIONS.sub("", name.lower()) or name.lower() for name in (a, b))
    return difflib.SequenceMatcher(None, plain_a, plain_b).ratio()


def _undecided(what: str, candidates: Mapping[str, list[str]]) -> StatePairingError:
    listed = [
        f"{name} -> {' or '.join(outputs)}" for name, outputs in candidates.items() if outputs
    ]
    return StatePairingError(
        what,
        found="; ".join(listed) or "no input and output of equal shape and dtype",
        expected="one output of equal shape and dtype for each state",
        remedy="declare the pairs: --state INPUT=OUTPUT, once for each state",
    )


def _check_pairs(
    pairs: Mapping[str, str], inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec]
) -> None:
    for name, next_name in pairs.items():
        for side, key, known in (("input", name, inputs), ("output", next_name, outputs)):
            if key not in known:
                raise StatePairingError(
                    f"the graph has no {side} {key!r}",
                    found=f"--state {name}={next_name}",
                    expected=", ".join(known),
                )
        taken, given = inputs[name], outputs[next_name]
        if (taken.shape, taken.dtype) != (given.shape, given.dtype):
            raise StatePairingError(
                f"state {name!r} cannot be fed from output {next_name!r}",
                found=f"{taken.dtype} {taken.shape} and {given.dtype} {given.shape}",
                expected="equal shape and dtype",
                remedy="a memory that grows or changes is no constant-size state; "
                "or pin its axes with --dim or --shape",
            )
        if list(pairs.values()).count(next_name) > 1:
            sharing = sorted(n for n, o in pairs.items() if o == next_name)
            raise StatePairingError(
                f"two states are paired with one output {next_name!r}",
                found=", ".join(sharing),
                expected="an output for each state",
            )


def _load(path: Path) -> tuple[bytes, onnx.ModelProto]:
    """The file as it is, and parsed; weights that lie beside it are taken in."""
    try:
        raw = path.read_bytes()
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except OSError as problem:
        raise GraphError("the file cannot be read", found=f"{path}: {problem}") from problem
    except Exception as problem:  # protobuf and the checker raise unrelated types
        raise GraphError(
            f"{path} is not a valid ONNX file",
            found=str(problem).splitlines()[0] if str(problem) else type(problem).__name__,
            expected="a complete .onnx file",
        ) from problem
    inside = onnx.load_model_from_string(raw)
    if any(tensor.external_data for tensor in inside.graph.initializer):
        raw = model.SerializeToString(deterministic=True)
    return raw, model


def _pinned_inputs(model: onnx.ModelProto, request: Request) -> dict[str, TensorSpec]:
    """Every input with the shape that the user pins it to; the graph itself stays untouched."""
    initial = {tensor.name for tensor in model.graph.initializer}
    values = {v.name: v for v in model.graph.input if v.name not in initial}
    for option, names in (("--shape", request.shapes), ("--const", request.constants)):
        unknown = sorted(set(names) - set(values))
        if unknown:
            raise GraphError(
                "the graph has no such input",
                found=", ".join(f"{option} {name}" for name in unknown),
                expected=", ".join(values),
            )
    axes = {
        dim.dim_param
        for value in values.values()
        for dim in value.type.tensor_type.shape.dim
        if dim.dim_param
    }
    unknown = sorted(set(request.dims) - axes)
    if unknown:
        raise GraphError(
            "no input has a dynamic axis of that name",
            found=", ".join(f"--dim {name}" for name in unknown),
            expected=", ".join(sorted(axes)) or "none of its axes has a name; use --shape",
        )
    return {name: _pinned(value, request) for name, value in values.items()}


def _pinned(value: onnx.ValueInfoProto, request: Request) -> TensorSpec:
    dims = value.type.tensor_type.shape.dim
    shown = f"{value.name}[{', '.join(str(d.dim_value or d.dim_param or '?') for d in dims)}]"
    shape = tuple(d.dim_value or request.dims.get(d.dim_param, 0) for d in dims)
    asked = request.shapes.get(value.name, shape)
    if len(asked) != len(shape) or any(a != s for a, s in zip(asked, shape, strict=True) if s):
        raise GraphError(
            f"input {value.name!r} cannot take this shape",
            found=f"--shape {value.name}={','.join(map(str, asked))}",
            expected=shown,
        )
    if 0 in asked:
        raise GraphError(
            f"input {value.name!r} has open axes",
            found=shown,
            expected="a fixed shape",
            remedy="--dim NAME=SIZE for named axes, --shape NAME=1,2,3 for others, or "
            "--const NAME=VALUE to fix the input itself",
        )
    return TensorSpec(value.name, asked, dtype_from_onnx(value.type.tensor_type.elem_type).name)


def _constant(specs: Mapping[str, TensorSpec], name: str, text: str) -> ConstantSpec:
    """An input that the runtime fills once.

    It stays an input: baked into the graph, a constant makes ONNX Runtime 1.32 inline the branches
    that it decides, and that crashes on silero-vad's graph.
    """
    spec = specs[name]
    try:
        if spec.dtype == "bool":
            value: bool | float = {"true": True, "1": True, "false": False, "0": False}[text]
        else:
            value = float(text) if spec.dtype.startswith("float") else int(text)
        return ConstantSpec(name, spec.shape, spec.dtype, value)
    except (KeyError, ValueError) as problem:
        raise GraphError(
            f"input {name!r} cannot have this value",
            found=f"--const {name}={text}",
            expected=f"a {spec.dtype}",
        ) from problem


def _unoptimised(graph: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _arrays(constants: Iterable[ConstantSpec]) -> dict[str, np.ndarray]:
    return {c.name: np.full(c.shape, c.value, c.dtype) for c in constants}


def _probe(
    graph: bytes, inputs: Mapping[str, TensorSpec], constants: Iterable[ConstantSpec]
) -> dict[str, TensorSpec]:
    """Shapes of the outputs, by running one step: files often leave them open."""
    try:
        session = _unoptimised(graph)
        names = [node.name for node in session.get_outputs()]
        zeros = {t.name: np.zeros(t.shape, t.dtype) for t in inputs.values()}
        arrays = session.run(names, {**zeros, **_arrays(constants)})
        return {
            name: TensorSpec(name, array.shape, str(array.dtype))
            for name, array in zip(names, arrays, strict=True)
        }
    except Exception as problem:  # ONNX Runtime raises a dozen unrelated types
        raise GraphError(
            "the graph does not run with these shapes, or gives something that is no tensor",
            found=str(problem).splitlines()[0],
            expected=", ".join(f"{t.name} {t.dtype} {list(t.shape)}" for t in inputs.values()),
            remedy="correct --dim, --shape and --const",
        ) from problem
