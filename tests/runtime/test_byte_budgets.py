"""Budgets of appended and folded bytes: the printed limit holds in every window of steps."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stategate.contract import Budget
from stategate.contract.errors import SpecError
from stategate.runtime import Session
from tests.export.test_defer import FOLD, LENGTH, ROW, bundle, inputs  # noqa: F401  (a fixture)

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
LIMITS = {"appended_bytes": 40.0 * ROW, "folded_bytes": 15.0 * FOLD}

deeds = st.lists(
    st.sampled_from(
        ["step"] * 4
        + ["quiet", "rewind", "full", "branch", "reset", "save", "restore", "restart", "kill"]
    ),
    min_size=30,
    max_size=120,
)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(deeds=deeds, name=st.sampled_from(sorted(LIMITS)))
def test_no_window_of_steps_has_more_bytes_than_its_budget(
    bundle: Path,  # noqa: F811
    deeds: list[str],
    name: str,
) -> None:
    limit = LIMITS[name]
    budget = Budget(**{f"{name}_per_1000_steps": limit})
    spent: list[int] = []
    with TemporaryDirectory() as folder:
        session = Session.open(bundle, budget=budget, snapshots=folder, rewind=True)
        many = inputs(8)

        def step(x: np.ndarray) -> None:
            before = getattr(session.ledger, name)
            session.step(x=x)
            spent.append(getattr(session.ledger, name) - before)

        for t, deed in enumerate(deeds):
            if deed == "step":
                for i in range(5):
                    step(many[(t + i) % 8])
            elif deed == "quiet":
                step(np.zeros_like(many[0]))
            elif deed == "rewind" and session.rewindable_steps:
                session.rewind(session.rewindable_steps)
            elif deed == "full":
                states = {s.name: session.state(s.name) for s in session.manifest.states}
                session.load_state({**states, "waiting": np.array([LENGTH - 1], np.int32)})
                step(many[t % 8])
            elif deed == "branch":
                with session.branch():
                    for x in many:
                        step(x)
            elif deed == "reset":
                session.reset()
            elif deed == "save":
                session.save()
            elif deed == "restore":
                session.restore()
            elif deed in ("restart", "kill"):
                if deed == "kill":  # what a process leaves in its folder that ends here
                    folder = shutil.copytree(folder, f"{folder}/of{t}")
                session.close()
                session = Session.open(bundle, budget=budget, snapshots=folder, rewind=True)
                session.restore()
        session.close()
    sums = np.cumsum([0, *spent])
    for start in range(len(sums)):
        steps = np.arange(len(sums) - start)
        assert (sums[start:] - sums[start] <= limit + steps * limit / 1000 + 1e-6).all()


def test_bytes_of_rings_are_limited_where_there_are_rings(tiny_bundle: Path) -> None:
    with pytest.raises(SpecError, match="is for deferred writes"):
        Session.open(tiny_bundle, budget=Budget(folded_bytes_per_1000_steps=1.0))
