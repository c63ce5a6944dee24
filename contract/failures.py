"""Which exceptions are failures of what was tried, and which belong to somebody else."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from functools import partial
from types import CodeType
from typing import Any

# What pybind11 makes of exceptions of C++ that a library has not given a class of its own.
_OF_CPP = (RuntimeError, ValueError, IndexError, OverflowError, MemoryError)


def failures(*kinds: type[Any], library: str | None = None) -> tuple[type[Any], ...]:
    """The exceptions that are failures of what was tried, for an ``except`` clause.

    Code that runs a library or a user's module has to catch nearly everything. But what a signal's
    handler raises meanwhile, or a warning that somebody turned into an error, says nothing of what
    was tried: it passes ``except failures() as problem``, as the very object.
    """
    problem = sys.exc_info()[1]
    if problem is None or isinstance(problem, Warning) or _comes_from_a_handler(problem):
        return ()
    own = type(problem)
    if library is None or own.__module__.split(".")[0] == library or own in _OF_CPP:
        return kinds or (Exception,)
    return ()


def first_line(problem: BaseException) -> str:
    """The first line of what an exception says; its class where it says nothing."""
    return next(iter(str(problem).splitlines()), type(problem).__name__)


def _comes_from_a_handler(problem: BaseException) -> bool:
    """Whether a signal's handler, as they are installed now, is among the frames."""
    handlers = set(_handlers())
    trace = problem.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code in handlers:
            return True
        trace = trace.tb_next
    return False


def _handlers() -> Iterator[CodeType]:
    for number in signal.valid_signals():
        handler: Any = signal.getsignal(number)
        while isinstance(handler, partial):
            handler = handler.func
        for function in (handler, type(handler).__call__):
            code = getattr(function, "__code__", None)
            if isinstance(code, CodeType):
                yield code
