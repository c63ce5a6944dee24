"""A model by its name on the command line: from the zoo, or ``path/to/module.py:factory``."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from stategate.contract import Episode
from stategate.contract.errors import StategateError, TraceError
from stategate.models.adapters import adapted
from stategate.models.blame import explained
from stategate.models.step import StepModel
from stategate.models.suggest import offer
from stategate.models.zoo import entry


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
        ExportError: The zoo has no such model.
        TraceError: The file, the factory or what it makes cannot be used.
    """
    if ":" not in source:
        item = entry(source)
        return _checked(item.build(), item.name, source, item.episode)
    file, _, factory = source.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise TraceError(
            "there is no such Python file", found=file, expected="path/to/module.py:factory"
        )
    name = f"_stategate_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TraceError("this file cannot be imported", found=file, expected="a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look their module up here
    sys.path.insert(0, str(path.parent.resolve()))  # as `python path/to/module.py` would
    try:
        spec.loader.exec_module(module)
        made = getattr(module, factory)()
    except StategateError:  # of lift(), for one; it says what it has to say
        raise
    except (Exception, SystemExit) as problem:  # a user's file may raise anything
        raise TraceError(f"{source} cannot be built", found=explained(problem)) from problem
    finally:
        sys.path.pop(0)
    return _checked(made, factory, f"{path.name}:{factory}", None)


def _checked(
    made: object, name: str, source: str, episode: Callable[[int, int], Episode] | None
) -> LoadedModel:
    if not isinstance(made, StepModel):
        made = adapted(made) or made
    if not isinstance(made, nn.Module) or not isinstance(made, StepModel):
        raise TraceError(
            "this object cannot be stepped",
            found=f"{type(made).__name__} from {source}",
            expected="a module with step_spec() and step(inputs, states); or what lift(module, "
            "...) makes of one that keeps its memory to itself; or a recurrent policy of rsl_rl or "
            "stable-baselines3",
            remedy=f"see docs/bring-your-own.md; {offer(made)}",
        )
    family = str(getattr(made, "family", "custom"))
    return LoadedModel(name, family, source, made, made, episode)
