"""The health of a memory: what it promises, what it sees, and that C decides the same."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from stategate import learn_health
from stategate.calibration.health.learn import _Recording, envelope_of
from stategate.calibration.health.limits import choose
from stategate.cli.main import main
from stategate.common.compiler import MATHS, WARNINGS
from stategate.contract import Bundle, Episode, Manifest
from stategate.contract.errors import CalibrationError, HealthWarning, SpecError
from stategate.contract.health import CLIP, chance_in_a_row
from stategate.runtime import Session
from stategate.runtime.memory.statistics import Column, Statistics, whole

RARELY = 20_000.0


def stream(steps: int, seed: int) -> np.ndarray:
    """Four numbers that follow each other a little, ``(steps, 1, 4)`` float32."""
    drawn = np.random.default_rng(seed).standard_normal((steps, 1, 4))
    drawn[1:] += 0.4 * drawn[:-1]
    return (drawn * [1.0, 0.5, 2.0, 1.0] + [0.0, 1.0, 0.0, -2.0]).astype(np.float32)


@pytest.fixture(scope="module")
def watched(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of ``Tiny`` with an envelope."""
    out = tmp_path_factory.mktemp("watched") / "bundle"
    episode = Episode({"x": stream(8_000, 1)})
    return learn_health(tiny_bundle, episode, out, steps_per_false_alarm=RARELY).path


def learned(plain: Path, x: np.ndarray, folder: Path) -> Session:
    """A session of a copy that knows a stream."""
    bundle = learn_health(plain, Episode({"x": x}), folder / "new", steps_per_false_alarm=800)
    return Session.open(bundle, health="count")


def stuck(steps: int) -> np.ndarray:
    """A stream whose third number stays as it is from step 320 on."""
    x = stream(steps, 2)
    x[320:, :, 2] = x[320, :, 2]
    return x


def test_a_stuck_input_is_called_by_its_name_and_counted_once(watched: Path) -> None:
    with Session.open(watched) as session, pytest.warns(HealthWarning) as warned:
        for x in stuck(1_200):
            session.step(x=x)
        health = session.health
        assert health is not None
        assert health.alarm is not None
        assert health.alarm.startswith("input x[2] has not moved for")
        assert health.departures["input x[2] still"] > 1 > health.departures["input x[1] still"]
        assert (session.ledger.health_alarms, len(warned)) == (1, 1)
        assert session.metrics()["health_alarms"] == 1


def test_a_choice_that_nobody_knows_is_refused(watched: Path, tiny_bundle: Path) -> None:
    for bundle in (watched, tiny_bundle):
        with pytest.raises(SpecError, match="warn, count, off"):
            Session.open(bundle, health="loud")  # type: ignore[arg-type]


def test_it_changes_no_answer_and_can_be_left_off(watched: Path, tiny_bundle: Path) -> None:
    answers = []
    for bundle, choice in ((watched, "count"), (watched, "off"), (tiny_bundle, "warn")):
        with Session.open(bundle, health=choice, chain=True) as session:
            answers.append([session.step(x=x)["y"].copy() for x in stuck(700)])
            answers[-1].append(np.asarray(session.chain))
            assert (session.health is None) == (choice != "count")
            assert session.ledger.health_alarms == (choice == "count")
    assert all(
        np.array_equal(*pair)
        for other in answers[1:]
        for pair in zip(answers[0], other, strict=True)
    )


def test_a_healthy_stream_is_left_alone(watched: Path) -> None:
    with Session.open(watched) as session:
        for x in stream(3_000, 3):
            session.step(x=x)
        assert session.ledger.health_alarms == 0


def test_a_state_that_only_grows_is_named_and_not_watched(watched: Path) -> None:
    envelope = Bundle.open(watched).manifest.health
    assert envelope is not None
    assert any("state count, size: it grew" in sentence for sentence in envelope.not_watched)


@pytest.mark.parametrize("n", [20, 150])
@pytest.mark.parametrize("in_a_row", [1, 2, 4])
def test_the_chance_of_windows_above_all_others_is_that_of_a_hand_of_cards(
    n: int, in_a_row: int
) -> None:
    assert chance_in_a_row(1, n, in_a_row) == pytest.approx(1 / math.comb(n + in_a_row, in_a_row))


def test_the_chance_of_windows_in_a_row_is_that_of_many_draws() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.random((100_000, 32))
    limit = np.sort(drawn[:, :30], axis=1)[:, -3]
    share = (drawn[:, 30:] > limit[:, None]).all(axis=1).mean()
    assert share == pytest.approx(chance_in_a_row(3, 30, 2), rel=0.1)


def test_statistics_are_those_of_a_plain_loop_however_the_steps_are_cut() -> None:
    rng = np.random.default_rng(5)
    rows = np.round(rng.standard_normal((96, 2)) * 2).astype(np.float32)
    columns = [Column("input", "x", 0), Column("gate", "g", 0, 0.5)]
    statistics = Statistics(columns, [3, 2], [1, 0])
    for start in (0, 7, 40, 41):
        end = {0: 7, 7: 40, 40: 41, 41: 96}[start]
        statistics.add(rows[start:end])
    numbers = [[int(a * 8), int(b * 4)] for a, b in rows.tolist()]
    moved = [
        [0, 0],
        *([b[i] - a[i] for i in (0, 1)] for a, b in zip(numbers[:-1], numbers[1:], strict=True)),
    ]
    still, longest = [0, 0], [0, 0]
    for step in moved:
        for i in (0, 1):
            still[i] = 0 if step[i] else still[i] + 1
            longest[i] = max(longest[i], still[i])
    by_column = list(zip(*numbers, strict=True))
    expected = [sum(c) for c in by_column]
    expected += [sum(abs(m[i]) for m in moved) for i in (0, 1)] + longest
    expected += [min(c) for c in by_column] + [max(c) for c in by_column]
    expected += [sum(a * b for a, b in moved)] * 2 + [sum(b > 0.5 for _, b in rows.tolist())]
    assert statistics.vector().tolist() == expected


def test_recordings_that_are_too_short_are_refused_with_what_it_takes(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    for steps in (1, 400):
        with pytest.raises(CalibrationError, match=r"1,280 steps"):
            learn_health(tiny_bundle, Episode({"x": stream(steps, 1)}), tmp_path / "out")
    with pytest.raises(CalibrationError, match=r"--false-alarm (\d+)") as refused:
        learn_health(
            tiny_bundle, Episode({"x": stream(1_400, 1)}), tmp_path / "out",
            steps_per_false_alarm=1e15,
        )  # fmt: skip
    advised = float(str(refused.value).rpartition("--false-alarm ")[2].split()[0])
    episode = Episode({"x": stream(1_400, 1)})
    learn_health(tiny_bundle, episode, tmp_path / "out", steps_per_false_alarm=advised)


def test_an_envelope_of_another_step_or_version_is_refused(watched: Path) -> None:
    manifest = Bundle.open(watched).manifest
    assert manifest.health is not None
    strange = msgspec.structs.replace(manifest.health.watched[0], tensor="z")
    health, (level, *rest) = manifest.health, manifest.health.levels
    one = health.watched[0]
    low, least, greatest, high = one.limits["mean"]
    turned = msgspec.structs.replace(
        one, limits=one.limits | {"mean": (high + 1, least, greatest, low)}
    )
    promises = (
        {"steps_per_false_alarm": 10 * level.steps_per_false_alarm},
        {"windows_in_a_row": 10**9},
        {"outside": 0},
        {"window": 1 << 40},
    )
    changes: list[dict[str, object]] = [
        {"levels": (msgspec.structs.replace(level, **change), *rest)} for change in promises
    ]
    changes += [
        {"version": 2},
        {"levels": ()},
        {"watched": (strange,)},
        {"watched": (turned, *health.watched[1:])},
        {"steps_per_false_alarm": 2 * health.steps_per_false_alarm},
    ]
    for change in changes:
        health = msgspec.structs.replace(manifest.health, **change)
        with pytest.raises(SpecError, match="health envelope"):
            msgspec.structs.replace(manifest, health=health)


def test_a_number_that_was_always_0_or_is_not_one_is_no_longer_healthy(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    x = stream(4_000, 1)
    x[..., 3] = 0
    with learned(tiny_bundle, x, tmp_path) as session:
        for row in x[:1_000]:
            session.step(x=row + np.float32([0, 0, 0, 0.01]))
        assert session.health is not None
        assert "x[3]" in str(session.health.alarm)
    assert whole(np.array([np.nan, 1e9], np.float32), np.float32(1)).tolist() == [CLIP, CLIP]


def test_a_signal_that_never_changes_is_no_dependence() -> None:
    base = np.zeros((400, 1), np.int64)
    short, _ = choose(base, [(0, "mean")], 10_000)
    assert short.level.is_independent


def test_steps_of_a_branch_are_imagined_and_not_judged(watched: Path) -> None:
    with Session.open(watched, health="count") as session:
        for x in stream(1_600, 2):
            session.step(x=x)
            with session.branch():
                session.step(x=0 * x)
        assert session.health is not None
        assert session.health.alarm is None
        short = session.manifest.health.levels[0]  # type: ignore[union-attr]
        assert session.health.windows == 1_600 // short.window


def slow_stream(steps: int, seed: int) -> np.ndarray:
    """Four numbers that hardly change in a window, ``(steps, 4)`` float32."""
    numbers = np.random.default_rng(seed).standard_normal((steps, 4))
    for t in range(1, steps):
        numbers[t] += 0.98 * numbers[t - 1]
    return numbers.astype(np.float32)


def test_too_few_windows_of_a_slow_stream_promise_nothing_of_several_in_a_row() -> None:
    columns = [Column("input", "x", i) for i in range(4)]
    for steps in (1_280, 5_000):
        for seed in range(3):
            x = slow_stream(steps, seed)[: steps // 32 * 32]
            with pytest.raises(CalibrationError, match="too few to tell"):
                envelope_of(_Recording(columns, x, [], [], []), ["0"], 1e6)


def test_a_verb_writes_it_and_says_what_it_promises(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "log.npz").write_bytes(Episode({"x": stream(8_000, 1)}).to_bytes())
    words = ["model", "health", str(tiny_bundle), "--episode", str(tmp_path / "log.npz")]
    words += ["--false-alarm", "5000", "--out", str(tmp_path / "new")]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert "false alarms: at most one in" in result.output
    health = Bundle.open(tmp_path / "new").manifest.health
    assert health is not None
    assert health.warm_up is not None
    assert len(health.episodes[0]) == 64


PROGRAM = """
#include <stdio.h>
#include "stategate_health.h"
static stategate_session session;
static stategate_watch watch;
int main(void)
{
    stategate_inputs in;
    stategate_outputs out;
    (void)stategate_init(&session);
    for (long t = 0; fread(in.x, sizeof in.x[0], 4, stdin) == 4; ++t) {
        if (t == 900) {
            (void)stategate_reset(&session);
        }
        const stategate_result result = stategate_step(&session, &in, &out);
        const int alarm = stategate_health(&watch, result, &session, &in, &out);
        printf("%d %lu %u %ld\\n", alarm, (unsigned long)watch.alarms, alarm ? watch.place : 0u,
            alarm ? (long)watch.value : 0L);
    }
    return 0;
}
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_c_decides_the_same_in_every_step(
    seal_model: Callable, tiny: object, tmp_path: Path
) -> None:
    plain = seal_model(tmp_path / "plain", tiny, native=True).path
    episode = Episode({"x": stream(12_000, 1)})
    bundle = learn_health(plain, episode, tmp_path / "new", steps_per_false_alarm=RARELY)
    x = stream(6_000, 2)
    x[300:700, :, 2] = x[300, :, 2]
    x[2_000:, :, 1] += np.linspace(0, 2, 4_000, dtype=np.float32)[:, None]
    source = bundle.path / "native"
    (tmp_path / "main.c").write_text(PROGRAM)
    for flags in ([], ["-O3", "-march=native"]):
        program = tmp_path / "program"
        command = ["cc", *flags, *MATHS, *WARNINGS, "-I", str(source), f"-Wa,-I{source}"]
        command += [str(tmp_path / "main.c"), *map(str, source.glob("*.c")), "-lm"]
        subprocess.run([*command, "-o", str(program)], check=True)
        done = subprocess.run([program], input=x.tobytes(), capture_output=True, check=True)
        lines = [list(map(int, line.split())) for line in done.stdout.splitlines()]
        assert len(lines) == len(x)
        envelope = bundle.manifest.health
        assert envelope is not None
        alarms = set()
        with Session.open(bundle, health="count", engine="native") as session:
            for t, (row, (alarm, count, place, value)) in enumerate(zip(x, lines, strict=True)):
                if t == 900:
                    session.reset()
                session.step(x=row)
                if t % 32 == 31:
                    health = session.health
                    assert health is not None
                    assert (health.alarm is not None, session.ledger.health_alarms) == (
                        alarm,
                        count,
                    )
                    if alarm:
                        assert health.alarm == _sentence(bundle.manifest, place, value)
                        alarms.add(place)
        assert len(alarms) > 1


def _sentence(manifest: Manifest, place: int, value: int) -> str:
    from stategate.contract.health import places_of

    envelope = manifest.health
    assert envelope is not None
    places = [(lv, *p) for lv in (0, 1) for p in places_of(envelope.watched, lv)]
    return envelope.sentence(*places[place], value)


@pytest.mark.slow
def test_false_alarms_are_as_rare_as_is_stated(tiny_bundle: Path, tmp_path: Path) -> None:
    alarms = expected = 0.0
    for seed in range(8):
        episode = Episode({"x": stream(20_000, 100 + seed)})
        out = tmp_path / f"{seed}"
        bundle = learn_health(tiny_bundle, episode, out, steps_per_false_alarm=RARELY)
        envelope = bundle.manifest.health
        assert envelope is not None
        with Session.open(bundle, health="count") as session:
            for x in stream(50_000, 200 + seed):
                session.step(x=x)
            alarms += session.ledger.health_alarms
        expected += 50_000 / envelope.steps_per_false_alarm
    # Poisson: more than this has a chance of one in a thousand where the stated rate is the true.
    assert alarms <= expected + 3.1 * math.sqrt(expected) + 1


def test_a_snapshot_of_before_opens_and_alarms_are_kept(watched: Path, tmp_path: Path) -> None:
    with Session.open(watched, snapshots=tmp_path, health="count") as session:
        for x in stuck(700):
            session.step(x=x)
        session.save()
    with Session.open(watched, snapshots=tmp_path, health="count") as session:
        session.restore()
        assert session.ledger.health_alarms == 1
    from stategate.runtime import Ledger

    old = msgspec.to_builtins(Ledger(steps=3, writes=3))
    del old["health_alarms"]
    assert msgspec.convert(old, Ledger).health_alarms == 0
