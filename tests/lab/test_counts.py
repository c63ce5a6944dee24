"""Counts of a step: exact, repeatable, and held to those of docs/evidence/counts.json."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from click import ClickException
from click.testing import CliRunner

from lab.counts import (
    EXPECTED,
    MACHINES,
    RENEWS,
    Counts,
    Row,
    _together,
    count,
    deviations,
    page_of,
    version_of,
)
from stategate.cli.main import main

ROW = Row("lstm", "float32", "aarch64", None, 10_000, 2_000, 70_000, 1_600)


def test_what_parts_by_more_than_a_fiftieth_is_named_with_both_figures() -> None:
    changed = msgspec.structs.replace(ROW, instructions_write=10_201, stack_bytes=2_039)
    assert deviations([ROW], [ROW]) == []
    line, *more = deviations([ROW], [changed])
    assert not more and "aarch64: instructions_write is 10201, and 10000 in" in line


def test_a_row_that_nobody_expects_and_a_kind_of_step_that_is_gone_are_named() -> None:
    without_writes = msgspec.structs.replace(ROW, instructions_write=None)
    assert any("instructions_write is None" in line for line in deviations([ROW], [without_writes]))
    assert len(deviations([], [ROW])) == 4


def test_rows_that_are_kept_are_named_as_older_and_of_the_same_compilers() -> None:
    other = msgspec.structs.replace(ROW, model="gru")
    again = msgspec.structs.replace(ROW, flash_bytes=71_000)
    counts = _together(Counts({"gcc": "12"}, [ROW, other], {}), Counts({"gcc": "12"}, [again], {}))
    assert counts.rows == [again, other] and counts.older == [other.name]
    assert "1 of 2 rows are of an earlier C" in page_of(counts)
    with pytest.raises(ClickException, match="the kept rows are of 12"):
        _together(counts, Counts({"gcc": "13"}, [again], {}))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["aura-hard", "lstm", "gru"])
def test_steps_cost_what_the_evidence_says(model: str, tmp_path: Path) -> None:
    expected = msgspec.json.decode(EXPECTED.read_bytes(), type=Counts)
    isas = ["x86-64-v3", "aarch64"]
    for isa in isas:
        if MACHINES[isa].lacking is not None:
            pytest.skip(str(MACHINES[isa].lacking))
        compiler = MACHINES[isa].compiler
        if (version := version_of(compiler)) != expected.compilers[compiler]:
            pytest.skip(f"counted with {expected.compilers[compiler]}; {version} makes other code")
    words = ["export", model, "--engines", "onnxruntime,native", "--steps", "256", "--out"]
    done = CliRunner().invoke(main, [*words, str(tmp_path / "bundle")])
    assert done.exit_code == 0, done.output
    rows = [count(tmp_path / "bundle", model, "float32", isa) for isa in isas]
    lines = deviations(expected.rows, rows)
    assert not lines, "\n".join([*lines, f"If that is meant: {RENEWS}"])
    assert rows == [count(tmp_path / "bundle", model, "float32", isa) for isa in isas]


@pytest.mark.slow
def test_a_trap_after_each_instruction_counts_what_the_emulator_counts(
    native_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = MACHINES["x86-64-v3"]
    here = replace(machine, runner=())  # without an emulator, each instruction traps
    if (why := machine.lacking or here.lacking) is not None:
        pytest.skip(why)
    emulated = count(native_bundle, "any", "float32", "x86-64-v3")
    monkeypatch.setattr("stategate.bench.certify.counting.MACHINES", {"x86-64-v3": here})
    trapped = count(native_bundle, "any", "float32", "x86-64-v3")
    # The two part by the same 61 instructions in every step, whose cause is not known yet; what a
    # write adds is counted alike to the last instruction.
    added = [c.instructions_write - c.instructions_quiet for c in (trapped, emulated)]
    assert added[0] == added[1]
    assert trapped.instructions_quiet == pytest.approx(emulated.instructions_quiet, abs=64)


@pytest.mark.slow
def test_neon_saves_half_of_the_instructions(native_bundle: Path) -> None:
    if (why := MACHINES["aarch64"].lacking) is not None:
        pytest.skip(str(why))
    neon = count(native_bundle, "any", "float32", "aarch64")
    scalar = count(native_bundle, "any", "float32", "aarch64 without NEON")
    assert neon.instructions_write is not None and scalar.instructions_write is not None
    assert 2 * neon.instructions_write < scalar.instructions_write
