"""Training a gate on a frozen model: AURA-Mem's objective, with the model itself as the teacher.

The loss of a chunk is, with y* what the always-writing model answers on a memory of its own,

    mean |y - y*|^2 / mean |y*|^2  +  write_price * mean sigmoid(l)

or, where answers are labelled, their cross-entropy in place of the first term. Gates are Bernoulli
draws with a straight-through gradient, so what the gate learns is the first-order utility of a
write: it opens where writing lowers the coming error by more than its price (arXiv:2606.02775).
The model is frozen, so the memory works from the first step and no warm-up is needed; the price
still grows from zero, for a gate that closes early closes for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.autograd.graph import allow_mutation_on_saved_tensors
from torch.nn.functional import cross_entropy

from lab.training.gates.frozen import frozen_but
from lab.training.gates.learned import LearnedGate, Lives, chosen
from lab.training.gates.recipes import GateRecipe
from stategate.calibration.closed_loop import tensors_of
from stategate.calibration.episodes import Report
from stategate.calibration.gates.descent import cosine, descend
from stategate.contract import Episode
from stategate.contract.errors import CalibrationError
from stategate.models.lifting.lift import Lifted
from stategate.models.step import StepResult, Tensors, initial_states

Decide = Callable[[Tensor], Tensor]
"""From logits ``(rows, 1)`` to bool ``(rows, 1)``."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What a gate does in closed loop."""

    write_rate: float  # share of steps that write
    # root mean square difference to the always-writing model's outputs, in units of their
    # root mean square
    output_error: float


def train_gate(
    model: LearnedGate,
    episodes: Iterable[Episode],
    recipe: GateRecipe | None = None,
    report: Report = lambda _: None,
) -> None:
    """Train the gate of ``model`` in place; the model inside is not changed.

    Args:
        model: A gate around the frozen model.
        episodes: Inputs, labelled or not; all are held in memory.
        recipe: How.
        report: Called with the number of iterations done.

    Raises:
        EpisodeError: An episode does not fit the model.
        CalibrationError: No episode is as long as a chunk, or the loss is not finite.
    """
    recipe = recipe or GateRecipe()
    trained = model.eval().gate_parameters()  # the model stays as it is: no dropout either
    with torch.random.fork_rng(devices=[]), frozen_but(model, trained):
        torch.manual_seed(recipe.seed)
        source = _Streams(model, episodes, recipe)
        _standardise(model, source)
        descend(
            trained,
            _Objective(model, source, recipe).loss_of,
            iterations=recipe.iterations,
            learning_rate=recipe.learning_rate,
            rate=cosine(recipe.iterations, 0.03),
            remedy="lower the price of writing; look for overflow in the model",
            report=report,
            graph=partial(_written_in_place, model),
        )


class _Objective:
    """The loss of each chunk, and the memories that go on from one to the next."""

    def __init__(self, model: LearnedGate, source: _Streams, recipe: GateRecipe) -> None:
        self._model, self._source, self._recipe = model, source, recipe
        self._states, self._teachers = source.start(), source.start()

    def loss_of(self, iteration: int) -> Tensor:
        """Error against the always-writing model or the labels, and the price of writing."""
        model, source, recipe = self._model, self._source, self._recipe
        fresh = source.move(torch.rand(recipe.streams, 1) < recipe.fresh_probability)
        first = source.start()
        # Memories are carried from chunk to chunk, their gradient is not.
        states = {n: chosen(fresh, first[n], s.detach()) for n, s in self._states.items()}
        teachers = {n: chosen(fresh, first[n], s) for n, s in self._teachers.items()}
        error: dict[str, Tensor] = {}
        opening = torch.zeros(())
        for inputs, labels in source.take():
            with torch.no_grad():
                right = model.always(inputs, teachers)
                teachers = dict(right.states)
            lives = model.lives(inputs, states)
            p = torch.sigmoid(lives.logit)
            # Straight through: the value is a draw, the gradient that of its probability.
            step = _mixed(lives, torch.bernoulli(p.detach()) + p - p.detach())
            states = dict(step.states)
            opening = opening + p.mean() / recipe.chunk
            for name, value in _errors(step, right, labels).items():
                error[name] = error.get(name, torch.zeros(())) + value
        self._states, self._teachers = states, teachers
        if "label.judged" in error:
            loss = error["label.sum"] / error["label.judged"].clamp(min=1.0)
        else:
            loss = error["gap"] / error["size"].clamp(min=1e-30)
        ramp = max(1, int(recipe.ramp_share * recipe.iterations))
        return loss + recipe.write_price * min(1.0, iteration / ramp) * opening


class _Originals(WeakKeyDictionary[Any, Tensor]):
    """Keeps what is taken out: torch knows a tensor by its address, which the next could have."""

    def __init__(self) -> None:
        super().__init__()
        self._out: list[Tensor] = []

    def __delitem__(self, key: object) -> None:
        self._out.append(self[key])
        super().__delitem__(key)


@contextmanager
def _written_in_place(model: LearnedGate) -> Iterator[None]:
    """Where a module may write its memory in place: what gradients need of it is copied first."""
    if not isinstance(model.model, Lifted):
        yield
        return
    with allow_mutation_on_saved_tensors() as saved:
        saved.original = _Originals()
        yield


def _errors(step: StepResult, right: StepResult, labels: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sums over rows and outputs of one step, of labelled answers or against the teacher."""
    if labels:
        sums = torch.zeros(2)
        for name, label in labels.items():
            judged = label >= 0
            answers = step.outputs[name].flatten(1)[judged]
            loss = cross_entropy(answers, label[judged], reduction="sum")
            sums = sums + torch.stack((loss, judged.sum().float()))
        return {"label.sum": sums[0], "label.judged": sums[1].detach()}
    gap, size = torch.zeros(()), torch.zeros(())
    for name, target in right.outputs.items():
        if target.is_floating_point():
            gap = gap + (step.outputs[name] - target).square().sum()
            size = size + target.square().sum()
    return {"gap": gap, "size": size}


def _mixed(lives: Lives, g: Tensor) -> StepResult:
    """The step by a gate value that is 0 or 1 and has a gradient."""

    def mix(opened: Tensor, closed: Tensor) -> Tensor:
        if not opened.is_floating_point() or opened is closed:
            return chosen(g > 0.5, opened, closed)
        return closed + g.reshape(-1, *([1] * (opened.ndim - 1))) * (opened - closed)

    opened, closed = lives.opened, lives.closed
    return StepResult(
        {n: mix(opened.outputs[n], closed.outputs[n]) for n in opened.outputs},
        {n: mix(opened.states[n], closed.states[n]) for n in opened.states},
        {},
    )


@torch.no_grad()
def _standardise(model: LearnedGate, source: _Streams) -> None:
    """Mean and spread of what the gate sees, over one chunk of the always-writing model."""
    model.mean.zero_()
    model.scale.fill_(1.0)
    rows: list[Tensor] = []
    hook = model.gate_in.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0]))
    try:
        states: Tensors = source.start()
        for inputs, _ in source.take():
            states = model.lives(inputs, states).opened.states
    finally:
        hook.remove()
    features = torch.cat(rows)
    spread = features.std(0)
    model.mean.copy_(features.mean(0))
    model.scale.copy_(torch.where(spread > 1e-6, spread, 1.0))


@torch.no_grad()
def judge(model: LearnedGate, episodes: Iterable[Episode], decide: Decide) -> Judged:
    """Live by a gate in closed loop, beside the always-writing model.

    Args:
        model: The model; its gate is asked, ``decide`` decides.
        episodes: Held-out inputs.
        decide: From the gate's logit to whether it opens.
    """
    gap = size = 0.0
    writes = steps = 0
    for episode in episodes:
        inputs = tensors_of(episode, model.step_spec())
        states: Tensors = initial_states(model)
        teachers = states
        for t in range(episode.steps):
            now = {name: array[t] for name, array in inputs.items()}
            right = model.always(now, teachers)
            lives = model.lives(now, states)
            is_open = decide(lives.logit)
            step = _mixed(lives, is_open.float())
            states, teachers = step.states, right.states
            errors = _errors(step, right, {})
            gap, size = gap + float(errors["gap"]), size + float(errors["size"])
            writes, steps = writes + int(is_open), steps + 1
    return Judged(writes / max(steps, 1), (gap / max(size, 1e-300)) ** 0.5)


def at_random(rate: float, seed: int = 0) -> Decide:
    """A gate that opens by chance: what a trained one has to beat."""
    draws = torch.Generator().manual_seed(seed)
    return lambda logit: torch.rand(logit.shape, generator=draws) < rate


class _Streams:
    """Rows that walk through episodes, each from a place of its own."""

    def __init__(self, model: LearnedGate, episodes: Iterable[Episode], recipe: GateRecipe) -> None:
        self._model, self._chunk, self._rows = model, recipe.chunk, recipe.streams
        spec = model.step_spec()
        self._inputs: list[dict[str, Tensor]] = []
        self._labels: list[dict[str, Tensor]] = []
        for episode in episodes:
            if episode.steps >= recipe.chunk:
                self._inputs.append(tensors_of(episode, spec))
                labels = {n: torch.from_numpy(a).long() for n, a in episode.labels.items()}
                self._labels.append(labels)
        if not self._inputs:
            raise CalibrationError(
                "there is nothing to train the gate on",
                expected=f"at least one episode of {recipe.chunk} steps or more",
            )
        self._names = set.intersection(*(set(labels) for labels in self._labels))
        self._steps = [len(next(iter(inputs.values()))) for inputs in self._inputs]
        self._at = [self._anywhere() for _ in range(self._rows)]

    def _anywhere(self) -> tuple[int, int]:
        e = int(torch.randint(len(self._inputs), ()))
        return e, int(torch.randint(self._steps[e] - self._chunk + 1, ()))

    def start(self) -> dict[str, Tensor]:
        """Initial states of every row."""
        return initial_states(self._model, self._rows)

    def move(self, fresh: Tensor) -> Tensor:
        """Put rows elsewhere: those asked for, and those whose episode is over; which they are."""
        moved = fresh.clone()
        for row, (e, t) in enumerate(self._at):
            if fresh[row] or t + self._chunk > self._steps[e]:
                moved[row] = True
                self._at[row] = self._anywhere()
        return moved

    def take(self) -> Iterable[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """Inputs and labels of the next chunk, step by step."""
        for t in range(self._chunk):
            at = [(e, start + t) for e, start in self._at]
            yield (
                {n: torch.cat([self._inputs[e][n][s] for e, s in at]) for n in self._inputs[0]},
                {n: torch.stack([self._labels[e][n][s] for e, s in at]) for n in self._names},
            )
        self._at = [(e, start + self._chunk) for e, start in self._at]
