"""Which line of the user's own code is to blame: found from an exception or from a graph node."""

from __future__ import annotations

import linecache
import os
import re
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import fx

_Place = tuple[str, int, str]  # file, line, function

_TRACE_LINE = re.compile(r'File "(.+?)", line (\d+), in (\S+)')
_ROOT = Path(__file__).resolve().parents[1]
# What the user did not write, whatever of it is on the stack.
_MACHINERY = tuple(
    f"{folder}{os.sep}"
    for folder in (Path(torch.__file__).resolve().parent, _ROOT / "models", _ROOT / "export")
)
_STANDARD = str(Path(sysconfig.get_path("stdlib")).resolve()) + os.sep
_INSTALLED = re.compile(r"[\\/](site|dist)-packages[\\/]")


def explained(problem: BaseException, lines: int = 2) -> str:
    """An exception in one line: its type, the first of its lines, and the user's line if known."""
    said = [line.strip() for line in str(problem).splitlines() if line.strip()][:lines]
    where = blamed_line(problem)
    return " | ".join([f"{type(problem).__name__}: {' '.join(said)}", *([where] if where else [])])


def blamed_line(problem: BaseException | None) -> str | None:
    """The innermost line of user code that an exception passed through, or that its node is from.

    Code that the user installed counts where no code of their own is on the stack.

    Args:
        problem: Anything raised by user code, torch.export or the ONNX exporter.

    Returns:
        ``file:line in function: source``, or None where no such line is known.
    """
    while problem is not None:
        node = _node_of(problem)
        places = list(_places_in(node) if node is not None else _places_of(problem))
        own = [p for p in places if not _INSTALLED.search(p[0])] or places
        if own:
            return _shown(*own[-1])
        problem = problem.__cause__ or problem.__context__
    return None


def blamed_operation(problem: BaseException | None) -> str | None:
    """The operation that an exporter could not convert, and its line; None where that is not said.

    Args:
        problem: What ``torch.onnx.export`` raised.
    """
    failed = problem
    while failed is not None:
        node = _node_of(failed)
        if node is not None:
            said = (str(node.target).removesuffix(".default"), blamed_line(problem))
            return " | ".join(filter(None, said))
        failed = failed.__cause__
    return None


def _node_of(problem: BaseException) -> fx.Node | None:
    """The graph node that an exporter's frame was at; its message has the name alone."""
    for frame, _ in traceback.walk_tb(problem.__traceback__):
        node = frame.f_locals.get("node")
        if isinstance(node, fx.Node) and frame.f_globals["__name__"].startswith("torch.onnx."):
            return node
    return None


def _places_of(problem: BaseException) -> Iterator[_Place]:
    for frame in traceback.extract_tb(problem.__traceback__):
        if _is_users(frame.filename):
            yield frame.filename, frame.lineno or 0, frame.name


def _places_in(node: fx.Node) -> Iterator[_Place]:
    for file, line, function in _TRACE_LINE.findall(node.meta.get("stack_trace") or ""):
        if _is_users(file):
            yield file, int(line), function


def _is_users(file: str) -> bool:
    path = str(Path(file).resolve())
    if file.startswith("<") or path.startswith(_MACHINERY):
        return False
    return not path.startswith(_STANDARD) or _INSTALLED.search(path) is not None


def _shown(file: str, line: int, function: str) -> str:
    source = linecache.getline(file, line).strip()
    return f"{file}:{line} in {function}" + (f": `{source}`" if source else "")
