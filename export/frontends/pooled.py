"""Several sessions in one adopted graph: an axis of every tensor is theirs, and comes first.

The file keeps the axis of its batch where it likes. Which one that is, is read from open axes or
declared; outputs show theirs when the file is run. Nodes at the edges of the graph move it to the
front, where a pool has its rows. No torch is needed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

import msgspec
import numpy as np
import onnx
from onnx import helper

from stategate.contract import Episode, StateSpec, StepSpec, TensorSpec
from stategate.contract.errors import GraphError
from stategate.contract.failures import failures, first_line
from stategate.contract.sessions import check_rows
from stategate.export.candidate import Arrays, Candidate, Reference
from stategate.export.frontends.rows import (
    RowsReference,
    check_rows_are_independent,
    staggered,
)
from stategate.export.frontends.untrusted import run_within_limits, unoptimised
from stategate.export.passes.graph import every_node, serialised
from stategate.export.passes.projections import IN_FILE

Axes = Mapping[str, int]
_Spec = TypeVar("_Spec", TensorSpec, StateSpec)


class RowsFirst:
    """A file's plain calls for one session, with the axis of the sessions in front."""

    def __init__(self, reference: Reference, axes: Axes) -> None:
        self.name = reference.name
        self._reference, self._axes = reference, axes

    @property
    def notes(self) -> tuple[str, ...]:
        """What the steps so far did not show."""
        return getattr(self._reference, "notes", ())

    def begin(self, states: Arrays) -> None:
        """Start from these states."""
        begin = getattr(self._reference, "begin")  # noqa: B009  (a reference need not have it)
        begin(_as_in_file(states, self._axes))

    def step(self, inputs: Arrays) -> tuple[Arrays, Arrays, Arrays]:
        """Outputs, states after the step and gates by name, ``(1, ...)``."""
        outputs, states, gates = self._reference.step(_as_in_file(inputs, self._axes))
        return _moved(outputs, self._axes), _moved(states, self._axes), gates


def pooled(single: Candidate, sessions: int, declared: Axes) -> tuple[Candidate, Axes]:
    """The candidate for several sessions, and which axis of the file is theirs, by tensor."""
    spec = single.spec
    model = onnx.load_model_from_string(single.graph)
    names = {*spec.graph_inputs(), *spec.graph_outputs(), *(s.name for s in spec.states)}
    names -= {c.name for c in spec.constants}
    if unknown := sorted(set(declared) - names):
        raise GraphError(
            "an axis of the sessions is for a tensor that the file lacks",
            found=", ".join(f"--session-axis {name}={declared[name]}" for name in unknown),
            expected=", ".join(sorted(names)),
        )
    tensors: list[TensorSpec | StateSpec] = [*spec.inputs, *spec.states]
    values = {value.name: value for value in model.graph.input}
    axes = {t.name: _axis_of(values[t.name], t.shape, declared) for t in tensors}
    _open(model, axes)
    run = _Step(model, spec)
    wide = {
        t.name: np.repeat(np.zeros(t.shape, t.dtype), sessions, axis=axes[t.name]) for t in tensors
    }
    try:
        results = run(wide)
    except failures() as problem:  # ONNX Runtime raises a dozen unrelated types
        raise _rigid(sessions, first_line(problem)) from problem
    ends = [*spec.outputs, *(TensorSpec(s.next_name, s.shape, s.dtype) for s in spec.states)]
    for tensor in ends:
        axes[tensor.name] = _axis_of_result(tensor, results[tensor.name].shape, sessions, declared)
    for state in spec.states:
        if axes[state.name] != axes[state.next_name]:
            raise _rigid(
                sessions,
                f"axis {axes[state.name]} of {state.name} and {axes[state.next_name]} of "
                f"{state.next_name}",
            )
    spec = _with_rows(spec, axes, sessions)
    check_rows(spec, sessions)

    def rows_first(arrays: Arrays) -> Arrays:
        return _moved(run(_as_in_file(arrays, axes)), axes)

    check_rows_are_independent(
        rows_first,
        (*spec.inputs, *spec.states),
        sessions,
        GraphError,
        expected=f"a graph for any extent of the axis, {sessions} as well as 1",
        remedies=(_EXPORT_AGAIN, "export the model with sums and choices within each session"),
    )
    initial = {
        name: np.repeat(np.moveaxis(array, axes[name], 0), sessions, axis=0)
        for name, array in single.initial.items()
    }
    for value in (*model.graph.input, *model.graph.output):
        _move_to_front(model.graph, value, axes.get(value.name, 0))
    graph = serialised(model)
    return replace(single, spec=spec, graph=graph, initial=initial, sessions=sessions), axes


_EXPORT_AGAIN = (
    "export the file again with an open axis for its batch, and no reshape to a batch of 1; or "
    "say where it is: --session-axis NAME=AXIS"
)


def rows_of(episode: Episode, spec: StepSpec, axes: Axes, sessions: int) -> Episode:
    """A recording of one session, in the layout of the file, for every session of a pool.

    What has a row for each session already is left as it is.
    """
    shapes = {t.name: t.shape for t in spec.inputs}
    if all(shapes.get(n) == array.shape[1:] for n, array in episode.inputs.items()):
        return episode
    first = {n: np.moveaxis(a, axes.get(n, 0) + 1, 1) for n, a in episode.inputs.items()}
    return staggered(replace(episode, inputs=first), sessions)


def rows_reference(
    reference: Callable[[Episode], Reference], episode: Episode, axes: Axes, sessions: int
) -> RowsReference:
    """The file once for each session of an episode ``(steps, sessions, ...)``; axes of `pooled`."""
    streams = [
        Episode(
            {n: np.moveaxis(a[:, row : row + 1], 1, axes[n] + 1) for n, a in episode.inputs.items()}
        )
        for row in range(sessions)
    ]
    references: list[Reference] = [RowsFirst(reference(stream), axes) for stream in streams]
    return RowsReference(references)


class _Step:
    """One step of the opened file: outputs and next states by name, in the file's layout."""

    def __init__(self, model: onnx.ModelProto, spec: StepSpec) -> None:
        self._session = unoptimised(serialised(model))
        self._names = [t.name for t in spec.outputs] + [s.next_name for s in spec.states]
        self._fixed = {c.name: c.array() for c in spec.constants}

    def __call__(self, feeds: Arrays) -> Arrays:
        results = run_within_limits(self._session, self._names, {**self._fixed, **feeds})
        return dict(zip(self._names, results, strict=True))


def _axis_of(value: onnx.ValueInfoProto, shape: tuple[int, ...], declared: Axes) -> int:
    """The axis of an input or state that belongs to the sessions."""
    dims = value.type.tensor_type.shape.dim
    shown = f"{value.name}[{', '.join(str(d.dim_value or d.dim_param or '?') for d in dims)}]"
    if value.name in declared:
        axis = declared[value.name]
        if axis < len(shape) and shape[axis] == 1:
            return axis
        raise GraphError(
            f"axis {axis} of {value.name!r} cannot belong to the sessions",
            found=f"{shown}, of which one session has {list(shape)}",
            expected="an axis that has an extent of 1 for one session",
        )
    single = [i for i, n in enumerate(shape) if n == 1 and not dims[i].dim_value]
    named = [i for i in single if "batch" in dims[i].dim_param.lower()]
    candidates = named or single
    if len(candidates) == 1:
        return candidates[0]
    raise GraphError(
        f"which axis of {value.name!r} belongs to the sessions is in doubt"
        if candidates
        else f"{value.name!r} has no open axis for several sessions",
        found=f"{shown}, of which one session has {list(shape)}",
        expected="one open axis called batch, pinned to 1 with --dim or --shape",
        remedy=f"--session-axis {value.name}={shape.index(1) if 1 in shape else 0}, if that is the "
        "axis; a file whose batch is 1 in every node is refused then",
    )


def _axis_of_result(
    single: TensorSpec, shape: tuple[int, ...], sessions: int, declared: Axes
) -> int:
    """The axis that became longer when the file was run for several sessions."""
    longer = [i for i, (a, b) in enumerate(zip(single.shape, shape, strict=False)) if a != b]
    is_single = len(longer) == 1 and len(shape) == len(single.shape)
    if not is_single or (single.shape[longer[0]], shape[longer[0]]) != (1, sessions):
        raise _rigid(sessions, f"{single.name} of shape {list(shape)}, {list(single.shape)} for 1")
    if declared.get(single.name, longer[0]) != longer[0]:
        raise GraphError(
            f"axis {declared[single.name]} of {single.name!r} does not belong to the sessions",
            found=f"{list(shape)} for {sessions} sessions",
            expected=f"--session-axis {single.name}={longer[0]}, or none for it",
        )
    return longer[0]


def _rigid(sessions: int, symptom: str) -> GraphError:
    return GraphError(
        f"the file cannot serve {sessions} sessions at once",
        found=symptom,
        expected="a row of every output and next state for each session",
        remedy=_EXPORT_AGAIN,
    )


def _open(model: onnx.ModelProto, axes: Axes) -> None:
    """Let the file take any number of sessions, where it says that it takes one."""
    for value in model.graph.input:
        if value.name in axes and value.type.tensor_type.shape.dim[axes[value.name]].dim_value:
            value.type.tensor_type.shape.dim[axes[value.name]].Clear()
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    del model.graph.value_info[:]  # what the exporter wrote down for one session


def _with_rows(spec: StepSpec, axes: Axes, sessions: int) -> StepSpec:
    def moved(tensor: _Spec) -> _Spec:
        axis: int = axes[tensor.name]
        changed: dict[str, object] = {
            "shape": (sessions, *tensor.shape[:axis], *tensor.shape[axis + 1 :])
        }
        if isinstance(tensor, StateSpec):
            changed["bytes"] = 0  # computed anew from the shape
        return msgspec.structs.replace(tensor, **changed)

    return msgspec.structs.replace(
        spec,
        inputs=tuple(map(moved, spec.inputs)),
        outputs=tuple(map(moved, spec.outputs)),
        states=tuple(map(moved, spec.states)),
    )


def _as_in_file(arrays: Arrays, axes: Axes) -> Arrays:
    return {n: np.ascontiguousarray(np.moveaxis(a, 0, axes[n])) for n, a in arrays.items()}


def _moved(arrays: Arrays, axes: Axes) -> Arrays:
    return {name: np.moveaxis(array, axes[name], 0) for name, array in arrays.items()}


def _move_to_front(graph: onnx.GraphProto, value: onnx.ValueInfoProto, axis: int) -> None:
    """Put a Transpose between a tensor of the file and one with the sessions first."""
    if axis == 0:
        return
    outside, inside = value.name, f"{value.name}{IN_FILE}"
    for node in every_node(graph):
        for names in (node.input, node.output):
            for at, name in enumerate(names):
                names[at] = inside if name == outside else name
    dims = value.type.tensor_type.shape.dim
    order = [axis, *(i for i in range(len(dims)) if i != axis)]
    moved = [onnx.TensorShapeProto.Dimension() for _ in dims]
    for to, at in enumerate(order):
        moved[to].CopyFrom(dims[at])
    del dims[:]
    dims.extend(moved)
    if outside in {each.name for each in graph.input}:
        back = [order.index(i) for i in range(len(order))]
        graph.node.insert(0, helper.make_node("Transpose", [outside], [inside], inside, perm=back))
    else:
        node = helper.make_node("Transpose", [inside], [outside], inside, perm=order)
        graph.node.append(node)
