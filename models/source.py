"""MODEL on the command line: looked at before anything is imported for it."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from stategate.common.user_file import check_source
from stategate.contract.bundle import MANIFEST
from stategate.contract.errors import ExportError, TraceError
from stategate.models.lifting.programs import kind_of_file
from stategate.models.zoo.catalogue import entry


def check_model(source: str) -> None:
    """Find out without running anything whether a model can be there."""
    path = Path(source)
    if path.suffix in (".onnx", ".yaml", ".yml"):
        out = shlex.quote(f"build/{path.stem}")
        raise ExportError(
            "a file that holds a graph is adopted",
            found=source,
            expected="a zoo name, or path/to/module.py:factory",
            remedy=f"stategate adopt {shlex.quote(source)} --out {out}",
        )
    if (path / MANIFEST).exists():
        raise ExportError(
            "this is a bundle already",
            found=source,
            expected="a zoo name, or path/to/module.py:factory",
            remedy=f"stategate inspect {shlex.quote(source)}",
        )
    if (saved := kind_of_file(path)) is not None:
        what, remedy = saved
        raise ExportError(
            "a saved file of torch does not say what its step and its memory are",
            found=f"{source}: {what}",
            expected="a zoo name, or path/to/module.py:factory",
            remedy=remedy,
        )
    if ":" in source or path.suffix == ".py":
        check_source(source, TraceError)
    elif not path.is_file():
        entry(source)


def _checked(_: click.Context, __: click.Parameter, source: str) -> str:
    check_model(source)
    return source


model_argument = click.argument("model", callback=_checked)
"""MODEL of a command; what cannot be one is refused before torch is imported for it."""
