"""Every order of what can be done with a session on a GPU, beside one in onnxruntime."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from stategate.contract import Bundle
from stategate.contract.errors import EngineError, StateFault
from stategate.export.tensorrt_build import Settings
from stategate.export.tensorrt_local import build_engine, keep
from stategate.runtime import Session
from stategate.runtime.cuda import Cuda


class Orders(RuleBasedStateMachine):
    bundle: ClassVar[Path]
    driver: ClassVar[Any]
    trt: ClassVar[Any]

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.open_both()

    def open_both(self) -> None:
        where = self.folder
        self.gpu = Session.open(self.bundle, engine="tensorrt", snapshots=where / "gpu")
        self.cpu = Session.open(self.bundle, engine="onnxruntime", snapshots=where / "cpu")

    @rule(opens=st.booleans(), values=st.lists(st.floats(-4, 4, width=32), min_size=4, max_size=4))
    def step(self, opens: bool, values: list[float]) -> None:
        x = np.array([values], np.float32)
        x[0, 0] = 1.0 if opens else -1.0  # an open gate writes, a closed one is quiet
        ours, theirs = self.gpu.step(x=x), self.cpu.step(x=x)
        np.testing.assert_array_equal(ours["y"], theirs["y"])
        np.testing.assert_array_equal(self.gpu.gates["gate"], self.cpu.gates["gate"])

    @rule()
    def look(self) -> None:
        for name in ("h", "count"):
            np.testing.assert_array_equal(self.gpu.state(name), self.cpu.state(name))

    @rule()
    def reset(self) -> None:
        self.gpu.reset()
        self.cpu.reset()

    @rule()
    def save(self) -> None:
        self.gpu.save()
        self.cpu.save()

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
        try:
            with pytest.raises((EngineError, StateFault)):
                self.gpu.step(x=np.ones((1, 4), np.float32))
        finally:
            self.driver.failing.clear()
            type(self).trt.spoil = lambda view: None

    @rule()
    def reopen(self) -> None:
        self.close()
        self.open_both()

    @precondition(lambda self: hasattr(self, "gpu"))
    @invariant()
    def no_bank_is_lost(self) -> None:
        assert self.gpu.ledger.writes == self.cpu.ledger.writes

    def close(self) -> None:
        self.gpu.close()
        self.gpu.close()
        self.cpu.close()
        assert (self.driver.device, self.driver.host, self.driver.open) == ({}, {}, [])

    def teardown(self) -> None:
        if hasattr(self, "gpu"):
            self.close()
            shutil.rmtree(self.folder)


@pytest.mark.parametrize("captured", [True, False])
def test_every_order_gives_what_onnxruntime_gives(
    tiny_with_start_bundle: Path,
    driver: Any,
    trt: Any,
    captured: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = Cuda()
    bundle = Bundle.open(tiny_with_start_bundle)
    keep(build_engine(bundle, trt, cuda, Settings(1 << 20), cuda_graph=captured), bundle)
    cuda.close()
    for name, value in (("bundle", bundle.path), ("driver", driver), ("trt", trt)):
        monkeypatch.setattr(Orders, name, value, raising=False)
    Orders.TestCase.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
    Orders.TestCase().runTest()
