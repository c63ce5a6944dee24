"""A policy that acts in chunks: its network runs where the queue is empty."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stategate
from stategate.contract.errors import TraceError
from stategate.models import lift
from stategate.models.lifting.queues import Queued
from stategate.runtime import Session

pytestmark = pytest.mark.case("B20")
X = {"x": torch.zeros(1, 4)}


class Chunks(nn.Module):
    """As LeRobot's ACT: a network every few steps, a queue between, and an average beside."""

    def __init__(self, length: int, kind: type = deque) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            self.network = nn.Sequential(nn.Linear(4, 256), nn.ReLU(), nn.Linear(256, 3 * length))
        self.length, self.queue, self.average = length, kind(), torch.zeros(1, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.average = 0.9 * self.average + 0.1 * x
        if not self.queue:
            rows = self.network(x + self.average).view(-1, self.length, 3).transpose(0, 1)
            self.queue.extend(rows)
        action = self.queue.popleft() if isinstance(self.queue, deque) else self.queue.pop(0)
        return action + self.average[:, :3]


def lifted(module: nn.Module) -> Queued:
    step = lift(module, X, states=["average", "queue"], outputs=["action"])
    assert isinstance(step, Queued)
    return step


@torch.no_grad()
@pytest.mark.parametrize(("length", "kind"), [(2, list), (3, deque), (10, deque)])
def test_a_step_takes_from_the_queue_and_fills_it_where_it_is_empty(length, kind) -> None:
    step, alone = lifted(Chunks(length, kind)), Chunks(length, kind)
    states, threshold = step.initial_states(), {"refill_threshold": torch.tensor([0.5])}
    draw = torch.Generator().manual_seed(0)
    for t in range(35):
        x = torch.randn(1, 4, generator=draw)
        result = step.step({"x": x, **threshold}, states)
        torch.testing.assert_close(result.outputs["action"], alone(x))
        assert bool(result.gates["refill"] > 0.5) == (t % length == 0)
        assert int(result.states["queue.left"]) == len(alone.queue)
        if t % length:
            assert torch.equal(result.states["queue"], states["queue"])
        states = result.states


@pytest.mark.slow
@torch.no_grad()
def test_a_bundle_leaves_the_network_out_of_quiet_steps(tmp_path: Path) -> None:
    bundle = stategate.make(lifted(Chunks(10)), tmp_path / "b", steps=60, split="quiet")
    read = (bundle.path / "graphs/read.onnx").stat().st_size
    assert read < (bundle.path / "graphs/step.onnx").stat().st_size / 4
    draw = np.random.default_rng(0)
    with Session.open(bundle.path) as session:
        for steps in (24, 36):  # the first episode ends within a chunk
            alone, before = Chunks(10), session.ledger.writes
            for _ in range(steps):
                x = draw.normal(size=(1, 4)).astype(np.float32)
                right = alone(torch.from_numpy(x)).numpy()
                np.testing.assert_allclose(session.step(x=x)["action"], right, atol=1e-5)
            assert session.ledger.writes - before == -(-steps // 10)
            session.reset()


def test_what_is_no_queue_of_actions_is_refused() -> None:
    class Uneven(Chunks):
        """Throws what is left away after three steps, which its length does not show at first."""

        def forward(self, x: Tensor) -> Tensor:
            action = super().forward(x)
            if len(self.queue) == self.length - 4:
                self.queue.clear()
            return action

    class Twice(Chunks):
        """Takes two in the steps that do not fill it."""

        def forward(self, x: Tensor) -> Tensor:
            if self.queue:
                self.queue.popleft()
            return super().forward(x)

    class Starts(Chunks):
        def forward(self, x: Tensor) -> Tensor:
            if self.average is None:
                self.average = x.clone()
            return super().forward(x)

    with pytest.raises(TraceError, match="no fixed form|does not keep|before it has a value"):
        lift(Twice(10), X, states=["average", "queue"])
    module = Starts(10)
    module.average = None
    with pytest.raises(TraceError, match=r"first step that is another[\s\S]*set 'average'"):
        lift(module, X, states=["average", "queue"])
    step = lifted(Uneven(10))
    with pytest.raises(stategate.contract.errors.ParityError):
        stategate.make(step, "never", steps=20)
    assert not Path("never").exists()
