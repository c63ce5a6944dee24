"""The one training loop: Adam on a loss that may be another in every iteration."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from stategate.calibration.episodes import Report
from stategate.contract.errors import CalibrationError

Rate = Callable[[int], float]
"""From an iteration to its share of the learning rate."""


def cosine(iterations: int, floor: float) -> Rate:
    """From 1 down to a floor."""
    return lambda i: floor + (1 - floor) * 0.5 * (1.0 + math.cos(math.pi * i / iterations))


def descend(
    parameters: Sequence[nn.Parameter],
    loss_of: Callable[[int], Tensor],
    *,
    iterations: int,
    learning_rate: float,
    rate: Rate,
    remedy: str,
    report: Report = lambda _: None,
    graph: Callable[[], AbstractContextManager[object]] = nullcontext,
    ends: Callable[[int], bool] = lambda _: False,
) -> None:
    """Train parameters in place."""
    optimiser = torch.optim.Adam(parameters, lr=learning_rate, betas=(0.9, 0.98))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    for i in range(iterations):
        with graph():
            loss = loss_of(i)
            if not bool(loss.isfinite()):
                raise _diverged(f"loss {loss.item()} in iteration {i}", remedy)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no types here
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        scheduler.step()
        report(i + 1)
        if ends(i + 1):
            break
    optimiser.zero_grad(set_to_none=True)
    if not all(bool(parameter.isfinite().all()) for parameter in parameters):
        raise _diverged("NaN or Inf in what was trained", remedy)


def _diverged(finding: str, remedy: str) -> CalibrationError:
    return CalibrationError(
        "the training diverged", found=finding, expected="finite numbers", remedy=remedy
    )


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Train on one thread, by random numbers of its own; the caller's are left alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small matrices: more threads are slower, and sums would differ
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)
