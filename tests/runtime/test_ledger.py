from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from stategate.contract import GateSpec, StateSpec, StepSpec, TensorSpec
from stategate.contract.errors import StategateError
from stategate.models.step import StepResult
from stategate.runtime import Ledger, Session

STEPS = {
    "open": np.array([[1.0, 0.1, 0.2, 0.3]], np.float32),
    "closed": np.array([[-1.0, 0.1, 0.2, 0.3]], np.float32),
    "nan": np.array([[np.nan, 0.1, 0.2, 0.3]], np.float32),
    "shape": np.zeros(4, np.float32),
}


def test_the_write_ratio_is_steps_per_write() -> None:
    assert Ledger(steps=800, writes=100).write_ratio == 8.0
    assert Ledger(steps=800).write_ratio is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(operations=st.lists(st.sampled_from([*STEPS, "reset"]), max_size=30))
def test_counters_only_grow_and_always_add_up(tiny_bundle: Path, operations: list[str]) -> None:
    with Session.open(tiny_bundle) as session:
        before = session.ledger
        for operation in operations:
            try:
                session.reset() if operation == "reset" else session.step(x=STEPS[operation])
            except StategateError:
                assert operation in ("nan", "shape")
            after = session.ledger
            assert after.goes_back_from(before) == []
            assert after.steps == after.writes + after.quiet_steps + after.suppressed_writes
            before = after
        assert before.writes == operations.count("open")
        assert before.quiet_steps == operations.count("closed")
        assert before.resets == operations.count("reset")
        assert before.memory_bytes_written == 16 * before.writes + 4 * before.steps


@pytest.mark.parametrize(
    ("granularity", "write_bytes", "openings", "nbytes"),
    [("head", 0, 5, 40), ("channel", 0, 5, 40), ("step", 0, 3, 96), ("head", 4, 5, 20)],
)
def test_bytes_follow_the_granularity_of_the_gate(
    seal_model: Callable,
    tmp_path: Path,
    granularity: str,
    write_bytes: int,
    openings: int,
    nbytes: int,
) -> None:
    class Heads(nn.Module):
        def step_spec(self) -> StepSpec:
            return StepSpec(
                (TensorSpec("x", (1, 4)),),
                (TensorSpec("y", (1, 4)),),
                (StateSpec("s", (1, 4, 2), gate="g", write_bytes=write_bytes),),
                (GateSpec("g", "hard", (1, 4), 0.0, granularity=granularity),),
            )

        def step(self, inputs: dict, states: dict) -> StepResult:
            x = inputs["x"]
            s = torch.where((x > 0)[..., None], states["s"] + 1.0, states["s"])
            return StepResult({"y": x * 2.0}, {"s": s}, {"g": x * 1.0})

    steps = [[1, 1, 1, -1], [-1, -1, -1, -1], [-1, 1, -1, -1], [1, -1, -1, -1]]
    with Session.open(seal_model(tmp_path / "b", Heads()).path) as session:
        for x in steps:
            session.step(x=np.array([x], np.float32))
        ledger = session.ledger
        assert session.state("s")[0, :, 0].tolist() == [2.0, 2.0, 1.0, 0.0]
    assert (ledger.writes, ledger.quiet_steps) == (3, 1)
    assert ledger.gate_openings == {"g": openings}
    assert ledger.memory_bytes_written == nbytes


class ManyGates(nn.Module):
    """Eight memories, each with a gate of its own."""

    def step_spec(self) -> StepSpec:
        names = [str(i) for i in range(8)]
        return StepSpec(
            (TensorSpec("x", (1, 8)),),
            (TensorSpec("y", (1, 8)),),
            tuple(StateSpec(f"s{n}", (1, 1), gate=f"g{n}") for n in names),
            tuple(GateSpec(f"g{n}", "hard", (1, 1), 0.0) for n in names),
        )

    def step(self, inputs: dict, states: dict) -> StepResult:
        x = inputs["x"]
        parts = [x[:, i : i + 1] for i in range(8)]
        s = {
            f"s{i}": torch.where(part > 0, states[f"s{i}"] + part, states[f"s{i}"])
            for i, part in enumerate(parts)
        }
        y = torch.cat(list(s.values()), -1) * 1.0
        return StepResult({"y": y}, s, {f"g{i}": part * 1.0 for i, part in enumerate(parts)})


def test_more_gates_than_bindings_can_be_made_for_step_all_the_same(
    seal_model: Callable, tmp_path: Path
) -> None:
    x = np.random.default_rng(0).standard_normal((200, 1, 8)).astype(np.float32)
    with Session.open(seal_model(tmp_path / "b", ManyGates()).path) as session:
        for row in x:
            session.step(x=row)
        got = [session.state(f"s{i}")[0, 0] for i in range(8)]
        ledger = session.ledger
    np.testing.assert_allclose(got, np.where(x > 0, x, 0).sum((0, 1)), rtol=1e-4)
    assert list(ledger.gate_openings.values()) == (x > 0).sum((0, 1)).tolist()
