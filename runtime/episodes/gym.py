"""Gymnasium environments in closed loop; needs the extra ``gym``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from stategate.contract import StepSpec
from stategate.contract.errors import EpisodeError, MissingDependencyError
from stategate.contract.failures import failures
from stategate.runtime.base.buffers import Array

try:
    import gymnasium
    from gymnasium import spaces
except ImportError as missing:
    raise MissingDependencyError("gymnasium", "gym") from missing

Policy = Callable[[Any], Any]
"""From an observation to an action, both as the environment has them."""


def make(env_id: str) -> gymnasium.Env[Any, Any]:
    """An environment by its id; ``package:Env-v0`` imports the package that registers it."""
    try:
        return gymnasium.make(env_id)
    except failures() as problem:  # environments are other people's code
        raise EpisodeError(
            f"the environment {env_id} cannot be made",
            found=f"{type(problem).__name__}: {problem}",
            expected="an id that gymnasium.make takes",
        ) from problem


def observations(
    env: gymnasium.Env[Any, Any], policy: Policy, seed: int, steps: int
) -> Iterator[Any]:
    """What one episode shows, each observation before the policy acts on it.

    Args:
        env: Is reset with ``seed``.
        policy: Acts; called once for each observation that is yielded, after it.
        seed: Of the episode.
        steps: At most so many; fewer where the environment ends or truncates before.
    """
    observation, _ = env.reset(seed=seed)
    for _ in range(steps):
        yield observation
        observation, _, terminated, truncated, _ = env.step(policy(observation))
        if terminated or truncated:
            return


def as_input(observation: Any, dtype: str, shape: tuple[int, ...] | None = None) -> Array:
    """An observation as an array.

    Args:
        observation: Numbers of one dtype.
        dtype: Wanted.
        shape: Wanted, of as many elements; ``(1, size)`` if None.
    """
    array = np.asarray(observation)
    if array.dtype.kind not in "fiub" or (shape is not None and array.size != np.prod(shape)):
        raise EpisodeError(
            "the observation does not fit the input",
            found=f"{array.dtype} {list(array.shape)}",
            expected=f"{dtype} {list(shape) if shape is not None else 'numbers'}",
            remedy="wrap the environment, for example in gymnasium.wrappers.FlattenObservation",
        )
    return array.astype(dtype).reshape(shape if shape is not None else (1, -1))


class Wiring:
    """Which input of a model takes the observation, and which output gives the action.

    Args:
        step: The model's signature.
        action_space: A box takes the output's numbers, clipped to its bounds; a discrete one the
            index of the largest.
        output: Name of the output; None where there is one.
    """

    def __init__(
        self, step: StepSpec, action_space: spaces.Space[Any], output: str | None = None
    ) -> None:
        if len(step.inputs) != 1:
            raise EpisodeError(
                "an environment feeds a model with one input",
                found=", ".join(t.name for t in step.inputs) or "none",
            )
        self.input = step.inputs[0]
        named = {t.name: t for t in step.outputs}
        name = output if output is not None or len(named) != 1 else next(iter(named))
        if name is None or name not in named:
            raise EpisodeError(
                "which output is the action?", found=output, expected=f"one of {', '.join(named)}"
            )
        self.output = name
        self._space = action_space
        size = int(np.prod(named[name].shape))
        if isinstance(action_space, spaces.Discrete):
            action_size = int(action_space.n)
        elif isinstance(action_space, spaces.Box):
            action_size = int(np.prod(action_space.shape))
        else:
            raise EpisodeError(
                "this kind of action cannot come from one output",
                found=type(action_space).__name__,
                expected="Box or Discrete",
            )
        if size != action_size:
            raise EpisodeError(
                f"output {name!r} has not the size of an action",
                found=size,
                expected=f"{action_size}, for {action_space}",
            )

    def action(self, answer: Array) -> Any:
        """The environment's action for an output."""
        if isinstance(self._space, spaces.Discrete):
            return int(self._space.start) + int(answer.argmax())
        space: Any = self._space
        return np.clip(answer.reshape(space.shape), space.low, space.high).astype(space.dtype)
