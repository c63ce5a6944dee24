"""Every order of what can be done with a session on a GPU, beside one in onnxruntime."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import nn

from stategate.contract import Budget, Bundle, GateSpec, StateSpec, StepSpec, TensorSpec
from stategate.contract.errors import EngineError, StateFault
from stategate.export.tensorrt.build import Settings
from stategate.export.tensorrt.plans import build_engine, keep_plan
from stategate.models.step import StepResult
from stategate.runtime import Session
from stategate.runtime.check.faults import inject
from stategate.runtime.engines.cuda import Cuda
from stategate.runtime.keep.snapshot import Codec
from stategate.runtime.keep.store import newest_in


class Many(nn.Module):
    """Two memories behind gates of their own, one of integers, and one that is always written."""

    def step_spec(self) -> StepSpec:
        return StepSpec(
            (TensorSpec("x", (1, 4)),),
            (TensorSpec("y", (1, 4)),),
            (
                StateSpec("h", (1, 4), gate="first"),
                StateSpec("n", (1, 2), "int32", gate="second"),
                StateSpec("age", (1, 1)),
            ),
            (
                GateSpec("first", "hard", (1, 1), 0.0, "first_threshold"),
                GateSpec("second", "hard", (1, 1), 0.0, "second_threshold"),
            ),
        )

    def initial_states(self) -> dict[str, torch.Tensor]:
        return {"h": torch.tensor([[0.5, -0.25, 0.125, 1.0]])}

    def step(self, inputs: dict, states: dict) -> StepResult:
        x, h, n = inputs["x"], states["h"], states["n"]
        first, second = x[:, :1] * 1.0, x[:, 1:2] * 1.0
        h = torch.where(first > inputs["first_threshold"], torch.tanh(x + 0.5 * h), h)
        n = torch.where(second > inputs["second_threshold"], n + 1, n)
        y = h + n[:, :1].to(torch.float32) + states["age"]
        states = {"h": h, "n": n, "age": states["age"] * 0.5 + 1.0}
        return StepResult({"y": y}, states, {"first": first, "second": second})


class Orders(RuleBasedStateMachine):
    bundle: ClassVar[Path]
    driver: ClassVar[Any]
    trt: ClassVar[Any]
    budget: ClassVar[Budget]

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.open_both()

    def open_both(self) -> None:
        where, budget = self.folder, self.budget
        self.gpu = Session.open(
            self.bundle, engine="tensorrt", snapshots=where / "gpu", budget=budget
        )
        self.cpu = Session.open(
            self.bundle, engine="onnxruntime", snapshots=where / "cpu", budget=budget
        )

    @rule(
        first=st.booleans(),
        second=st.booleans(),
        values=st.lists(st.floats(-4, 4, width=32), min_size=2, max_size=2),
    )
    def step(self, first: bool, second: bool, values: list[float]) -> None:
        x = np.array([[1.0 if first else -1.0, 1.0 if second else -1.0, *values]], np.float32)
        ours, theirs = self.gpu.step(x=x), self.cpu.step(x=x)
        np.testing.assert_array_equal(ours["y"], theirs["y"])
        for gate in ("first", "second"):
            np.testing.assert_array_equal(self.gpu.gates[gate], self.cpu.gates[gate])

    @rule()
    def look(self) -> None:
        for name in ("h", "n", "age"):
            np.testing.assert_array_equal(self.gpu.state(name), self.cpu.state(name))

    @rule()
    def reset(self) -> None:
        self.gpu.reset()
        self.cpu.reset()

    @rule()
    def save(self) -> None:
        self.gpu.save()
        self.cpu.save()
        codec = Codec(self.gpu.manifest)
        ours, theirs = (newest_in(self.folder / name, codec) for name in ("gpu", "cpu"))
        assert ours is not None and theirs is not None
        for name, state in theirs.snapshot.states.items():
            np.testing.assert_array_equal(ours.snapshot.states[name], state)

    @rule()
    def restore(self) -> None:
        assert (self.gpu.restore() is None) == (self.cpu.restore() is None)

    @rule(steps=st.integers(1, 3))
    def prefill(self, steps: int) -> None:
        x = np.linspace(-1, 1, 4 * steps, dtype=np.float32).reshape(steps, 1, 4)
        np.testing.assert_array_equal(self.gpu.prefill(x=x)["y"], self.cpu.prefill(x=x)["y"])

    @rule(fault=st.sampled_from(["launch", "nan"]))
    def fail(self, fault: str) -> None:
        def spoil(view: Any) -> None:
            view("h_next").fill(np.nan)
            view("stategate_sum_abs").fill(np.nan)

        if fault == "launch":
            self.driver.failing |= {"cuGraphLaunch": 719, "cuCtxSetCurrent": 719}
        else:
            type(self).trt.spoil = spoil
        inject(self.cpu, {1: "engine" if fault == "launch" else "state"})
        ends = []
        try:
            for session in (self.gpu, self.cpu):
                with suppress(EngineError, StateFault):
                    session.step(x=np.ones((1, 4), np.float32))
                    ends.append("held")  # a write that is not allowed is not looked at
        finally:
            self.driver.failing.clear()
            type(self).trt.spoil = lambda view: None
        assert ends in ([], ["held", "held"]) and (not ends or self.budget.on_writes == "hold")

    @rule()
    def reopen(self) -> None:
        self.close()
        self.open_both()

    @precondition(lambda self: hasattr(self, "gpu"))
    @invariant()
    def both_count_the_same(self) -> None:
        assert self.gpu.ledger == self.cpu.ledger

    def close(self) -> None:
        self.gpu.close()
        self.gpu.close()
        self.cpu.close()
        assert (self.driver.device, self.driver.host, self.driver.open) == ({}, {}, [])

    def teardown(self) -> None:
        if hasattr(self, "gpu"):
            self.close()
            shutil.rmtree(self.folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("captured", "budget"),
    [
        (True, Budget()),
        (False, Budget()),
        (True, Budget(writes_per_1000_steps=4, on_writes="hold")),
    ],
    ids=["captured", "enqueued", "held"],
)
def test_every_order_gives_what_onnxruntime_gives(
    many: Bundle,
    driver: Any,
    trt: Any,
    captured: bool,
    budget: Budget,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with closing(Cuda()) as cuda:
        built = build_engine(many, trt, cuda, Settings(1 << 20), cuda_graph=captured)
    keep_plan(built, many)
    for name, value in (("bundle", many.path), ("driver", driver), ("trt", trt)):
        monkeypatch.setattr(Orders, name, value, raising=False)
    monkeypatch.setattr(Orders, "budget", budget, raising=False)
    Orders.TestCase.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
    Orders.TestCase().runTest()


@pytest.fixture(scope="module")
def many(seal_model: Callable[..., Bundle], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return seal_model(tmp_path_factory.mktemp("many") / "b", Many())
