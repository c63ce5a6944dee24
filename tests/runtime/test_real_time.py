"""What a session in real time asks for, and that nothing of it outlives the session."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from stategate.contract import Bundle
from stategate.contract.errors import RealTimeWarning, RuntimeFault, SpecError
from stategate.runtime import RealTime, Session

# What any system gives, whoever asks.
MODEST = {"priority": None, "lock_memory": False, "garbage": "leave"}


def process() -> Mapping[str, object]:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "policy": os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK,
        "cores": os.sched_getaffinity(0),
        "switch": sys.getswitchinterval(),
        "enabled": gc.isenabled(),
        "frozen": gc.get_freeze_count() > 0,
        "locked": status["VmLck"].split()[0] != "0",
    }


def test_what_a_session_asks_for_ends_with_the_last_session_that_asked(tiny_bundle: Path) -> None:
    before = process()
    core = min(os.sched_getaffinity(0))
    wishes = RealTime(core=core, priority=None, lock_memory=False, garbage="off")
    first = Session.open(tiny_bundle, realtime=wishes)
    assert first.not_in_real_time == ()
    during = process()
    assert during["cores"] == {core} and during["frozen"] and not during["enabled"]
    assert during["switch"] == pytest.approx(50e-6)
    second = Session.open(tiny_bundle, realtime=wishes)
    first.close()
    first.close()
    assert process() == during
    with pytest.raises(SpecError, match="another core"):
        Session.open(tiny_bundle, realtime=RealTime(**MODEST, core=core + 1))  # type: ignore[arg-type]
    second.close()
    assert process() == before


def test_steps_that_warm_up_are_neither_committed_nor_counted(tiny_bundle: Path) -> None:
    golden = Bundle.open(tiny_bundle).golden()
    assert golden is not None
    chains, first = [], []
    for wishes in (False, RealTime(**MODEST)):  # type: ignore[arg-type]
        with Session.open(tiny_bundle, realtime=wishes, chain=True) as session:
            assert session.ledger.steps == 0
            assert all(not array.any() for array in session.outputs.values())
            for feed in golden:
                first.append(session.step(**feed)["y"].copy())
            chains.append(session.chain)
    assert chains[0] == chains[1]
    np.testing.assert_array_equal(first[: golden.steps], first[golden.steps :])


# Asks as a user without rights, whoever runs the tests.
WITHOUT_RIGHTS = """
import json, os, resource, sys, warnings
from stategate.contract.errors import RealTimeWarning, RuntimeFault
from stategate.runtime.base.real_time import Hold, RealTime
resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))
if os.geteuid() == 0:
    os.setresuid(65534, 65534, 65534)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    held = Hold(RealTime())
    held.release()
try:
    Hold(RealTime(on_lack="raise"))
    refused = False
except RuntimeFault:
    refused = sys.getswitchinterval() == 0.005
print(json.dumps([len(said), str(said[0].message), list(held.lacks), refused]))
"""


def test_what_could_not_be_had_is_said_once_with_its_remedy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RIGHTS], capture_output=True, text=True, check=True
    )
    warnings, text, lacks, refused = json.loads(done.stdout)
    assert warnings == 1 and refused
    assert len(lacks) == 2 and all(lack in text for lack in lacks)
    assert "LimitRTPRIO=20" in text and "LimitMEMLOCK=infinity" in text


def test_a_core_that_is_not_there_is_warned_of_or_refused(tiny_bundle: Path) -> None:
    absent = max(os.sched_getaffinity(0)) + 1000
    before = process()
    with pytest.warns(RealTimeWarning, match=f"cannot run on core {absent}"):
        session = Session.open(tiny_bundle, realtime=RealTime(core=absent, **MODEST))  # type: ignore[arg-type]
    session.close()
    with pytest.raises(RuntimeFault, match="real time could not be had"):
        Session.open(tiny_bundle, realtime=RealTime(core=absent, on_lack="raise", **MODEST))  # type: ignore[arg-type]
    assert process() == before


@pytest.mark.parametrize(
    "wrong",
    [{"priority": 100}, {"core": -1}, {"switch_us": 0}, {"garbage": "never"}, {"warm_up": None}],
    ids=str,
)
def test_a_wish_that_no_system_grants_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        RealTime(**wrong)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_receipt_of_jitter_has_a_row_for_each_rate_and_life(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "jitter.json"
    words = ["--minutes", "0.002", "--slice", "0.1", "--out", str(out)]
    command = [sys.executable, "-m", "lab", "jitter", str(tiny_bundle), *words]
    subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[2])
    record = json.loads(out.read_text())
    rows = {(row["hz"], row["life"]): row for row in record["rows"]}
    assert set(rows) == {(hz, life) for hz in (100, 1000) for life in ("empty", "before", "after")}
    for row in rows.values():
        assert row["p50_us"] <= row["p99_us"] <= row["p99.9_us"] <= row["worst_us"]
    assert record["load_average"]["mean"] >= 0
