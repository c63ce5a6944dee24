"""A model that a user hands over: an object, what makes one, a zoo name, or a file's factory."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import RLock

from torch import nn

from stategate.common.user_file import build_from_file
from stategate.contract import Episode
from stategate.contract.errors import TraceError
from stategate.models.lifting.adapters import adapted
from stategate.models.lifting.blame import explained
from stategate.models.lifting.suggest import offer, unwrapped
from stategate.models.source import check_model
from stategate.models.step import StepModel
from stategate.models.zoo.catalogue import entry


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model and what is known of it."""

    name: str  # for the manifest
    family: str  # kind of memory; ``custom`` where the model does not say
    source: str  # what the user typed
    model: StepModel  # the model, as a step
    module: nn.Module  # the same object, as an ``nn.Module``
    episode: Callable[[int, int], Episode] | None  # makes held-out episodes, for zoo models


# torch traces with state of the whole process: two at once break each other
_ONE_AT_A_TIME = RLock()


@contextmanager
def evaluating(model: object) -> Iterator[LoadedModel]:
    """A model in evaluation, for one thread at a time; afterwards it trains where it trained."""
    with _ONE_AT_A_TIME:
        loaded = load_model(model)
        with in_evaluation(loaded.module):
            yield loaded


@contextmanager
def in_evaluation(module: nn.Module) -> Iterator[None]:
    """A module in evaluation; afterwards those parts train that trained."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def load_model(model: object) -> LoadedModel:
    """Build the model that a command names, or take the one that a program hands over.

    Args:
        model: A step model, a policy whose package is recognised, a class or function without
            arguments that makes one, a zoo name, or ``path/to/module.py:factory``.

    Raises:
        ExportError: The zoo has no such model; see `check_model`.
        TraceError: The file, the factory or what it makes cannot be used.
    """
    if isinstance(model, LoadedModel):
        return model
    if isinstance(model, os.PathLike):
        model = os.fspath(model)
    if not isinstance(model, str):
        return _from_python(model)
    check_model(model)
    if ":" not in model:
        item = entry(model)
        return _checked(item.build(), item.name, model, item.episode)
    file, _, factory = model.rpartition(":")
    product = build_from_file(model, TraceError, explained)
    return _checked(product, factory, f"{Path(file).name}:{factory}", None)


def _from_python(model: object) -> LoadedModel:
    if isinstance(model, type | partial) or inspect.isroutine(model):
        factory = model.func if isinstance(model, partial) else model
        return _checked(model(), factory.__name__, f"Python, {factory.__qualname__}", None)
    inner, _ = unwrapped(model)
    kind = type(getattr(inner, "lifted", inner))
    return _checked(model, kind.__name__, f"Python, {kind.__qualname__}", None)


def _checked(
    built: object, name: str, source: str, episode: Callable[[int, int], Episode] | None
) -> LoadedModel:
    inner, _ = unwrapped(built)
    step = inner if isinstance(inner, StepModel) else adapted(inner) or built
    if not isinstance(step, nn.Module) or not isinstance(step, StepModel):
        raise TraceError(
            "this object is no step",
            found=f"{type(step).__name__} from {source}",
            expected="a module with step_spec() and step(inputs, states); or what lift(module, "
            "...) makes of one that keeps its memory to itself; or a recurrent policy of rsl_rl, "
            "stable-baselines3, skrl, rl_games, torchrl or CleanRL, or a language model of "
            "transformers",
            remedy=f"see docs/guides/bring-your-own.md and docs/guides/adapters.md; {offer(built)}",
        )
    family = str(getattr(step, "family", "custom"))
    return LoadedModel(name, family, source, step, step, episode)
