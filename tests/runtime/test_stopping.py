"""Long work on a device ends between two steps when a signal asks for it, and nothing is lost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stategate.contract import Episode, EpisodeSet
from stategate.runtime import Session

STATEGATE = Path(sys.executable).with_name("stategate")


def interrupted(number: int, *arguments: object) -> tuple[int, str]:
    """Start a command, send it a signal once it steps; its exit code and last line on stderr."""
    process = subprocess.Popen(
        [STATEGATE, *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore Ctrl-C, and so would what this test starts from there.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stderr is not None
    assert process.stderr.readline().strip() in ("stepping", "recording")
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    return process.returncode, said.strip().splitlines()[-1]


@pytest.mark.case("A10", "D9")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_saves_its_snapshot_and_ledger_of_the_same_step(
    number: signal.Signals, tiny_bundle: Path, tmp_path: Path
) -> None:
    out, folder = tmp_path / "out", tmp_path / "snapshots"
    code, said = interrupted(
        number, "run", tiny_bundle, "--steps", 20_000_000, "--out", out, "--snapshots", folder
    )
    assert code == 128 + number
    ledger = json.loads((out / "ledger.json").read_text())
    assert 0 < ledger["done_steps"] < ledger["asked_steps"] == 20_000_000
    assert ledger["steps"] == ledger["done_steps"] == ledger["timeline"]["step"][-1]
    assert said.startswith(f"stopped by {number.name}: {ledger['steps']:,} of 20,000,000 steps")
    with Session.open(tiny_bundle, snapshots=folder) as session:
        restored = session.restore()
        assert restored is not None
        assert restored.steps == ledger["steps"]
        # The model counts its steps in a state that no gate guards.
        assert session.state("count").item() == ledger["steps"]


@pytest.mark.case("A10")
def test_an_interrupted_recording_is_whole_up_to_its_last_step(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    steps = 400_000
    x = np.arange(4 * steps, dtype=np.float32).reshape(steps, 1, 4) % 7
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "long.npz").write_bytes(Episode({"x": x}).to_bytes())
    out = tmp_path / "recorded"
    code, said = interrupted(
        signal.SIGTERM, "record", tiny_bundle, "--episode", tmp_path / "in", "--out", out
    )
    assert code == 143
    recorded = EpisodeSet.open(out)
    assert 0 < recorded.steps < steps
    assert said == f"stopped by SIGTERM: {recorded.steps:,} steps are recorded"
    taken = np.concatenate([block.inputs["x"] for f in recorded.files for block in f.blocks()])
    assert np.array_equal(taken, x[: recorded.steps])
