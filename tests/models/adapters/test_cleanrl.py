"""Agents of the form that CleanRL's recurrent files have, beside their own two methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from stategate.contract.errors import TraceError
from stategate.models import from_cleanrl
from stategate.models.lifting.adapters import adapted

pytestmark = pytest.mark.usefixtures("one_thread")


class Agent(nn.Module):
    """The interface: ``get_states`` and ``get_action_and_value``, with ``done`` inside."""

    def __init__(self, network: nn.Module, head: nn.Linear, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network, self.scale = network, scale
        self.lstm = nn.LSTM(16, head.in_features)
        if head.out_features == 3:
            self.actor_mean, self.actor_logstd = head, nn.Parameter(torch.zeros(1, 3))
        else:
            self.actor = head
        self.critic = nn.Linear(head.in_features, 1)
        for parameter in [*head.parameters(), *self.lstm.parameters()]:  # fresh ones hardly answer
            parameter.data.mul_(4.0)

    def get_states(self, x, lstm_state, done):
        """Hidden values, ``(steps * batch, hidden)``, and the state after the last step."""
        rows = lstm_state[0].shape[1]
        features = self.network(x / self.scale).reshape(-1, rows, self.lstm.input_size)
        hidden = []
        for step, ended in zip(features, done.reshape(-1, rows), strict=True):
            keep = (1.0 - ended).view(1, -1, 1)
            y, lstm_state = self.lstm(step[None], tuple(keep * part for part in lstm_state))
            hidden.append(y)
        return torch.flatten(torch.cat(hidden), 0, 1), lstm_state

    def get_action_and_value(self, x, lstm_state, done, action=None):
        """Action, log-probability, entropy, value and state."""
        hidden, lstm_state = self.get_states(x, lstm_state, done)
        if hasattr(self, "actor"):
            probs: Any = torch.distributions.Categorical(logits=self.actor(hidden))
        else:
            mean = self.actor_mean(hidden)
            probs = torch.distributions.Normal(mean, self.actor_logstd.exp().expand_as(mean))
        action = probs.sample() if action is None else action
        return action, probs.log_prob(action), probs.entropy(), self.critic(hidden), lstm_state


def vector_agent() -> Agent:
    return Agent(nn.Sequential(nn.Linear(5, 16), nn.Tanh()), nn.Linear(24, 3))


def answers_of(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """``get_action_and_value`` on two environments, with the mode of its distribution drawn."""
    for kind in (torch.distributions.Categorical, torch.distributions.Normal):
        monkeypatch.setattr(kind, "sample", lambda self: self.mode)
    state = [(torch.zeros(1, 2, 24), torch.zeros(1, 2, 24))]

    def answer(observation: dict, begins: bool) -> np.ndarray:
        x = torch.from_numpy(observation["obs"])
        done = torch.tensor([float(begins), 0.0])
        both = torch.cat([x, torch.flip(x, [-1])])
        action, *_, state[0] = agent.get_action_and_value(both, state[0], done)
        return action[0].numpy()

    return answer


def test_a_continuous_agent_answers_with_its_mean(
    agrees: Callable, noise: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = vector_agent()
    step = from_cleanrl(agent, normalizer=nn.Identity())
    agrees(step, noise(obs=(5,)), answers_of(agent, monkeypatch), atol=1e-6)
    assert step.family == "lstm" and step.observations == "as given"


@pytest.mark.slow
def test_an_agent_of_pictures_answers_with_its_likeliest_choice(
    agrees: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 4, 8, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 8, 16), nn.ReLU()
    )
    agent = Agent(network, nn.Linear(24, 6), 255.0)
    with pytest.raises(TraceError, match=r"begins with Conv2d[\s\S]*single_observation_space"):
        adapted(agent)
    step = from_cleanrl(agent, spaces.Box(0, 255, (1, 36, 36), np.uint8))
    generator = np.random.default_rng(0)
    squares = generator.integers(0, 256, (200, 1, 1, 3, 3), np.uint8)
    observations = [{"obs": np.kron(square, np.ones((12, 12), np.uint8))} for square in squares]
    outputs = agrees(step, observations, answers_of(agent, monkeypatch), bundle=True)
    assert outputs[0]["logits"].shape == (1, 6)


def test_the_normaliser_of_gymnasium_becomes_part_of_the_step(
    agrees: Callable, noise: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Still(gymnasium.Env):
        observation_space, action_space = spaces.Box(-9.0, 9.0, (5,)), spaces.Discrete(2)

    normal = gymnasium.wrappers.NormalizeObservation(Still())
    normal.obs_rms.update(np.random.default_rng(1).normal(3.0, 2.0, (64, 5)))
    normal.update_running_mean = False
    space = spaces.Box(-2.0, 2.0, (5,))
    env = gymnasium.wrappers.TransformObservation(normal, lambda o: np.clip(o, -2.0, 2.0), space)
    agent = vector_agent()
    with pytest.raises(TraceError, match=r"from_cleanrl\(agent, normalizer=envs\.envs\[0\]\)"):
        adapted(agent)
    with pytest.raises(TraceError, match="where normalised observations are clipped"):
        from_cleanrl(agent, normalizer=env)
    inner = answers_of(agent, monkeypatch)

    def answer(observation: dict, begins: bool) -> np.ndarray:
        observations = env.observation(normal.observation(observation["obs"][0]))
        return inner({"obs": np.float32(observations[None])}, begins)

    step = from_cleanrl(agent, normalizer=env, clip=2.0)
    agrees(step, noise(obs=(5,)), answer)
    assert step.observations == "normalised in the graph"


def test_an_agent_with_other_parts_is_refused_by_their_names() -> None:
    two = vector_agent()
    two.second = nn.LSTM(16, 24)
    with pytest.raises(TraceError, match=r"recurrent units lstm, second[\s\S]*lift\(module"):
        from_cleanrl(two, normalizer=nn.Identity())
    headless = vector_agent()
    del headless.actor_mean
    with pytest.raises(TraceError, match="heads none"):
        from_cleanrl(headless, normalizer=nn.Identity())
    attending = vector_agent()
    attending.lstm = nn.TransformerEncoderLayer(16, 2)
    with pytest.raises(TraceError, match=r"attention in lstm\.self_attn[\s\S]*fixed size"):
        adapted(attending)
    with pytest.raises(TraceError, match="no normaliser of Gymnasium"):
        from_cleanrl(vector_agent(), normalizer=3)
