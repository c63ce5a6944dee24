from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

from stategate.bench.measure.driver import Driver
from stategate.bench.measure.segments import Segments
from stategate.bench.measure.subject import Subject, parity
from stategate.bench.record import BenchResult, read_result
from stategate.cli.main import main
from stategate.contract import Bundle, write_bundle
from stategate.contract.errors import MeasurementError
from stategate.contract.manifest import TargetRef

QUICK = ("--quick", "--rate", "200", "--idle-ms", "5")


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


@pytest.fixture(scope="module")
def measured(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subjects, measured for a second and a half."""
    out = tmp_path_factory.mktemp("bench")
    done = bench(tiny_bundle, tiny_bundle, *QUICK, "--out", out)
    assert done.exit_code == 0, done.output
    return out


def test_a_measurement_leaves_record_page_markdown_and_samples(measured: Path) -> None:
    assert {p.name for p in measured.iterdir()} == {
        "bench.json",
        "bench.html",
        "bench.md",
        "bench.npz",
    }
    result = read_result(measured / "bench.json")
    first, second = result.subjects
    assert (first.name, second.name) == ("Tiny", "Tiny #2")
    assert [(ratio.of, ratio.to) for ratio in result.ratios] == [("Tiny #2", "Tiny")]
    assert first.max_output_error is not None and first.max_output_error < 1e-5
    assert first.cold.first_answer_s > first.cold.import_s > 0
    assert len(first.idle_us) == len(first.busy_us) == 5
    assert first.rates[0].ticks + first.rates[0].misses >= first.rates[0].ticks > 1


@pytest.mark.slow
@pytest.mark.case("D14")
def test_a_quick_measurement_plans_five_seconds_and_tells_no_slope(tiny_bundle: Path) -> None:
    done = bench(tiny_bundle, "--quick", "--json")
    assert done.exit_code == 0, done.output
    result = msgspec.json.decode(done.stdout, type=BenchResult)
    (subject,) = result.subjects
    # What it waits for, whatever the machine: bursts, idle gaps, and two loops at every rate.
    planned = result.options.seconds + result.options.idle_s * len(subject.idle_us)
    planned += sum(2 * (rate.ticks + rate.misses) / rate.hz for rate in subject.rates)
    assert planned < 4
    assert subject.cold.processes == 1
    assert subject.memory.spans_steps > 0
    slope = subject.memory.slope_bytes_per_million_steps
    assert (slope is None) == (subject.memory.spans_steps < 100_000)


def test_the_samples_on_disk_are_those_of_the_record(measured: Path) -> None:
    result = read_result(measured / "bench.json")
    with np.load(measured / "bench.npz") as samples:
        for subject in result.subjects:
            ns, wrote = samples[f"{subject.name}.ns"], samples[f"{subject.name}.wrote"]
            assert len(ns) == len(wrote) == subject.times.count
            assert samples[f"{subject.name}.burst"].sum() == len(ns)
            assert np.median(ns) / 1000 == pytest.approx(subject.times.p50_us, rel=0.01)
            quiet, write = subject.quiet, subject.write
            assert quiet is not None and write is not None
            assert (quiet.count, write.count) == (int((wrote == 0).sum()), int(wrote.sum()))


def test_writes_of_the_samples_are_those_that_the_ledger_counted(tiny_bundle: Path) -> None:
    with Driver(str(tiny_bundle)) as driver:
        before, _ = driver.ask("burst", timed=1, slot_s=0.0)
        after, raw = driver.ask("burst", timed=500, slot_s=0.0)
        wrote = np.frombuffer(raw[4 * 500 :], np.uint8)
        # Golden inputs follow each other, and ten untimed steps go before the timed ones.
        golden = Bundle.open(tiny_bundle).golden()
        assert golden is not None
        is_open = golden.inputs["x"][:, 0, 0] > 0.0
        # Steps so far: the first answer used input 0 without moving on.
        at = (before["steps"] + 10 + np.arange(500)) % len(is_open)
        np.testing.assert_array_equal(wrote, is_open[at])
        between = (before["steps"] + np.arange(510)) % len(is_open)
        counted = after["ledger"]["writes"] - before["ledger"]["writes"]
        assert counted == int(is_open[between].sum())


def test_a_page_says_everything_from_the_record_alone(measured: Path, tmp_path: Path) -> None:
    copy, page = tmp_path / "bench.json", tmp_path / "page.html"
    shutil.copy(measured / "bench.json", copy)
    done = bench("report", copy, "--out", page, "--json")
    assert done.exit_code == 0, done.output
    text = page.read_text()
    for heading in ("Comparison", "Step times", "Memory", "Write ledger", "Wear", "Energy"):
        assert heading in text
    assert not re.search(r'(src|href)="(?!#)', text)


def test_python_keeps_nothing_of_a_step(measured: Path) -> None:
    made = read_result(measured / "bench.json").subjects[0].allocations
    assert made.python_blocks_kept < made.steps / 10


@pytest.mark.slow
def test_a_damaged_piece_can_be_thrown_away(tiny_bundle: Path, tmp_path: Path) -> None:
    part = tmp_path / "bench.part"
    part.mkdir()
    (part / "segment-0000.bin").write_bytes(b"torn")
    refused = bench(tiny_bundle, *QUICK, "--out", tmp_path)
    assert refused.exit_code == 2 and "cannot be read" in refused.output
    for torn in (b"", b"PK\x03\x04 cut short"):
        (part / "segment-0000.bin").write_bytes(torn)
        assert "cannot be read" in bench(tiny_bundle, *QUICK, "--out", tmp_path).output
    plan = (part / "plan.json").read_text()
    for other, differing in (("{", "host, options, subjects, versions"), ("[]", "host, options")):
        (part / "plan.json").write_text(other)
        assert f"other {differing}" in bench(tiny_bundle, *QUICK, "--out", tmp_path).output
    (part / "plan.json").write_text(plan.replace("numpy", "numpi"))
    assert "other versions\n" in bench(tiny_bundle, *QUICK, "--out", tmp_path).output
    done = bench(tiny_bundle, *QUICK, "--out", tmp_path, "--fresh")
    assert done.exit_code == 0, done.output


@pytest.mark.slow
def test_a_killed_measurement_goes_on_where_it_stopped(tiny_bundle: Path, tmp_path: Path) -> None:
    arguments = ["bench", str(tiny_bundle), "--seconds", "4", "--rate", "200"]
    arguments += ["--out", str(tmp_path)]
    code = f"from stategate.cli.main import main; main({arguments!r})"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    part, end = tmp_path / "bench.part", time.monotonic() + 60
    while not list(part.glob("segment-*.bin")) and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "bench.json").exists()
    other = bench(tiny_bundle, "--seconds", "7", "--out", tmp_path)
    assert other.exit_code == 2 and "--fresh" in other.output
    done = bench(*arguments[1:])
    assert done.exit_code == 0 and "going on after" in done.output
    result = read_result(tmp_path / "bench.json")
    assert result.interruptions == 1
    assert any("interrupted" in note for note in result.notes)
    at = result.subjects[0].rounds.at_s
    assert list(at) == sorted(at) and at[-1] >= 3.5
    assert not part.exists()


def test_a_bundle_for_another_architecture_is_refused_before_anything_runs(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    opened = Bundle.open(tiny_bundle)
    manifest = opened.manifest
    foreign = type(manifest)(
        **{name: getattr(manifest, name) for name in manifest.__struct_fields__}
        | {"target": TargetRef("some-board", "riscv64")}
    )
    content = {file.path: opened.read(file) for file in manifest.all_files}
    path = write_bundle(tmp_path / "foreign", foreign, content).path
    done = bench(path, *QUICK)
    assert done.exit_code == 2
    assert "another architecture" in done.output and os.uname().machine in done.output


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (("--quick", "--official"), "contradict", 2),
        (("--rate", "0"), "--rate", 2),
        (("--engine", "abacus"), "abacus", 2),
        (("--engine", "native"), "no native engine", 1),
        (("--seconds", "nan"), "--seconds", 2),
        (("--core", "4095"), "core", 2),
        (("--seed", "-1"), "--seed", 2),
    ],
)
def test_what_cannot_be_measured_is_refused(
    tiny_bundle: Path, arguments: tuple[str, ...], said: str, code: int
) -> None:
    done = bench(tiny_bundle, *arguments)
    assert done.exit_code == code
    assert said in done.output


def test_two_measurements_into_one_folder_do_not_mix(tiny_bundle: Path, tmp_path: Path) -> None:
    first = Segments(tmp_path / "bench.part", {"of": "another process"})
    done = bench(tiny_bundle, *QUICK, "--out", tmp_path, "--fresh")
    assert done.exit_code == 2 and "another process is measuring" in done.output
    assert (tmp_path / "bench.part" / "plan.json").exists()
    del first
    assert "another measurement was begun" in bench(tiny_bundle, *QUICK, "--out", tmp_path).output


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    assert bench(tmp_path, *QUICK).exit_code == 2


def test_a_process_that_dies_leaves_its_last_words(tiny_bundle: Path) -> None:
    with pytest.raises(MeasurementError, match="no_such_maker"):
        Driver(str(tiny_bundle), maker="stategate.bench.measure.subject:no_such_maker")
    with (
        Driver(str(tiny_bundle)) as driver,
        pytest.raises(MeasurementError, match="'burst'"),
    ):
        driver._process.kill()
        driver.ask("burst", timed=1, slot_s=0.0)


def test_help_of_the_group_and_of_run_is_there(measured: Callable[..., Path]) -> None:
    assert "compare" in bench("--help").output
    assert "--official" in bench("run", "--help").output


@pytest.mark.case("D8")
def test_a_pool_is_stepped_in_every_row_and_counted_over_all_of_them(
    tiny_pool_bundle: Path,
) -> None:
    bundle = Bundle.open(tiny_pool_bundle)
    rows = bundle.manifest.sessions
    subject = Subject(str(tiny_pool_bundle), "onnxruntime")
    error = parity(bundle, subject)
    assert error is not None and error < 1e-5
    ledger, golden = subject.ledger(), bundle.golden()
    assert golden is not None and ledger["steps"] == rows * golden.steps
    assert ledger["steps"] == ledger["writes"] + ledger["quiet_steps"]
    assert sum(ledger["state_bytes_written"].values()) == ledger["memory_bytes_written"]


@pytest.mark.slow
@pytest.mark.case("D8")
def test_the_command_says_how_many_of_all_rows_wrote(tiny_pool_bundle: Path) -> None:
    done = CliRunner().invoke(main, ["bench", str(tiny_pool_bundle), "--quick"])
    assert done.exit_code == 0, done.output
    line = next(line for line in done.output.splitlines() if line.strip().startswith("writes"))
    written, every = (int(n.replace(",", "")) for n in re.findall(r"[\d,]+", line)[:2])
    assert written <= every and "steps of 4 sessions together" in line
