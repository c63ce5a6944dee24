from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stategate.contract.errors import StategateError
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
