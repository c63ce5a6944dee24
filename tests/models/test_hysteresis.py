from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from docs.examples.hysteresis import Hysteresis
from stategate.contract.errors import SpecError
from stategate.export.inputs import random_episode
from stategate.models.memories.recurrent.cell import RecurrentStep
from stategate.models.step import commit, initial_states, threshold_inputs
from stategate.runtime.session import Session


def by_hand(values: np.ndarray, opens: float, closes: float) -> list[bool]:
    """A Schmitt trigger."""
    is_open, seen = False, []
    for value in values:
        is_open = bool(value > opens) or (is_open and bool(value > closes))
        seen.append(is_open)
    return seen


@torch.no_grad()
@pytest.mark.parametrize("opens", [0.5, 0.0, -1e-30, 3e4, -1.0])
def test_the_gate_opens_above_and_closes_below_and_the_runtime_sees_it(tiny, opens: float) -> None:
    tiny.threshold = 4e4
    model = Hysteresis(tiny, close_below=opens - 0.6)
    spec = model.step_spec()
    x = torch.from_numpy(random_episode(spec, 200).inputs["x"])
    x[:, 0, 0] += opens if opens == 3e4 else 0.0
    wanted = by_hand(x[:, 0, 0].numpy(), np.float32(opens), np.float32(opens - 0.6))
    states, plain = initial_states(model), initial_states(tiny)
    fed = threshold_inputs(spec, {"gate": opens})
    for t in range(200):
        result = model.step({"x": x[t], **fed}, states)
        assert bool(result.gates["gate"] > torch.tensor(opens)) == wanted[t]
        shown = {"threshold": torch.tensor([-1e9 if wanted[t] else 1e9])}
        alone = tiny.step({"x": x[t], **shown}, plain)
        assert torch.equal(result.outputs["y"], alone.outputs["y"])
        states, plain = commit(spec, states, result, {"gate": opens}), dict(alone.states)
        assert torch.equal(states["h"], plain["h"])
    assert 0 < sum(wanted) < 200
    assert sum(wanted) > sum(by_hand(x[:, 0, 0].numpy(), opens, opens))


@pytest.mark.parametrize("sessions", [1, 3])
def test_it_becomes_a_bundle(tmp_path: Path, tiny, seal_model, sessions: int) -> None:
    bundle = seal_model(tmp_path / "b", Hysteresis(tiny, -0.8), sessions=sessions)
    assert bundle.manifest.verification.gate_flips == 0
    if sessions == 1:
        episode = random_episode(bundle.manifest.step, 40)
        with Session.open(bundle.path) as session:
            for inputs in episode:
                session.step(**inputs)
            wanted = by_hand(episode.inputs["x"][:, 0, 0], 0.0, -0.8)
            assert session.ledger.writes == sum(wanted)


def test_what_it_cannot_express_is_refused(tiny) -> None:
    with pytest.raises(SpecError, match=r"write \[1, 1, 6\]"):
        Hysteresis(RecurrentStep(nn.GRU(4, 6), write_threshold=0.0), -1.0)
    with pytest.raises(SpecError, match="must not lie above"):
        Hysteresis(tiny, 0.1)
