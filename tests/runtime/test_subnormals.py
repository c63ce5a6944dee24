"""A memory that decays in silence: it ends at zero, and a step there costs what others cost."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stategate.contract import Bundle, GateSpec, StateSpec, StepSpec, TensorSpec
from stategate.contract.errors import EngineError
from stategate.models.step import StepResult
from stategate.runtime import Pool, Session
from stategate.runtime.check.gaps import Gaps

pytestmark = [
    pytest.mark.case("A6"),
    pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="no mode is known"),
]
SMALL = {np.dtype(d): np.finfo(d).tiny for d in (np.float32, np.float64)}
Sealer = Callable[..., Bundle]


class Leaky(nn.Module):
    """Integrators that lose a tenth of what they hold in each step, and one behind a gate."""

    def __init__(self, decay: float = 0.9, wide: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.into, self.out = nn.Linear(8, 256, bias=False), nn.Linear(256, 256, bias=False)
        self.decay, self.dtype = decay, torch.float64 if wide else torch.float32

    def step_spec(self) -> StepSpec:
        kind = "float64" if self.dtype == torch.float64 else "float32"
        return StepSpec(
            inputs=(TensorSpec("x", (1, 8)),),
            outputs=(TensorSpec("y", (1, 256)),),
            states=(StateSpec("s", (1, 256), kind), StateSpec("kept", (1, 256), gate="gate")),
            gates=(GateSpec("gate", "hard", (1, 1), 1e6, "threshold"),),
        )

    def initial_states(self) -> dict[str, torch.Tensor]:
        return {"kept": torch.full((1, 256), 1e-40)}

    def step(self, inputs: dict, states: dict) -> StepResult:
        s = states["s"] * self.decay + self.into(inputs["x"]).to(self.dtype)
        gate = inputs["x"][:, :1]
        kept = torch.where(gate > inputs["threshold"], s.float(), states["kept"])
        y = self.out(s.float()) + kept
        return StepResult({"y": y}, {"s": s, "kept": kept}, {"gate": gate})


@pytest.fixture(scope="module", params=["float32", "float64"])
def leaky(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, seal_model: Sealer
) -> Path:
    model = Leaky(wide=request.param == "float64")
    native = shutil.which("cc") is not None
    return seal_model(tmp_path_factory.mktemp("leaky") / "bundle", model, native=native).path


@pytest.fixture(params=["onnxruntime", "native"])
def session(leaky: Path, request: pytest.FixtureRequest) -> Iterator[Session]:
    if request.param == "native" and shutil.which("cc") is None:
        pytest.skip("no C compiler")
    with Session.open(leaky, engine=request.param) as opened:
        yield opened


def after_noise(session: Any, steps: int = 50) -> None:
    rng = np.random.default_rng(0)
    for _ in range(steps):
        session.step(x=rng.standard_normal((1, 8)).astype(np.float32))


@pytest.mark.slow
def test_every_state_is_zero_or_a_normal_number(session: Session) -> None:
    after_noise(session)
    silence, seen = np.zeros((1, 8), np.float32), 0
    for _ in range(7400 if session.state("s").dtype == np.float64 else 1000):
        session.step(x=silence)
        s = session.state("s")
        left = np.abs(s[s != 0.0])
        seen += left.size
        assert not left.size or left.min() >= SMALL[s.dtype]
    assert seen > 0 and not session.state("s").any()


def test_a_silent_step_takes_no_longer_than_others(session: Session) -> None:
    if session.state("s").dtype == np.float64:
        pytest.skip("the decay to the smallest float64 takes too long")
    after_noise(session)
    silence = np.zeros((1, 8), np.float32)
    spans = []
    for _ in range(1400):
        start = perf_counter_ns()
        session.step(x=silence)
        spans.append(perf_counter_ns() - start)
    # It was 16 to 45 times for the state alone; from step 800 on it would be subnormal.
    assert np.median(spans[900:]) < 3 * np.median(spans[:600])


def test_states_behind_a_closed_gate_keep_every_byte(session: Session) -> None:
    before = session.state("kept")
    assert (before == np.float32(1e-40)).all()
    after_noise(session)
    np.testing.assert_array_equal(session.state("kept"), before)


def subnormal_survives() -> bool:
    return bool((np.full(64, 1e-40, np.float32) * np.float32(1.0) != 0.0).all())


def test_the_thread_computes_as_before(session: Session) -> None:
    after_noise(session, 2)
    assert subnormal_survives()


def test_the_thread_computes_as_before_where_the_engine_failed(
    leaky: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("out of memory")

    with Session.open(leaky, engine="onnxruntime") as session:
        monkeypatch.setattr("onnxruntime.InferenceSession.run_with_iobinding", fails)
        with pytest.raises(EngineError, match="out of memory"):
            after_noise(session, 1)
    assert subnormal_survives()


def test_a_mode_that_the_user_has_set_stays(session: Session) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("torch sets the mode on x86-64")
    torch.set_flush_denormal(True)
    try:
        after_noise(session, 2)
        assert not subnormal_survives()
    finally:
        torch.set_flush_denormal(False)
    assert subnormal_survives()


def test_rows_of_a_pool_decay_to_zero_too(tmp_path: Path, seal_model: Sealer) -> None:
    bundle = seal_model(tmp_path / "bundle", Leaky(), sessions=2)
    with Pool.open(bundle.path) as pool:
        rows = [pool.join(), pool.join()]
        pool.step(x=np.ones((2, 8), np.float32))
        for _ in range(1000):
            pool.step(x=np.zeros((2, 8), np.float32))
        assert not any(pool.state(row, "s").any() for row in rows)


def test_a_number_this_small_counts_as_zero_in_a_comparison() -> None:
    gaps = Gaps()
    gaps.add({"s": np.zeros(2, np.float32)}, {"s": np.full(2, 1e-39, np.float32)})
    assert gaps.worst() == 0.0
    gaps.add({"s": np.zeros(2, np.float32)}, {"s": np.full(2, 2e-38, np.float32)})
    assert gaps.worst() == 1.0
    halves = Gaps()
    halves.add({"s": np.zeros(2, np.float16)}, {"s": np.full(2, 1e-5, np.float16)})
    assert halves.worst() > 0.0
