"""The zoo: one model of every family, and the sizes of the published ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from stategate.cli.main import main
from stategate.cli.zoo import zoo
from stategate.models.load import load_model
from stategate.models.step import commit, initial_states, threshold_inputs
from stategate.models.zoo.catalogue import ZOO

FAMILIES = {
    "aura",
    "gated_deltanet",
    "kda",
    "gated_deltanet2",
    "gated_deltaproduct",
    "mamba2",
    "mamba3",
    "mlstm",
    "slstm",
    "rwkv7",
    "ttt_linear",
    "titans",
    "trim_kv",
    "window",
    "ring",
    "memory_tokens",
    "sega",
    "lstm",
    "gru",
    "mingru",
}


def test_every_family_is_in_the_zoo_and_says_what_a_write_is() -> None:
    rows = json.loads(CliRunner().invoke(zoo, ["--json"]).stdout)
    assert {row["family"] for row in rows} == FAMILIES
    for row in rows:
        assert row["write"] and row["paper"] and row["state_bytes"] > 0
        assert row["weights"] in ("trained", "seeded")
        assert row["gates"][0]["granularity"] in ("step", "head", "slot", "channel")


# State that a published model carries, convolutions and bookkeeping in float32 included: the
# figures of its paper are tested, part by part, with its family.
@pytest.mark.parametrize(
    ("entry", "name", "nbytes"),
    [
        ("aura-hard", "aura-mem", 4_224),
        ("gated-deltanet2", "gdn2-1.3b", 18_874_368 + 18 * 16 * 128 * 4 + 2 * 663_552),
        ("kda", "kimi-linear-48b-a3b", 41_943_040 + 20 * 32 * 128 * 4 + 2 * 1_474_560),
        ("mamba2", "mamba2-1.3b", 100_663_296 + 2 * 1_253_376),
        ("mamba3", "mamba3-1.5b", (48 << 20) + 24 * 64 * 257 * 4),
        ("trim-kv", "qwen3-4b-512", 2 * 94_371_840 + 2 * 737_280 + 65 * 4),
        ("sega", "seedpolicy-transformer", 61_440 + 4),
    ],
)
def test_published_memories_are_listed_with_their_size(entry: str, name: str, nbytes: int) -> None:
    assert ZOO[entry].published[name].step_spec().state_bytes == nbytes


@pytest.mark.parametrize("name", sorted(ZOO))
@torch.no_grad()
def test_a_zoo_model_is_the_same_whenever_it_is_built(name: str) -> None:
    first, second = (load_model(name) for _ in range(2))
    assert first.family == ZOO[name].family
    states = initial_states(first.model)
    episode = ZOO[name].episode(1, 7)
    inputs = {key: torch.from_numpy(value[0]) for key, value in episode.inputs.items()}
    inputs |= threshold_inputs(first.model.step_spec())
    one, other = (loaded.model.step(inputs, states) for loaded in (first, second))
    for key, value in one.outputs.items():
        assert torch.equal(value, other.outputs[key])


@torch.no_grad()
def test_the_seeded_trim_kv_refuses_some_tokens_and_admits_others() -> None:
    model, episode = ZOO["trim-kv"].build(), ZOO["trim-kv"].episode(120, 3)
    spec, states, opened = model.step_spec(), initial_states(model), []
    for inputs in episode:
        given = {n: torch.from_numpy(a) for n, a in inputs.items()} | threshold_inputs(spec)
        result = model.step(given, states)
        states = commit(spec, states, result)
        opened.append(float((result.gates["write"] > 0.0).float().mean()))
    assert 0.2 < sum(opened[40:]) / 80 < 0.8


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(ZOO) - {"aura-hard"}))
def test_every_zoo_model_becomes_a_bundle_that_verifies(name: str, tmp_path: Path) -> None:
    run = CliRunner()
    out = str(tmp_path / "bundle")
    made = run.invoke(main, ["export", name, "--out", out, "--json"])
    assert made.exit_code == 0, made.output
    assert run.invoke(main, ["verify", out]).exit_code == 0
