from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from lab.__main__ import main as lab
from lab.training.gates.retention import RetentionRecipe, answers, train_retention
from stategate.cli.main import main
from stategate.contract import Episode
from stategate.contract.errors import CalibrationError
from stategate.models.load import load_model
from stategate.models.memories.trim_kv.cell import TrimKv
from stategate.models.step import initial_states
from stategate.models.zoo.makers import TRIM_KV

WIDTH, NEEDLE, QUERY, STEPS = 16, 0, 1, 96
CONFIG = replace(
    TRIM_KV, features=WIDTH, out_features=4, layers=1, width=WIDTH, heads=2, kv_heads=1,
    head_dim=8, memory=8, gate_hidden=8, rope_theta=1e6, qk_norm=False, mlp=8,
)  # fmt: skip


@torch.no_grad()
def finder() -> TrimKv:
    """A model that answers a query with what the needles hold; its gates know nothing of them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = TrimKv(CONFIG).eval()
    layer = model.layers[0]
    model.embed.weight.copy_(torch.eye(WIDTH))
    model.embed.bias.zero_()
    for name, seen in (("to_q", QUERY), ("to_k", NEEDLE)):
        weight = getattr(layer, name).weight
        weight.zero_()
        weight[3::8, seen] = 2.0  # the channel that turns slowest
    layer.to_out.weight.mul_(8.0)
    return model


def haystack(seed: int) -> tuple[Episode, np.ndarray]:
    """Noise with a needle in twenty and a query in eight; where the needles are."""
    rng = np.random.default_rng(seed)
    x = 0.5 * rng.standard_normal((STEPS, 1, WIDTH)).astype(np.float32)
    x[:, 0, : QUERY + 1] = 0.0
    needle, query = rng.random(STEPS) < 0.05, rng.random(STEPS) < 0.12
    needle[3] = True
    x[needle, 0, NEEDLE] = 4.0
    x[query & ~needle, 0, QUERY] = 4.0
    return Episode({"x": x}), np.flatnonzero(needle)


@torch.no_grad()
def lived(model: TrimKv, seed: int) -> tuple[float, float]:
    """Share of the newest eight needles that are kept, and the error of the answers to queries."""
    episode, needles = haystack(seed)
    x = torch.from_numpy(episode.inputs["x"])
    wanted, _ = answers(model, x[:, 0][None], retained=False)
    states, given = initial_states(model), []
    for t in range(STEPS):
        result = model.step({"x": x[t], "threshold": torch.zeros(1)}, states)
        states = dict(result.states)
        given.append(result.outputs["y"])
    kept = set((states["stamp"].flatten() - 1).tolist())
    asked = x[:, 0, QUERY] > 3
    apart, right = (torch.stack(given, 1) - wanted)[:, asked], wanted[:, asked]
    wanted_kept = needles[-CONFIG.memory :].tolist()
    return len(kept & set(wanted_kept)) / len(wanted_kept), float(apart.norm() / right.norm())


def test_what_trained_gates_retain_is_what_the_answers_need() -> None:
    model = finder()
    untrained = copy.deepcopy(model)
    recipe = RetentionRecipe(0.1, iterations=80, window=STEPS, learning_rate=3e-2)
    train_retention(model, [haystack(seed)[0] for seed in range(16)], recipe)
    before = np.array([lived(untrained, seed) for seed in range(100, 104)]).mean(0)
    after = np.array([lived(model, seed) for seed in range(100, 104)]).mean(0)
    assert after[0] > 0.6 > 0.3 > before[0]
    assert after[1] < 0.7 * before[1]
    for name, tensor in untrained.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]) != ("gate_" in name), name


@torch.no_grad()
def test_a_window_at_once_is_the_step_with_room_for_all_of_it() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = TrimKv(replace(TRIM_KV, memory=40)).eval()
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((30, 1, 16)).astype(np.float32))
    at_once, log_betas = answers(model, x[:, 0][None], retained=False)
    states = initial_states(model)
    for t in range(30):
        result = model.step({"x": x[t], "threshold": torch.zeros(1)}, states)
        states = dict(result.states)
        torch.testing.assert_close(result.outputs["y"], at_once[:, t], atol=2e-5, rtol=1e-4)
    stamps, kept = states["stamp"][0, 1, 0], states["log_beta"][0, 1, 0]
    for slot in (stamps > 0).nonzero().flatten().tolist():
        assert float(kept[slot]) == pytest.approx(
            float(log_betas[1][0, 0, stamps[slot] - 1]), rel=1e-3
        )


def test_a_window_that_fits_the_memory_trains_nothing_and_is_refused() -> None:
    with pytest.raises(CalibrationError, match="whole window"):
        train_retention(finder(), [haystack(0)[0]], RetentionRecipe(window=8))
    with pytest.raises(CalibrationError, match="nothing to train"):
        train_retention(finder(), [haystack(0)[0]], RetentionRecipe(window=STEPS + 1))


@pytest.mark.parametrize(
    "recipe",
    [
        RetentionRecipe(capacity_price=float("nan"), window=32, iterations=2, streams=2),
        RetentionRecipe(learning_rate=float("inf"), window=32, iterations=1, streams=2),
    ],
)
def test_gates_that_are_no_numbers_are_refused(recipe: RetentionRecipe) -> None:
    with pytest.raises(CalibrationError, match="diverged"):
        train_retention(finder(), [haystack(0)[0]], recipe)


SOURCE = """
import torch
from stategate.models.memories.trim_kv.cell import TrimKv
from stategate.models.memories.trim_kv.config import TrimKvConfig

def policy():
    torch.manual_seed(2)
    return TrimKv(TrimKvConfig(
        features=6, out_features=3, layers=2, width=16, heads=2, kv_heads=1, head_dim=8,
        memory=8, buffer=1, form="admit", gate_hidden=8, gate_bias=3.0, rope_theta=1e4,
        qk_norm=True, mlp=16, norm_eps=1e-6, threshold=0.0)).eval()

def trained():
    return policy().load_gates("GATES")
"""


@pytest.mark.slow
def test_the_command_trains_gates_that_a_factory_loads(tmp_path: Path) -> None:
    gates = tmp_path / "gates.safetensors"
    (tmp_path / "mine.py").write_text(SOURCE.replace("GATES", str(gates)))
    rng = np.random.default_rng(1)
    logs = tmp_path / "logs"
    logs.mkdir()
    for i in range(3):
        x = rng.standard_normal((120, 1, 6)).astype(np.float32)
        (logs / f"{i}.npz").write_bytes(Episode({"x": x}).to_bytes())

    def run(*arguments: object) -> Result:
        verbs = lab if arguments[0] == "train-retention" else main
        return CliRunner().invoke(verbs, [str(argument) for argument in arguments])

    common = ["--episode", logs, "--window", 40, "--iterations", 30, "--out"]
    model = f"{tmp_path}/mine.py:policy"
    done = run("train-retention", model, *common, gates, "--json")
    assert done.exit_code == 0, done.output
    worth = json.loads(done.stdout)
    assert worth["error_before"] > 0 < worth["error_after"] != worth["error_before"]
    before, after = (
        load_model(f"{tmp_path}/mine.py:{name}").module for name in ("policy", "trained")
    )
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensor, after.state_dict()[name]) != ("gate_" in name), name
    assert run("export", f"{tmp_path}/mine.py:trained", "--steps", 20, "--out",
               tmp_path / "bundle").exit_code == 0  # fmt: skip
    done = run("train-retention", "aura-hard", *common, tmp_path / "no.safetensors")
    assert done.exit_code == 1 and "only a TRIM-KV" in done.output
    done = run("train-retention", model, "--episode", logs / "0.npz", "--out", gates)
    assert done.exit_code == 2 and "two episodes" in done.output
    done = run("train-retention", model, *common, tmp_path / "no.bin")
    assert done.exit_code == 2 and "suffix" in done.output
    longer = ["--episode", logs, "--window", 200, "--out", tmp_path / "no.safetensors"]
    done = run("train-retention", model, *longer)
    assert done.exit_code == 1 and "nothing to train" in done.output
    assert not (tmp_path / "no.safetensors").exists()
