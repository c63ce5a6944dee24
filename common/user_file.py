"""Objects that a user's own Python file makes: ``path/to/module.py:factory``."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

from stategate.contract.errors import StategateError
from stategate.contract.names import close_names, did_you_mean


def _first_sentence(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {problem}"


def check_source(source: str, error: type[StategateError]) -> None:
    """Find out without running a user's file whether it is there and has the factory."""
    file, colon, factory = source.rpartition(":") if ":" in source else (source, "", "")
    path = Path(file)
    if not path.is_file():
        near = close_names(path.name, (each.name for each in path.parent.glob("*.py")))
        raise error(
            "there is no such Python file",
            found=file or source,
            expected="path/to/module.py:factory",
            remedy=did_you_mean(str(path.parent / name) for name in near) or None,
        )
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # importing it says what is wrong
    names, factories = _bound(tree), _factories(tree)
    if colon and (factory in names or names & _ANY_NAME):
        return
    offered = [f"{file}:{name}" for name in close_names(factory, factories) or factories]
    raise error(
        f"{file} has no {factory!r}" if factory else "the factory in the file is missing",
        found=source,
        expected=" or ".join(offered) or f"{file}:FACTORY, a class or function without arguments",
    )


# Where one of these is, names come about that no reading of the file shows.
_ANY_NAME = {"*", "__getattr__", "globals", "exec", "setattr", "vars"}


def _bound(tree: ast.Module) -> set[str]:
    """Every name that the file binds anywhere, and what it uses of `_ANY_NAME`."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            names |= {node.id} if isinstance(node.ctx, ast.Store) else {node.id} & _ANY_NAME
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name.partition(".")[0])
    return names


def _factories(tree: ast.Module) -> list[str]:
    """Classes and functions at the top of the file that can be called without arguments."""
    factories = []
    for node in tree.body:
        call: ast.stmt | None = node
        if isinstance(node, ast.ClassDef):
            inits = [n for n in node.body if getattr(n, "name", "") == "__init__"]
            call = inits[0] if inits else None
        elif not isinstance(node, ast.FunctionDef):
            continue
        needed = 0
        if isinstance(call, ast.FunctionDef):
            arguments = call.args
            needed = len(arguments.args) - len(arguments.defaults) - (call is not node)
            needed += arguments.kw_defaults.count(None)
        if needed <= 0 and not node.name.startswith("_"):
            factories.append(node.name)
    return factories


def build_from_file(
    source: str,
    error: type[StategateError],
    explain: Callable[[BaseException], str] = _first_sentence,
) -> object:
    """Call a factory in a user's file.

    Args:
        source: ``path/to/module.py:factory``, a class or a function without arguments.
        error: What is raised if it cannot be done.
        explain: Says what went wrong in the user's code.

    Returns:
        What the factory made.
    """
    check_source(source, error)
    file, _, factory = source.rpartition(":")
    path = Path(file)
    name = f"_stategate_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise error("this file cannot be imported", found=file, expected="a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look their module up here
    sys.path.insert(0, str(path.parent.resolve()))  # as `python path/to/module.py` would
    try:
        spec.loader.exec_module(module)
        result: object = getattr(module, factory)()
    except StategateError:  # of lift(), for one; it says what it has to say
        raise
    except (Exception, SystemExit) as problem:  # a user's file may raise anything
        raise error(f"{source} cannot be built", found=explain(problem)) from problem
    finally:
        sys.path.pop(0)
    return result
