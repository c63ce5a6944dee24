"""Which line of the user's own code is to blame: for an exception, for an operation."""

from __future__ import annotations

import functools
import linecache
import os
import re
import sysconfig
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import TorchDispatchMode

_ROOT = Path(__file__).resolve().parents[2]
# What the user did not write, whatever of it is on the stack.
_MACHINERY = tuple(
    f"{folder}{os.sep}"
    for folder in (
        Path(torch.__file__).resolve().parent,
        *(_ROOT / room for room in ("contract", "runtime", "models", "export", "calibration")),
    )
)
_STANDARD = f"{Path(sysconfig.get_path('stdlib')).resolve()}{os.sep}"
_INSTALLED = re.compile(r"[\\/](site|dist)-packages[\\/]")
# Of torch's own makers: their classes lead to all of torch, and keep no memory of a policy.
_TORCHS = re.compile(_INSTALLED.pattern + r"(tensordict|torchrl)[\\/]")


def explained(problem: BaseException, lines: int = 2) -> str:
    """An exception in one line: type, the first of its lines, and the user's line where known."""
    text = [line.strip() for line in str(problem).splitlines() if line.strip()][:lines]
    parts = (f"{type(problem).__name__}: {' '.join(text)}", blamed_line(problem))
    return " | ".join(part for part in parts if part)


def blamed_line(problem: BaseException | None) -> str | None:
    """The innermost line of user code that an exception passed through.

    Returns:
        ``file:line in function: source``, or None where there is none.
    """
    while problem is not None:
        where = _innermost(traceback.extract_tb(problem.__traceback__))
        if where is not None:
            return where
        problem = problem.__cause__ or problem.__context__
    return None


def blamed_operation(problem: BaseException | None, replay: Callable[[], object]) -> str | None:
    """The operation that the ONNX exporter could not convert, and the line that calls it.

    The exporter remembers lines of functions called ``forward`` alone, so the step is run again.

    Returns:
        ``aten.op | file:line in function: source``, without the line if no operation of this name
        runs; None where the exporter does not say at which operation it was.
    """
    while problem is not None:
        node = _node_of(problem)
        if node is not None:
            with _Finder(_name_of(node.target)) as finder:
                replay()
            operation = str(node.target).removesuffix(".default")
            return " | ".join(filter(None, (operation, finder.where)))
        problem = problem.__cause__
    return None


class _Finder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers which line of the user first runs an operation."""

    def __init__(self, name: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.where: str | None = None
        self._name, self._depth = name, len(traceback.extract_stack())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A decomposition leaves the end of a name: special_bessel_j0 becomes bessel_j0.
        if self.where is None and _name_of(func).endswith(self._name):
            self.where = _innermost(traceback.extract_stack()[self._depth :])
        return func(*args, **(kwargs or {}))


def _name_of(operation: Any) -> str:
    return str(operation).split(".")[1] if "." in str(operation) else str(operation)


def _node_of(problem: BaseException) -> fx.Node | None:
    """The graph node that an exporter's frame was at; its message has no more than the name."""
    for frame, _ in traceback.walk_tb(problem.__traceback__):
        node = frame.f_locals.get("node")
        if isinstance(node, fx.Node) and frame.f_globals["__name__"].startswith("torch.onnx."):
            return node
    return None


def _innermost(stack: Iterable[traceback.FrameSummary]) -> str | None:
    """The last frame of user code; of installed code where nothing else is on the stack."""
    users = [frame for frame in stack if is_users(frame.filename)]
    own = [frame for frame in users if not _INSTALLED.search(frame.filename)] or users
    if not own:
        return None
    source = linecache.getline(own[-1].filename, own[-1].lineno or 0).strip()
    where = f"{own[-1].filename}:{own[-1].lineno} in {own[-1].name}"
    return f"{where}: `{source}`" if source else where


@functools.cache
def is_users(file: str) -> bool:
    """Whether code in a file is neither Python's, nor torch's, nor stategate's."""
    path = str(Path(file).resolve())
    if file.startswith("<") or path.startswith(_MACHINERY) or _TORCHS.search(path):
        return False
    return not path.startswith(_STANDARD) or _INSTALLED.search(path) is not None
