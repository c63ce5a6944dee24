"""`Session.chain`: one number for all states of all steps, the same from every side."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from stategate.common.compiler import MATHS
from stategate.contract import Budget, Bundle
from stategate.contract.chain import START, chained
from stategate.contract.errors import SpecError
from stategate.runtime.session import Session

STEPS = 60
PROGRAM = """
#include <stdio.h>
#include "stategate.h"
static stategate_session session;
static stategate_inputs in;
static stategate_outputs out;
int main(void)
{
    uint64_t chain = stategate_chain(&session, 7); /* not ready: stays */
    if (chain != 7 || stategate_init(&session) != STATEGATE_OK) {
        return 1;
    }
    for (chain = 0; fread(&in, sizeof in, 1, stdin) == 1;) {
        if (stategate_step(&session, &in, &out) >= 0) {
            chain = stategate_chain(&session, chain);
        }
    }
    return fwrite(&chain, sizeof chain, 1, stdout) != 1;
}
"""


def inputs_of(bundle: Path) -> np.ndarray:
    golden = Bundle.open(bundle).golden()
    assert golden is not None
    return golden.inputs["z"][:STEPS]


def by_hand(session: Session, inputs: np.ndarray) -> int:
    """The chain from copies of the states after each step."""
    chain = START
    for z in inputs:
        session.step(z=z)
        for state in session.manifest.states:
            chain = chained(chain, session.state(state.name))
    return chain


@pytest.mark.parametrize("engine", ["native", "onnxruntime"])
def test_the_chain_is_over_every_state_after_every_step(native_bundle: Path, engine: str) -> None:
    inputs = inputs_of(native_bundle)
    with Session.open(native_bundle, engine=engine, chain=True) as session:
        assert session.chain == START
        chain = by_hand(session, inputs)
        assert session.chain == chain != START
        assert session.ledger.writes and session.ledger.quiet_steps
        session.reset()
        assert session.chain == chain  # a reset is no step
        session.step(z=inputs[0])
    assert session.chain != chain  # and the last step is in it, though the session is closed


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_program_in_c_has_the_chain_of_the_native_engine(
    native_bundle: Path, tmp_path: Path
) -> None:
    folder = native_bundle / "native"
    sources = [f for f in sorted(folder.glob("*.c")) if f.name != "python.c"]
    (tmp_path / "main.c").write_text(PROGRAM)
    words = ["cc", "-std=gnu11", "-O1", *MATHS, f"-I{folder}", f"-Wa,-I{folder}"]
    words += [str(tmp_path / "main.c"), *map(str, sources), "-lm", "-o", str(tmp_path / "robot")]
    subprocess.run(words, check=True)
    inputs = inputs_of(native_bundle)
    raw = subprocess.run([tmp_path / "robot"], input=inputs.tobytes(), capture_output=True)
    with Session.open(native_bundle, engine="native", chain=True) as session:
        for z in inputs:
            session.step(z=z)
        assert raw.returncode == 0 and int.from_bytes(raw.stdout, "little") == session.chain


def test_steps_that_a_budget_holds_are_in_it_and_refused_ones_are_not(native_bundle: Path) -> None:
    inputs = inputs_of(native_bundle)
    budget = Budget(writes_per_1000_steps=1.0, on_writes="hold")
    with Session.open(native_bundle, budget=budget, chain=True) as session:
        chain = by_hand(session, inputs)
        assert session.ledger.suppressed_writes
        with pytest.raises(Exception, match="z"):
            session.step(z=np.full_like(inputs[0], np.nan))
        assert session.chain == chain


def test_a_history_taken_by_the_chunk_has_the_chain_of_its_steps(native_bundle: Path) -> None:
    inputs = inputs_of(native_bundle)
    with Session.open(native_bundle, chain=True) as whole, Session.open(native_bundle) as plain:
        whole.prefill(z=inputs)
        assert whole.chain == by_hand(plain, inputs)


def test_a_session_without_a_chain_says_how_to_get_one(native_bundle: Path) -> None:
    with Session.open(native_bundle) as session, pytest.raises(SpecError, match="chain=True"):
        _ = session.chain
