"""Native operators of linear attention, for engines that have them.

ONNX has had LinearAttention and CausalConvWithState since opset 27; ONNX Runtime knows the same two
under ``com.microsoft``, where it has kernels for them (docs/reference/memories.md has the figures).
While a module is traced these functions leave a node of that operator; called eagerly they are not
used at all, so the float model stays the plain torch code.
"""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor


class Operators(str, Enum):
    """Which operators a step is exported with."""

    PORTABLE = "portable"
    """Primitive operators of opset 20: every engine."""
    ONNX_27 = "onnx-27"
    """The standard's LinearAttention and CausalConvWithState."""
    ORT = "ort"
    """The same two as ONNX Runtime's own, under ``com.microsoft``."""

    @property
    def domain(self) -> str:
        """Domain of the native operators."""
        return "com.microsoft" if self is Operators.ORT else ""


def traced_natively(operators: Operators) -> bool:
    """Whether native operators shall be left in the graph that is being traced now."""
    return operators is not Operators.PORTABLE and torch.compiler.is_exporting()


def linear_attention(
    operators: Operators,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    decay: Tensor,
    beta: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """A node of ``LinearAttention``, rule gated_delta with a beta and gated without.

    Args:
        operators: Whose operator.
        q: ``(rows, time, heads, key)``.
        k: ``(rows, time, heads, key)``.
        v: ``(rows, time, heads, value)``.
        state: ``(rows, heads, key, value)``.
        decay: Log-decay ``(rows, time, heads, key or 1)``.
        beta: ``(rows, time, heads, 1)``.
        scale: Of the reads.

    Returns:
        Reads ``(rows, time, heads, value)`` and the next state.
    """
    rows, time, heads, _ = q.shape
    inputs = [t.flatten(2) for t in (q, k, v)] + [state, decay.flatten(2)]
    if beta is not None:
        inputs.append(beta.flatten(2))
    read, after = torch.onnx.ops.symbolic_multi_out(
        f"{operators.domain}::LinearAttention",
        inputs,
        {
            "q_num_heads": heads,
            "kv_num_heads": heads,
            "scale": scale,
            "update_rule": "gated" if beta is None else "gated_delta",
        },
        dtypes=(v.dtype, state.dtype),
        shapes=((rows, time, heads * v.shape[-1]), tuple(state.shape)),
    )
    return read.view(rows, time, heads, v.shape[-1]), after


def causal_conv(
    operators: Operators, x: Tensor, weight: Tensor, columns: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """A node of ``CausalConvWithState`` with SiLU.

    Args:
        operators: Whose operator.
        x: ``(rows, channels, time)``.
        weight: ``(channels, width)``.
        columns: The last ``width - 1`` inputs, ``(rows, channels, width - 1)``.
        bias: ``(channels,)``.

    Returns:
        ``(rows, channels, time)`` and the next columns.
    """
    mixed, after = torch.onnx.ops.symbolic_multi_out(
        f"{operators.domain}::CausalConvWithState",
        [x, weight.unsqueeze(1), bias, columns],
        {"activation": "silu"},
        dtypes=(x.dtype, columns.dtype),
        shapes=(tuple(x.shape), tuple(columns.shape)),
    )
    return mixed, after
