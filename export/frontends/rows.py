"""Several sessions in one graph: is every row alone?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from stategate.contract import Episode, StateSpec, TensorSpec, batched
from stategate.contract.errors import EpisodeError, TraceError
from stategate.contract.failures import failures
from stategate.models.step import StepModel, Tensors, threshold_inputs

_DRAWS = 16  # a gate that mixes rows shows only where they decide differently
_TOLERANCE = 1e-3  # a product of many rows rounds differently from that of one


def side_by_side(streams: Sequence[Episode]) -> Episode:
    """The inputs ``(steps, 1, ...)`` of one stream for each session as those of a pool."""
    names = streams[0].inputs
    return Episode({n: np.concatenate([s.inputs[n] for s in streams], axis=1) for n in names})


def staggered(stream: Episode, sessions: int) -> Episode:
    """One recorded stream for every session, each starting at another place of it.

    A stream that has a row for each session is left as it is.
    """
    if any(array.shape[1:2] != (1,) for array in stream.inputs.values()):
        return stream
    if stream.start:
        raise EpisodeError(
            "one stream that starts from given states cannot serve several sessions",
            found=", ".join(f"start.{name}" for name in stream.start),
            expected=f"inputs of {sessions} rows, and states of as many",
        )
    starts = [row * stream.steps // sessions for row in range(sessions)]
    return side_by_side(
        [Episode({n: np.roll(a, -t, axis=0) for n, a in stream.inputs.items()}) for t in starts]
    )


@torch.no_grad()
def check_rows_are_independent(model: StepModel, sessions: int) -> None:
    """Run the step for several sessions and for one of them alone, and compare.

    The other sessions hold random numbers first and NaN then; neither may be seen in a row.

    Raises:
        TraceError: The step fails with several rows, or a row depends on another.
    """
    spec = batched(model.step_spec(), sessions)
    generator = torch.Generator().manual_seed(0)
    for row in [0, sessions - 1] * _DRAWS:
        drawn = {t.name: _random(t, generator) for t in spec.inputs}
        drawn |= {s.name: _random(s, generator) for s in spec.states}
        single = _run(model, {name: tensor[row : row + 1] for name, tensor in drawn.items()})
        for rows in (drawn, {name: _poisoned(tensor, row) for name, tensor in drawn.items()}):
            try:
                together = _run(model, rows)
            except failures() as problem:  # a user's step may raise anything
                raise _rigid(" ".join(str(problem).split()), sessions) from problem
            for name, tensor in together.items():
                if tuple(tensor.shape) != (sessions, *single[name].shape[1:]):
                    raise _rigid(f"{name} of shape {list(tensor.shape)}", sessions)
                if not _alike(tensor[row], single[name][0]):
                    raise TraceError(
                        "the step mixes its sessions",
                        found=f"{name} of row {row} depends on other rows",
                        expected="every row computed from that row alone",
                        remedy="never reduce, sort or decide over the first axis: x.mean(-1) and "
                        "not x.mean(), gate > t and not (gate > t).any()",
                    )


def _run(model: StepModel, tensors: Tensors) -> dict[str, torch.Tensor]:
    """One step on copies; everything that it gives, by kind and name."""
    spec = model.step_spec()
    inputs = {t.name: tensors[t.name].clone() for t in spec.inputs}
    states = {s.name: tensors[s.name].clone() for s in spec.states}
    result = model.step({**inputs, **threshold_inputs(spec)}, states)
    kinds = (("output", result.outputs), ("next state", result.states), ("gate", result.gates))
    return {f"{kind} {n!r}": tensor for kind, part in kinds for n, tensor in part.items()}


def _random(tensor: TensorSpec | StateSpec, generator: torch.Generator) -> torch.Tensor:
    dtype = getattr(torch, tensor.dtype)
    if dtype.is_floating_point:
        return torch.randn(tensor.shape, generator=generator, dtype=dtype)
    return torch.randint(0, 2, tensor.shape, generator=generator).to(dtype)


def _poisoned(tensor: torch.Tensor, row: int) -> torch.Tensor:
    """NaN in every row but one; integers have none and stay."""
    if not tensor.is_floating_point():
        return tensor
    poisoned = torch.full_like(tensor, torch.nan)
    poisoned[row] = tensor[row]
    return poisoned


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    a, b = a.double(), b.double()
    scale = float(b.nan_to_num(0.0, 0.0, 0.0).abs().max()) if b.numel() else 0.0
    tolerance = _TOLERANCE * max(1.0, scale)
    return torch.allclose(a, b, rtol=0.0, atol=tolerance, equal_nan=True)


def _rigid(symptom: str, sessions: int) -> TraceError:
    """The error of a step that is written for one row alone."""
    return TraceError(
        f"the step cannot serve {sessions} sessions at once",
        found=symptom,
        expected=f"a step for any leading extent, {sessions} rows as well as 1",
        remedy="keep the first axis: x.reshape(len(x), -1) and not x.reshape(1, -1); for what "
        'nn.LSTM and nn.GRU keep, (layers, batch, hidden): lift(..., session_axes={"hidden": 1})',
    )
