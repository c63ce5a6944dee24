"""What ONNX has no operation for is written out: linear algebra, projections, pointers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stategate
from stategate.contract.errors import TraceError
from stategate.export.frontends.unrolled import _cholesky, _solved, _triangular
from stategate.models import lift
from stategate.runtime import Session

pytestmark = pytest.mark.case("B19")
X = {"x": torch.zeros(1, 4)}


class Kalman(nn.Module):
    """A Kalman filter that computes its gain in every way that people write it."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.spread = torch.zeros(1, 4), torch.eye(4)[None]
        self.motion, self.seen = torch.eye(4) * 0.9 + 0.05, torch.eye(4)[:3]

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mean @ self.motion.T
        spread = self.motion @ self.spread @ self.motion.T + 0.1 * torch.eye(4)
        cross = spread @ self.seen.T
        noise = self.seen @ cross + 0.5 * torch.eye(3)
        lower = torch.linalg.cholesky(noise)
        halfway = torch.linalg.solve_triangular(lower, cross.mT, upper=False)
        gains = [
            torch.linalg.solve(noise, cross.mT).mT,
            torch.linalg.solve(noise, cross, left=False),
            cross @ torch.linalg.inv(noise),
            cross @ torch.inverse(noise),
            torch.cholesky_solve(cross.mT, lower).mT,
            torch.linalg.solve_triangular(lower.mT, halfway, upper=True).mT,
        ]
        error = (x[:, :3] - mean @ self.seen.T)[..., None]
        self.mean = mean + sum(gain @ error for gain in gains)[..., 0] / len(gains)
        self.spread = spread - gains[0] @ cross.mT
        return self.mean


class Ring(nn.Module):
    """Rings of the last rows, with pointers that are tensors of no axes and Python numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ring", torch.zeros(1, 5, 4, 3))
        self.register_buffer("pointer", torch.tensor(0))
        self.turn = 0

    def forward(self, x: Tensor) -> Tensor:
        self.ring[:, self.pointer, ..., self.turn] = x
        self.pointer.add_(2).remainder_(5)
        self.turn = (self.turn + 1) % 3
        last = self.pointer - 1  # which is minus one at times: the last place
        return self.ring[:, last, :, self.turn] + self.ring.mean((1, 3))


class Projected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            self.rnn = nn.LSTM(4, 8, num_layers=2, proj_size=4)
        self.hidden = (torch.zeros(2, 1, 4), torch.zeros(2, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        y, self.hidden = self.rnn(x[None], self.hidden)
        return y[0]


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(
    ("make", "states"),
    [
        (Kalman, ["mean", "spread"]),
        (Ring, ["ring", "pointer", "turn"]),
        (Projected, ["hidden"]),
    ],
)
@pytest.mark.filterwarnings("ignore:LSTM with projections")  # oneDNN lacks them
def test_what_onnx_has_no_operation_for_is_written_out(make, states, tmp_path: Path) -> None:
    axes = {"hidden": 1} if states == ["hidden"] else {}
    step = lift(make(), X, states=states, session_axes=axes)
    bundle = stategate.make(step, tmp_path / "b", steps=50, engines="onnxruntime,native")
    draw = np.random.default_rng(0)
    for engine in ("onnxruntime", "native"):
        alone = make()
        with Session.open(bundle.path, engine=engine) as session:
            for _ in range(60):
                x = draw.normal(size=(1, 4)).astype(np.float32)
                right = alone(torch.from_numpy(x)).numpy()
                np.testing.assert_allclose(session.step(x=x)["output"], right, atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_the_elimination_is_that_of_lapack(n: int) -> None:
    draw = torch.Generator().manual_seed(n)
    a = torch.randn(3, n, n, generator=draw, dtype=torch.float64)
    b = torch.randn(3, n, 2, generator=draw, dtype=torch.float64)
    a[0] = a[0].flip(0).triu().flip(0)  # zeros on the diagonal: the rows have to change places
    torch.testing.assert_close(_solved(a, b), torch.linalg.solve(a, b))
    whole = a @ a.mT + torch.eye(n)
    lower = _cholesky(whole)[0]
    torch.testing.assert_close(lower, torch.linalg.cholesky(whole))
    for upper in (False, True):
        side = lower.mT if upper else lower
        right = torch.linalg.solve_triangular(side, b, upper=upper)
        torch.testing.assert_close(_triangular(side, b, upper=upper), right)


@pytest.mark.parametrize(
    ("forward", "finding"),
    [
        (lambda x, h: x @ torch.linalg.inv(h), r"too large to be solved[\s\S]*20 rows"),
        (lambda x, h: x @ torch.linalg.pinv(h), r"linalg_pinv[\s\S]*solve, inv, cholesky"),
        (lambda x, h: h[int(h[0, 0] > 0)] + x, r"use the tensor itself as a place"),
    ],
)
def test_what_cannot_be_written_out_is_refused_with_its_cause(
    forward, finding, tmp_path: Path
) -> None:
    class Module(nn.Module):
        def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            return forward(x, h), h + torch.outer(x[0], x[0])

    step = lift(Module(), {"x": torch.zeros(1, 20)}, hidden={"h": torch.eye(20)})
    with pytest.raises(TraceError, match=finding):
        stategate.make(step, tmp_path / "b", steps=5)
    assert not (tmp_path / "b").exists()
