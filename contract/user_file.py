"""Objects that a user's own Python file makes: ``path/to/module.py:factory``."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

from stategate.contract.errors import StategateError


def _told(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {problem}"


def build_from_file(
    source: str,
    error: type[StategateError],
    told: Callable[[BaseException], str] = _told,
) -> object:
    """Call a factory in a user's file.

    Args:
        source: ``path/to/module.py:factory``, a class or a function without arguments.
        error: What is raised if it cannot be done.
        told: Says what went wrong in the user's code.

    Returns:
        What the factory made.

    Raises:
        StategateError: Of the kind that was given.
    """
    file, _, factory = source.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise error(
            "there is no such Python file",
            found=file or source,
            expected="path/to/module.py:factory",
        )
    name = f"_stategate_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise error("this file cannot be imported", found=file, expected="a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look their module up here
    sys.path.insert(0, str(path.parent.resolve()))  # as `python path/to/module.py` would
    try:
        spec.loader.exec_module(module)
        made: object = getattr(module, factory)()
    except StategateError:  # of lift(), for one; it says what it has to say
        raise
    except (Exception, SystemExit) as problem:  # a user's file may raise anything
        raise error(f"{source} cannot be built", found=told(problem)) from problem
    finally:
        sys.path.pop(0)
    return made
