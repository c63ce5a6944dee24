"""Recipes of the trained zoo models, and the checkpoints that they left."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from lab.training.checkpoints import rows_of, save
from lab.training.recipes import TRAININGS
from lab.training.step import score
from lab.training.stream import Recipe, train
from stategate.contract.errors import SpecError
from stategate.models.memories.aura import AuraMem
from stategate.models.weights import weights_sha256
from stategate.models.zoo import checkpoint
from stategate.models.zoo.binding_stream import CONFIGS, NO_LABEL, BindingStreams
from stategate.models.zoo.catalogue import ZOO
from stategate.models.zoo.checkpoint import Card
from stategate.models.zoo.makers import gdn2_hard, gru_few

UNSEEN_SEED = 77_003
SHAPES = {"aura-hard": AuraMem, "gdn2-hard": gdn2_hard, "gru-few": gru_few}


def short(name: str, **settings: int) -> Recipe:
    return replace(TRAININGS[name].recipe, streams=8, chunk=32, **settings)


def loss(name: str, model: torch.nn.Module, recipe: Recipe) -> float:
    """Cross-entropy of a model over unseen streams, from empty memory."""
    learner = TRAININGS[name].learner(recipe)
    learner.module.load_state_dict(model.state_dict())
    taken = BindingStreams(CONFIGS[recipe.config], recipe.world(), 32, UNSEEN_SEED).take(64)
    label = torch.from_numpy(taken.label)
    with torch.no_grad():
        answer, _, _ = learner.run(0, torch.from_numpy(taken.z), learner.start(32))
        return float(cross_entropy(answer(label != NO_LABEL), label[label != NO_LABEL]))


@pytest.mark.corners("gru-few")
@pytest.mark.parametrize("name", ["gdn2-hard", "gru-few"])
def test_a_few_iterations_lower_the_loss_on_unseen_streams(name: str) -> None:
    recipe = replace(short(name, iterations=120), config="few", always_share=1.0)
    fresh = TRAININGS[name].learner(recipe).module
    trained = train(TRAININGS[name].learner, recipe, recipe.world())
    assert loss(name, trained, recipe) < loss(name, fresh, recipe) - 0.1


@pytest.mark.parametrize("name", ["gdn2-hard", "gru-few"])
def test_a_seed_decides_the_weights(name: str) -> None:
    first, second, other = (
        weights_sha256(train(TRAININGS[name].learner, recipe, recipe.world()))
        for recipe in (short(name, iterations=6, seed=seed) for seed in (3, 3, 4))
    )
    assert first == second != other


def test_the_price_of_a_write_begins_after_the_fresh_memories_and_ends_with_the_frozen_gate() -> (
    None
):
    recipe = Recipe(iterations=100, write_price=2.0)  # shares of 20, 20 and 15 %
    assert [recipe.price(i) for i in (0, 20, 30, 40, 84, 85)] == [0.0, 0.0, 1.0, 2.0, 2.0, 0.0]
    assert replace(recipe, gate="always").price(60) == 0.0


@pytest.mark.parametrize("name", ["gdn2-hard", "gru-few"])
@torch.no_grad()
def test_what_was_trained_in_chunks_is_what_steps(name: str) -> None:
    model, world, card = checkpoint.load(
        checkpoint.folder() / f"{name}.safetensors", SHAPES[name]()
    )
    learner = TRAININGS[name].learner(Recipe(**card.recipe))
    learner.module.load_state_dict(model.state_dict())
    z = torch.from_numpy(BindingStreams(CONFIGS[card.recipe["config"]], world, 3, 5).take(48).z)
    answer, after, _ = learner.run(0, z, learner.start(3))
    chunked = answer(torch.ones(48, 3, dtype=torch.bool)).view(48, 3, 8)
    states = learner.start(3)
    for t in range(48):
        result = model.step({"x": z[t], "threshold": torch.zeros(1)}, states)
        states = result.states
        torch.testing.assert_close(result.outputs["y"], chunked[t], rtol=0, atol=2e-4)
    for key, state in after.items():
        torch.testing.assert_close(states[key], state, rtol=0, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gdn2-hard", "gru-few"])
def test_shipped_weights_answer_from_memory_as_their_card_says(name: str) -> None:
    model, world, card = checkpoint.load(
        checkpoint.folder() / f"{name}.safetensors", SHAPES[name]()
    )
    row = next(row for row in rows_of(card) if row.threshold in (0.0, None))
    source = BindingStreams(CONFIGS[card.recipe["config"]], world, 16, UNSEEN_SEED)
    measured = score(model, source, 16, 300)
    # Five standard deviations of so many answers, of which those of one stream are not independent.
    assert measured.accuracy > row.accuracy - 5 * 0.5 / measured.queries**0.5
    assert row.accuracy > 0.8  # chance is one in eight
    assert card.command.startswith(f"python -m lab train {name} --seed {card.recipe['seed']}")

    class Forgetful:
        step_spec = model.step_spec

        @staticmethod
        def step(inputs, states):
            return model.step(inputs, {key: torch.zeros_like(s) for key, s in states.items()})

    source = BindingStreams(CONFIGS[card.recipe["config"]], world, 16, UNSEEN_SEED)
    assert score(Forgetful(), source, 16, 300).accuracy < 0.45


@pytest.mark.slow
@torch.no_grad()
def test_a_score_counts_the_share_of_a_gate_that_is_open() -> None:
    model, world, card = checkpoint.load(checkpoint.folder() / "gdn2-hard.safetensors", gdn2_hard())

    def writes(threshold: float) -> float:
        source = BindingStreams(CONFIGS[card.recipe["config"]], world, 2, UNSEEN_SEED)
        return score(model, source, 2, 100, {"write": threshold}).write_rate

    assert writes(0.0) == 1.0 and writes(3e38) == 0.0
    assert 0.0 < writes(0.3) < writes(0.03) <= 1.0


# --- checkpoints that are not what they should be -----------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path, recipe = tmp_path / "m.safetensors", Recipe(config="few")
    save(path, gru_few(), recipe.world(), Card("make it", asdict(recipe), "2.13", ()))
    return path


def test_a_checkpoint_comes_back_whole(saved: Path) -> None:
    _, world, card = checkpoint.load(saved, gru_few())
    assert world.entities.tobytes() == Recipe(**card.recipe).world().entities.tobytes()
    assert saved.stat().st_size < 300_000


@pytest.mark.parametrize("damage", ["cut", "byte", "empty"])
def test_a_checkpoint_that_was_changed_is_refused_with_both_digests(
    saved: Path, damage: str
) -> None:
    raw = saved.read_bytes()
    middle = len(raw) // 2
    changed = {
        "cut": raw[:middle],
        "byte": raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :],
        "empty": b"",
    }[damage]
    saved.write_bytes(changed)
    with pytest.raises(SpecError, match=r"found: .*sha256 [0-9a-f]{12}") as refusal:
        checkpoint.load(saved, gru_few())
    assert "make it" in str(refusal.value)


def test_a_checkpoint_of_another_model_is_refused(saved: Path) -> None:
    with pytest.raises(SpecError, match="does not fit"):
        checkpoint.load(saved, gdn2_hard())


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"command": 3}'])
def test_a_card_that_is_none_is_refused(saved: Path, raw: bytes) -> None:
    saved.with_suffix(".json").write_bytes(raw)
    with pytest.raises(SpecError, match="cannot be read"):
        checkpoint.load(saved, gru_few())


def test_a_file_of_the_right_digest_that_is_no_checkpoint_is_refused(saved: Path) -> None:
    card = msgspec.json.decode(saved.with_suffix(".json").read_bytes(), type=Card)
    raw = b"\xff" * 64
    saved.write_bytes(raw)
    import hashlib

    card = msgspec.structs.replace(card, sha256=hashlib.sha256(raw).hexdigest())
    saved.with_suffix(".json").write_bytes(msgspec.json.encode(card))
    with pytest.raises(SpecError, match="does not fit"):
        checkpoint.load(saved, gru_few())


@pytest.mark.parametrize("name", TRAININGS)
def test_shipped_checkpoints_are_small_and_float32(name: str) -> None:
    path = checkpoint.folder() / f"{name}.safetensors"
    assert path.stat().st_size < 1_000_000
    model, _, _ = checkpoint.load(path, SHAPES[name]())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert ZOO[name].weights == "trained"
    episode = ZOO[name].episode(50, 9)
    assert episode.steps == 50 and np.isin(next(iter(episode.labels.values())), range(-1, 8)).all()
