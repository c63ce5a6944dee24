"""SEGA beside the same equations from torch's own attention, in float64, with every logit kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stategate.contract.errors import SpecError
from stategate.models.memories.sega import PUBLISHED, Sega, SegaConfig
from stategate.models.step import commit, initial_states, threshold_inputs

SMALL = SegaConfig(
    tokens=8, obs_tokens=3, width=32, depth=2, heads=4, mlp=128, norm_eps=1e-5, threshold=0.0
)


@pytest.fixture
def model() -> Sega:
    """Queries and keys large enough for gates between 0.1 and 0.9, what is added to the rows small
    enough for them to stay apart; torch's own start leaves every gate at 0.5 and every row alike.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        made = Sega(SMALL)
        for name, parameter in made.named_parameters():
            if name in ("start", "position"):
                nn.init.normal_(parameter)
            elif parameter.dim() == 1:
                nn.init.normal_(parameter, mean=float(name.endswith("norm.weight")), std=0.1)
            else:
                scale = 0.3 if "_out." in name else 2.0
                nn.init.normal_(parameter, std=scale * parameter.shape[-1] ** -0.5)
    return made.eval()


def observations(steps: int) -> Tensor:
    return torch.randn(steps, 1, 3, 32, generator=torch.Generator().manual_seed(5))


class Naive:
    """The published equations, read from the parameters' names; nothing of the model is called."""

    def __init__(self, model: Sega) -> None:
        self.w = {name: p.detach().double() for name, p in model.named_parameters()}
        self.state: Tensor | None = None
        self.logits: list[Tensor] = []

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (32,), self.w[f"{name}.weight"], self.w[f"{name}.bias"], 1e-5)

    def attend(self, weight: str, out: str, q: Tensor, kv: Tensor) -> Tensor:
        """torch's own multi-head attention, with our projections put in its packed form."""
        if weight.endswith("self"):
            packed = self.w[f"{weight}_qkv.weight"], self.w[f"{weight}_qkv.bias"]
        else:
            packed = tuple(
                torch.cat((self.w[f"{weight}_q.{p}"], self.w[f"{weight}_kv.{p}"]))
                for p in ("weight", "bias")
            )
        attention = nn.MultiheadAttention(32, 4, batch_first=True, dtype=torch.float64)
        attention.load_state_dict(
            {
                "in_proj_weight": packed[0],
                "in_proj_bias": packed[1],
                "out_proj.weight": self.w[f"{out}.weight"],
                "out_proj.bias": self.w[f"{out}.bias"],
            }
        )
        return attention(q, kv, kv, need_weights=False)[0]

    def block(self, name: str, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        z = self.norm(f"{name}.self_norm", x)
        x = x + self.attend(f"{name}.self", f"{name}.self_out", z, z)
        z, seen = self.norm(f"{name}.cross_norm", x), self.norm(f"{name}.other_norm", other)
        k, _ = self.linear(f"{name}.cross_kv", seen).chunk(2, -1)
        q = self.linear(f"{name}.cross_q", z)
        heads = zip(q.split(8, -1), k.split(8, -1), strict=True)
        raw = [one_q @ one_k.transpose(1, 2) / 8**0.5 for one_q, one_k in heads]
        x = x + self.attend(f"{name}.cross", f"{name}.cross_out", z, seen)
        hidden = F.gelu(self.linear(f"{name}.mlp_in", self.norm(f"{name}.mlp_norm", x)))
        return x + self.linear(f"{name}.mlp_out", hidden), torch.stack(raw)

    @torch.no_grad()
    def step(self, obs: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
        first = self.state is None
        old = self.w["start"] if self.state is None else self.state
        s0 = s = old + self.w["position"]
        o, logits = obs.double(), []
        for i in range(2):
            (s, raw), (o, _) = (
                self.block(f"memory_blocks.{i}", s, o),
                self.block(f"obs_blocks.{i}", o, s),
            )
            logits.append(raw)  # (heads, 1, tokens, observed)
        gate = torch.sigmoid(torch.stack(logits).mean((0, 1, 4)))
        gate = torch.ones_like(gate) if first else gate
        share = gate[..., None]
        new = share * self.norm("memory_norm", s) + (1 - share) * s0 - self.w["position"]
        self.state = torch.where(share > threshold, new, old)
        return self.norm("obs_norm", o), gate, self.state


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_steps_follow_the_equations_and_the_gate_is_the_mean_of_raw_logits(
    model: Sega, threshold: float
) -> None:
    naive, spec, states = Naive(model), model.step_spec(), initial_states(model)
    chosen, gates = {"write": threshold}, []
    for obs in observations(20):
        with torch.no_grad():
            result = model.step({"obs": obs, **threshold_inputs(spec, chosen)}, states)
        states = commit(spec, states, result, chosen)
        cond, gate, state = naive.step(obs, threshold)
        gates.append(gate)
        for ours, theirs in (
            (result.outputs["cond"], cond),
            (result.gates["write"], gate),
            (states["s"], state),
        ):
            torch.testing.assert_close(ours.double(), theirs, atol=2e-5, rtol=0)
    later = torch.stack(gates[1:])
    assert (gates[0] == 1).all() and later.min() < 0.4 and later.max() > 0.6
    assert (later.amax(-1) - later.amin(-1)).mean() > 0.05


def test_a_closed_row_keeps_its_bytes_and_an_open_one_does_not(model: Sega) -> None:
    states = {"s": torch.randn(1, 8, 32), "started": torch.ones(1, 1)}
    closed = 0
    for obs in observations(40):
        with torch.no_grad():
            after = model.step({"obs": obs, "threshold": torch.tensor([0.5])}, states)
        kept = (after.states["s"] == states["s"]).all(-1)
        assert torch.equal(kept, after.gates["write"] <= 0.5)
        closed += int(kept.sum())
        states = dict(after.states)
    assert 40 < closed < 280


def test_the_first_write_replaces_the_initial_tokens_whole(model: Sega) -> None:
    states = initial_states(model)
    assert torch.equal(states["s"], model.start)
    obs = observations(1)[0]
    with torch.no_grad():
        first = model.step({"obs": obs, "threshold": torch.tensor([0.9])}, states)
        later = model.step(
            {"obs": obs, "threshold": torch.tensor([0.9])}, {**states, "started": torch.ones(1, 1)}
        )
    assert (first.gates["write"] == 1).all() and first.states["started"] == 1
    assert (later.gates["write"] < 0.9).all() and torch.equal(later.states["s"], model.start)


def test_a_refused_first_write_leaves_the_next_step_the_first(model: Sega) -> None:
    """The states of one gate swap together, so a hold of the runtime keeps ``started`` too."""
    gates = {state.gate for state in model.step_spec().states}
    assert gates == {"write"}
    states = initial_states(model)
    with torch.no_grad():
        held = model.step({"obs": observations(1)[0], "threshold": torch.tensor([1.0])}, states)
    assert torch.equal(held.states["s"], states["s"]) and held.states["started"] == 0


@pytest.mark.parametrize(
    ("name", "state_bytes", "parameters"),
    [
        ("seedpolicy-transformer", 61_440, 12_679_168),
        ("seedpolicy-unet", 122_880, None),
    ],
)
def test_published_sizes(name: str, state_bytes: int, parameters: int | None) -> None:
    config = PUBLISHED[name]
    assert config.step_spec().states[0].bytes == state_bytes
    with torch.device("meta"):
        model = Sega(config)
    if parameters is not None:
        assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.family == "sega" and model.step_spec() == config.step_spec()
    assert model.kv_bytes_per_step == config.kv_bytes_per_step == 2 * 6 * 3 * config.width * 4


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"heads": 5}, "SegaConfig.heads must not be 5.*\n.*divisor of width=32"),
        ({"threshold": 1.0}, "threshold must not be 1.0[\\s\\S]*first step"),
        ({"threshold": 1 - 1e-9}, "threshold must not be 0.999999999[\\s\\S]*first step"),
        ({"threshold": -0.1}, "threshold must not be -0.1"),
        ({"tokens": 0}, "tokens must not be 0.*\n.*1 or more"),
        ({"depth": "six"}, "depth must not be 'six'"),
        ({"norm_eps": -1e-5}, "norm_eps must not be -1e-05"),
        ({"norm_eps": float("inf")}, "norm_eps must not be inf"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_by_name(change: dict, finding: str) -> None:
    with pytest.raises(SpecError, match=finding):
        replace(SMALL, **change)
