"""rsl_rl: the actor of its recurrent models, of versions 2 to 5."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from stategate.contract.errors import TraceError
from stategate.contract.observation import Term
from stategate.models.lifting.adapters.policy import family_of, memory_of, policy_step, run_once
from stategate.models.lifting.lift import Lifted

# Where rsl_rl keeps recurrent unit, head and normaliser: 4 and newer, 2 and 3, their students.
_RSL_RL = (
    ("rnn", "mlp", "obs_normalizer"),
    ("memory_a", "actor", "actor_obs_normalizer"),
    ("memory_s", "student", "student_obs_normalizer"),
)


def recognises(policy: object) -> bool:
    """Whether it has the parts of a recurrent policy of rsl_rl."""
    return _rsl_rl_names(policy) is not None


def from_rsl_rl(policy: Any, normalizer: nn.Module | None = None) -> Lifted:
    """The actor of rsl_rl's recurrent models, LSTM or GRU, with its normaliser.

    Input ``obs``: the observation groups of the actor, concatenated in their order, ``(1, n)``.
    Output ``action``: what ``act_inference`` gives, or ``forward`` without ``stochastic_output``.

    Args:
        policy: ``RNNModel`` (rsl-rl-lib 4 and newer), ``ActorCriticRecurrent`` or
            ``StudentTeacherRecurrent`` (2 and 3).
        normalizer: The runner's ``obs_normalizer``, for versions before 3 that keep it there.

    Raises:
        TraceError: It is none of them, or its normaliser is missing.
    """
    names = _rsl_rl_names(policy)
    if names is None:
        raise TraceError(
            "this is no recurrent policy of rsl_rl",
            found=type(policy).__name__,
            expected="RNNModel, ActorCriticRecurrent or StudentTeacherRecurrent",
        )
    memory, head = getattr(policy, names[0]), getattr(policy, names[1])
    own = getattr(policy, names[2], None)
    normalizer = own if own is not None else normalizer
    if normalizer is None:
        raise TraceError(
            "rsl_rl before version 3 keeps the normaliser of observations in its runner",
            found=f"{type(policy).__name__} without {names[2]}",
            remedy="from_rsl_rl(policy, normalizer=runner.obs_normalizer), or "
            "normalizer=torch.nn.Identity() if it was trained without",
        )
    mean: nn.Module = nn.Identity()
    distribution: Any = getattr(policy, "distribution", None)
    if hasattr(distribution, "as_deterministic_output_module"):  # version 5
        mean = distribution.as_deterministic_output_module()
    elif getattr(policy, "state_dependent_std", False):
        mean = _FirstRow()
    rnn: nn.RNNBase = memory.rnn
    step = RslRlActor(normalizer, rnn, nn.Sequential(head, mean))
    return policy_step(
        step,
        {"obs": torch.zeros(1, rnn.input_size)},
        memory_of(rnn),
        family=family_of(rnn),
        normalisers={"obs": normalizer},
        terms={"obs": _groups(policy, rnn.input_size)},
    )


class RslRlActor(nn.Module):
    """Normaliser, recurrent unit and head, of whichever version."""

    def __init__(self, normalizer: nn.Module, rnn: nn.RNNBase, head: nn.Module) -> None:
        super().__init__()
        # Copies: the policy may go on learning, on another device.
        self.normalizer, self.rnn, self.head = (
            copy.deepcopy(part).cpu() for part in (normalizer, rnn, head)
        )

    def forward(self, obs: Tensor, **memory: Tensor) -> tuple[Any, ...]:
        """Action, ``(batch, actions)``, and memory after the step, of ``(batch, n)``."""
        x, after = run_once(self.rnn, self.normalizer(obs), memory)
        return {"action": self.head(x)}, *after


class _FirstRow(nn.Module):
    """The mean, of a head that gives mean and deviation as rows."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., 0, :]


def _groups(policy: Any, size: int) -> tuple[Term, ...]:
    """The groups of observations that the actor concatenates; their sizes are nowhere kept."""
    groups = getattr(policy, "obs_groups", None)
    if isinstance(groups, dict):  # before version 4
        groups = groups.get("policy")
    if not isinstance(groups, list) or len(groups) < 2:
        return (Term(groups[0] if groups else "obs", size=size),)
    return tuple(Term(group) for group in groups)


def _rsl_rl_names(policy: object) -> tuple[str, str, str] | None:
    for names in _RSL_RL:
        rnn = getattr(getattr(policy, names[0], None), "rnn", None)
        if isinstance(rnn, (nn.LSTM, nn.GRU)) and isinstance(
            getattr(policy, names[1], None), nn.Module
        ):
            return names
    return None
