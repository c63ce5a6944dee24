"""Agents in the form of CleanRL's single files: ``get_states`` and ``get_action_and_value``.

https://docs.cleanrl.dev/rl-algorithms/ppo/#ppo_atari_lstmpy
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from stategate.contract.errors import TraceError
from stategate.models.lifting.adapters.policy import (
    Normalized,
    choices,
    family_of,
    memory_of,
    no_recurrence,
    policy_step,
    unknown_normalizer,
)
from stategate.models.lifting.lift import Lifted


def recognises(model: object) -> bool:
    """Whether it has the methods of an agent of CleanRL."""
    return isinstance(model, nn.Module) and callable(getattr(model, "get_action_and_value", None))


def from_cleanrl(
    agent: Any, observation_space: Any = None, *, normalizer: Any = None, clip: float | None = None
) -> Lifted:
    """The actor of an agent that has ``get_states(x, lstm_state, done)``.

    Input ``obs``: one observation with a leading axis of 1. Output ``action``: the likeliest choice
    with its ``logits``, of an agent with ``actor``; the mean, of one with ``actor_mean``. ``done``
    is the session's reset and no input.

    Args:
        agent: The agent, its weights loaded.
        observation_space: ``envs.single_observation_space``: shape and dtype of an observation.
            None is enough where the agent begins with a linear layer.
        normalizer: The ``NormalizeObservation`` of Gymnasium that it was trained behind, or a
            wrapper around it; ``torch.nn.Identity()`` says that there is none. Bytes need no word.
        clip: Where normalised observations are clipped, as ``TransformObservation(env, lambda obs:
            numpy.clip(obs, -10, 10))`` does it around the normaliser; ``float("inf")`` for nowhere.

    Raises:
        TraceError: It has no recurrent unit or two, or something of the above is not said.
    """
    units = {n: part for n, part in agent.named_modules() if isinstance(part, nn.RNNBase)}
    heads = [name for name in ("actor", "actor_mean") if hasattr(agent, name)]
    if not units or not callable(getattr(agent, "get_states", None)):
        raise no_recurrence(
            agent,
            f"{type(agent).__name__} with {'get_action_and_value'} and no "
            f"{'get_states' if units else 'nn.LSTM'}",
            "an nn.LSTM, and get_states(x, lstm_state, done)",
        )
    if len(units) > 1 or len(heads) != 1:
        raise TraceError(
            "this agent has parts that are not known",
            found=f"recurrent units {', '.join(units)}; heads {', '.join(heads) or 'none'}",
            expected="one nn.LSTM, and a head called actor (logits) or actor_mean",
            remedy="write a module whose forward(x, h, c) returns action, h and c, and lift it: "
            'lift(module, {"x": ...}, hidden={"h": ..., "c": ...}, session_axes={"h": 1, "c": 1})',
        )
    (rnn,) = units.values()
    example = _example(agent, observation_space)
    if normalizer is None and example.dtype != torch.uint8:
        raise unknown_normalizer("from_cleanrl(agent", agent, "envs.envs[0]")
    as_given = normalizer is None or isinstance(normalizer, nn.Identity)
    normal = nn.Identity() if as_given else _normalized(normalizer, clip)
    return policy_step(
        CleanRlActor(agent, normal, heads[0]),
        {"obs": example},
        memory_of(rnn),
        family=family_of(rnn),
        normalisers={"obs": normal},
    )


def _example(agent: nn.Module, space: Any) -> Tensor:
    if space is not None:
        dtype = torch.uint8 if str(space.dtype) == "uint8" else torch.float32
        return torch.zeros(1, *space.shape, dtype=dtype)
    inner = (part for part in agent.modules() if part is not agent)
    first = next(part for part in inner if list(part.parameters(recurse=False)))
    if isinstance(first, (nn.Linear, nn.RNNBase)):
        width = first.in_features if isinstance(first, nn.Linear) else first.input_size
        return torch.zeros(1, width)
    raise TraceError(
        "nothing says what the agent observes",
        found=f"{type(agent).__name__} that begins with {type(first).__name__}",
        remedy="from stategate.models import from_cleanrl; from_cleanrl(agent, "
        "envs.single_observation_space)",
    )


def _normalized(wrapper: Any, clip: float | None) -> nn.Module:
    """The statistics of a NormalizeObservation, which may lie inside of other wrappers."""
    outer = []
    while not hasattr(wrapper, "obs_rms"):
        outer.append(type(wrapper).__name__)
        if not hasattr(wrapper, "env"):
            raise TraceError(
                "this is no normaliser of Gymnasium",
                found=" around ".join(outer),
                expected="gymnasium.wrappers.NormalizeObservation, a wrapper around it, or "
                "torch.nn.Identity()",
            )
        wrapper = wrapper.env
    if clip is None and any("TransformObservation" in name for name in outer):
        raise TraceError(
            "nothing says where normalised observations are clipped",
            found="TransformObservation around NormalizeObservation",
            remedy='from_cleanrl(agent, ..., normalizer=env, clip=10.0), or clip=float("inf") if '
            "the function clips nothing",
        )
    moments = wrapper.obs_rms
    spread = (moments.var + wrapper.epsilon) ** 0.5
    return Normalized(moments.mean, spread, float("inf") if clip is None else clip)


class CleanRlActor(nn.Module):
    """An agent's ``get_states`` and the head of its actor."""

    def __init__(self, agent: Any, normalizer: nn.Module, head: str) -> None:
        super().__init__()
        self.agent, self.normalizer = copy.deepcopy(agent).cpu(), normalizer
        self._head = head

    def forward(self, obs: Tensor, **memory: Tensor) -> tuple[Any, ...]:
        """Action, ``(batch, ...)``, and memory after the step, of ``(batch, ...)``."""
        before = tuple(memory.values()) if len(memory) > 1 else memory["h"]
        done = torch.zeros(obs.shape[0])  # a session's reset does it
        x, after = self.agent.get_states(self.normalizer(obs), before, done)
        answer = getattr(self.agent, self._head)(x)
        action = choices(answer) if self._head == "actor" else {"action": answer}
        return action, *(after if isinstance(after, tuple) else (after,))
