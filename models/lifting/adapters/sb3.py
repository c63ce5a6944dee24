"""stable-baselines3: the actor of sb3_contrib's RecurrentPPO, and its VecNormalize."""

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
from stategate.models.lifting.adapters.policy import (
    Normalized,
    action_terms,
    choices,
    memory_of,
    policy_step,
    run_once,
)
from stategate.models.lifting.blame import explained
from stategate.models.lifting.lift import Lifted


def recognises(model: object) -> bool:
    """Whether it is a RecurrentPPO or its policy."""
    return isinstance(getattr(getattr(model, "policy", model), "lstm_actor", None), nn.LSTM)


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
    return policy_step(
        step,
        example,
        memory_of(rnn),
        family="lstm",
        normalisers=step.normalizer_of(),
        terms=action_terms(policy.action_space),
    )


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
            Normalized(m.mean, (m.var + normalizer.epsilon) ** 0.5, normalizer.clip_obs)
            for m in moments.values()
        )

    def normalizer_of(self) -> dict[str, nn.Module]:
        """The normaliser of each input that has one."""
        return dict(zip(self._normalized, self.normalizers, strict=True))

    def forward(self, **inputs: Tensor) -> tuple[Any, ...]:
        """Action, ``(batch, ...)``, and memory after the step, of observations and memory."""
        memory = {name: inputs.pop(name) for name in ("h", "c")}
        for name, normalizer in zip(self._normalized, self.normalizers, strict=True):
            inputs[name] = normalizer(inputs[name])
        policy = self.policy
        features = policy.extract_features(inputs if self._keyed else inputs["obs"])
        if not policy.share_features_extractor:
            features = features[0]  # the others are the critic's
        x, after = run_once(policy.lstm_actor, features, memory)
        answer = policy.action_net(policy.mlp_extractor.forward_actor(x))
        return self._action(answer), *after

    def _action(self, answer: Tensor) -> dict[str, Tensor]:
        space = self.policy.action_space
        if self._kind == "Box":
            answer = answer.reshape(-1, *space.shape)
            if not self.policy.squash_output:
                return {"action": answer.clamp(self.low, self.high)}
            return {"action": self.low + 0.5 * (answer.tanh() + 1.0) * (self.high - self.low)}
        if self._kind == "MultiBinary":
            return {"action": (answer > 0).float(), "logits": answer}
        return choices(answer, space.nvec.tolist() if self._kind == "MultiDiscrete" else ())


def _observation(name: str, space: Any) -> Tensor:
    """An example of an observation, with a leading axis of 1."""
    shape = getattr(space, "shape", None)
    if shape is None:
        raise TraceError(
            f"the observation {name!r} cannot be an input",
            found=type(space).__name__,
            expected="a space of one tensor",
        )
    # The policy casts all floats to float32; integers keep their type where a graph can have it.
    dtype = str(space.dtype)
    is_integer = dtype in DTYPES and not dtype.startswith("float")
    return torch.zeros(1, *shape, dtype=getattr(torch, dtype) if is_integer else torch.float32)
