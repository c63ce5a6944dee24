from __future__ import annotations

from dataclasses import asdict

import msgspec
import numpy as np
import pytest
import torch

from lab.training.aura import AuraLearner, evaluate, schedule
from lab.training.checkpoints import rows_of, save
from lab.training.stream import Recipe, train
from stategate.calibration.gates.scan import drawn, hard_gate, scan
from stategate.models.memories.aura import AuraMem
from stategate.models.step import commit, initial_states
from stategate.models.weights import weights_sha256
from stategate.models.zoo.binding_stream import CONFIGS, BindingStreams
from stategate.models.zoo.checkpoint import Card, folder, load

UNSEEN_SEED = 77_003


@pytest.fixture(scope="module")
def shipped():
    return load(folder() / "aura-hard.safetensors", AuraMem())


def naive_steps(model: AuraMem, z: np.ndarray, threshold: float) -> list[dict[str, np.ndarray]]:
    """The published equations in float64 NumPy: write first, read afterwards."""
    w = {name: p.detach().double().numpy() for name, p in model.named_parameters()}

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1.0 / (1.0 + np.exp(-x))

    def silu(x: np.ndarray) -> np.ndarray:
        return x * sigmoid(x)

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return w[f"{name}.weight"] @ x + w.get(f"{name}.bias", 0.0)

    S, b, results = np.zeros((32, 32)), np.zeros(32), []
    c2 = sigmoid(w["bias_rate"])
    for row in z.astype(np.float64):
        x = silu(linear("encode", row))
        k, q = linear("to_k", x), linear("to_q", x)
        k, q = k / np.sqrt(k @ k + 1e-6), q / np.sqrt(q @ q + 1e-6)
        r = linear("to_v", x) - k @ S - b
        surprise = np.log(np.mean(r**2) + 1e-3)
        hidden = linear("gate_hidden", silu(linear("gate_in", row)))
        hidden = hidden + linear("gate_residual", r) + surprise * w["gate_surprise"]
        gate = linear("gate_out", silu(hidden))
        if gate[0] > threshold:
            beta = sigmoid(linear("to_beta", x)) / (1.0 + c2)
            keep = 1.0 - 0.004 * beta
            S = keep * S + np.outer(k, beta * r)
            b = keep * b + c2 * beta * r
        features = np.concatenate([q @ S + b, x])
        action = linear("head_out", silu(linear("head_in", features)))
        results.append({"gate": gate, "action": action, "S": S, "b": b})
    return results


def test_the_memory_is_4224_bytes() -> None:
    assert AuraMem().step_spec().state_bytes == 4224


def test_steps_follow_the_equations_written_out_in_float64(shipped) -> None:
    model, world, _ = shipped
    z = BindingStreams(CONFIGS["hard"], world, 1, UNSEEN_SEED).take(300).z[:, 0]
    states = initial_states(model)
    spec = model.step_spec()
    wrote = 0
    for t, expected in enumerate(naive_steps(model, z, spec.gates[0].threshold)):
        inputs = {"z": torch.from_numpy(z[None, t]), "threshold": torch.zeros(1)}
        with torch.no_grad():
            result = model.step(inputs, states)
        states = commit(spec, states, result)
        wrote += bool(result.gates["gate"] > 0)
        assert (result.gates["gate"].numpy() > 0) == (expected["gate"] > 0)
        np.testing.assert_allclose(result.outputs["action"][0], expected["action"], atol=5e-4)
        np.testing.assert_allclose(states["S"][0], expected["S"], atol=1e-4)
        np.testing.assert_allclose(states["b"][0], expected["b"], atol=1e-4)
    assert 10 < wrote < 100


def test_a_closed_gate_gives_the_old_state_back_bit_for_bit(shipped) -> None:
    model, _, _ = shipped
    states = {"S": torch.randn(1, 32, 32), "b": torch.randn(1, 32)}
    inputs = {"z": torch.randn(1, 64), "threshold": torch.tensor([1e9])}
    result = model.step(inputs, states)
    assert all(torch.equal(result.states[name], states[name]) for name in states)


def test_scanning_and_stepping_are_the_same_memory(shipped) -> None:
    model, world, _ = shipped
    z = torch.from_numpy(BindingStreams(CONFIGS["hard"], world, 1, 5).take(200).z)
    with torch.no_grad():
        p = model.project(z)
        scanned = scan(model, p, torch.zeros(1, 32, 32), torch.zeros(1, 32), hard_gate(0.0))
        actions = model.act(scanned.o, p.x)
        states = initial_states(model)
        for t in range(len(z)):
            result = model.step({"z": z[t], "threshold": torch.zeros(1)}, states)
            states = commit(model.step_spec(), states, result)
            torch.testing.assert_close(result.outputs["action"], actions[t], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(states["S"], scanned.S, atol=1e-4, rtol=1e-4)


def test_the_shipped_policy_remembers_and_schedules_at_its_budget_do_not(shipped) -> None:
    model, world, _ = shipped
    gates = {
        "learned": hard_gate(-2.0),
        "random": schedule("random", 1),
        "periodic": schedule("periodic", 1),
    }
    source = BindingStreams(CONFIGS["hard"], world, 8, UNSEEN_SEED)
    scores = evaluate(model, source, 8, 1024, gates)
    assert scores["learned"].accuracy > 0.99
    assert scores["learned"].write_ratio > 7.0
    for rule in ("random", "periodic"):
        assert 6.0 < scores[rule].write_ratio < 10.0
        assert scores[rule].accuracy < scores["learned"].accuracy - 0.30


def test_the_card_meets_the_target_of_the_hard_stream(shipped) -> None:
    # What it is compared with has several trainings in docs/evidence/controlled.json.
    _, _, card = shipped
    rows = {(row.gate, row.threshold, row.steps): row for row in rows_of(card)}
    for steps in (4096, 100_000):
        learned = rows["learned", -2.0, steps]
        assert learned.accuracy > 0.995 and learned.write_ratio > 8.0


def test_training_twice_gives_the_same_weights() -> None:
    recipe = Recipe(iterations=12, streams=4, chunk=8, seed=3)
    world = recipe.world()
    first, second = (weights_sha256(train(AuraLearner, recipe, world)) for _ in range(2))
    assert first == second
    other = Recipe(iterations=12, streams=4, chunk=8, seed=4)
    assert weights_sha256(train(AuraLearner, other, world)) != first


def test_a_tutored_stream_is_open_and_still_tells_its_gate_what_a_write_was_worth() -> None:
    logits = torch.tensor([-30.0, -1.0, -30.0, 2.0]).repeat(500, 1).requires_grad_()
    torch.manual_seed(0)
    gates = torch.stack([drawn(tutored=2)(t, row[:, None]) for t, row in enumerate(logits)])
    assert set(gates.detach().round(decimals=4).flatten().tolist()) == {0.0, 1.0}
    opened = gates.detach().mean((0, 2))
    assert opened[:3].round(decimals=4).tolist() == [1.0, 1.0, 0.0]
    # Within four standard deviations of a binomial.
    assert abs(opened[3] - 0.8808) < 4 * (0.8808 * 0.1192 / 500) ** 0.5
    gates.sum().backward()
    slope = torch.sigmoid(logits) * (1 - torch.sigmoid(logits))
    assert torch.allclose(logits.grad, slope)


def test_training_leaves_the_callers_random_numbers_and_threads_alone() -> None:
    recipe = Recipe(iterations=2, streams=4, chunk=8)
    threads = torch.get_num_threads()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    train(AuraLearner, recipe, recipe.world())
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def test_a_checkpoint_survives_its_file(tmp_path) -> None:
    model, recipe = AuraMem(), Recipe(seed=9)
    world = recipe.world()
    card = Card("make", asdict(recipe), "2.13", ({"gate": "learned", "threshold": 0.0},))
    save(tmp_path / "m.safetensors", model, world, card)
    again, same_world, same_card = load(tmp_path / "m.safetensors", AuraMem())
    assert weights_sha256(again) == weights_sha256(model)
    assert same_world.w1.tobytes() == world.w1.tobytes()
    assert same_card == msgspec.structs.replace(card, sha256=same_card.sha256)


@pytest.mark.slow
def test_the_recipe_remakes_the_shipped_weights(shipped) -> None:
    """Bit for bit on the machine and torch build that trained them; elsewhere, as good."""
    model, world, card = shipped
    again = train(AuraLearner, Recipe(**card.recipe), world)
    if weights_sha256(again) != weights_sha256(model):
        source = BindingStreams(CONFIGS["hard"], world, 8, UNSEEN_SEED)
        score = evaluate(again, source, 8, 4096, {"learned": hard_gate(-2.0)})["learned"]
        assert score.accuracy > 0.995 and score.write_ratio > 7.0


@pytest.mark.slow
def test_a_hundred_thousand_deployed_steps_keep_their_promise(aura_bundle, tmp_path) -> None:
    """The card's long horizon, measured again through the runtime and its ledger."""
    from stategate.models.zoo.catalogue import entry
    from stategate.runtime import Session
    from stategate.runtime.episodes.run import run_episode

    with Session.open(aura_bundle) as session:
        result = run_episode(session, entry("aura-hard").episode(100_000, UNSEEN_SEED))
    assert result.accuracy is not None and result.accuracy > 0.99
    assert result.write_ratio is not None and result.write_ratio > 7.0
    assert result.state_bytes == 4224
    assert result.rss_end_bytes - result.rss_warm_bytes < 1_000_000
