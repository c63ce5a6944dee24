"""A fleet's table is exact, whoever dies and however often it is made; sound robots go unnamed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import cloudpickle
import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from stategate.bench.fleet.collect import collect
from stategate.bench.fleet.episodes import fleet_episodes
from stategate.bench.fleet.judge import judge, judge_rows, outliers
from stategate.bench.fleet.page import html, verdict
from stategate.bench.fleet.table import PARTS, Row, rows_in
from stategate.cli.main import main
from stategate.contract import EpisodeSet
from stategate.contract.errors import EpisodeError, ResultError
from stategate.runtime import BlackBox, Session, SnapshotPolicy
from stategate.runtime.base.clock import ManualClock
from stategate.runtime.base.ledger import Ledger
from stategate.runtime.watch.telemetry import JsonLines
from stategate.targets import load_storage

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestWarning")
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def live(bundle: Path, home: Path, seed: int, steps: int = 300) -> Ledger:
    """Step a robot, and leave what it would bring home; its own ledger is the oracle."""
    home.mkdir(parents=True)
    rng, clock = np.random.default_rng(seed), ManualClock()
    with (
        Session.open(
            bundle,
            clock=clock,
            snapshots=SnapshotPolicy(home / "memory", every_writes=50),
            black_box=BlackBox(home / "robot.rec", file_bytes=1 << 17),
        ) as session,
        (home / "metrics.jsonl").open("w") as file,
    ):
        lines = JsonLines(session, file, 1, clock)
        for _ in range(steps):
            feeds = {
                t.name: rng.standard_normal(t.shape).astype(t.dtype)
                for t in session.manifest.inputs
            }
            session.step(**feeds)
            clock.sleep_until_ns(clock.now_ns() + 20_000_000)
            lines.tick()
        session.save()
        return session.ledger


def contents(fleet: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (fleet / PARTS).iterdir()}


def test_a_fleet_counts_what_its_robots_counted_once(tiny_bundle: Path, tmp_path: Path) -> None:
    ledgers = [live(tiny_bundle, tmp_path / "robots" / f"r{i}", i) for i in range(3)]
    fleet = tmp_path / "fleet"
    for again in (3, 0):
        result = collect([tmp_path / "robots"], fleet, bundles=[tiny_bundle])
        assert (len(result.robots), len(result.new), result.problems) == (3, again, ())
    shutil.copytree(tmp_path / "robots", tmp_path / "backup")
    shutil.copytree(tmp_path / "robots" / "r0", tmp_path / "other" / "renamed")
    assert not collect([tmp_path / "backup"], fleet, bundles=[tiny_bundle]).new
    collect([tmp_path / "other"], fleet, bundles=[tiny_bundle])
    report = judge(fleet)
    for name in ("steps", "writes", "persisted_bytes"):
        assert getattr(report, name) == sum(getattr(ledger, name) for ledger in ledgers)
    assert "renamed has the files of r0: counted once" in report.notes
    # By pyarrow alone: columns are the ledger's names, and a snapshot's row is the ledger.
    part = pq.read_table(fleet / PARTS).to_pylist()
    newest = max((r for r in part if r["robot"] == "r1"), key=lambda r: r["steps"])
    assert newest["writes"] == ledgers[1].writes
    assert dict(newest["gate_openings"]) == ledgers[1].gate_openings


def test_what_cannot_be_read_is_named_and_hides_nothing_else(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    ledger = live(tiny_bundle, tmp_path / "robots" / "r0", 0)
    slot = tmp_path / "robots" / "r0" / "memory" / "slot-b.snap"
    slot.write_bytes(slot.read_bytes()[:-7])
    metrics = tmp_path / "robots" / "r0" / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"steps": 1')  # killed while it wrote
    (tmp_path / "robots" / "r1").mkdir()
    problems = collect([tmp_path / "robots"], tmp_path / "fleet", bundles=[tiny_bundle]).problems
    assert [text.partition(": ")[0] for text in problems] == ["r0", "r1"]
    report = judge(tmp_path / "fleet")
    assert report.steps == ledger.steps
    assert {f.what for f in report.findings if f.robot == "r0"} == {"unreadable"}


def test_two_robots_of_one_name_and_folders_without_any_are_refused(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    for site, seed in (("a", 1), ("b", 2)):
        live(tiny_bundle, tmp_path / site / "robot", seed, 50)
    with pytest.raises(EpisodeError, match="two robots are called robot"):
        collect([tmp_path / "a", tmp_path / "b"], tmp_path / "fleet", bundles=[tiny_bundle])
    (tmp_path / "empty").mkdir()
    with pytest.raises(EpisodeError, match="holds no robots"):
        collect([tmp_path / "empty"], tmp_path / "fleet")
    with pytest.raises(ResultError, match="stategate fleet collect"):
        judge(tmp_path / "empty")
    (tmp_path / "fleet" / PARTS).mkdir(parents=True, exist_ok=True)
    (tmp_path / "fleet" / PARTS / "x.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ResultError, match="no table of a fleet"):
        list(rows_in(tmp_path / "fleet"))


def fleet_of(rates: np.ndarray) -> dict[str, list[Row]]:
    """Robots of 50,000 steps in ten rows, that write at these rates."""
    rng, rows = np.random.default_rng(5), {}
    for i, rate in enumerate(rates):
        writes, own = 0, []
        for k in range(10):
            writes += int(rng.binomial(5000, min(1.0, rate * (1 + 0.1 * k * (i == 3)))))
            done = 5000 * (k + 1)
            ledger = Ledger(
                steps=done,
                writes=writes,
                quiet_steps=done - writes,
                snapshots=(done // 100) * (20 if i == 5 else 1),
                persisted_bytes=8192 * (done // 100) * (20 if i == 5 else 1),
                gate_openings={"g": writes},
            )
            row = {"clock": "process 0", "seconds": 100.0 * (k + 1), "bundle_sha256": "b"}
            own.append(
                Row(robot=f"r{i}", kind="metrics", place="m", sha256=f"{i}", ledger=ledger, **row)
            )
        rows[f"r{i}"] = own
    return rows


def test_the_robot_that_writes_too_much_drifts_or_wears_out_is_named_and_no_other() -> None:
    rates = np.full(40, 0.1) * np.exp(0.02 * np.random.default_rng(1).standard_normal(40))
    rates[7] *= 1.5
    report = judge_rows(fleet_of(rates), load_storage("emmc-16gb"), years=1.0)
    named = {(finding.robot, finding.what) for finding in report.findings}
    assert {("r7", "writes"), ("r3", "drift of g"), ("r5", "saves")} <= named
    assert {robot for robot, _ in named} == {"r3", "r5", "r7"}
    ends = min(report.robots, key=lambda robot: robot.years or np.inf)
    assert ends.name == "r5"
    # By hand: 5,000 steps take 100 s, and each 100 of them save 20 times 8 KiB.
    daily = 20 * (8192 + load_storage("emmc-16gb").metadata_bytes) * 0.5 * 86_400
    assert ends.bytes_per_day == pytest.approx(daily, rel=0.01)


@pytest.mark.parametrize("robots", [8, 100])
def test_a_sound_fleet_is_accused_no_more_often_than_is_said(robots: int) -> None:
    rng, accused = np.random.default_rng(2), 0
    for _ in range(200):
        counts = rng.poisson(1000 * np.exp(0.1 * rng.standard_normal(robots)))
        figures = {str(i): (n / 1e4, int(n)) for i, n in enumerate(counts)}
        accused += bool(list(outliers("writes", figures, "", "{:g}")))
    assert accused <= 8  # 1 % are expected of 200; more than 8 happen once in 40,000


def test_episodes_of_a_fleet_are_what_the_robots_were_given(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    for i in range(2):
        live(tiny_bundle, tmp_path / "robots" / f"r{i}", i, 100)
    shutil.copytree(tmp_path / "robots" / "r0", tmp_path / "robots" / "copy")
    result = fleet_episodes([tmp_path / "robots"], tiny_bundle, tmp_path / "met")
    episodes = EpisodeSet.open(tmp_path / "met")
    assert result.steps == episodes.steps
    drawn = np.random.default_rng(1)
    (name,) = episodes.files[0].load().inputs
    first = drawn.standard_normal((1, *episodes.files[0].load().inputs[name].shape[1:]))
    expected = first.astype(np.float32)[0]
    assert any(np.array_equal(e.inputs[name][0], expected) for e in episodes.loaded)
    (tmp_path / "met" / "stray.npz").write_bytes(episodes.files[0].load().to_bytes())
    with pytest.raises(ResultError, match="not of these robots"):
        fleet_episodes([tmp_path / "robots"], tiny_bundle, tmp_path / "met")


@pytest.mark.slow
def test_a_table_is_the_same_whichever_worker_dies(tiny_bundle: Path, tmp_path: Path) -> None:
    import distributed

    for i in range(24):
        live(tiny_bundle, tmp_path / "robots" / f"r{i:02}", i, 200)
    collect([tmp_path / "robots"], tmp_path / "alone", bundles=[tiny_bundle])
    with (
        distributed.LocalCluster(
            n_workers=3, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as workers,
        distributed.Client(workers) as client,
    ):
        stop, killed = threading.Event(), []

        def kill() -> None:
            while not stop.wait(0.4) and len(killed) < 3:
                pids = list(client.run(os.getpid).values())
                os.kill(pids[0], signal.SIGKILL)
                killed.append(pids[0])
                time.sleep(1)

        killer = threading.Thread(target=kill)
        killer.start()
        for _ in range(6):
            shutil.rmtree(tmp_path / "cluster", ignore_errors=True)
            collect(
                [tmp_path / "robots"], tmp_path / "cluster", bundles=[tiny_bundle], cluster=client
            )
            assert contents(tmp_path / "cluster") == contents(tmp_path / "alone")
        stop.set()
        killer.join()
    assert killed


@pytest.mark.slow
def test_the_verbs_collect_show_and_draw(tiny_bundle: Path, tmp_path: Path) -> None:
    for i in range(9):
        live(tiny_bundle, tmp_path / "robots" / f"r{i}", i, 1200)
    fleet, page = tmp_path / "fleet", tmp_path / "fleet.html"
    words = ["fleet", "collect", tmp_path / "robots", "--bundle", tiny_bundle, "--out", fleet]
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("9 robots (r0, r1, r2, ...), 9 of them new")
    words = ["fleet", "show", fleet, "--storage", "emmc-64gb", "--years", 0.001, "--out", page]
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("none of 9 robots needs a look")
    text = page.read_text()
    assert "none of 9 robots needs a look" in text and "<svg" in text


@pytest.mark.parametrize(
    "wrong",
    [
        {"elapsed_s": "x"},
        {"elapsed_s": float("nan")},
        {"writes": None},
        {"steps": 10**30},
        {"steps": -5},
        {"gate_openings.g": "x"},
        {"expected_write_rate.g": "x"},
        {"model": "\ud800", "steps": True},
    ],
)
def test_a_line_that_nobody_wrote_is_named_and_ends_nothing(
    wrong: dict[str, object], tmp_path: Path
) -> None:
    line = {"elapsed_s": 1.0, "steps": 5, "writes": 2, "gate_openings.\ud800": 2}
    for name, lines in (("r0", [line, line | wrong]), ("r1", [line])):
        (tmp_path / "robots" / name).mkdir(parents=True)
        text = "".join(json.dumps(one) + "\n" for one in lines)
        (tmp_path / "robots" / name / "m.jsonl").write_text("[" * 100_000 + "\n" + text)
    # A log of the whole fleet does not make one robot of it.
    (tmp_path / "robots" / "log.jsonl").write_text('{"event": "copied", "steps": 7}\n')
    result = collect([tmp_path / "robots"], tmp_path / "fleet")
    assert result.robots == ("r0", "r1")
    (problem,) = result.problems
    assert problem.startswith("r0: m.jsonl: line 3")
    assert judge(tmp_path / "fleet").steps == 10


def test_a_file_gives_no_more_rows_than_is_said(tmp_path: Path) -> None:
    (tmp_path / "r0").mkdir()
    lines = [{"elapsed_s": float(i % 70), "steps": i} for i in range(125)]
    (tmp_path / "r0" / "m.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    collect([tmp_path / "r0"], tmp_path / "fleet")
    rows = list(rows_in(tmp_path / "fleet"))
    assert len(rows) == 64 and rows[-1].ledger.steps == 124
    assert len({row.clock for row in rows}) == 2


def row(robot: str, kind: str, steps: int, **more: object) -> Row:
    ledger = Ledger(steps=steps, writes=steps // 10, gate_openings={"g": steps // 10})
    about = {"place": f"{kind}/slot-a.snap", "sha256": f"{robot} {steps} {kind}", "ledger": ledger}
    return Row(**{"robot": robot, "kind": kind, "bundle_sha256": "b"} | about | more)


NOW = 1_780_000_000.0


def test_what_a_later_state_of_a_folder_counts_again_is_counted_once() -> None:
    wall = {"clock": "wall"}
    states = [
        [row("r", "snapshot", 1000, state="1", seconds=NOW, place="memory/0/slot-a.snap", **wall)],
        [  # after an update: the first memory is gone, and its counters are in the record
            row("r", "retired", 1000, state="2", place="installed"),
            row(
                "r",
                "snapshot",
                50,
                state="2",
                seconds=NOW + 9,
                place="memory/1/slot-a.snap",
                **wall,
            ),
        ],
        [  # the record was written again, with the same counters
            row("r", "retired", 1000, state="3", place="installed", sha256="other"),
            row(
                "r",
                "snapshot",
                70,
                state="3",
                seconds=NOW + 20,
                place="memory/1/slot-a.snap",
                **wall,
            ),
        ],
    ]
    report = judge_rows({"r": [one for state in states for one in state]})
    assert report.steps == 1070


def test_counters_that_go_back_are_said_and_not_hidden_in_the_order_of_steps() -> None:
    times = (
        (5_000, 0),
        (90_000, 1000),
        (2_000, 2000),
        (7_000, 3000),
    )  # installed anew after 1000 s
    rows = [row("r", "snapshot", n, clock="wall", seconds=NOW + s, state=str(s)) for n, s in times]
    report = judge_rows({"r": rows})
    assert any("counts back: installed anew" in note for note in report.notes)
    assert report.steps == 90_000


def test_a_clock_that_began_in_1970_does_not_make_a_flash_last() -> None:
    flash = load_storage("emmc-16gb")
    slots = []
    for steps, seconds in ((1000, 60.0), (2000, NOW)):
        one = row("r", "snapshot", steps, clock="wall", seconds=seconds, rate_hz=10.0)
        ledger = replace(one.ledger, persisted_bytes=steps * 40_960, snapshots=steps)
        slots.append(msgspec.structs.replace(one, ledger=ledger))
    report = judge_rows({"r": slots}, flash)
    assert any("its clock is not used" in note for note in report.notes)
    by_rate = 10 * (40_960 + flash.metadata_bytes) * 86_400  # bytes a day at ten steps a second
    assert report.robots[0].bytes_per_day == pytest.approx(by_rate)


def test_a_fleet_that_writes_too_much_as_a_whole_is_no_sound_fleet() -> None:
    for expected, words in ((0.1, ""), (0.05, "calibration expected 5.000%")):
        rows = {
            f"r{i}": [row(f"r{i}", "metrics", 50_000, expected={"g": expected})] for i in range(9)
        }
        report = judge_rows(rows)
        assert report.findings == ()
        assert words in " ".join(report.together)
        assert bool(report.together) is bool(words)
    assert "all together do" in verdict(report)


@pytest.mark.parametrize(("robots", "steps"), [(1, 50_000), (9, 500)])
def test_robots_that_nobody_compared_are_not_called_sound(robots: int, steps: int) -> None:
    report = judge_rows({f"r{i}": [row(f"r{i}", "metrics", steps)] for i in range(robots)})
    assert f"; {robots} were not compared" in verdict(report)
    assert len(report.notes) == 1


def test_a_file_that_was_read_later_is_no_problem_any_more() -> None:
    place = {"place": "memory/slot-a.snap", "sha256": "same"}
    without = row("r", "problem", 0, state="1", problem="no bundle is known that wrote it", **place)
    assert [f.what for f in judge_rows({"r": [without]}).findings] == ["unreadable"]
    later = row("r", "snapshot", 9, state="2", clock="wall", seconds=NOW, **place)
    assert not judge_rows({"r": [without, later]}).findings


def test_names_that_are_markup_stay_text_on_the_page() -> None:
    name = '<img src=x onerror="alert(1)">'
    rows = {
        f"{name}{i}": [
            row(f"{name}{i}", "metrics", 50_000 * (1 + 3 * (i == 3)), model="$\\bad{$" + name)
        ]
        for i in range(9)
    }
    rows[f"{name}3"].append(row(f"{name}3", "problem", 0, problem=name, place=name))
    text = html(judge_rows(rows), name)
    assert "<img" not in text and "&lt;img" in text
