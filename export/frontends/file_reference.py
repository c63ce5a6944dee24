"""The reference of an adopted bundle: the file itself, in plain calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx
import onnxruntime

from stategate.contract.errors import GraphError
from stategate.export.candidate import Candidate
from stategate.export.frontends.steering import Branches
from stategate.export.frontends.untrusted import run_within_limits, unoptimised

Plain = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


class OnnxReference:
    """The graph as its author would run it: plain calls, no optimisation, state fed back."""

    def __init__(
        self,
        candidate: Candidate,
        raw: bytes | None = None,
        contexts: Mapping[str, int] | None = None,
        arrays: Mapping[str, np.ndarray] | None = None,
        notes: tuple[str, ...] = (),
        plain: Plain | None = None,
    ) -> None:
        self._notes, self._plain = notes, plain
        self.name = f"onnxruntime {onnxruntime.__version__} run(), optimisations off"
        if plain is not None:
            self.name += ", each node's own file"
        spec = candidate.spec
        raw = candidate.graph if raw is None else raw
        model = onnx.load_model_from_string(raw)
        self._branches = Branches(model, (c.name for c in spec.constants))
        self._contexts = {f"{name}.context": name for name in contexts or {}}
        self._session = unoptimised(_with_outputs(model, self._branches.conditions) or raw)
        self._states = {s.name: np.zeros(s.shape, s.dtype) for s in spec.states}
        self._states |= candidate.initial
        self._fixed = {**(arrays or {}), **{c.name: c.array() for c in spec.constants}}
        self._next = {s.name: s.next_name for s in spec.states if s.name not in self._contexts}
        outputs = [t.name for t in spec.outputs] + [*self._next.values()]
        self._promised = {name: spec.graph_outputs()[name].shape for name in outputs}
        self._names = [*dict.fromkeys([*outputs, *self._branches.conditions])]

    def begin(self, states: Mapping[str, np.ndarray]) -> None:
        """Start from these states, and from the first values where one is missing."""
        self._states = {**self._states, **states}

    @property
    def notes(self) -> tuple[str, ...]:
        """What the steps so far did not show."""
        return self._notes + self._branches.notes()

    def step(
        self, inputs: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Outputs, states after the step, and no gates."""
        feed = {**inputs, **self._fixed, **self._states}
        after = {}
        for context, name in self._contexts.items():
            before = feed.pop(context)
            feed[name] = np.concatenate([before, feed[name]], axis=-1)
            after[context] = feed[name][..., -before.shape[-1] :]
        arrays = run_within_limits(self._session, self._names, feed)
        results = dict(zip(self._names, arrays, strict=True))
        self._branches.add({**feed, **results})
        if self._plain is not None:
            results |= self._plain(feed)
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


def _with_outputs(model: onnx.ModelProto, conditions: Iterable[str]) -> bytes | None:
    """The file with the conditions of its branches as outputs; None where it has them all."""
    visible = {value.name for value in (*model.graph.input, *model.graph.output)}
    hidden = [name for name in conditions if name not in visible]
    for name in hidden:
        value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.BOOL, None)
        model.graph.output.append(value)
    return model.SerializeToString() if hidden else None
