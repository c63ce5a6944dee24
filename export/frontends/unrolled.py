"""Operations that ONNX lacks, in simpler ones: small linear algebra, and an LSTM with a projection.

The sizes are fixed, so loops over rows are written out. A matrix that cannot be solved, for which
torch raises, gives NaN or Inf, which the runtime takes for a fault.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._decomp import decomposition_table

from stategate.contract.errors import TraceError

_aten = torch.ops.aten
_ROWS = 16  # of a matrix; a row takes a dozen operations


def in_simpler_operations(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program without what ONNX has no operation for."""
    table = {}
    for node in program.graph.nodes:
        if node.target in _SIMPLER:
            table[node.target] = _SIMPLER[node.target]
        if node.target is _aten.lstm.input and _has_projection(node):
            table[node.target] = decomposition_table[node.target]
    return program.run_decompositions(table) if table else program


def _has_projection(node: torch.fx.Node) -> bool:
    """Whether a layer has a fifth weight, or a third where there are no biases."""
    # input, hidden, weights, has_biases, num_layers, dropout, train, bidirectional, batch_first
    args: Any = node.args
    directions = args[4] * (2 if args[7] else 1)
    return bool(len(args[2]) > directions * (4 if args[3] else 2))


def _rows(matrix: Tensor) -> int:
    rows = matrix.shape[-1]
    if rows > _ROWS:
        raise TraceError(
            "a matrix is too large to be solved in ONNX, which has no operation for it",
            found=f"{rows} rows",
            expected=f"at most {_ROWS}",
            remedy="compute an inverse that never changes once, before lift(); or iterate, as "
            "conjugate gradients do, with matrix products",
        )
    return rows


def _solved(a: Tensor, b: Tensor) -> Tensor:
    """``x`` of ``a @ x = b`` by Gauss-Jordan elimination, the largest pivot of a column first."""
    n = _rows(a)
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    both = torch.cat((a.expand(*batch, n, n), b.expand(*batch, n, b.shape[-1])), -1)
    for k in range(n):
        below, row = both[..., k:, :], both[..., k, :]
        pivot = row
        if k < n - 1:
            largest = below[..., k].abs().argmax(-1, keepdim=True)
            is_pivot = (torch.arange(n - k) == largest)[..., None]
            pivot = torch.where(is_pivot, below, 0.0).sum(-2)
            below = torch.where(is_pivot, row[..., None, :], below)  # the two change places
        pivot = (pivot / pivot[..., k : k + 1])[..., None, :]
        others = torch.cat((both[..., :k, :], below[..., 1:, :]), -2)
        others = others - others[..., k : k + 1] * pivot
        both = torch.cat((others[..., :k, :], pivot, others[..., k:, :]), -2)
    return both[..., n:]


def _solve(a: Tensor, b: Tensor, **options: bool) -> tuple[Tensor, ...]:
    is_vector = b.dim() == a.dim() - 1 and b.shape == a.shape[:-1]
    b = b[..., None] if is_vector else b
    x = _solved(a, b) if options.get("left", True) else _solved(a.mT, b.mT).mT
    # The factors are for gradients and for errors, which nobody reads here.
    return x[..., 0] if is_vector else x, a, _none(a), _none(a)


def _inverse(a: Tensor, *, check_errors: bool = False) -> tuple[Tensor, Tensor]:
    return _solved(a, torch.eye(_rows(a), dtype=a.dtype)), _none(a)


def _none(a: Tensor) -> Tensor:
    return torch.zeros(a.shape[:-2], dtype=torch.int32)


def _cholesky(
    a: Tensor, *, upper: bool = False, check_errors: bool = False
) -> tuple[Tensor, Tensor]:
    n, columns = _rows(a), list[Tensor]()
    for j in range(n):
        rest = a[..., j:, j]
        for column in columns:
            rest = rest - column[..., j:] * column[..., j : j + 1]
        above = torch.zeros_like(a[..., :j, j])
        columns.append(torch.cat((above, rest / rest[..., :1].sqrt()), -1))
    lower = torch.stack(columns, -1)
    return lower.mT if upper else lower, _none(a)


def _triangular(a: Tensor, b: Tensor, *, upper: bool, **options: bool) -> Tensor:
    has_ones = options.get("unitriangular", False)  # on the diagonal, whatever is there
    if not options.get("left", True):
        return _triangular(a.mT, b.mT, upper=not upper, unitriangular=has_ones).mT
    rows: dict[int, Tensor] = {}
    for i in reversed(range(_rows(a))) if upper else range(_rows(a)):
        rest = b[..., i, :]
        for j, row in rows.items():
            rest = rest - a[..., i, j : j + 1] * row
        rows[i] = rest if has_ones else rest / a[..., i, i : i + 1]
    return torch.stack([rows[i] for i in sorted(rows)], -2)


def _cholesky_solve(b: Tensor, a: Tensor, upper: bool = False) -> Tensor:
    lower = a.mT if upper else a
    return _triangular(lower.mT, _triangular(lower, b, upper=False), upper=True)


_SIMPLER: dict[Any, Callable[..., Any]] = {
    _aten._linalg_solve_ex.default: _solve,
    _aten.linalg_solve_ex.default: lambda a, b, **options: (_solve(a, b, **options)[0], _none(a)),
    _aten.linalg_solve.default: lambda a, b, **options: _solve(a, b, **options)[0],
    _aten.linalg_inv_ex.default: _inverse,
    _aten.linalg_inv.default: lambda a: _inverse(a)[0],
    _aten.inverse.default: lambda a: _inverse(a)[0],
    _aten.linalg_cholesky_ex.default: _cholesky,
    _aten.linalg_cholesky.default: lambda a, upper=False: _cholesky(a, upper=upper)[0],
    _aten.cholesky.default: lambda a, upper=False: _cholesky(a, upper=upper)[0],
    _aten.linalg_solve_triangular.default: _triangular,
    _aten.cholesky_solve.default: _cholesky_solve,
    _aten._cholesky_solve_helper.default: _cholesky_solve,
}
