"""Recurrent policies of skrl beside its own agents, on the way that its trainers evaluate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from stategate.contract.errors import TraceError
from stategate.models import from_skrl
from stategate.models.lifting.adapters import adapted

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

OBSERVATIONS, ENVS, HIDDEN = spaces.Box(-10.0, 10.0, (5,)), 4, 16
BOX = spaces.Box(-0.1, 0.1, (3,))
CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


def policy_of(mixin: str, cell: str, actions: spaces.Space, *, layers: int = 1, **options: Any):
    """A policy as skrl's documentation writes it, trained with four environments."""
    from skrl.models import torch as models

    base = getattr(models, mixin)

    class Policy(base, models.Model):
        def __init__(self) -> None:
            models.Model.__init__(
                self, observation_space=OBSERVATIONS, action_space=actions, device="cpu"
            )
            base.__init__(self, **options)
            self.unit = CELLS[cell](self.num_observations, HIDDEN, layers, batch_first=True)
            self.net = nn.Sequential(nn.Linear(HIDDEN, 32), nn.ELU(), nn.Linear(32, outputs))
            self.log_std_parameter = nn.Parameter(torch.zeros(self.num_actions))

        def get_specification(self) -> dict:
            sizes = [(layers, ENVS, HIDDEN)] * (2 if cell == "lstm" else 1)
            return {"rnn": {"sequence_length": 8, "sizes": sizes}}

        def compute(self, inputs: dict, role: str = "") -> tuple:
            x = inputs["observations"].view(-1, 1, self.num_observations)
            memory = inputs["rnn"]
            y, memory = self.unit(x, tuple(memory) if len(memory) > 1 else memory[0])
            rnn = list(memory) if isinstance(memory, tuple) else [memory]
            return self.net(y[:, 0]), {"log_std": self.log_std_parameter, "rnn": rnn}

    torch.manual_seed(0)
    sizes = getattr(actions, "nvec", None)
    outputs = int(getattr(actions, "n", 0)) or (BOX.shape[0] if sizes is None else int(sum(sizes)))
    return Policy()


def agent_of(policy: nn.Module, normalised: bool = True) -> Any:
    from skrl.agents.torch.ddpg import DDPG_RNN
    from skrl.agents.torch.ppo import PPO_RNN
    from skrl.resources.preprocessors.torch import RunningStandardScaler

    cfg: dict[str, Any] = {"experiment": {"write_interval": 0, "checkpoint_interval": 0}}
    if normalised:
        cfg["observation_preprocessor"] = RunningStandardScaler
        cfg["observation_preprocessor_kwargs"] = {"size": OBSERVATIONS, "device": "cpu"}
    kind = DDPG_RNN if hasattr(policy, "_d_clip_actions") else PPO_RNN
    agent = kind(
        models={"policy": policy, "value": None},
        observation_space=OBSERVATIONS,
        action_space=policy.action_space,
        device="cpu",
        cfg=cfg,
    )
    agent.init()
    if normalised:
        drawn = 3.0 * torch.randn(64, 5, generator=torch.Generator().manual_seed(1)) + 1.0
        agent._observation_preprocessor(drawn, train=True)
    return agent


def answers_of(agent: Any) -> Callable[[dict, bool], np.ndarray]:
    """``agent.act`` with four environments at once, of which the second is the robot."""

    def answer(observation: dict, begins: bool) -> np.ndarray:
        for state in agent._rnn_initial_states["policy"]:
            state[:, 1] *= 0.0 if begins else 1.0
        four = torch.from_numpy(observation["obs"]) * torch.tensor([[0.5], [1.0], [2.0], [3.0]])
        actions, outputs = agent.act(four, None, timestep=0, timesteps=1)
        agent._rnn_initial_states["policy"] = [s.clone() for s in outputs["rnn"]]
        if "net_output" not in outputs:
            return outputs.get("mean_actions", actions)[1].numpy()
        # skrl draws from a categorical policy; its likeliest choice needs no draw.
        return np.array([d.probs[1].argmax() for d in agent.policy._mc_distributions])

    return answer


@pytest.mark.parametrize(
    ("mixin", "cell", "layers", "options", "normalised"),
    [
        ("GaussianMixin", "lstm", 2, {"clip_mean_actions": True}, True),
        ("GaussianMixin", "gru", 1, {"clip_actions": True}, False),
        ("DeterministicMixin", "rnn", 1, {"clip_actions": True}, True),
        ("MultivariateGaussianMixin", "gru", 1, {}, True),
    ],
)
def test_a_policy_of_skrl_answers_as_its_trainers_evaluate_it(
    agrees: Callable, noise: Callable, mixin, cell, layers, options, normalised
) -> None:
    agent = agent_of(policy_of(mixin, cell, BOX, layers=layers, **options), normalised)
    step = adapted(agent)
    outputs = agrees(step, noise(obs=(5,)), answers_of(agent), bundle=cell == "lstm")
    assert step.family == cell
    assert step.observations == ("normalised in the graph" if normalised else "as given")
    assert [s.shape for s in step.step_spec().states][0] == (1, layers, HIDDEN)
    if options.get("clip_mean_actions"):
        assert max(o["action"].max() for o in outputs) == np.float32(0.1)
        (bound,) = step.observes.outputs["action"].terms
        assert bound.clip == pytest.approx((-0.1, 0.1)) and bound.size == 3
        assert step.observes.inputs["obs"].statistics_sha256


def test_a_categorical_policy_of_skrl_gives_its_likeliest_choice_and_logits(
    agrees: Callable, noise: Callable
) -> None:
    policy = policy_of("MultiCategoricalMixin", "lstm", spaces.MultiDiscrete([3, 4]))
    agent = agent_of(policy)
    outputs = agrees(adapted(agent), noise(obs=(5,)), answers_of(agent), bundle=True)
    assert outputs[0]["action"].shape == (1, 2) and outputs[0]["logits"].shape == (1, 7)
    one = from_skrl(policy_of("CategoricalMixin", "gru", spaces.Discrete(6)), nn.Identity())
    result = one.step({"obs": torch.ones(1, 5)}, one.initial_states())
    assert result.outputs["action"] == result.outputs["logits"].argmax(-1)


def test_a_policy_of_skrl_without_its_agent_has_to_say_its_preprocessor(
    agrees: Callable, noise: Callable
) -> None:
    agent = agent_of(policy_of("GaussianMixin", "lstm", BOX))
    with pytest.raises(TraceError, match=r"from_skrl\(policy, normalizer=agent\._observation_pre"):
        adapted(agent.policy)
    step = from_skrl(agent.policy, agent._observation_preprocessor)
    agrees(step, noise(obs=(5,)), answers_of(agent))
    assert from_skrl(agent.policy, nn.Identity()).observations == "as given"


def test_what_is_no_recurrent_policy_of_skrl_is_refused_with_a_remedy() -> None:
    policy = policy_of("GaussianMixin", "lstm", BOX)
    policy.get_specification = dict
    with pytest.raises(TraceError, match=r"no recurrent unit[\s\S]*get_specification"):
        adapted(policy)
    with pytest.raises(TraceError, match="no policy of skrl"):
        from_skrl(nn.Linear(1, 1))

    privileged = policy_of("GaussianMixin", "gru", BOX)
    privileged.compute = lambda inputs, role: inputs["states"]
    with pytest.raises(TraceError, match=r"inputs\['states'\][\s\S]*inputs\[\"observations\"\]"):
        from_skrl(privileged, nn.Identity())

    forgetful = policy_of("GaussianMixin", "gru", BOX)
    forgetful.compute = lambda inputs, role: (inputs["observations"], {})
    with pytest.raises(TraceError, match="does not return its memory"):
        from_skrl(forgetful, nn.Identity())


class OfVersion1(nn.Module):
    """The parts that a policy of version 1 is known by; it calls observations states."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.num_observations, self._g_clip_actions = 5, True
        self.gru, self.head = nn.GRU(5, 8), nn.Linear(8, 2)

    def get_specification(self) -> dict:
        return {"rnn": {"sequence_length": 8, "sizes": [(1, 64, 8)]}}

    def act(self, inputs: dict, role: str) -> tuple:
        raise AssertionError("act draws from a distribution")

    def compute(self, inputs: dict, role: str) -> tuple:
        y, h = self.gru(inputs["states"][None], inputs["rnn"][0])
        return self.head(y[0]), torch.zeros(2), {"rnn": [h]}


def test_policies_of_version_1_are_known_by_their_parts(agrees: Callable, noise: Callable) -> None:
    policy, h = OfVersion1(), [torch.zeros(1, 1, 8)]

    def answer(observation: dict, begins: bool) -> np.ndarray:
        x = torch.from_numpy(observation["obs"])
        y, h[0] = policy.gru(x[None], torch.zeros_like(h[0]) if begins else h[0])
        return policy.head(y[0]).numpy()

    agrees(from_skrl(policy, nn.Identity()), noise(obs=(5,)), answer)
    with pytest.raises(TraceError, match=r"agent\._state_preprocessor"):
        adapted(policy)
