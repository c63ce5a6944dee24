"""The evidence of a bundle's C: rows that tell the truth, and a self-test that notices."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from stategate.bench.certify.back_to_back import _gap, _verdict
from stategate.bench.certify.builds import PLAIN, portable_source, version_of, write_weights
from stategate.bench.certify.case import Case, Row
from stategate.bench.certify.coverage import coverage
from stategate.bench.certify.misra import misra, warnings
from stategate.bench.certify.proof import eva
from stategate.bench.certify.real_time import no_calls, stack
from stategate.bench.certify.report import Report, html, write_report
from stategate.bench.certify.run import forget
from stategate.cli.main import main
from stategate.common.compiler import MATHS
from stategate.contract import Bundle

REPORT = Report(
    "a <b>", "float32", "0" * 64, {"graph": "ab"}, {"gcc": "gcc 12", "frama-c": ""},
    [
        Row("It holds", "by looking", "not run", "cppcheck is not here: apt-get install cppcheck"),
        Row("It holds", "again", "shown", "none", ("evidence/a.txt",)),
    ],
    {}, ["the CPU does what it says"], {"2.2": "a macro is 1"},
)  # fmt: skip


def test_a_page_shows_what_was_not_run_and_claims_no_conformance(tmp_path: Path) -> None:
    page = html(REPORT)
    assert "claims no conformance" in page and "apt-get install cppcheck" in page
    assert '<td class="">not run</td>' in page and '<td class="passed">shown</td>' in page
    assert "a &lt;b&gt;" in page and '<a href="evidence/a.txt">a.txt</a>' in page
    record, _, *pdf = write_report(REPORT, tmp_path)
    assert json.loads(record.read_text())["rows"][0]["result"] == "not run"
    assert [path.read_bytes()[:5] for path in pdf] == [b"%PDF-"]
    assert REPORT.passed and "1 not run" in REPORT.counts


def test_a_tool_that_is_missing_is_a_row_with_the_command_that_installs_it(
    native_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    bundle = Bundle.open(native_bundle)
    golden = bundle.golden()
    assert golden is not None
    case = Case(bundle, golden, tmp_path, tmp_path, 1, 1.0, False, [])
    coverage(case, b"")
    (row,) = case.rows
    assert row.result == "not run"
    assert "apt-get install clang-19 llvm-19 libclang-rt-19-dev" in row.words


SILENT, FAILING, CHATTY = "exit 0", "exit 1", "echo all is well"


def with_tool(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, does: str) -> None:
    folder.mkdir(exist_ok=True)
    tool = folder / name
    tool.write_text(f"#!/bin/sh\n{does}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("tool", "ask", "others"),
    [
        ("cppcheck", misra, ()),
        ("frama-c", lambda case: eva(case, 2), ()),
        ("gcc", warnings, ("clang-19",)),
        ("clang-19", lambda case: coverage(case, b""), ("llvm-profdata-19", "llvm-cov-19")),
        ("gcc", stack, ("qemu-x86_64",)),
        ("gcc", no_calls, ()),
    ],
)
@pytest.mark.parametrize("does", [SILENT, FAILING, CHATTY])
def test_a_tool_that_says_nothing_fails_or_says_something_else_has_found_nothing_out(
    native_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tool: str,
    ask: Callable[[Case], None],
    others: tuple[str, ...],
    does: str,
) -> None:
    for name in (tool, *others):
        with_tool(tmp_path / "tools", monkeypatch, name, does)
    bundle = Bundle.open(native_bundle)
    golden = bundle.golden()
    assert golden is not None
    (tmp_path / "native").mkdir()
    sources = portable_source(bundle, tmp_path / "native")
    case = Case(bundle, golden, tmp_path, tmp_path, 1, 60.0, False, sources)
    ask(case)
    assert case.rows and {row.result for row in case.rows} <= {"not run", "open"}, case.rows
    assert 0 not in case.figures.values(), case.figures
    assert version_of(tool)


def test_numbers_that_are_none_are_far_from_all_others() -> None:
    assert _gap(np.array([1.0, np.nan]), np.array([1.0, np.nan])) == 0.0
    assert _gap(np.array([1.0, 2.0]), np.array([1.0, np.nan])) == np.inf
    assert _gap(np.array([np.inf]), np.array([-np.inf])) == np.inf
    assert _gap(np.array([2**60]), np.array([2**60 + 1])) > 0.0
    assert _gap(np.array([True]), np.array([False])) == 1.0
    assert _gap(np.array([2000.0]), np.array([2001.0])) == 0.0005


@pytest.mark.parametrize(
    ("code", "printed", "result"),
    [
        (0, "chain 00\n8010 checks, 0 wrong\n", "shown"),
        (0, "all is well\n", "open"),
        (0, "", "open"),
        (0, "0 checks, 0 wrong\n", "open"),
        (1, "8010 checks, 0 wrong\n", "open"),
    ],
)
def test_a_self_test_has_passed_where_it_says_so(code: int, printed: str, result: str) -> None:
    assert _verdict(code, printed) == result


def test_nothing_that_an_earlier_run_showed_stands_beside_a_later_one(tmp_path: Path) -> None:
    write_report(REPORT, tmp_path)
    (tmp_path / "evidence").mkdir()
    (tmp_path / "evidence/eva.txt").write_text("0 alarms")
    (tmp_path / "notes.txt").write_text("of the user")
    forget(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["evidence", "notes.txt"]


def test_a_report_that_shows_nothing_does_not_pass() -> None:
    assert not msgspec.structs.replace(REPORT, rows=REPORT.rows[:1]).passed


def test_a_bundle_without_c_is_refused_with_the_command_that_adds_it(
    aura_bundle: Path, tmp_path: Path
) -> None:
    done = CliRunner().invoke(main, ["certify", str(aura_bundle), "--out", str(tmp_path / "out")])
    assert done.exit_code == 1 and "no C source to certify" in done.output
    assert "--engines onnxruntime,native" in done.output


def test_weights_are_those_that_the_guide_makes(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(range(19)))
    written = write_weights(tmp_path, tmp_path).read_text()
    page = (Path(__file__).parents[2] / "docs/guides/native.md").read_text()
    command = page[page.index("    { echo") : page.index("> weights.c")]
    printed = subprocess.run(
        ["sh", "-c", command.replace("BUNDLE/native", ".")],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert written.replace(",", " ").split() == printed.replace(",", " ").split()


def self_test(folder: Path, episode: bytes, *flags: str) -> subprocess.CompletedProcess[bytes]:
    names = sorted(str(path) for path in folder.glob("*.c"))
    words = ["cc", "-std=c99", "-O1", PLAIN, *MATHS, "-DSTATEGATE_SELF_TEST", f"-I{folder}", *flags]
    program = folder / "self_test"
    subprocess.run([*words, *names, "-lm", "-o", str(program)], check=True)
    return subprocess.run([str(program)], input=episode, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("", ""),
        ("s->counters.writes += 1u;", "s->counters.writes += 2u;"),
        ("    bad += bad_states(s, groups);\n", ""),
        ("s->parity ^= swaps;", ""),
        ("if (!allowed) {", "if (false) {"),
        ("checksum(at, bytes - sizeof sum) != sum", "false"),
    ],
)
def test_the_self_test_of_a_bundle_notices_a_mistake_in_its_session(
    native_bundle: Path, tmp_path: Path, right: str, wrong: str
) -> None:
    bundle = Bundle.open(native_bundle)
    golden = bundle.golden()
    native = bundle.manifest.native
    assert golden is not None and native is not None
    case = Case(bundle, golden, tmp_path, tmp_path, 1, 60.0, True, [])
    episode = case.episode_bytes(golden.inputs, b"", native.golden_digest)
    portable_source(bundle, tmp_path)
    session = tmp_path / "session.c"
    text = session.read_text()
    if right not in text:
        pytest.skip(f"a session of this model has no {right!r}")
    session.write_text(text.replace(right, wrong) if right else text)
    done = self_test(tmp_path, episode, "-Wno-unused-function")
    assert (done.returncode == 0) == (not right), done.stdout.decode()
    assert b"checks" in done.stdout


@pytest.mark.slow
def test_the_quick_evidence_of_a_bundle_has_no_open_row(
    native_bundle: Path, tmp_path: Path
) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not here: apt-get install gcc")
    words = ["certify", str(native_bundle), "--quick", "--steps", "500", "--json"]
    done = CliRunner().invoke(main, [*words, "--out", str(tmp_path)])
    record = json.loads(done.stdout)
    open_rows = [row for row in record["rows"] if row["result"] == "open"]
    assert not open_rows, open_rows
    assert done.exit_code == 0
    named = [name for row in record["rows"] for name in row["evidence"]]
    assert named and all((tmp_path / name).stat().st_size for name in named)
    compared = [row for row in record["rows"] if row["requirement"].startswith("Code and model")]
    assert any("same bits as the plain form" in row["words"] for row in compared)
