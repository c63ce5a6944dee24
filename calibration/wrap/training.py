"""Memory and gate learn from features and labels, by a recipe that was tried (docs/guides/wrap.md).

1. A net without memory predicts labels from features; labels that it does not predict are *hard*:
   they need memory. Accuracy is theirs, and in the loss easy labels count a tenth.
2. Every step writes until the memory has learned: its error at hard labels is a tenth of that
   net's; or after three times as long, half of it. One that stands still half-way, having learned
   half of what is asked, begins again from other weights. A gate that is priced before closes for
   ever, or learns to write for half of what is asked.
3. The gate opens by chance, with a straight-through gradient; a write has its price. One row in
   eight is never gated, or the cell forgets how to keep what the gate leaves out.
4. At last the gate is frozen and hard, and the rest settles.

Rows walk through the recordings with the memory carried on, for a memory that was never full in
training fails in use. Noise on features stands for frames that were not recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softmax

from stategate.calibration.gates.descent import cosine, descend
from stategate.calibration.gates.scan import GateChooser, always, drawn, hard_gate, scan
from stategate.calibration.settings import WrapRecipe
from stategate.calibration.wrap.recordings import NOT_JUDGED, Stream
from stategate.common import console
from stategate.contract.errors import CalibrationError
from stategate.models.memories.wrapped import RememberingPolicy

SURE = 0.9
"""A label that the net without memory predicts with this probability is easy."""
FAR = 0.25
"""A continuous action that it misses by more than this many spreads is hard."""
PRICE = 0.1
LEARNED = 0.5
"""Share of the memoryless error at hard labels, below which the memory has learned."""
NEARLY_ALL = 0.1
"""The same, below which nothing is gained by waiting: errors stand still on their way, at half."""
HALF_WAY = 0.25
"""The same, above which a memory that learns no more begins again from other weights."""
_PATIENCE = 3  # times the planned beginning, after which nobody waits
_SMOOTH = 0.9  # of a figure's past in its running mean
_CLOSED = 1e-3  # mean chance of a write of a gate that is dead
_BATCH = 512


class Labelled(NamedTuple):
    """Recordings one behind another."""

    features: Tensor  # ``(steps, features)``, as the backbone gives them
    labels: Tensor  # ``(steps,)`` classes, or ``(steps, numbers)`` in units of the action's spread
    hard: Tensor  # ``(steps,)`` bool
    easy: Tensor  # ``(steps,)`` bool; neither where nothing is judged
    begins: Tensor  # ``(steps,)`` bool, true at the first step of a recording

    @property
    def continuous(self) -> bool:
        """Whether actions are numbers."""
        return self.labels.is_floating_point()

    @property
    def hard_rate(self) -> float:
        """Share of steps with a hard label."""
        return float(self.hard.float().mean())


def joined(streams: Sequence[Stream], policy: RememberingPolicy) -> Labelled:
    """Recordings in one piece, every judged label taken for easy."""
    labels = torch.cat([stream.labels for stream in streams])
    if labels.is_floating_point():
        labels = (labels - policy.action_mean) / policy.action_scale
    begins = torch.zeros(len(labels), dtype=torch.bool)
    begins[torch.tensor([0, *(len(s.labels) for s in streams[:-1])]).cumsum(0)] = True
    judged = torch.ones_like(begins) if labels.is_floating_point() else labels != NOT_JUDGED
    features = torch.cat([stream.features for stream in streams])
    return Labelled(features, labels, torch.zeros_like(judged), judged, begins)


def standardise(policy: RememberingPolicy, streams: Sequence[Stream]) -> None:
    """Mean and spread of features, and of continuous actions, into the policy's buffers."""
    features = torch.cat([stream.features for stream in streams])
    spread = features.std(0)
    if not bool((spread > 1e-6).any()):
        raise CalibrationError(
            "the features never change",
            found=f"{features.shape[1]} numbers that are constant over {len(features)} steps",
            expected="recordings in which something happens, and a backbone that sees it",
        )
    policy.mean.copy_(features.mean(0))
    policy.scale.copy_(torch.where(spread > 1e-6, 1.0 / spread.clamp(min=1e-6), 0.0))
    labels = torch.cat([stream.labels for stream in streams])
    if labels.is_floating_point():
        policy.action_mean.copy_(labels.mean(0))
        size = labels.std(0)
        policy.action_scale.copy_(torch.where(size > 1e-6, size, 1.0))


class Memoryless:
    """A net without memory, trained on recordings: what it predicts needs none."""

    def __init__(
        self,
        policy: RememberingPolicy,
        data: Labelled,
        recipe: WrapRecipe,
        report: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._policy = policy
        actions = len(policy.action_mean)
        self._net = nn.Sequential(
            nn.Linear(len(policy.mean), 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(),
            nn.Linear(64, actions),
        )  # fmt: skip
        judged = torch.nonzero(data.easy).squeeze(-1)

        def loss_of(_: int) -> Tensor:
            at = judged[torch.randint(len(judged), (_BATCH,))]
            x = (data.features[at] - policy.mean) * policy.scale
            answers = self._net(x + recipe.noise * torch.randn_like(x))
            return _losses(answers, data.labels[at]).mean()

        descend(
            list(self._net.parameters()),
            loss_of,
            iterations=recipe.probe_iterations,
            learning_rate=recipe.learning_rate,
            rate=cosine(recipe.probe_iterations, 0.03),
            remedy="look for features or actions of enormous size",
            report=report,
        )

    def marked(self, data: Labelled) -> Labelled:
        """The same, with every judged label called hard or easy."""
        answers = self._answers(data)
        if data.continuous:
            unsure = _losses(answers, data.labels).sqrt() > FAR
        else:
            right = softmax(answers, -1).gather(-1, data.labels.clamp(min=0)[:, None])
            unsure = right.squeeze(-1) < SURE
        judged = data.hard | data.easy
        return data._replace(hard=judged & unsure, easy=judged & ~unsure)

    def errors(self, data: Labelled) -> Tensor:
        """At hard labels ``(hard,)``; see `errors`."""
        return errors(self._answers(data)[data.hard], data.labels[data.hard])

    @torch.no_grad()
    def _answers(self, data: Labelled) -> Tensor:
        answers: Tensor = self._net((data.features - self._policy.mean) * self._policy.scale)
        return answers


def errors(answers: Tensor, labels: Tensor) -> Tensor:
    """1 for a wrong class and 0 for the right one, or the squared error in units of the spread."""
    if labels.is_floating_point():
        return _losses(answers, labels)
    return (answers.argmax(-1) != labels).float()


def _losses(answers: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, or squared error in units of the spread, one an answer."""
    if labels.is_floating_point():
        return (answers - labels).square().mean(-1)
    return cross_entropy(answers, labels, reduction="none")


def chunk_for(hard_rate: float) -> int:
    """Steps that hold about eight hard labels, a power of two from 64 to 512."""
    wanted_steps = min(512.0, max(64.0, 8.0 / max(hard_rate, 1e-9)))
    return 1 << round(float(torch.log2(torch.tensor(wanted_steps))))


@dataclass(slots=True)
class Lesson:
    """What one training is about, and how far it is."""

    policy: RememberingPolicy
    data: Labelled
    recipe: WrapRecipe
    chunk: int
    error: float = float("nan")  # running mean of `errors` at hard labels
    opening: float = 1.0  # running mean of the chance of a write

    def words(self) -> str:
        """Figures for a progress bar."""
        return f"error {self.error:.3f}, writes {self.opening:.1%}"

    @property
    def patience(self) -> int:
        """Iterations after which a memory that has not learned is given up."""
        return _PATIENCE * (self.recipe.iterations - self.planned)

    @property
    def planned(self) -> int:
        """Iterations of the gate's training."""
        return self.recipe.iterations - max(1, int(self.recipe.warm_share * self.recipe.iterations))

    def begin_again(self) -> None:
        """Draw other weights."""
        policy = self.policy
        other = RememberingPolicy(len(policy.mean), len(policy.action_mean))
        with torch.no_grad():
            for weights, anew in zip(policy.parameters(), other.parameters(), strict=True):
                weights.copy_(anew)
        self.error = float("nan")

    def learn_to_remember(self, goal: float, report: console.Report) -> int:
        """Train with every step written, until the error at hard labels is below ``goal``.

        Returns:
            Iterations that it took.
        """
        recipe = self.recipe
        planned = recipe.iterations - self.planned
        done = 0
        walk = _Walk(self.data, recipe, self.chunk)

        def ends(i: int) -> bool:
            nonlocal done
            done = i
            report(i, self.words())
            return i >= planned and self.error < goal

        descend(
            list(self.policy.parameters()),
            lambda i: self._loss(walk, always, 0.0),
            iterations=self.patience,
            learning_rate=recipe.learning_rate,
            rate=lambda i: min(1.0, (i + 1) / 50),
            remedy="look for features or actions of enormous size",
            ends=ends,
        )
        return done

    def learn_to_skip(self, price: float, report: console.Report) -> int:
        """Train the gate by a price on writing; iterations, fewer where it closed for ever."""
        recipe, policy, planned = self.recipe, self.policy, self.planned
        ramp = max(1, int(recipe.ramp_share * recipe.iterations))
        settles = planned - int(recipe.settle_share * recipe.iterations)
        walk, done = _Walk(self.data, recipe, self.chunk), 0
        gate = [p for n, p in policy.memory.named_parameters() if n.startswith("gate_")]
        tutored = recipe.rows // recipe.ungated

        def loss_of(i: int) -> Tensor:
            if i == settles:
                for parameter in gate:
                    parameter.requires_grad_(False)
            if i >= settles:
                return self._loss(walk, hard_gate(0.0), 0.0)
            return self._loss(walk, drawn(tutored), price * min(1.0, i / ramp))

        def ends(i: int) -> bool:
            nonlocal done
            done = i
            report(i, self.words())
            return i > ramp and self.opening < _CLOSED

        try:
            descend(
                list(policy.parameters()),
                loss_of,
                iterations=planned,
                learning_rate=recipe.learning_rate,
                rate=cosine(planned, 0.03),
                remedy="lower the price of writing",
                ends=ends,
            )
        finally:
            for parameter in gate:
                parameter.requires_grad_(True)
        return done

    def _loss(self, walk: _Walk, choose: GateChooser, price: float) -> Tensor:
        policy, data = self.policy, self.data
        at, fresh = walk.on()
        features = data.features[at]
        noise = self.recipe.noise * torch.randn_like(features)
        # In units of each feature's spread; one that never changes has none.
        p = policy.project(features + noise * torch.where(policy.scale > 0, 1 / policy.scale, 0.0))
        scanned = scan(policy.memory, p, *walk.memory, choose, fresh)
        walk.memory = (scanned.S.detach(), scanned.b.detach())
        loss = features.new_zeros(())
        for mask, weight in ((data.hard[at], 1.0), (data.easy[at], self.recipe.easy_weight)):
            if not mask.any():
                continue
            answers = policy.memory.act(scanned.o[mask], p.x[mask])
            labels = data.labels[at][mask]
            loss = loss + weight * _losses(answers, labels).mean()
            wrong = errors(answers.detach(), labels).mean()
            if weight == 1.0:
                self.error = _running(self.error, float(wrong))
        chance = torch.sigmoid(scanned.logits).mean()
        self.opening = _running(self.opening, float(scanned.g.detach().mean()))
        return loss + price * chance if price else loss


def _running(mean: float, figure: float) -> float:
    return figure if mean != mean else _SMOOTH * mean + (1 - _SMOOTH) * figure


class _Walk:
    """Rows that walk through the recordings side by side, each with a memory of its own."""

    def __init__(self, data: Labelled, recipe: WrapRecipe, chunk: int) -> None:
        self._begins, self._chunk, self._jump = data.begins, chunk, recipe.jump
        rows, steps = recipe.rows, len(data.begins)
        # Spread evenly, so that few rows see the same steps one after another.
        self._at = (torch.arange(rows) * steps // rows + torch.randint(steps, ())) % steps
        self.memory = (torch.zeros(rows, 32, 32), torch.zeros(rows, 32))  # S and b

    def on(self) -> tuple[Tensor, Tensor]:
        """Steps of the next chunk ``(chunk, rows)``, and which of them begin with nothing."""
        rows, steps = len(self._at), len(self._begins)
        jumps = torch.rand(rows) < self._jump
        self._at = torch.where(jumps, torch.randint(steps, (rows,)), self._at)
        at = (self._at + torch.arange(self._chunk)[:, None]) % steps
        fresh = self._begins[at]
        fresh[0] |= jumps
        self._at = (self._at + self._chunk) % steps
        return at, fresh
