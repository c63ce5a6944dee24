"""The C header says what the bundle says: elements by name, rate, scales, reset rules."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from torch import nn

from stategate.common.compiler import MATHS, WARNINGS
from stategate.contract import ObservationContract, StateSpec, StepSpec, TensorSpec
from stategate.contract.claims import declared
from stategate.export.c.lower import source_of
from stategate.export.c.meaning import declarations
from stategate.export.frontends.trace import trace
from stategate.models.step import StepResult

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")

ODD = ["hip", "Hip", "knee*/ int x; /*", "knee", 'π"', "class", "", "scale", "a" * 200]
PROGRAM = """
#include <math.h>
#include <stdio.h>
#include "stategate.h"
static stategate_session s;
static stategate_inputs in;
static stategate_outputs out;
static const float scale[] = STATEGATE_IN_X_SCALE;
static const float gains[] = STATEGATE_JOINT_STIFFNESS;
int main(void)
{
    int bad = stategate_init(&s) != STATEGATE_OK;
    bad |= STATEGATE_IN_X_HIP != 0 || STATEGATE_IN_X_KNEE != 1 || STATEGATE_JOINT_KNEE != 1;
    bad |= STATEGATE_IN_X_ELEMENTS != 2 || STATEGATE_RATE_HZ != 50.0;
    bad |= scale[STATEGATE_IN_X_KNEE] != 0.25f || gains[STATEGATE_JOINT_HIP] != 40.0f;
    in.x[STATEGATE_IN_X_HIP] = 1.0f;
    bad |= stategate_step(&s, &in, &out) != STATEGATE_WROTE || out.y[0] != 1.0f;
    bad |= stategate_idle(&s, 0.5) != STATEGATE_OK || s.counters.resets != 0;
    bad |= stategate_step(&s, &in, &out) != STATEGATE_WROTE || out.y[0] != 1.5f;
    bad |= stategate_idle(&s, 0.75) != STATEGATE_OK || s.counters.resets != 1;
    bad |= stategate_step(&s, &in, &out) != STATEGATE_WROTE || out.y[0] != 1.0f;
    in.x[0] = 3e38f;
    (void)stategate_step(&s, &in, &out);
    bad |= stategate_step(&s, &in, &out) != STATEGATE_FAULT || s.counters.resets != 2;
    in.x[0] = 1.0f;
    bad |= stategate_step(&s, &in, &out) != STATEGATE_WROTE || out.y[0] != 1.0f;
    return bad;
}
"""


class Halving(nn.Module):
    """Halves what it remembers and adds what it sees."""

    def step_spec(self) -> StepSpec:
        tensor = TensorSpec("x", (1, 2))
        return StepSpec((tensor,), (TensorSpec("y", (1, 2)),), (StateSpec("s", (1, 2)),))

    def step(self, inputs: dict, states: dict) -> StepResult:
        s = 0.5 * states["s"] + inputs["x"]
        return StepResult({"y": s + 0.0}, {"s": s}, {})


def compiled(folder: Path, program: str, contract: ObservationContract) -> int:
    model = Halving()
    files = source_of(trace(model).SerializeToString(), model.step_spec(), {}, contract).files
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    (folder / "main.c").write_text(program)
    sources = [name for name in files if name.endswith(".c") and name != "python.c"]
    subprocess.run(
        ["cc", "-std=c11", *WARNINGS, *MATHS, "main.c", *sources, "-lm", "-o", "program"],
        cwd=folder,
        check=True,
    )
    header = '#include "stategate.h"\nint main() { return stategate_reset(0) == STATEGATE_OK; }\n'
    (folder / "header.cpp").write_text(header)
    subprocess.run(
        ["c++", "-fsyntax-only", "-Wall", "-Werror", "header.cpp"], cwd=folder, check=True
    )
    return subprocess.run([folder / "program"], check=False).returncode


def test_a_program_in_c_names_elements_and_the_session_keeps_the_rules(tmp_path: Path) -> None:
    contract = declared(
        {
            "inputs": {"x": {"elements": ["hip", "knee"], "scale": [1, 0.25]}},
            "joints": {"names": ["hip", "knee"], "stiffness": [40, 20]},
            "rate_hz": 50,
            "resets": {"idle_seconds": 0.5, "on_fault": True},
        }
    )
    assert compiled(tmp_path, PROGRAM, contract) == 0


@pytest.mark.slow
def test_whatever_characters_names_have_the_header_compiles_and_each_is_its_own(
    tmp_path: Path,
) -> None:
    contract = declared(
        {
            "inputs": {
                "x": {"elements": ODD, "scale": 2, "history": 2},
                "X": {"elements": ["ELEMENTS", "scale"], "offset": 1},
            },
            "outputs": {"y-*/": ODD},
            "joints": {"names": ODD},
        }
    )
    empty = '#include "stategate.h"\nint main(void) { return 0; }\n'
    assert compiled(tmp_path, empty, contract) == 0
    text = declarations(contract)
    names = [line.split()[0] for line in text.splitlines() if line.startswith("    STATEGATE_")]
    assert len(set(names)) == len(names) == 4 * len(ODD) + 2
    assert all(name.isascii() and len(name) <= 90 for name in names)


def test_without_a_contract_the_header_says_nothing() -> None:
    assert declarations(None) == ""
