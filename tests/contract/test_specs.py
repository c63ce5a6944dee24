from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stategate.contract import Budget, ConstantSpec, GateSpec, StateSpec, StepSpec, TensorSpec
from stategate.contract.dtypes import DTYPES, dtype_from_onnx
from stategate.contract.errors import SpecError

X, Y = (TensorSpec("x", (1, 2)),), (TensorSpec("y", (1, 2)),)


@pytest.mark.parametrize("name", DTYPES)
def test_the_dtype_table_agrees_with_onnx(name: str) -> None:
    assert onnx.helper.np_dtype_to_tensor_dtype(np.dtype(name)) == DTYPES[name].onnx
    assert dtype_from_onnx(DTYPES[name].onnx).name == name
    assert DTYPES[name].numpy == np.dtype(name)


def test_bfloat16_is_refused_by_its_onnx_code() -> None:
    with pytest.raises(SpecError, match="16"):
        dtype_from_onnx(onnx.TensorProto.BFLOAT16)


@given(
    st.lists(st.integers(1, 7), max_size=4).map(tuple),
    st.sampled_from(sorted(DTYPES)),
)
def test_bytes_of_a_state_are_those_of_the_array(shape: tuple[int, ...], dtype: str) -> None:
    assert StateSpec("s", shape, dtype).bytes == np.zeros(shape, dtype).nbytes


@given(st.lists(st.lists(st.integers(1, 9), max_size=3).map(tuple), min_size=1, max_size=5))
def test_state_bytes_is_the_sum_over_states(shapes: list[tuple[int, ...]]) -> None:
    states = tuple(StateSpec(f"s{i}", shape) for i, shape in enumerate(shapes))
    assert StepSpec(X, Y, states).state_bytes == sum(4 * math.prod(shape) for shape in shapes)


def test_a_state_that_states_the_wrong_size_is_refused() -> None:
    with pytest.raises(SpecError, match="16 bytes"):
        StateSpec("s", (2, 2), bytes=15)


@pytest.mark.parametrize("shape", [(0,), (-1, 2)])
def test_an_open_axis_is_refused_with_the_option_that_pins_it(shape: tuple[int, ...]) -> None:
    with pytest.raises(SpecError, match="--dim"):
        TensorSpec("x", shape)


def test_two_states_paired_with_one_output_are_refused() -> None:
    states = (StateSpec("a", (1,), next_name="n"), StateSpec("b", (1,), next_name="n"))
    with pytest.raises(SpecError, match="two outputs share one name"):
        StepSpec(X, Y, states)


def test_a_state_guarded_by_a_gate_that_is_not_there_is_refused() -> None:
    with pytest.raises(SpecError, match="does not exist"):
        StepSpec(X, Y, (StateSpec("s", (1,), gate="gate"),))


def test_a_model_without_state_is_refused() -> None:
    with pytest.raises(SpecError, match="declares no state"):
        StepSpec(X, Y, ())


@pytest.mark.parametrize("threshold", [None, math.nan, math.inf])
def test_a_hard_gate_needs_a_finite_threshold(threshold: float | None) -> None:
    with pytest.raises(SpecError, match="float32 can hold"):
        GateSpec("gate", "hard", threshold=threshold)


def test_a_soft_gate_has_no_threshold() -> None:
    with pytest.raises(SpecError, match="soft gate"):
        GateSpec("gate", "soft", threshold=0.5)


def test_a_write_rate_is_a_share() -> None:
    with pytest.raises(SpecError, match="0 to 1"):
        GateSpec("gate", threshold=0.0, expected_write_rate=1.5)


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(SpecError, match="positive"):
        Budget(state_bytes=0)


def test_a_name_cannot_be_input_and_output() -> None:
    with pytest.raises(SpecError, match="input and an output"):
        StepSpec(X, (TensorSpec("x", (1, 2)),), (StateSpec("s", (1,)),))


def test_a_hard_gate_that_guards_nothing_is_refused() -> None:
    with pytest.raises(SpecError, match="guards no state"):
        StepSpec(X, Y, (StateSpec("s", (1,)),), (GateSpec("g", threshold=0.0),))


@pytest.mark.parametrize(
    ("dtype", "value"), [("int8", 300), ("float32", 1e39), ("float64", math.inf), ("int64", 0.5)]
)
def test_a_constant_must_fit_its_dtype(dtype: str, value: float) -> None:
    with pytest.raises(SpecError, match="cannot have this value"):
        ConstantSpec("c", (), dtype, value)


def test_a_model_without_input_is_refused() -> None:
    with pytest.raises(SpecError, match="takes no input"):
        StepSpec((), Y, (StateSpec("s", (1,)),))


def test_a_threshold_that_float32_cannot_hold_is_refused() -> None:
    with pytest.raises(SpecError, match="float32"):
        GateSpec("g", threshold=1e39)


@pytest.mark.parametrize("write_bytes", [-1, 17])
def test_one_write_cannot_replace_more_than_the_state(write_bytes: int) -> None:
    with pytest.raises(SpecError, match="cannot replace so much"):
        StateSpec("k", (1, 4), write_bytes=write_bytes)
