"""Resident memory against its budget: planned, loaded, and while it steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from stategate.cli.main import main
from stategate.contract import Budget, Bundle, write_bundle
from stategate.contract.errors import BudgetWarning, MemoryBudgetError, SpecError
from stategate.runtime import Pool, Session
from stategate.runtime.base import resident as module
from stategate.runtime.base.process import peak_rss_bytes, rss_bytes

MIB = 1 << 20
X = np.ones((1, 4), np.float32)

# In a process of its own, because this one holds a torch.
FRESH = """
import json, sys
import numpy as np
from stategate.contract import Budget
from stategate.contract.errors import MemoryBudgetError
from stategate.runtime import Session
from stategate.runtime.base.process import peak_rss_bytes, rss_bytes

before, said = rss_bytes(), "opened"
budget = Budget(peak_resident_bytes=before + int(sys.argv[2]))
try:
    session = Session.open(sys.argv[1], budget=budget, engine="onnxruntime")
    session.step(x=np.ones((1, 4), np.float32))
except MemoryBudgetError as problem:
    said = str(problem)
print(json.dumps([said, "onnxruntime" in sys.modules, peak_rss_bytes() - before]))
"""


def opened_within(bundle: Path, room_bytes: int) -> tuple[str, bool, int]:
    """What opening said, whether the engine was loaded for it, and how far memory really grew."""
    command = [sys.executable, "-c", FRESH, str(bundle), str(room_bytes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said, loaded, grown = json.loads(done.stdout)
    return said, loaded, grown


@pytest.mark.case("E7")
def test_an_engine_that_nobody_measured_is_refused_once_it_is_loaded(tiny_bundle: Path) -> None:
    """The bytes of the bundle alone fit twenty times; ONNX Runtime does not."""
    assert Bundle.open(tiny_bundle).manifest.resident == {}
    said, loaded, grown = opened_within(tiny_bundle, 2 * MIB)
    assert "more memory than its budget" in said and loaded
    assert grown > 2 * MIB


@pytest.mark.slow
@pytest.mark.case("E7")
def test_what_an_export_measured_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    done = CliRunner().invoke(main, ["export", "aura-hard", "--steps", "30", "--out", str(out)])
    assert done.exit_code == 0, done.output
    first, again = Bundle.open(out).manifest.resident["onnxruntime"]
    assert first % MIB == 0 and 0 <= again < first
    said, loaded, _ = opened_within(out, first // 2)
    assert "does not fit its budget of peak_resident_bytes" in said and not loaded


def test_the_second_session_of_a_process_is_not_charged_the_library_again(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    manifest = msgspec.structs.replace(manifest, resident={"onnxruntime": (40 * MIB, MIB)})
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    assert module.engine_bytes(manifest, "auto") == 40 * MIB
    monkeypatch.setitem(sys.modules, "onnxruntime", object())
    assert module.engine_bytes(manifest, "onnxruntime") == MIB
    assert module.engine_bytes(manifest, "tensorrt,onnxruntime") == 0


def growing(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Resident memory and its peak, as a list that a test moves by hand."""
    memory = [100 * MIB, 100 * MIB]
    for place in (module, sys.modules["stategate.runtime.engines.opening"]):
        monkeypatch.setattr(place, "rss_bytes", lambda: memory[0])
    monkeypatch.setattr(module, "peak_rss_bytes", lambda: max(memory))
    return memory


@pytest.mark.case("E7")
@pytest.mark.parametrize("stays", [True, False])
def test_memory_that_grows_while_stepping_is_found_in_time(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, stays: bool
) -> None:
    """Also where a step needed it for a moment and gave it back."""
    memory = growing(monkeypatch)
    budget = Budget(peak_resident_bytes=200 * MIB)
    with Session.open(tiny_bundle, budget=budget) as session:
        session.step(x=X)
        memory[:] = [300 * MIB if stays else 100 * MIB, 300 * MIB]
        with pytest.raises(MemoryBudgetError, match="314,572,800"):
            for _ in range(module.EVERY_STEPS):
                session.step(x=X)
        steps = session.ledger.steps
        assert steps == 1 + module.EVERY_STEPS
        assert session.state("count").item() == steps  # the step is committed
        memory[:] = [100 * MIB, 300 * MIB]
        for _ in range(module.EVERY_STEPS):  # what is over is not raised again
            session.step(x=X)


@pytest.mark.case("E7")
def test_warning_opens_goes_on_and_counts_each_time_once(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = growing(monkeypatch)
    budget = Budget(peak_resident_bytes=90 * MIB, on_resident="warn")
    with pytest.warns(BudgetWarning, match="resident"):
        session = Session.open(tiny_bundle, budget=budget)
    with session:
        for _ in range(3 * module.EVERY_STEPS):
            session.step(x=X)
        assert session.ledger.budget_overruns == 1
        memory[:] = [80 * MIB, 100 * MIB]
        for _ in range(module.EVERY_STEPS):
            session.step(x=X)
        memory[:] = [110 * MIB, 110 * MIB]
        with pytest.warns(BudgetWarning):
            for _ in range(module.EVERY_STEPS):
                session.step(x=X)
        assert session.ledger.budget_overruns == 2


@pytest.mark.case("E7")
def test_a_pool_holds_its_memory_budget_too(
    tiny_pool_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Bundle.open(tiny_pool_bundle)
    files = {file.path: opened.read(file) for file in opened.manifest.all_files}
    budget = Budget(peak_resident_bytes=200 * MIB, on_resident="raise")
    manifest = msgspec.structs.replace(opened.manifest, budget=budget)
    path = write_bundle(tmp_path / "pool", manifest, files).path
    memory = growing(monkeypatch)
    with Pool.open(path) as pool:
        pool.join()
        memory[:] = [300 * MIB, 300 * MIB]
        with pytest.raises(MemoryBudgetError, match="resident"):
            pool.step(x=np.repeat(X, 4, axis=0))
        assert pool.ledger(0).steps == 1
    with pytest.raises(MemoryBudgetError):
        Pool.open(path)


def test_the_policy_must_exist_and_cannot_be_loosened() -> None:
    with pytest.raises(SpecError, match="on_resident"):
        Budget(
            on_resident="hold"  # type: ignore[arg-type]
        )
    strict = Budget(peak_resident_bytes=MIB)
    with pytest.raises(SpecError, match="on_resident"):
        strict.tightened(Budget(on_resident="warn"))
    loose = Budget(peak_resident_bytes=MIB, on_resident="warn")
    assert loose.tightened(Budget(on_resident="raise")).on_resident == "raise"


def test_the_system_tells_both_figures() -> None:
    assert 0 < rss_bytes() <= peak_rss_bytes() + MIB
