from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from lab.__main__ import main
from lab.training.gates.learned import LearnedGate
from lab.training.gates.training import GateRecipe, _written_in_place, at_random, judge, train_gate
from stategate.contract import Episode
from stategate.contract.errors import CalibrationError, SpecError
from stategate.models import lift
from stategate.models.memories.recurrent.cell import RecurrentStep
from stategate.models.memories.stack import Stack, StackConfig
from stategate.models.step import initial_states
from stategate.models.zoo.makers import KDA

QUICK = GateRecipe(iterations=60, streams=8, chunk=16, write_price=0.1)


def delta(skip_by: str = "update", seed: int = 1) -> Stack:
    layer = replace(KDA, width=16, heads=2, value_heads=2, key_dim=8, value_dim=8, skip_by=skip_by)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Stack(StackConfig(8, 4, 1, None, layer)).eval()


def gated(model: nn.Module) -> LearnedGate:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LearnedGate(model)


def stream(seed: int, steps: int = 256) -> Episode:
    """One step in five shows something new, the others the same thing with a little noise."""
    rng = np.random.default_rng(seed)
    x = 0.05 * rng.standard_normal((steps, 1, 8)) + np.linspace(-1, 1, 8)
    new = rng.random(steps) < 0.2
    x[new] = rng.standard_normal((int(new.sum()), 1, 8))
    return Episode({"x": x.astype(np.float32)})


def test_the_model_inside_is_in_evaluation_while_its_gate_is_trained() -> None:
    model, seen = gated(delta().train()), set()
    step = model.model.step
    model.model.step = lambda *a: (seen.add(model.model.training), step(*a))[1]
    train_gate(model, [stream(0)], replace(QUICK, iterations=2))
    assert seen == {False}


@pytest.mark.slow
def test_a_trained_gate_beats_a_random_one_of_equal_write_rate() -> None:
    model = gated(delta())
    before = {n: t.clone() for n, t in model.model.state_dict().items()}
    train_gate(model, [stream(seed) for seed in range(4)], QUICK)
    held_out = [stream(100)]
    ours = judge(model, held_out, lambda logit: logit > 0)
    chance = [judge(model, held_out, at_random(ours.write_rate, seed)) for seed in range(3)]
    assert 0.05 < ours.write_rate < 0.6
    assert ours.output_error < 0.7 * min(one.output_error for one in chance)
    assert all(torch.equal(t, before[n]) for n, t in model.model.state_dict().items())


@pytest.mark.parametrize("model", [delta("gate"), delta("update"),
                                   RecurrentStep(nn.GRU(8, 6), write_threshold=0.0),
                                   RecurrentStep(nn.GRU(8, 6))])  # fmt: skip
def test_an_open_step_is_the_models_and_a_closed_one_leaves_every_byte_alone(model) -> None:
    wrapped = gated(model)
    spec, states = wrapped.step_spec(), initial_states(wrapped)
    guarded = [s.name for s in spec.states if s.gate == "open"]
    assert guarded
    x = torch.from_numpy(stream(3, 8).inputs["x"])
    with torch.no_grad():
        for t in range(8):
            plain = model.step({"x": x[t], "threshold": torch.tensor([-3e38])}, states)
            now = wrapped.step({"x": x[t], "threshold": torch.tensor([-1e9])}, states)
            assert torch.equal(now.outputs["y"], plain.outputs["y"])
            assert all(torch.equal(now.states[n], plain.states[n]) for n in plain.states)
            shut = wrapped.step({"x": x[t], "threshold": torch.tensor([1e9])}, states)
            assert all(torch.equal(shut.states[n], states[n]) for n in guarded)
            states = now.states


@pytest.mark.slow
def test_a_learned_gate_becomes_a_bundle(tmp_path: Path, seal_model) -> None:
    from stategate.runtime.session import Session

    bundle = seal_model(tmp_path / "b", gated(delta()))
    assert bundle.manifest.verification.gate_flips == 0
    with Session.open(bundle.path) as session:
        for inputs in stream(5, 20):
            session.step(**inputs)
        assert session.ledger.steps == 20


def test_a_gate_is_saved_alone_and_refused_by_other_weights(tmp_path: Path) -> None:
    model, path = gated(delta()), tmp_path / "gate.safetensors"
    model.gate_out.bias.data.fill_(0.25)
    model.save_gate(path)
    again = LearnedGate(delta()).load_gate(path)
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in again.state_dict().items())
    with pytest.raises(SpecError, match="trained for another model"):
        LearnedGate(delta(seed=2)).load_gate(path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(SpecError, match="cannot be read"):
        LearnedGate(delta()).load_gate(path)


def test_labels_train_the_gate_on_the_task() -> None:
    episode = stream(1)
    labelled = Episode(episode.inputs, {"y": np.arange(episode.steps) % 5 - 1})
    model = gated(delta())
    before = model.gate_out.weight.clone()
    train_gate(model, [labelled], replace(QUICK, iterations=2))
    assert not torch.equal(before, model.gate_out.weight)
    assert all(p.requires_grad for p in model.parameters())


class Squares(nn.Module):
    """Answers with the square of its memory, and then writes it, in place or anew."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            self.into, self.act = nn.Linear(8, 6), nn.Linear(6, 2)
        self.register_buffer("h", torch.ones(1, 6))
        self.in_place = in_place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act(self.h * self.h)
        new = torch.tanh(self.into(x))
        if self.in_place:
            self.h.mul_(0.5).add_(new)
        else:
            self.h = self.h * 0.5 + new
        return y


@pytest.mark.case("B17")
def test_a_module_that_writes_in_place_trains_the_same_gate_as_one_that_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Adam's first steps have the sign of a gradient and not its size: where one is zero but for its
    # rounding, which depends on where memory lies, two equal trainings part.
    monkeypatch.setattr(torch.optim, "Adam", lambda p, lr, betas: torch.optim.SGD(p, lr))
    gates = []
    for in_place in (True, False):
        step = lift(Squares(in_place), {"x": torch.zeros(1, 8)}, states=["h"], outputs=["y"])
        gates.append(gated(step))
        train_gate(gates[-1], [stream(1)], replace(QUICK, iterations=4))
    first, second = (gate.gate_parameters() for gate in gates)
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other)


def test_a_gate_around_other_numbers_than_float32_names_them() -> None:
    step = lift(
        Squares(False).double(),
        {"x": torch.zeros(1, 8).double()},
        states=["h"],
        outputs=["y"],
    )
    with pytest.raises(SpecError, match=r"x in float64[\s\S]*module.float\(\)"):
        gated(step)


def test_training_on_nothing_is_refused() -> None:
    with pytest.raises(CalibrationError, match="nothing to train the gate on"):
        train_gate(gated(delta()), [stream(1, 5)], QUICK)


def test_the_command_trains_a_gate_and_says_what_it_is_worth(tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text(
        "import torch\nfrom stategate.models.memories.recurrent.cell import MinGru\n"
        "def policy():\n    torch.manual_seed(1)\n    return MinGru(8, 6, 4, 1)\n"
    )
    for seed in range(2):
        (tmp_path / f"{seed}.npz").write_bytes(stream(seed, 60).to_bytes())
    out = tmp_path / "gate.safetensors"
    command = ["train-gate", f"{tmp_path}/my.py:policy", "--episode", str(tmp_path), "--out"]
    result = CliRunner().invoke(main, [*command, str(out), "--iterations", "3"])
    assert result.exit_code == 0, result.output
    assert "trained gate" in result.stdout and "random gate" in result.stdout and out.exists()


def test_a_gradient_is_of_its_own_numbers_where_an_address_is_used_again() -> None:
    step = lift(Squares(True), {"x": torch.zeros(1, 8)}, states=["h"], outputs=["y"])
    inputs = [torch.full((4,), float(i), requires_grad=True) for i in range(200)]
    with _written_in_place(gated(step)):
        sums = []
        for x in inputs:
            memory = x + 0.0
            sums.append((memory * memory).sum())
            memory.add_(1.0)
            del memory
        torch.stack(sums).sum().backward()
    for x in inputs:
        assert x.grad is not None and torch.equal(x.grad, 2 * x.detach())
