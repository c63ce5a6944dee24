"""What is trained over a chunk is what the deployed step does, one observation at a time."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor

from lab.evidence.controlled import thresholds as controlled_thresholds
from lab.evidence.controlled.arms import ARMS
from lab.evidence.controlled.cache import CacheLearner, GrowingCache, answers
from lab.evidence.controlled.gates import (
    BUDGET,
    Blind,
    BudgetLearner,
    Reconstruction,
    Scheduled,
    Soft,
    Surprise,
)
from lab.evidence.controlled.streams import held_out
from lab.evidence.controlled.thresholds import budget_threshold, calibrated_threshold
from lab.evidence.controlled.train import Training
from lab.training.aura import evaluate
from lab.training.chunk import Rule, chunk
from lab.training.stream import Recipe
from stategate.calibration.gates.scan import Scanned, hard_gate, scan
from stategate.models.load import load_model
from stategate.models.memories.aura import AuraMem
from stategate.models.step import StepModel, initial_states, threshold_inputs
from stategate.models.zoo.binding_stream import CONFIGS, BindingStreams

TIME, STREAMS = 20, 3


@pytest.fixture(scope="module")
def z() -> Tensor:
    return torch.from_numpy(held_out("hard", TIME, STREAMS, seed=1).z[:, :, 0]).transpose(0, 1)


@torch.no_grad()
def stepped(model: StepModel, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    states = initial_states(model, z.shape[1])
    limits = threshold_inputs(model.step_spec())
    name = model.step_spec().inputs[0].name
    outputs = []
    for now in z:
        result = model.step({name: now, **limits}, states)
        states = dict(result.states)
        outputs.append(next(iter(result.outputs.values())))
    return torch.stack(outputs), states


@pytest.mark.slow
@pytest.mark.parametrize(
    "arm",
    ["gated-delta", "linear-attention", "mlstm", "rwkv7", "gru-64", "lstm-64", "soft", "square-16"],
)
def test_a_chunk_of_training_is_so_many_steps_of_the_deployed_model(arm: str, z: Tensor) -> None:
    torch.manual_seed(0)
    recipe = ARMS[arm].recipe_for("hard", 0)
    learner = ARMS[arm].learner(recipe)
    model = cast(StepModel, learner.module.eval())
    if arm == "square-16":
        learner.module.threshold = 0.0  # type: ignore[assignment]
    after_warm_up = recipe.settle if arm == "square-16" else recipe.iterations // 2
    with torch.no_grad():
        answer, after, _ = learner.run(after_warm_up, z, learner.start(STREAMS))
        chunked = answer(torch.ones(TIME, STREAMS, dtype=torch.bool)).view(TIME, STREAMS, -1)
    outputs, states = stepped(model, z)
    torch.testing.assert_close(chunked, outputs, rtol=1e-4, atol=1e-5)
    for name, state in after.items():
        torch.testing.assert_close(state, states[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("rule", "side"), [("given", 16), ("hard", 32), ("drawn", 32)])
def test_the_chunk_in_c_has_the_answers_and_the_gradients_of_the_scan(
    rule: Rule, side: int, z: Tensor
) -> None:
    torch.manual_seed(0)
    model = AuraMem(d_key=side, d_value=side)
    with torch.no_grad():
        model.gate_surprise.normal_()
    S, b = 0.2 * torch.randn(STREAMS, side, side), 0.2 * torch.randn(STREAMS, side)
    weight = torch.randn(TIME, STREAMS, side)
    with torch.no_grad():  # half of what is opened_always opens
        opened_always = scan(
            model, model.project(z), S, b, lambda t, logits: torch.ones_like(logits)
        )
        model.gate_out.bias.sub_(opened_always.logits.median())
    drawn = torch.rand(TIME, STREAMS, 1).round()

    def gradients(scanned: Scanned) -> list[Tensor]:
        model.zero_grad()
        price = 0.0 if rule == "given" else torch.sigmoid(scanned.logits).mean()
        ((scanned.o * weight).sum() + price).backward()  # type: ignore[no-untyped-call]
        return [torch.zeros_like(w) if w.grad is None else w.grad for w in model.parameters()]

    gates = drawn if rule == "given" else None
    in_c = chunk(model, model.project(z), S, b, rule, gates, tutored=1 if rule == "drawn" else 0)
    opened = in_c.g.detach().round()

    def choose(t: int, logits: Tensor) -> Tensor:
        chance = torch.sigmoid(logits) if rule == "drawn" else torch.zeros(())
        return opened[t] + chance - chance.detach()

    one_by_one = scan(model, model.project(z), S, b, choose)
    assert 0.1 < opened.mean() < 0.9
    if rule == "drawn":
        assert opened[:, 0].all()
    if rule == "hard":
        assert torch.equal(opened, (one_by_one.logits > 0).float())
    for name in ("o", "S", "b"):
        torch.testing.assert_close(getattr(in_c, name), getattr(one_by_one, name))
    for one, other in zip(gradients(in_c), gradients(one_by_one), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_soft_gate_writes_by_its_own_share(z: Tensor) -> None:
    torch.manual_seed(0)
    soft, hard = Soft(), AuraMem(threshold=-3e38)
    hard.load_state_dict(soft.state_dict())
    with torch.no_grad():
        p = hard.project(z)
        # A share of one is the hard write.
        soft.gate_out.bias.fill_(1e4)
        hard.gate_out.bias.fill_(1e4)
    torch.testing.assert_close(stepped(soft, z)[0], stepped(hard, z)[0])
    assert p.beta.shape == (TIME, STREAMS, 1)


def test_a_gate_without_surprise_does_not_look_at_the_memory(z: Tensor) -> None:
    model = Blind()
    p = model.project(z[0])
    b = torch.zeros(STREAMS, 32)
    empty = model.recall(p, torch.zeros(STREAMS, 32, 32), b)
    full = model.recall(p, torch.randn(STREAMS, 32, 32), b)
    assert torch.equal(empty.gate, full.gate)
    assert not torch.equal(empty.residual, full.residual)


def test_surprise_is_the_logarithm_of_the_mean_squared_residual(z: Tensor) -> None:
    model = Surprise()
    seen = model.recall(model.project(z[0]), torch.randn(STREAMS, 32, 32), torch.randn(STREAMS, 32))
    mean = (seen.residual**2).sum(-1, keepdim=True) / 32
    torch.testing.assert_close(seen.gate.exp(), mean + 1e-3)


def test_reconstruction_gains_nothing_where_the_memory_already_holds_the_value(z: Tensor) -> None:
    model = Reconstruction()
    p = model.project(z[0])
    holds = torch.einsum("nk,nv->nkv", p.k, p.v)
    told = model.recall(p, holds, torch.zeros(STREAMS, 32))
    torch.testing.assert_close(told.gate, torch.zeros_like(told.gate), atol=1e-5, rtol=0)
    empty = model.recall(p, torch.zeros_like(holds), torch.zeros(STREAMS, 32))
    expected = model.error(p, torch.zeros(STREAMS, 32)) - model.error(p, p.v)
    torch.testing.assert_close(empty.gate, expected)


def test_the_decoder_is_trained_by_reconstruction_and_the_memory_is_not(z: Tensor) -> None:
    model = Reconstruction()
    model.error(model.project(z), model.project(z).v).mean().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in model.decoder.parameters())
    assert model.to_v.weight.grad is None and model.to_beta.weight.grad is None


def test_a_scheduled_cell_writes_where_its_schedule_says_and_nowhere_else(z: Tensor) -> None:
    model = Scheduled()
    states = initial_states(model)
    for write in (0.0, 1.0):
        inputs = {"z": z[0, :1], "write": torch.tensor([[write]]), "threshold": torch.tensor([0.5])}
        after = model.step(inputs, states)
        assert after.gates["gate"].item() == write
        assert bool((after.states["S"] != states["S"]).any()) == bool(write)


def test_the_cache_answers_as_attention_over_the_whole_past(z: Tensor) -> None:
    torch.manual_seed(0)
    model = GrowingCache()
    learner = CacheLearner(Recipe())
    learner.module.load_state_dict(model.state_dict())
    with torch.no_grad():
        whole = learner.run(0, z, {})[0](torch.ones(TIME, STREAMS, dtype=torch.bool))
    asked = torch.tensor([0, 3, 4, 19])
    chosen = answers(model, z[:, 1], asked)
    assert chosen.tolist() == whole.view(TIME, STREAMS, -1)[asked, 1].argmax(-1).tolist()
    assert answers(model, z[:, 1], asked[:0]).tolist() == []
    x, q, k, v = (part[:, 1] for part in model.project(z))
    score = model.sharpness * k[:4] @ q[3]
    score = score - torch.nn.functional.softplus(model.slope) * torch.tensor([3.0, 2.0, 1.0, 0.0])
    read = torch.softmax(score, 0) @ v[:4]
    assert int(model.answer(read, x[3]).argmax()) == int(chosen[1])


@pytest.mark.slow
def test_an_untrained_gate_is_held_to_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controlled_thresholds, "VALIDATION", (4, 512))
    monkeypatch.setattr(controlled_thresholds, "_SAMPLED_STEPS", 256)
    torch.manual_seed(0)
    model = Surprise().eval()
    training = Training("surprise", "hard", 0)
    threshold = budget_threshold(model, training)
    source = BindingStreams(CONFIGS["hard"], training.recipe.world(), 4, seed=9)
    rate = evaluate(model, source, 4, 512, {"one": hard_gate(threshold)})["one"].write_rate
    assert rate == pytest.approx(BUDGET, rel=0.25)


@pytest.mark.slow
def test_a_calibrated_threshold_writes_about_at_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controlled_thresholds, "VALIDATION", (2, 1024))
    model = load_model("aura-hard").module
    threshold = calibrated_threshold(model, Training("learned", "hard", 0))
    held = held_out("hard", 1024, 2, seed=9)
    source = BindingStreams(CONFIGS["hard"], Recipe().world(), 2, seed=9 + 1024)
    score = evaluate(model, source, 2, 1024, {"one": hard_gate(threshold)})["one"]
    assert score.write_rate == pytest.approx(held.event.mean(), rel=0.15)
    assert score.accuracy > 0.98


def test_a_budget_in_training_follows_the_quantile_of_the_gate(z: Tensor) -> None:
    torch.manual_seed(0)
    learner = BudgetLearner(ARMS["surprise"].recipe_for("hard", 0), Surprise)
    warm = learner.chooser(0)(0, torch.tensor([-1e9]))
    states = learner.start(STREAMS)
    for i in range(30):
        _, states, _ = learner.run(1000 + i, z, states)
    gates = [learner.chooser(1000)(0, torch.tensor([x])) for x in (-1e9, 1e9)]
    assert [bool(g) for g in (warm, *gates)] == [True, False, True]
