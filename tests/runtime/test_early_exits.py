"""Early exits as segments: the exits of the whole network, and segments counted where computed."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest
import torch

from docs.examples.early_exits import WIDTH, Segment, step
from stategate.runtime import Session


def segments() -> list[Segment]:
    torch.manual_seed(12)
    network = [Segment().eval() for _ in range(3)]
    with torch.no_grad():
        for segment in network:
            segment.head.weight.mul_(6.0)
            segment.gate.weight.copy_(torch.tensor([[4.0, -1.0, 4.0, -1.0]]))
            segment.gate.bias.fill_(-3.5)
    return network


def exit_of(willing: list[float]) -> int:
    """First segment that takes half of what has not left before, of gates of all segments."""
    g = np.array(willing)
    p = np.maximum(0.0, np.minimum(g, 1.0 - (np.cumsum(g) - g)))
    takes = 2.0 * p >= 1.0 - (np.cumsum(p) - p)
    return int(np.argmax(takes)) if takes.any() else len(willing) - 1


@pytest.mark.slow
@torch.no_grad()
def test_segments_leave_where_the_whole_network_does_and_count_what_they_compute(
    seal_model, tmp_path
) -> None:
    network = segments()
    memory, computed = [torch.zeros(1, WIDTH) for _ in network], [0, 0, 0]
    with ExitStack() as stack:
        sessions = [
            stack.enter_context(Session.open(seal_model(tmp_path / str(i), segment).path))
            for i, segment in enumerate(network)
        ]
        for x in torch.randn(200, 1, WIDTH, generator=torch.manual_seed(3)):
            hidden, whole = x, []
            for segment, h in zip(network, memory, strict=True):
                whole.append(segment.step({"x": hidden}, {"h": h}))
                hidden = whole[-1].outputs["hidden"]
            right = exit_of([float(result.outputs["leave"]) for result in whole])
            for i in range(right + 1):  # what is not computed keeps what it remembers
                memory[i] = whole[i].states["h"]
                computed[i] += 1
            place, outputs = step(sessions, x.numpy())
            assert place == right
            np.testing.assert_allclose(outputs["y"], whole[right].outputs["y"], atol=2e-5)
        assert [session.ledger.steps for session in sessions] == computed
    assert computed[0] == 200 and 20 < computed[2] < computed[1] < 180
