"""torchrl: policies of tensordict modules with an LSTMModule or GRUModule among them.

https://docs.pytorch.org/rl/stable/reference/modules_rnn.html
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from stategate.contract.errors import TraceError
from stategate.models.lifting.adapters.policy import (
    family_of,
    memory_of,
    no_recurrence,
    policy_step,
    unknown_normalizer,
)
from stategate.models.lifting.lift import Lifted

Key = str | tuple[str, ...]

# Transforms that change the dtype or device of what a policy observes, and nothing else.
_HARMLESS = {
    "DoubleToFloat",
    "InitTracker",
    "StepCounter",
    "TensorDictPrimer",
    "DeviceCastTransform",
}


def recognises(model: object) -> bool:
    """Whether it is a module of tensordict, as the policies of torchrl are."""
    packages = {cls.__module__.partition(".")[0] for cls in type(model).__mro__}
    return isinstance(model, nn.Module) and "tensordict" in packages and hasattr(model, "in_keys")


def from_torchrl(
    policy: Any,
    env: Any = None,
    *,
    normalizer: Any = None,
    example: Mapping[str, Tensor] | None = None,
) -> Lifted:
    """A policy of torchrl in its deterministic mode, behind the normalisers of its environment.

    There is an input for each key that the policy reads, ``(1, ...)``; the parts of a nested key
    are joined by ``_``. ``is_init`` is the session's reset and no input. Outputs: ``action`` as the
    policy gives it under ``set_exploration_type(ExplorationType.DETERMINISTIC)``, and ``logits``
    where it has some.

    Args:
        policy: Such as a ``TensorDictSequential`` or a ``ProbabilisticActor``.
        env: The environment that it was trained in: ``ObservationNorm`` and ``VecNorm`` among its
            transforms become part of the step, and its specs say what observations look like.
        normalizer: Without ``env``: the transform, or a ``Compose`` of several;
            ``torch.nn.Identity()`` says that there is none.
        example: One observation for each key, with a leading axis of 1, where the policy does not
            say what it reads.

    Raises:
        TraceError: It has no recurrent unit, two of them share a key, it gives no action, nothing
            says whether observations are normalised, or a transform cannot be part of a step.
    """
    units = [part for part in policy.modules() if _unit_of(part) is not None]
    if not units:
        raise no_recurrence(
            policy,
            f"{type(policy).__name__} that reads {', '.join(map(_name, policy.in_keys))}",
            "LSTMModule or GRUModule of torchrl among its modules",
        )
    memory: dict[str, Tensor] = {}
    before: dict[str, Key] = {}
    after: list[Key] = []
    for unit in units:
        rnn = _unit_of(unit)
        assert rnn is not None
        first, keys = memory_of(rnn), [_name(key) for key in unit.in_keys]
        for i, (part, zeros) in enumerate(first.items(), 1):
            name = part if len(units) == 1 else keys[i]
            if name in memory:
                raise TraceError(
                    "two recurrent units share one memory",
                    found=f"in_keys with {name!r} in both",
                    expected="keys of their own",
                    remedy='LSTMModule(..., in_keys=["x", "h2", "c2"], out_keys=["y", ("next", '
                    '"h2"), ("next", "c2")])',
                )
            memory[name], before[name] = zeros.transpose(0, 1), unit.in_keys[i]
            after.append(unit.out_keys[i])
    reads = [key for key in policy.in_keys if key not in before.values() and key != "is_init"]
    if normalizer is None and env is None:
        raise unknown_normalizer("from_torchrl(policy", policy, "env.transform")
    transform = getattr(env, "transform", None) if normalizer is None else normalizer
    norms, raw = _norms(transform, reads)
    actor = TorchRlActor(policy, dict(zip(map(_name, raw), raw, strict=True)), before, after, norms)
    return policy_step(
        actor,
        {_name(key): _example(key, policy, env, example or {}) for key in raw},
        memory,
        family=family_of(_unit_of(units[0])),  # type: ignore[arg-type]
        normalised=bool(norms),
        session_axis=0,
    )


def _unit_of(part: nn.Module) -> nn.RNNBase | None:
    """The recurrent unit inside of an LSTMModule or GRUModule."""
    rnn = getattr(part, "lstm", None) or getattr(part, "gru", None)
    keyed = isinstance(rnn, nn.RNNBase) and "is_init" in getattr(part, "in_keys", ())
    return rnn if keyed else None


def _name(key: Key) -> str:
    return key if isinstance(key, str) else "_".join(key)


def _norms(transform: Any, reads: Iterable[Key]) -> tuple[list[tuple[Key, Key, Any]], list[Key]]:
    """The normalisers of what a policy reads, in order, and what is measured for them.

    Returns:
        Input key, output key and transform of each; and the keys that no transform makes.
    """
    needed, norms = list(reads), list[tuple[Key, Key, Any]]()
    for part in reversed(list(_parts(transform))):
        kind = type(part).__name__
        if kind in _HARMLESS:
            continue
        outputs = [key for key in getattr(part, "out_keys", None) or () if key in needed]
        if not outputs:
            continue
        if not all(hasattr(part, name) for name in ("loc", "scale", "standard_normal")):
            raise TraceError(
                f"the transform {kind} cannot be part of a step",
                found=f"{kind} of {', '.join(map(_name, outputs))}, which the policy reads",
                expected="ObservationNorm, VecNorm or VecNormV2",
                remedy="do on the robot what it does, and hand over what comes after it: "
                "from_torchrl(policy, normalizer=ObservationNorm(...)), or "
                "normalizer=torch.nn.Identity()",
            )
        for source, out in zip(part.in_keys, part.out_keys, strict=True):
            if out in outputs:
                needed[needed.index(out)] = source
                norms.insert(0, (source, out, part))
    return norms, needed


def _parts(transform: Any) -> Iterable[Any]:
    """Transforms one by one; what goes on counting is frozen."""
    if transform is None or isinstance(transform, nn.Identity):
        return
    if hasattr(transform, "to_observation_norm"):
        transform = transform.to_observation_norm()
    inner = getattr(transform, "transforms", None)
    if inner is None:
        yield transform
    for part in inner or ():
        yield from _parts(part)


def _example(key: Key, policy: Any, env: Any, example: Mapping[str, Tensor]) -> Tensor:
    """One observation of zeros, ``(1, ...)``."""
    if _name(key) in example:
        return example[_name(key)]
    specs = getattr(env, "observation_spec", None)
    if specs is not None and key in specs.keys(True):
        spec = specs[key]
        return torch.zeros(1, *spec.shape[len(env.batch_size) :], dtype=spec.dtype)
    for part in policy.modules():
        if key in (getattr(part, "in_keys", None) or ()) and not hasattr(part, "module_list"):
            rnn = _unit_of(part)
            first = next((m for m in part.modules() if isinstance(m, nn.Linear)), None)
            if rnn is not None and part.in_keys[0] == key:
                return torch.zeros(1, rnn.input_size)
            if first is not None and len(part.in_keys) == 1 and not hasattr(part.module, "in_keys"):
                return torch.zeros(1, first.in_features)
    raise TraceError(
        f"nothing says what the observation {_name(key)!r} looks like",
        found=f"{type(policy).__name__} that reads {_name(key)}",
        remedy="the environment, from_torchrl(policy, env), or an observation: "
        f'from_torchrl(policy, ..., example={{"{_name(key)}": torch.zeros(1, ...)}})',
    )


class TorchRlActor(nn.Module):
    """A policy of torchrl that is called with tensors."""

    def __init__(
        self,
        policy: Any,
        inputs: Mapping[str, Key],
        before: Mapping[str, Key],
        after: Iterable[Key],
        norms: Iterable[tuple[Key, Key, Any]],
    ) -> None:
        super().__init__()
        # Specs check nothing where ``safe`` does not ask them, and hold on to the environment.
        specs = (getattr(part, "_spec", None) for part in policy.modules() if not _is_safe(part))
        self.policy = copy.deepcopy(policy, {id(s): None for s in specs if s is not None}).cpu()
        # Some sequences list a part twice.
        for name, part in list(self.policy.named_modules(remove_duplicate=False)):
            if _unit_of(part) is not None and name:
                self.policy.set_submodule(name, _OneStep(part))
        self._inputs, self._before, self._after = dict(inputs), dict(before), tuple(after)
        self._norms = [(source, out) for source, out, _ in norms]
        self.scales = nn.ModuleList(_Affine(transform) for _, _, transform in norms)
        if "action" not in map(_last, policy.out_keys):
            raise TraceError(
                "this policy of torchrl gives no action",
                found=f"out_keys {', '.join(map(_name, policy.out_keys))}",
                expected='"action" among its out_keys',
            )

    def forward(self, **tensors: Tensor) -> tuple[Any, ...]:
        """Outputs and memory after the step, of observations and memory, ``(batch, ...)``."""
        # The user has this package, because the policy is made of it.
        tensordict, modes = import_module("tensordict"), import_module("tensordict.nn")
        keys = self._inputs | self._before
        rows = next(iter(tensors.values())).shape[0]
        td = tensordict.TensorDict({}, batch_size=[rows])
        for name, tensor in tensors.items():
            td.set(keys[name], tensor)
        for (source, out), scale in zip(self._norms, self.scales, strict=True):
            td.set(out, scale(td.get(source)))
        with modes.set_interaction_type(modes.InteractionType.DETERMINISTIC):
            td = self.policy(td)
        outputs = {}
        for key in self.policy.out_keys:
            if _last(key) in ("action", "logits"):
                outputs[_last(key)] = td.get(key)
        return outputs, *(td.get(key) for key in self._after)


class _OneStep(nn.Module):
    """An LSTMModule or GRUModule for one step, without ``is_init``: a session's reset does it."""

    def __init__(self, unit: Any) -> None:
        super().__init__()
        self.in_keys = [key for key in unit.in_keys if key != "is_init"]
        self.out_keys = unit.out_keys
        self.rnn: Any = _unit_of(unit)

    def forward(self, td: Any, **_: Any) -> Any:
        x, *memory = (td.get(key) for key in self.in_keys)
        before = tuple(part.transpose(0, 1).contiguous() for part in memory)
        y, after = self.rnn(x.unsqueeze(1), before if len(before) > 1 else before[0])
        after = after if isinstance(after, tuple) else (after,)
        values = (y[:, 0], *(part.transpose(0, 1) for part in after))
        for key, value in zip(self.out_keys, values, strict=True):
            td.set(key, value)
        return td


class _Affine(nn.Module):
    """``ObservationNorm``, its statistics frozen."""

    loc: Tensor
    scale: Tensor

    def __init__(self, transform: Any) -> None:
        super().__init__()
        self._standard = bool(transform.standard_normal)
        for name in ("loc", "scale"):
            value = getattr(transform, name)
            if isinstance(value, nn.UninitializedBuffer):
                raise TraceError(
                    "the normaliser of torchrl has no statistics yet",
                    found=f"{type(transform).__name__}.{name} that is not initialised",
                    remedy="env.transform.init_stats(num_iter=1000), or load its state_dict",
                )
            self.register_buffer(name, value.detach().clone().float().cpu())

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.loc) / self.scale if self._standard else x * self.scale + self.loc


def _is_safe(part: nn.Module) -> bool:
    """Whether it projects its action to its spec."""
    return bool(getattr(part, "safe", False))


def _last(key: Key) -> str:
    return key if isinstance(key, str) else key[-1]
