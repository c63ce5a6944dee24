"""AURA-Mem through a chunk of training in C: the scan and its gradient in one call.

`stategate.calibration.gates.scan` says what it does, one small tensor at a time; here a compiled
loop does it, and gives the same answers and gradients to rounding. The gate sees the residual and
is not trained through it, so that its logits are found again from all residuals at once.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn.functional import silu

from stategate.calibration.gates.scan import UNASKED, Scanned
from stategate.contract.errors import CalibrationError
from stategate.models.memories.aura import LEAK, AuraMem, Projections, surprise_of

_FLAGS = ("-O3", "-march=native", "-fPIC", "-shared", "-fassociative-math", "-fno-signed-zeros",
          "-fno-trapping-math", "-fno-math-errno")  # fmt: skip
_RULES = {"given": 0, "drawn": 1, "hard": 2}
Rule = Literal["given", "drawn", "hard"]


@lru_cache
def _library(key: int, value: int) -> ctypes.CDLL:
    """The loop for matrices of one size.

    Raises:
        CalibrationError: There is no compiler, or it refuses the loop.
    """
    source = Path(__file__).with_name("chunk.c")
    with tempfile.TemporaryDirectory(prefix="stategate-chunk-") as folder:
        path = Path(folder) / "chunk.so"
        sizes = (f"-DK={key}", f"-DV={value}")
        done = subprocess.run(
            ["cc", *_FLAGS, *sizes, source, "-o", path, "-lm"], capture_output=True, text=True
        )
        if done.returncode != 0:
            raise CalibrationError("the compiler refused lab/training/chunk.c", found=done.stderr)
        return ctypes.CDLL(str(path))


def _call(function: Any, *arguments: int | float | Tensor) -> None:
    def passed(one: int | float | Tensor) -> object:
        if isinstance(one, Tensor):
            assert one.is_contiguous() and one.dtype == torch.float32
            return ctypes.c_void_p(one.data_ptr())
        return ctypes.c_int(one) if isinstance(one, int) else ctypes.c_float(one)

    function(*map(passed, arguments))


class _Reads(torch.autograd.Function):
    """The reads after each write, and what they say of everything that they came from."""

    @staticmethod
    def forward(
        ctx: Any, k: Tensor, q: Tensor, v: Tensor, beta: Tensor, c2: Tensor, g: Tensor,
        o: Tensor, history: tuple[Tensor, ...],
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(k, q, beta, c2, g, *history)
        return o

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        k, q, beta, c2, g, r, read, S, b = ctx.saved_tensors
        time, rows, key = k.shape
        d_k, d_q, d_v = torch.empty_like(k), torch.empty_like(q), torch.empty_like(r)
        d_beta, d_g, d_c2 = torch.empty_like(beta), torch.empty_like(g), torch.empty(())
        _call(
            _library(key, r.shape[-1]).backward, time, rows, LEAK, k, q, beta, float(c2), g, r,
            read, S, b, gradients[0].contiguous(), d_k, d_q, d_v, d_beta, d_g, d_c2,
        )  # fmt: skip
        return d_k, d_q, d_v, d_beta, d_c2, d_g, None, None


def chunk(
    model: AuraMem,
    p: Projections,
    S: Tensor,
    b: Tensor,
    rule: Rule,
    gates: Tensor | None = None,
    tutored: int = 0,
) -> Scanned:
    """As `scan`; where gates are given, none is asked.

    Args:
        model: The policy, whose gate is its own.
        p: Projections with leading axes ``(time, batch)``.
        S: ``(batch, key, value)``.
        b: ``(batch, value)``.
        rule: ``given``; ``drawn`` by their chance, with a straight-through gradient; or ``hard``,
            above 0.
        gates: ``(time, batch, 1)``, where they are given.
        tutored: Rows, the first ones, in which drawn gates are open.

    Raises:
        CalibrationError: There is no compiler.
    """
    k, q, v, beta, novelty = (x.contiguous() for x in (p.k, p.q, p.v, p.beta, p.novelty))
    time, rows, key = k.shape
    value = v.shape[-1]
    g = torch.rand(time, rows, 1) if gates is None else gates.clone()
    o, r, read = (torch.empty(time, rows, value) for _ in range(3))
    S, b = S.detach().clone().contiguous(), b.detach().clone().contiguous()
    S_before, b_before = torch.empty(rows, time, key, value), torch.empty(rows, time, value)
    with torch.no_grad():
        _call(
            _library(key, value).forward, time, rows, _RULES[rule], tutored, LEAK, k, q, v, beta,
            novelty, float(model.c2), model.gate_residual.weight, model.gate_surprise,
            model.gate_out.weight, float(model.gate_out.bias), S, b, g, o, r, read, S_before,
            b_before,
        )  # fmt: skip
    logits = torch.full_like(g, UNASKED)
    if rule != "given":
        hidden = p.novelty + model.gate_residual(r) + surprise_of(r) * model.gate_surprise
        logits = model.gate_out(silu(hidden))
    if rule == "drawn":
        chance = torch.sigmoid(logits)
        g = g + chance - chance.detach()
    history = (r, read, S_before, b_before)
    reads = cast(Tensor, _Reads.apply(k, q, v, beta, model.c2, g, o, history))  # type: ignore[no-untyped-call]
    return Scanned(reads, g, logits, S, b)
