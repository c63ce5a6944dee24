from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from stategate.contract import StateSpec, StepSpec, TensorSpec
from stategate.export.frontends.trace import trace
from stategate.models.step import StepResult

C = 0.1234567890123


@pytest.mark.corners("<lambda>0", "<lambda>5")
@pytest.mark.case("A7")
@pytest.mark.parametrize(
    "update",
    [
        lambda t: t + C,
        lambda t: C**t,
        lambda t: torch.where(t > 0.5, t * C, C),
        lambda t: t.clamp(1.0 + C, 2.0),
        lambda t: t + torch.full((), C, dtype=torch.float64),
        lambda t: torch.remainder(10.0 * t, C),
        lambda t: t + (t == 0.7) * C,
        lambda t: torch.lerp(t, 2 * t, C),
    ],
)
def test_a_number_beside_float64_keeps_all_its_bits_in_the_graph(update) -> None:
    shape = (1, 2)

    class Updates(nn.Module):
        def step_spec(self) -> StepSpec:
            state = StateSpec("t", shape, "float64")
            return StepSpec((TensorSpec("x", (1,)),), (TensorSpec("y", (1,)),), (state,))

        def step(self, inputs: dict, states: dict) -> StepResult:
            return StepResult({"y": inputs["x"] * C}, {"t": update(states["t"])}, {})

    engine = onnxruntime.InferenceSession(trace(Updates()).SerializeToString())
    t = np.full(shape, 0.7)
    (after,) = engine.run(["t_next"], {"x": np.ones(1, np.float32), "t": t})
    wanted = update(torch.from_numpy(np.array(t))).numpy()
    assert after.dtype == np.float64 and np.abs(after - wanted).max() < 1e-14
