"""A model by its name on the command line: from the zoo, or ``path/to/module.py:factory``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
    """A model and what is known of it.

    Attributes:
        name: For the manifest.
        family: Kind of memory; ``custom`` where the model does not say.
        source: What the user typed.
        model: The model, as a step.
        module: The same object, as an ``nn.Module``.
        episode: Makes held-out episodes, for zoo models.
    """

    name: str
    family: str
    source: str
    model: StepModel
    module: nn.Module
    episode: Callable[[int, int], Episode] | None


def load_model(source: str) -> LoadedModel:
    """Build the model that a command names.

    Args:
        source: A zoo name, or ``path/to/module.py:factory`` where ``factory`` is a class or a
            function without arguments.

    Raises:
        ExportError: The zoo has no such model; see `check_model`.
        TraceError: The file, the factory or what it makes cannot be used.
    """
    check_model(source)
    if ":" not in source:
        item = entry(source)
        return _checked(item.build(), item.name, source, item.episode)
    file, _, factory = source.rpartition(":")
    built = build_from_file(source, TraceError, explained)
    return _checked(built, factory, f"{Path(file).name}:{factory}", None)


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
            "...) makes of one that keeps its memory to itself; or a recurrent policy of rsl_rl or "
            "stable-baselines3",
            remedy=f"see docs/guides/bring-your-own.md; {offer(built)}",
        )
    family = str(getattr(step, "family", "custom"))
    return LoadedModel(name, family, source, step, step, episode)
