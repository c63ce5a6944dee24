"""What a traced step is compared with: the user's own module, and each row with itself alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from stategate.contract.errors import EpisodeError, TraceError
from stategate.contract.sessions import batched
from stategate.export.candidate import Arrays
from stategate.export.frontends.rows import check_rows_are_independent
from stategate.export.memory.anew import Begins
from stategate.models.lifting.lift import Lifted
from stategate.models.step import StepModel, commit, initial_states, threshold_inputs


class TorchReference:
    """The float model in closed loop on its own state: what a bundle is compared with."""

    def __init__(self, model: StepModel, thresholds: Mapping[str, float]) -> None:
        self.name = f"torch {torch.__version__}"
        self._model = model
        self._spec = model.step_spec()
        self._thresholds = dict(thresholds)
        self._fixed = threshold_inputs(self._spec, self._thresholds)
        self._states = initial_states(model)

    def begin(self, states: Arrays) -> None:
        """Start from these states, and from the model's own where one is missing."""
        self._states |= _tensors(states)

    @torch.no_grad()
    def step(self, inputs: Arrays) -> tuple[Arrays, Arrays, Arrays]:
        """Outputs, states after the step and gates, by name."""
        result = self._model.step({**_tensors(inputs), **self._fixed}, self._states)
        self._states = commit(self._spec, self._states, result, self._thresholds)
        return _copies(result.outputs), _copies(self._states), _copies(result.gates)


class StatefulReference:
    """A copy of the user's module, called as it is meant to be, one step after the other.

    It starts as the module itself starts and shares nothing with the wrapper that was traced but
    the names: memory that the wrapper misses, such as two names of one tensor or a flag of the
    first call, parts the two.
    """

    def __init__(self, model: Lifted, notes: tuple[str, ...] = ()) -> None:
        self._model, self._module = model, model.untouched()
        self.name = f"{type(self._module).__name__} alone, torch {torch.__version__}"
        self._begins, self._notes = Begins(self._module), notes
        self._first = self._before = model.initial_states()
        self._arguments = {slot.name: slot.own_start(self._first) for slot in model.arguments}

    @property
    def notes(self) -> tuple[str, ...]:
        """What the check cannot see: memory inside of a window of inputs."""
        return self._begins.notes() + self._notes

    def begin(self, states: Arrays) -> None:
        """Put these states into the module, and its first values where one is missing."""
        whole = {**self._first, **_tensors(states)}
        flag = self._model.started
        if flag and not bool(whole[flag].all()):
            raise EpisodeError(
                "the module's first step is another than later ones",
                found=f"an episode that starts from given states, and not after {flag}",
                expected=f"start.{flag}, of true",
            )
        self._model.put(self._module, whole)
        self._before = whole
        self._arguments = {slot.name: slot.packed(whole) for slot in self._model.arguments}

    @torch.no_grad()
    def step(self, inputs: Arrays) -> tuple[Arrays, Arrays, Arrays]:
        """Outputs, states after the step and gates, by name."""
        model, fed = self._model, self._model.inputs.arguments(_tensors(inputs))
        with self._begins.watching():
            result = self._module(**fed, **model.hidden_arguments(self._arguments))
        outputs, self._arguments = self._model.split(result)
        self._before, gates = model.read(self._module, self._arguments, self._before)
        return _copies(outputs), _copies(self._before), _copies(gates)


@torch.no_grad()
def check_rows(model: StepModel, sessions: int) -> None:
    """Raise `TraceError` where the step does not serve several sessions, each alone."""
    spec = batched(model.step_spec(), sessions)

    def run(arrays: Arrays) -> Arrays:
        inputs = {t.name: torch.from_numpy(arrays[t.name].copy()) for t in spec.inputs}
        states = {s.name: torch.from_numpy(arrays[s.name].copy()) for s in spec.states}
        result = model.step({**inputs, **threshold_inputs(spec)}, states)
        kinds = (("output", result.outputs), ("next state", result.states), ("gate", result.gates))
        return {f"{kind} {n!r}": t.numpy() for kind, part in kinds for n, t in part.items()}

    check_rows_are_independent(
        run,
        (*spec.inputs, *spec.states),
        sessions,
        TraceError,
        expected=f"a step for any leading extent, {sessions} rows as well as 1",
        remedies=(
            "keep the first axis: x.reshape(len(x), -1) and not x.reshape(1, -1); for what nn.LSTM "
            'and nn.GRU keep, (layers, batch, hidden): lift(..., session_axes={"hidden": 1})',
            "never reduce, sort or decide over the first axis: x.mean(-1) and not x.mean(), "
            "gate > t and not (gate > t).any()",
        ),
    )


def _tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}


def _copies(tensors: Mapping[str, torch.Tensor]) -> Arrays:
    # The module may write them in place in the next step.
    return {name: tensor.numpy().copy() for name, tensor in tensors.items()}
