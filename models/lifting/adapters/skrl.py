"""skrl: policies that declare their memory in ``get_specification()["rnn"]``, of versions 1 and 2.

https://skrl.readthedocs.io/en/latest/api/models.html
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from stategate.contract.errors import TraceError
from stategate.models.lifting.adapters.policy import (
    action_terms,
    choices,
    policy_step,
    unknown_normalizer,
)
from stategate.models.lifting.lift import Lifted

# What the mixins of skrl call their options: of a mean, of an action, of probabilities.
_CLIPS = ("_g_clip_mean_actions", "_mg_clip_mean_actions", "_d_clip_actions")
_KINDS = {"_g_": "mean", "_mg_": "mean", "_d_": "mean", "_c_": "choice", "_mc_": "choices"}
_DISTRIBUTIONS = ("_g_distribution", "_mg_distribution", "_c_distribution", "_mc_distributions")


def recognises(model: object) -> bool:
    """Whether it is an agent of skrl with a policy, or a model of skrl."""
    policy = getattr(model, "policy", model)
    return isinstance(policy, nn.Module) and all(
        callable(getattr(policy, name, None)) for name in ("get_specification", "compute", "act")
    )


def from_skrl(agent: Any, normalizer: nn.Module | None = None) -> Lifted:
    """The policy of a recurrent agent of skrl, as its trainers evaluate it, with its preprocessor.

    Input ``obs``: observations, ``(1, n)``. Output ``action``: the mean of a Gaussian policy,
    clipped where ``clip_mean_actions`` says so; what a deterministic policy gives, clipped where
    ``clip_actions`` says so; the likeliest of a categorical one, with ``logits``, which skrl itself
    draws from. The memory is reset at the start of an episode, as skrl does on ``terminated`` and
    ``truncated``.

    Args:
        agent: The agent, such as ``PPO_RNN``, or its policy.
        normalizer: The preprocessor of a policy that is given without its agent;
            ``torch.nn.Identity()`` says that there is none.

    Raises:
        TraceError: It is no policy of skrl, declares no memory, reads what no robot measures, or
            comes without a word on its preprocessor.
    """
    if not recognises(agent):
        raise TraceError(
            "this is no policy of skrl",
            found=type(agent).__name__,
            expected="an agent of skrl such as PPO_RNN, or its policy",
        )
    policy = getattr(agent, "policy", agent)
    sizes = policy.get_specification().get("rnn", {}).get("sizes", [])
    if not sizes:
        raise TraceError(
            "this policy of skrl has no recurrent unit",
            found=f'{type(policy).__name__}.get_specification() without "rnn"',
            expected='{"rnn": {"sequence_length": ..., "sizes": [(layers, envs, hidden), ...]}}',
            remedy="declare the memory in get_specification(); a policy without one needs no state",
        )
    # Version 1 calls observations ``states``; version 2 has both.
    key = "observations" if hasattr(policy, "state_space") else "states"
    if normalizer is None and policy is not agent:
        preprocessor = getattr(agent, f"_{key.removesuffix('s')}_preprocessor", None)
        # Agents without a preprocessor have a method there that returns what it is given.
        normalizer = preprocessor if isinstance(preprocessor, nn.Module) else nn.Identity()
    if normalizer is None:
        place = f"agent._{key.removesuffix('s')}_preprocessor"
        raise unknown_normalizer("from_skrl(policy", policy, place)
    names = ["h", "c"] if len(sizes) == 2 else ["h"]
    if len(sizes) > 2:
        names = [f"rnn_{i}" for i in range(len(sizes))]
    # Of the environments that it was trained with, a robot is one.
    memory = {n: torch.zeros(s[0], 1, *s[2:]) for n, s in zip(names, sizes, strict=True)}
    units = [type(m).__name__.lower() for m in policy.modules() if isinstance(m, nn.RNNBase)]
    step = SkrlActor(policy, normalizer, key)
    return policy_step(
        step,
        {"obs": torch.zeros(1, policy.num_observations)},
        memory,
        family=units[0] if len(set(units)) == 1 else "custom",
        normalisers={"obs": step.normalizer},
        terms=action_terms(policy.action_space) if step.clips else {},
    )


class _Inputs(dict[str, Any]):
    """What skrl hands to ``compute``, without what only a simulator knows."""

    def __missing__(self, key: str) -> Any:
        raise TraceError(
            f"the policy reads inputs[{key!r}]",
            found=f"compute() that asks for {key!r}",
            expected=f"what a robot has: {', '.join(map(repr, self))}",
            remedy='read inputs["observations"] in compute(), or give the agent a policy that does',
        )


class SkrlActor(nn.Module):
    """A policy of skrl behind its preprocessor."""

    low: Tensor
    high: Tensor

    def __init__(self, policy: Any, normalizer: nn.Module, key: str) -> None:
        super().__init__()
        # A copy: the policy may go on learning. The last distribution holds on to its graph.
        last = {id(d): None for n in _DISTRIBUTIONS if (d := getattr(policy, n, None)) is not None}
        self.policy = copy.deepcopy(policy, last).cpu()
        self.policy.device = torch.device("cpu")
        self.normalizer = copy.deepcopy(normalizer).cpu()
        self._key = key
        kinds = {
            k for prefix, k in _KINDS.items() if any(n.startswith(prefix) for n in vars(policy))
        }
        if len(kinds) != 1:
            raise TraceError(
                "this policy of skrl has no deterministic action",
                found=f"{type(policy).__name__} with {', '.join(sorted(kinds)) or 'no'} actions",
                expected="a model with GaussianMixin, MultivariateGaussianMixin, "
                "DeterministicMixin, CategoricalMixin or MultiCategoricalMixin",
            )
        (self._kind,) = kinds
        self.clips = any(getattr(policy, name, False) for name in _CLIPS)
        if self.clips:
            space = policy.action_space
            self.register_buffer("low", torch.as_tensor(space.low, dtype=torch.float32))
            self.register_buffer("high", torch.as_tensor(space.high, dtype=torch.float32))

    def forward(self, obs: Tensor, **memory: Tensor) -> tuple[Any, ...]:
        """Action, ``(batch, ...)``, and memory after the step, of ``(batch, n)``."""
        inputs = _Inputs({self._key: self.normalizer(obs), "rnn": list(memory.values())})
        # Version 1 returns the deviation in the middle, version 2 among the rest.
        answer, *_, rest = self.policy.compute(inputs, "policy")
        if "rnn" not in rest:
            raise TraceError(
                "the policy of skrl does not return its memory",
                found=f"compute() of {type(self.policy).__name__} that returns {', '.join(rest)}",
                expected='{"rnn": [...]} in the last part of what compute() returns',
            )
        return self._action(answer), *rest["rnn"]

    def _action(self, answer: Tensor) -> dict[str, Tensor]:
        if self._kind == "mean":
            return {"action": answer.clamp(self.low, self.high) if self.clips else answer}
        sizes = self.policy.action_space.nvec.tolist() if self._kind == "choices" else ()
        return choices(answer, sizes)
