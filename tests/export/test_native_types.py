"""The generated C called without a session of Python: types, and more of something than usual."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from stategate.common.compiler import compile_library
from stategate.contract import ConstantSpec, GateSpec, StateSpec, StepSpec, TensorSpec
from stategate.contract.errors import LowerError
from stategate.export.c.lower import source_of
from stategate.export.frontends.trace import trace
from stategate.models.step import StepResult

Arrays = dict[str, np.ndarray]
ROOM = 1 << 20


class InC:
    """A session in C in memory of this test, stepped with one input and one output."""

    def __init__(self, model: nn.Module, folder: Path, *flags: str) -> None:
        sources = source_of(trace(model).SerializeToString(), model.step_spec(), {}).files  # type: ignore[operator]
        path = folder / "lib.so"
        path.write_bytes(compile_library(sources, extra=flags).library)
        self._library = ctypes.CDLL(str(path))
        self._session, self._inputs, self._outputs = (self._room() for _ in range(3))
        layout = re.search(r"STATEGATE_LAYOUT UINT64_C\((\w+)\)", sources["stategate.h"].decode())
        assert layout is not None
        session = self._session.ctypes.data_as(ctypes.c_void_p)
        assert self._library.stategate_init_as(session, ctypes.c_uint64(int(layout[1], 16))) == 0

    @staticmethod
    def _room() -> np.ndarray:
        raw = np.zeros(ROOM + 64, np.uint8)
        start = -raw.ctypes.data % 64
        return raw[start : start + ROOM]

    def step(self, x: np.ndarray) -> int:
        self._inputs[: x.nbytes] = np.frombuffer(x.tobytes(), np.uint8)
        rooms = (self._session, self._inputs, self._outputs)
        result: int = self._library.stategate_step(
            *(room.ctypes.data_as(ctypes.c_void_p) for room in rooms)
        )
        return result

    def first_output(self, count: int, dtype: str) -> np.ndarray:
        return self._outputs.view(dtype)[:count]


class Halves(nn.Module):
    """Adds up in float16, which ends at 65,504."""

    def step_spec(self) -> StepSpec:
        return StepSpec(
            inputs=(TensorSpec("x", (1, 4), "float16"),),
            outputs=(TensorSpec("y", (1, 4)),),
            states=(StateSpec("h", (1, 4), "float16"),),
        )

    def step(self, inputs: dict, states: dict) -> StepResult:
        after = states["h"] + inputs["x"]
        return StepResult({"y": inputs["x"].float()}, {"h": after}, {})


@pytest.mark.slow
def test_what_is_not_finite_in_float16_is_found_in_inputs_and_states(tmp_path: Path) -> None:
    session = InC(Halves(), tmp_path)
    x = np.array([[60000, -0.0, 6e-8, 1]], np.float16)
    assert session.step(x) == 1
    assert session.step(x) == -2  # 120,000 is infinity
    for bad in (np.nan, np.inf, -np.inf):
        x[0, 2] = bad
        assert session.step(x) == -1


class ManyGates(nn.Module):
    """Forty memories behind gates of their own, each of which adds up what is positive."""

    gates = 40

    def step_spec(self) -> StepSpec:
        numbers = range(self.gates)
        return StepSpec(
            inputs=(TensorSpec("x", (1, self.gates)),),
            outputs=(TensorSpec("y", (1, self.gates + 1)),),
            states=(
                *(StateSpec(f"h{i}", (1, 1), gate=f"g{i}") for i in numbers),
                StateSpec("count", (1, 1)),
            ),
            gates=tuple(GateSpec(f"g{i}", "hard", (1, 1), 0.0, f"t{i}") for i in numbers),
        )

    def step(self, inputs: dict, states: dict) -> StepResult:
        gates = {f"g{i}": inputs["x"][:, i : i + 1] * 1.0 for i in range(self.gates)}
        new = {
            f"h{i}": torch.where(g > inputs[f"t{i}"], states[f"h{i}"] + g, states[f"h{i}"])
            for i, g in enumerate(gates.values())
        }
        new["count"] = states["count"] + 1.0
        return StepResult({"y": torch.cat(tuple(new.values()), 1)}, new, gates)


@pytest.mark.slow
def test_more_gates_than_an_int_has_bits_keep_banks_of_their_own_in_c(tmp_path: Path) -> None:
    session = InC(ManyGates(), tmp_path, "-O1")
    wanted = np.zeros(41, np.float32)
    for x in np.random.default_rng(3).standard_normal((20, 1, 40)).astype(np.float32):
        session.step(x)
        wanted[:40] += np.maximum(x[0], 0.0)
        wanted[40] += 1.0
        np.testing.assert_array_equal(session.first_output(41, "float32"), wanted)


@pytest.mark.slow
def test_more_gates_than_a_session_in_c_can_tell_apart_are_refused() -> None:
    model = ManyGates()
    model.gates = 64
    with pytest.raises(LowerError, match="too many gates"):
        source_of(trace(model).SerializeToString(), model.step_spec(), {})


def test_a_constant_in_float64_keeps_its_bits_in_c() -> None:
    double = onnx.TensorProto.DOUBLE
    x, shift, y, h, after = (
        onnx.helper.make_tensor_value_info(name, double, shape)
        for name, shape in zip(
            ("x", "shift", "y", "h", "h_next"), [(1, 1), (1,), *[(1, 1)] * 3], strict=True
        )
    )
    add = onnx.helper.make_node("Add", ["x", "shift"], ["y"])
    keep = onnx.helper.make_node("Identity", ["h"], ["h_next"])
    graph = onnx.helper.make_graph([add, keep], "step", [x, shift, h], [y, after])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    spec = StepSpec(
        inputs=(TensorSpec("x", (1, 1), "float64"),),
        outputs=(TensorSpec("y", (1, 1), "float64"),),
        states=(StateSpec("h", (1, 1), "float64"),),
        constants=(ConstantSpec("shift", (1,), "float64", 0.1),),
    )
    text = source_of(model.SerializeToString(), spec, {}).files["model.c"].decode()
    found = re.search(r"\.shift = \{(\S+)\}", text)
    assert found is not None and float.fromhex(found[1]) == 0.1


class Wide(nn.Module):
    """Its write takes as much from its read as the state is large: 256 KiB."""

    def step_spec(self) -> StepSpec:
        return StepSpec(
            inputs=(TensorSpec("x", (1, 1)),),
            outputs=(TensorSpec("y", (1, 1)),),
            states=(StateSpec("h", (1, 1 << 16), gate="g"),),
            gates=(GateSpec("g", "hard", (1, 1), 0.0, "t"),),
        )

    def step(self, inputs: dict, states: dict) -> StepResult:
        gate, bent = inputs["x"] * 1.0, torch.tanh(states["h"])
        after = torch.where(gate > inputs["t"], bent + gate, states["h"])
        return StepResult({"y": bent.sum(1, keepdim=True)}, {"h": after}, {"g": gate})


@pytest.mark.slow
def test_what_a_large_read_hands_to_its_write_does_not_lie_on_the_stack(tmp_path: Path) -> None:
    session = InC(Wide(), tmp_path, "-Wframe-larger-than=131072")  # a warning fails the build
    assert [session.step(np.array([[x]], np.float32)) for x in (1.0, -1.0, 1.0)] == [1, 0, 1]
    np.testing.assert_allclose(session.first_output(1, "float32"), np.tanh(1.0) * 65536, rtol=1e-4)
