"""How a model is traced: with which operators, and without torch's chatter."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

from stategate.contract.errors import TraceError
from stategate.models.operators import Operators
from stategate.models.step import StepModel


@contextmanager
def with_operators(model: StepModel, operators: Operators) -> Iterator[None]:
    """Have the model traced with other operators than the portable ones."""
    if operators is Operators.PORTABLE:
        yield
        return
    if not isinstance(getattr(model, "operators", None), Operators):
        raise TraceError(
            "the model has no form in native operators",
            found=f"{type(model).__name__}, --operators {operators.value}",
            expected="a model of the delta family",
            remedy="export it with --operators portable",
        )
    model.operators = operators  # type: ignore[attr-defined]
    try:
        yield
    finally:
        model.operators = Operators.PORTABLE  # type: ignore[attr-defined]


@contextmanager
def quiet() -> Iterator[None]:
    """Hide torch's chatter: deprecations inside of it, and graphs that it prints to stderr."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
