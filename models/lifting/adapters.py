"""Recurrent policies of RL packages as steps, known by their structure; the packages stay outside.

The step is what the package does on a robot: the deterministic action of one observation. What it
keeps between calls, the ``h`` and ``c`` of an LSTM or the ``h`` of a GRU, becomes states with the
session axis first.
"""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stategate.contract.dtypes import DTYPES
from stategate.contract.errors import TraceError
from stategate.contract.failures import failures
from stategate.models.lifting.blame import explained
from stategate.models.lifting.lift import Lifted, lift

# Where rsl_rl keeps recurrent unit, head and normaliser: 4 and newer, 2 and 3, their students.
_RSL_RL = (
    ("rnn", "mlp", "obs_normalizer"),
    ("memory_a", "actor", "actor_obs_normalizer"),
    ("memory_s", "student", "student_obs_normalizer"),
)


def adapted(policy: object) -> Lifted | None:
    """The step of a policy whose package is recognised, or None.

    Raises:
        TraceError: The package is recognised, and this policy cannot be a step.
    """
    if isinstance(getattr(getattr(policy, "policy", policy), "lstm_actor", None), nn.LSTM):
        return from_sb3(policy)
    return from_rsl_rl(policy) if _rsl_rl_names(policy) else None


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
    as_given = isinstance(normalizer, nn.Identity)
    return _lifted(step, rnn, {"obs": torch.zeros(1, rnn.input_size)}, normalised=not as_given)


def from_sb3(model: Any, normalizer: Any = None) -> Lifted:
    """The actor of sb3_contrib's ``RecurrentPPO``: what ``predict(deterministic=True)`` answers.

    Input ``obs`` is one observation with a leading axis of 1, or there is an input for each key of
    a Dict space. Output ``action``: for a Box clipped or unscaled as ``predict`` does it, for
    discrete spaces the indices, and their ``logits`` beside. The critic is left behind.

    Args:
        model: The algorithm, or its policy.
        normalizer: The ``VecNormalize`` that it was trained behind, or the file that its ``save``
            wrote: its statistics of observations become part of the step, which ``predict`` itself
            does not apply. ``torch.nn.Identity()`` says that observations are handed in as the
            policy sees them. None is enough where an environment without one is attached.

    Raises:
        TraceError: It has no recurrent actor, nothing says whether its observations are normalised,
            the normaliser is for other observations, or it has spaces that a step cannot have.
    """
    policy = getattr(model, "policy", model)
    rnn = getattr(policy, "lstm_actor", None)
    if not isinstance(rnn, nn.LSTM):
        raise TraceError(
            "this is no recurrent policy of stable-baselines3",
            found=type(model).__name__,
            expected="RecurrentPPO of sb3_contrib, or its policy",
        )
    normalizer = _normalizer(model, normalizer)
    space = policy.observation_space
    spaces = dict(space.spaces) if hasattr(space, "spaces") else {"obs": space}
    example = {name: _observation(name, part) for name, part in spaces.items()}
    step = Sb3Actor(policy, normalizer, keyed=hasattr(space, "spaces"))
    return _lifted(step, rnn, example, normalised=bool(step.normalizers))


def _normalizer(model: Any, normalizer: Any) -> Any:
    """The normaliser of a policy's observations; None where they are handed in as it sees them."""
    if isinstance(normalizer, nn.Identity):
        return None
    if normalizer is None:
        behind = getattr(model, "get_vec_normalize_env", lambda: None)()
        if getattr(behind, "norm_obs", False):
            raise TraceError(
                "the policy was trained behind VecNormalize, which is not part of it",
                found="observations that are normalised before predict()",
                remedy="from_sb3(model, normalizer=model.get_vec_normalize_env()) takes "
                "observations as they are measured; from_sb3(model, normalizer="
                "torch.nn.Identity()) takes normalised ones",
            )
        if getattr(model, "get_env", lambda: None)() is None:
            # A saved policy does not say whether it was trained behind VecNormalize.
            raise TraceError(
                "nothing says whether the observations of this policy are normalised",
                found=f"{type(model).__name__} without an environment, and no normaliser",
                expected="the VecNormalize that it was trained behind, or a word that there is "
                "none",
                remedy='from stategate.models import from_sb3; from_sb3(model, normalizer="FILE") '
                "with the file that VecNormalize.save wrote, or from_sb3(model, normalizer="
                "torch.nn.Identity()) if it was trained without",
            )
        return None
    if isinstance(normalizer, (str, Path)):
        path = normalizer
        try:
            normalizer = pickle.loads(Path(path).read_bytes())
        except failures() as problem:  # unpickling runs code of any package
            raise TraceError(
                "the normaliser cannot be read",
                found=f"{path}: {explained(problem)}",
                expected="a file that VecNormalize.save wrote",
            ) from problem
    if not hasattr(normalizer, "norm_obs"):
        raise TraceError(
            "this is no normaliser of stable-baselines3",
            found=type(normalizer).__name__,
            expected="a VecNormalize, the file that its save wrote, or torch.nn.Identity()",
        )
    return normalizer


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
        x, after = _run(self.rnn, self.normalizer(obs), memory)
        return {"action": self.head(x)}, *after


class _FirstRow(nn.Module):
    """The mean, of a head that gives mean and deviation as rows."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., 0, :]


class _Normalized(nn.Module):
    """``VecNormalize``: clip((x - mean) / sqrt(var + epsilon), -c, c), its statistics frozen."""

    mean: Tensor
    rest: Tensor
    spread: Tensor

    def __init__(self, moments: Any, epsilon: float, clip: float) -> None:
        super().__init__()
        self._clip = clip
        mean = torch.as_tensor(moments.mean)
        self.register_buffer("mean", mean.float())
        # What float32 cannot hold of a mean counts where the spread is small beside it.
        self.register_buffer("rest", (mean - mean.float()).float())
        self.register_buffer("spread", torch.as_tensor((moments.var + epsilon) ** 0.5).float())

    def forward(self, x: Tensor) -> Tensor:
        return ((x - self.mean - self.rest) / self.spread).clamp(-self._clip, self._clip)


class Sb3Actor(nn.Module):
    """The actor's half of a policy, and what ``predict`` does after it."""

    low: Tensor
    high: Tensor

    def __init__(self, policy: Any, normalizer: Any, keyed: bool) -> None:
        super().__init__()
        # A copy of what acting needs; of the rest gSDE's noise could not even be copied.
        learning = ("optimizer", "action_dist", "lstm_critic", "critic", "value_net")
        absent = {id(getattr(policy, name)): None for name in learning}
        self.policy = copy.deepcopy(policy, absent).cpu()
        self._keyed = keyed
        space = policy.action_space
        self._kind = type(space).__name__
        if self._kind == "Box":
            self.register_buffer("low", torch.as_tensor(space.low, dtype=torch.float32))
            self.register_buffer("high", torch.as_tensor(space.high, dtype=torch.float32))
        elif self._kind not in ("Discrete", "MultiDiscrete", "MultiBinary"):
            raise TraceError(
                "this action space has no deterministic action",
                found=self._kind,
                expected="Box, Discrete, MultiDiscrete or MultiBinary",
            )
        moments = normalizer.obs_rms if getattr(normalizer, "norm_obs", False) else {}
        moments = moments if isinstance(moments, dict) else {"obs": moments}
        whole = policy.observation_space
        spaces = dict(whole.spaces) if keyed else {"obs": whole}
        for name, moment in moments.items():
            if name not in spaces or moment.mean.shape != spaces[name].shape:
                raise TraceError(
                    "the normaliser is for other observations than the policy's",
                    found=f"{name} {tuple(moment.mean.shape)}",
                    expected=", ".join(f"{n} {s.shape}" for n, s in spaces.items()),
                    remedy="give the normaliser that this policy was trained behind, and stack or "
                    "transpose observations after it on the robot too",
                )
        self._normalized = list(moments)
        self.normalizers = nn.ModuleList(
            _Normalized(m, normalizer.epsilon, normalizer.clip_obs) for m in moments.values()
        )

    def forward(self, **inputs: Tensor) -> tuple[Any, ...]:
        """Action, ``(batch, ...)``, and memory after the step, of observations and memory."""
        memory = {name: inputs.pop(name) for name in ("h", "c")}
        for name, normalizer in zip(self._normalized, self.normalizers, strict=True):
            inputs[name] = normalizer(inputs[name])
        policy = self.policy
        features = policy.extract_features(inputs if self._keyed else inputs["obs"])
        if not policy.share_features_extractor:
            features = features[0]  # the others are the critic's
        x, after = _run(policy.lstm_actor, features, memory)
        answer = policy.action_net(policy.mlp_extractor.forward_actor(x))
        return self._action(answer), *after

    def _action(self, answer: Tensor) -> dict[str, Tensor]:
        space = self.policy.action_space
        if self._kind == "Box":
            answer = answer.reshape(-1, *space.shape)
            if not self.policy.squash_output:
                return {"action": answer.clamp(self.low, self.high)}
            return {"action": self.low + 0.5 * (answer.tanh() + 1.0) * (self.high - self.low)}
        if self._kind == "Discrete":
            return {"action": answer.argmax(1), "logits": answer}
        if self._kind == "MultiDiscrete":
            parts = torch.split(answer, [int(n) for n in space.nvec], dim=1)
            return {"action": torch.stack([p.argmax(1) for p in parts], 1), "logits": answer}
        return {"action": (answer > 0).float(), "logits": answer}


def _run(rnn: nn.Module, x: Tensor, memory: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One step of nn.LSTM or nn.GRU, ``(batch, n)`` to ``(batch, hidden)``."""
    before = tuple(memory.values()) if len(memory) > 1 else memory["h"]
    y, after = rnn(x.unsqueeze(0), before)
    return y.squeeze(0), after if isinstance(after, tuple) else (after,)


def _lifted(
    step: nn.Module, rnn: nn.RNNBase, example: dict[str, Tensor], *, normalised: bool
) -> Lifted:
    zeros = torch.zeros(rnn.num_layers, 1, rnn.hidden_size)
    names = ("h", "c") if isinstance(rnn, nn.LSTM) else ("h",)
    lifted = lift(
        step,
        example,
        hidden=dict.fromkeys(names, zeros),
        session_axes=dict.fromkeys(names, 1),
        returns=["action", *names],
    )
    lifted.family = type(rnn).__name__.lower()
    lifted.observations = "normalised in the graph" if normalised else "as given"
    return lifted


def _rsl_rl_names(policy: object) -> tuple[str, str, str] | None:
    for names in _RSL_RL:
        rnn = getattr(getattr(policy, names[0], None), "rnn", None)
        if isinstance(rnn, (nn.LSTM, nn.GRU)) and isinstance(
            getattr(policy, names[1], None), nn.Module
        ):
            return names
    return None


def _observation(name: str, space: Any) -> Tensor:
    """An example of an observation, with a leading axis of 1."""
    shape = getattr(space, "shape", None)
    if name in ("h", "c") or shape is None:
        raise TraceError(
            f"the observation {name!r} cannot be an input",
            found=type(space).__name__,
            expected="a space of one tensor, and a key other than h and c",
        )
    # The policy casts all floats to float32; integers keep their type where a graph can have it.
    dtype = str(space.dtype)
    is_integer = dtype in DTYPES and not dtype.startswith("float")
    return torch.zeros(1, *shape, dtype=getattr(torch, dtype) if is_integer else torch.float32)
