"""rl_games: its PPO players and the recurrent networks that they play.

https://github.com/Denys88/rl_games
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from stategate.contract.errors import TraceError
from stategate.models.lifting.adapters.policy import (
    Normalized,
    action_terms,
    choices,
    family_of,
    memory_of,
    policy_step,
)
from stategate.models.lifting.lift import Lifted

_KINDS = ("continuous", "discrete", "multi_discrete")


def recognises(model: object) -> bool:
    """Whether it is a player of rl_games, or the model of one."""
    return isinstance(getattr(getattr(model, "model", model), "a2c_network", None), nn.Module)


def from_rl_games(player: Any, action_space: Any = None) -> Lifted:
    """What a player of rl_games answers to ``get_action(obs, is_deterministic=True)``.

    Input ``obs`` is one observation with a leading axis of 1, or there is an input for each key of
    a Dict space. Output ``action``: clipped to -1 and 1 and scaled to the action space, unless the
    configuration has ``clip_actions: False``; for discrete spaces the index, with ``logits``. The
    normaliser of observations is part of the step. A separate critic is left behind, with its own
    recurrent unit.

    Args:
        player: ``PpoPlayerContinuous`` or ``PpoPlayerDiscrete``, restored from a checkpoint; or its
            ``model``.
        action_space: Of a model of continuous actions without its player: what has ``low`` and
            ``high``; ``torch.nn.Identity()`` for ``clip_actions: False``.

    Raises:
        TraceError: It is none of them, has no recurrent unit, or nothing says how its actions are
            scaled.
    """
    if not recognises(player):
        raise TraceError(
            "this is no player of rl_games",
            found=type(player).__name__,
            expected="PpoPlayerContinuous or PpoPlayerDiscrete, or the model of one",
        )
    model = getattr(player, "model", player)
    network = model.a2c_network
    rnn = getattr(getattr(network, "a_rnn" if network.separate else "rnn", None), "rnn", None)
    if not isinstance(rnn, nn.RNNBase):
        raise TraceError(
            "this player of rl_games has no recurrent unit",
            found=f"{type(network).__qualname__} with rnn: "
            f"{getattr(network, 'rnn_name', None) or 'none'}",
            expected="rnn: {name: lstm, units: ..., layers: ...}, or gru, in params.network",
        )
    if not any(getattr(network, f"is_{kind}", False) for kind in _KINDS):
        raise TraceError(
            "this network of rl_games has no actions",
            found=f"{type(network).__qualname__} of a central value",
            expected=f"space: {{{' or '.join(_KINDS)}: ...}} in params.network",
            remedy="hand over the player, not its central value",
        )
    if player is not model:
        clips = player.clip_actions
        action_space = player.action_space if clips else nn.Identity()
    if network.is_continuous and action_space is None:
        raise TraceError(
            "nothing says how the actions of this model are scaled",
            found=f"{type(model).__qualname__} without its player",
            expected="its player, which clips actions to -1 and 1 and scales them to the action "
            "space unless clip_actions is False",
            remedy="from stategate.models import from_rl_games; from_rl_games(player), or "
            "from_rl_games(model, action_space=env.action_space), or from_rl_games(model, "
            "action_space=torch.nn.Identity()) for clip_actions: False",
        )
    shapes = model.obs_shape if isinstance(model.obs_shape, dict) else {"obs": model.obs_shape}
    spaces = getattr(getattr(player, "observation_space", None), "spaces", None) or {
        "obs": getattr(player, "observation_space", None)
    }
    example = {}
    for name, shape in shapes.items():
        # A player scales pictures of bytes to 0 .. 1 itself.
        is_bytes = str(getattr(spaces.get(name), "dtype", "")) == "uint8"
        dtype = torch.uint8 if is_bytes else torch.float32
        example[name] = torch.zeros(1, *shape, dtype=dtype)
    step = RlGamesActor(model, action_space, keyed=isinstance(model.obs_shape, dict))
    return policy_step(
        step,
        example,
        memory_of(rnn),
        family=family_of(rnn),
        normalisers=dict(step.normalizers.items()),
        terms=action_terms(action_space) if step.scaled else {},
    )


class RlGamesActor(nn.Module):
    """A model of rl_games, and what a player does before and after it."""

    low: Tensor
    high: Tensor

    def __init__(self, model: Any, action_space: Any, keyed: bool) -> None:
        super().__init__()
        self.network = copy.deepcopy(model.a2c_network).cpu()
        self._keyed = keyed
        self.normalizers = nn.ModuleDict()
        if model.normalize_input:
            whole = model.running_mean_std
            statistics = whole.running_mean_std if keyed else {"obs": whole}
            # Packages run it as TorchScript, which cannot be traced; this computes the same.
            for name, moments in statistics.items():
                spread = (moments.running_var.float() + moments.epsilon).sqrt()
                self.normalizers[name] = Normalized(moments.running_mean.float(), spread, 5.0)
        self.scaled = self.network.is_continuous and not isinstance(action_space, nn.Module)
        if self.scaled:
            self.register_buffer("low", torch.as_tensor(action_space.low, dtype=torch.float32))
            self.register_buffer("high", torch.as_tensor(action_space.high, dtype=torch.float32))

    def forward(self, **inputs: Tensor) -> tuple[Any, ...]:
        """Action, ``(batch, ...)``, and memory after the step, of observations and memory."""
        memory = tuple(inputs.pop(name) for name in ("h", "c") if name in inputs)
        for name, x in inputs.items():
            x = x / 255.0 if x.dtype == torch.uint8 else x
            inputs[name] = self.normalizers[name](x) if name in self.normalizers else x
        # The critic runs too, from zeros, because forward asks for both; nothing of it is used.
        critic = tuple(map(torch.zeros_like, memory)) if self.network.separate else ()
        obs = inputs if self._keyed else inputs["obs"]
        answer, *_, after = self.network({"obs": obs, "rnn_states": memory + critic})
        return self._action(answer), *after[: len(memory)]

    def _action(self, answer: Any) -> dict[str, Tensor]:
        if isinstance(answer, list):
            sizes = [part.shape[-1] for part in answer]
            return choices(torch.cat(answer, -1), sizes)
        if self.network.is_discrete:
            return choices(answer)
        if not self.scaled:
            return {"action": answer}
        half, middle = (self.high - self.low) / 2.0, (self.high + self.low) / 2.0
        return {"action": answer.clamp(-1.0, 1.0) * half + middle}
