"""Trainings, deployments and rows of the controlled benchmark, a few iterations long."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import distributed
import pytest
import torch
from click.testing import CliRunner, Result

from lab.evidence.controlled import arms as controlled_arms
from lab.evidence.controlled import measure as controlled_measure
from lab.evidence.controlled import story
from lab.evidence.controlled import values as controlled_values
from lab.evidence.controlled.arms import ARMS, CONFIGS, ITERATIONS
from lab.evidence.controlled.cache import FrameSampling
from lab.evidence.controlled.commands import controlled
from lab.evidence.controlled.measure import HORIZONS, grown, questions
from lab.evidence.controlled.page import contents
from lab.evidence.controlled.rows import At, Row, lines_of, order
from lab.evidence.controlled.streams import INTERFERENCE, held_out, schedule, steps_of_lesson
from lab.evidence.controlled.train import Training, trainings
from lab.evidence.controlled.values import ByValue
from lab.evidence.intervals import permuted
from lab.evidence.pages import filled
from lab.evidence.records import read_rows, write_rows

ROOT = Path(__file__).parents[2]
SHORT = ((64, 3), (200, 1))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ITERATIONS, "hard", 4)
    monkeypatch.setattr(controlled_measure, "HORIZONS", SHORT)
    monkeypatch.setattr(controlled_measure, "SESSIONS", (0,))


def command(verb: str, folder: Path, *options: str) -> Result:
    where = ["--cache", str(folder / "cache"), "--config", "hard"]
    if verb == "measure":
        where += ["--out", str(folder / "rows.json")]
    return CliRunner().invoke(controlled, [verb, *where, *options])


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_a_schedule_is_trained_deployed_and_counted_to_the_write(tmp_path: Path) -> None:
    options = ("--arm", "periodic", "--seeds", "1")
    for verb in ("train", "measure"):
        assert command(verb, tmp_path, *options).exit_code == 0
    row, lessons = read_rows(tmp_path / "rows.json", Row)
    assert [(at.steps, at.writes) for at in lessons.at] == [(72, 64 * 72 // 8)]
    assert (row.arm, row.seed, row.iterations, row.state_bytes) == ("periodic", 0, 4, 4224)
    assert [(at.steps, at.streams, at.writes) for at in row.at] == [(64, 3, 24), (200, 1, 25)]
    assert all(0 < at.judged < at.steps * at.streams and at.right <= at.judged for at in row.at)


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_a_killed_measurement_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The growing cache needs no bundle: cheap to measure.
    assert command("train", tmp_path, "--arm", "cache").exit_code == 0
    measured: list[int] = []

    def killed_at(most: int) -> None:
        def one(model: object, held: object) -> At:
            measured.append(1)
            if len(measured) > most:
                raise KeyboardInterrupt
            return grown(model, held)  # type: ignore[arg-type]

        monkeypatch.setattr(controlled_measure, "grown", one)

    each = len(SHORT) + 1  # the last is that of lessons
    killed_at(each + 1)  # in the middle of the second training's row
    assert command("measure", tmp_path, "--arm", "cache").exit_code == 130
    kept = read_rows(tmp_path / "rows.json", Row)
    assert [row.seed for row in kept] == [0, 0]
    measured.clear()
    killed_at(10**6)
    assert command("measure", tmp_path, "--arm", "cache").exit_code == 0
    assert len(measured) == 2 * each
    rows = read_rows(tmp_path / "rows.json", Row)
    assert [row.seed for row in rows] == [0, 1, 2, 0, 1, 2]
    assert rows[0] == kept[0]


class Shortened(distributed.WorkerPlugin):
    """Trainings of a few iterations, also on a worker that takes the place of a lost one."""

    def setup(self, worker: distributed.Worker) -> None:
        controlled_arms.ITERATIONS["hard"] = 4  # by the module, which does not travel as a copy
        controlled_measure.HORIZONS = SHORT  # type: ignore[misc]
        controlled_measure.SESSIONS = (0,)


@pytest.mark.slow
@pytest.mark.usefixtures("short")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestWarning")
def test_a_lost_worker_loses_no_training_and_a_cluster_measures_what_one_process_does(
    tmp_path: Path,
) -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    options = ("--arm", "cache", "--seeds", "2")  # needs no bundle: cheap to measure
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.register_plugin(Shortened())
        address = ("--cluster", cluster.scheduler_address)
        pids = client.run(os.getpid)

        def kill() -> None:
            while not (busy := [at for at, keys in client.processing().items() if keys]):
                time.sleep(0.02)
            os.kill(pids[busy[0]], signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        assert command("train", tmp_path, *options, *address).exit_code == 0
        killer.join()
        assert command("measure", tmp_path, *options, *address).exit_code == 0
    together = read_rows(tmp_path / "rows.json", Row)
    assert [row.seed for row in together] == [0, 1, 0, 1]
    alone = tmp_path / "alone"
    for verb in ("train", "measure"):
        assert command(verb, alone, *options).exit_code == 0
    assert read_rows(alone / "rows.json", Row) == together


@pytest.mark.usefixtures("short")
def test_a_training_is_taken_up_by_the_same_recipe_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training("linear-attention", "hard", 0)
    options = ("--arm", "linear-attention", "--seeds", "1")
    assert command("train", tmp_path, *options).exit_code == 0
    path = training.path(tmp_path / "cache")
    first = path.stat().st_mtime_ns
    assert command("train", tmp_path, *options).exit_code == 0
    assert path.stat().st_mtime_ns == first
    monkeypatch.setitem(ITERATIONS, "hard", 5)
    assert not training.done(tmp_path / "cache")
    assert "not trained yet" in command("measure", tmp_path, *options).stderr
    assert command("train", tmp_path, *options).exit_code == 0
    assert path.stat().st_mtime_ns != first


@pytest.mark.parametrize("verb", ["train", "measure"])
@pytest.mark.parametrize(
    "options",
    [("--arm", "nonesuch"), ("--config", "few"), ("--seeds", "0")],
    ids=["arm", "config", "seeds"],
)
def test_what_does_not_exist_is_refused_before_the_work(
    tmp_path: Path, verb: str, options: tuple[str, ...]
) -> None:
    assert command(verb, tmp_path, *options).exit_code == 2


@pytest.mark.parametrize("verb", ["measure", "values"])
@pytest.mark.parametrize("content", [b"[{}]", b"", None], ids=["others", "empty", "in a file"])
def test_results_that_cannot_be_taken_up_are_refused_in_a_sentence(
    tmp_path: Path, verb: str, content: bytes | None
) -> None:
    out = tmp_path / "rows.json"
    out.write_bytes(content or b"")
    path = out if content is not None else out / "rows.json"
    result = CliRunner().invoke(controlled, [verb, "--cache", str(tmp_path), "--out", str(path)])
    assert result.exit_code == 2
    assert "Error: " in result.stderr
    assert "Traceback" not in result.stderr
    assert out.read_bytes() == (content or b"")


def test_the_order_is_hard_first_and_every_first_seed_before_a_second() -> None:
    order = list(trainings(ARMS, CONFIGS))
    assert len(set(order)) == len(order)
    assert [t.config for t in order] == sorted((t.config for t in order), key=CONFIGS.index)
    seeds = [t.seed for t in order if t.config == "hard"]
    assert seeds == sorted(seeds)
    counts = {arm: sum(t.arm == arm for t in order if t.config == "hard") for arm in ARMS}
    assert counts["learned"] == counts["always"] == 5


@pytest.mark.parametrize("rule", ["periodic", "oracle", "foresight", "random"])
def test_a_schedule_writes_what_it_says(rule: str) -> None:
    held = held_out("hard", 4096, 2, seed=5)
    writes = schedule(rule, held, 1)[:, 0, 0]
    assert set(writes.tolist()) <= {0.0, 1.0}
    if rule == "periodic":
        assert writes.nonzero()[0].tolist() == list(range(0, 4096, 8))
    elif rule == "oracle":
        assert writes.sum() == held.event[1].sum()
    elif rule == "foresight":
        # One step in 12.88 by the chances of the stream; four standard deviations of the count.
        assert (held.event[1] | (writes == 0)).all()
        assert abs(writes.sum() - 4096 / 12.88) < 4 * (4096 / 12.88) ** 0.5
    else:
        # within four standard deviations of a binomial of one in eight
        assert abs(writes.sum() - 512) < 4 * (4096 * 0.125 * 0.875) ** 0.5
        assert (writes != schedule(rule, held, 0)[:, 0, 0]).any()


def test_a_lesson_is_asked_for_whatever_sessions_lie_between() -> None:
    near, far = (held_out(INTERFERENCE, steps_of_lesson(k), 16) for k in (0, 3))
    assert (near.z.shape[1], far.z.shape[1]) == (72, 840)
    assert (near.label[:, -8:] == far.label[:, -8:]).all() and (far.label[:, -8:] >= 0).all()
    assert (far.label[:, :-8] == -1).all()
    assert (near.event.sum(1) == 8).all()
    # Every event of the lesson is asked for, so no session in between overwrote one.
    assert (far.needed[:, :64] == far.event[:, :64]).all()


def test_sampled_frames_are_as_many_bytes_as_the_matrix_and_reach_the_first_step() -> None:
    at = torch.tensor([3, 900])
    sampled = FrameSampling().visible(at, at[:, None] - torch.arange(1000))
    assert sampled[0].nonzero().flatten().tolist() == [0, 1, 2, 3]
    places = sampled[1].nonzero().flatten()
    assert len(places) * FrameSampling.kv_bytes_per_step == 4 * 32 * 32
    assert (places[0], places[-1]) == (0, 900) and set(places.diff().tolist()) == {60}


def test_held_out_streams_are_those_of_no_training_and_of_no_validation() -> None:
    held = held_out("hard", 64, 4)
    assert held.z.shape == (4, 64, 1, 64)
    for other in range(1, 7):
        assert (held.z != held_out("hard", 64, 4, seed=other - 64).z).any()


def test_writes_and_answers_are_sorted_by_value(
    aura_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controlled_values, "HORIZON", (512, 2))
    monkeypatch.setattr(controlled_values, "trained", lambda *_: (None, None))
    monkeypatch.setattr(controlled_values, "deploy", lambda *_: aura_bundle)
    done: list[int] = []
    training = Training("learned", "hard", 0)
    row = controlled_values.by_value(training, -2.0, "x", Path(), done.append)
    held = held_out("hard", 512, 2)
    assert done == [512, 1024]
    assert sum(row.events) == held.event.sum()
    assert list(row.asked) == [int((held.label == value).sum()) for value in range(8)]
    # The shipped checkpoint writes at nearly every event and answers nearly every query.
    assert 0.95 * sum(row.events) < sum(row.written) <= sum(row.events)
    assert 0.98 * sum(row.asked) < sum(row.right) <= sum(row.asked)


def test_a_value_is_missed_where_fewer_than_half_of_its_events_are_written() -> None:
    row = ByValue("learned", "xhard", 0, "x", (10, 10, 9), (5, 4, 0), (8, 8, 8), (8, 2, 2))
    assert (row.blind, row.accuracy) == ((1, 2), 0.5)


def test_a_permutation_of_ones_and_zeros_is_fishers_exact_test() -> None:
    # The Design of Experiments, 1935: three of four cups right, 34 of 70 deals as good or as bad.
    assert permuted([1, 1, 1, 0], [0, 0, 0, 1]) == pytest.approx(34 / 70)
    assert permuted([1.5, 2.5], [0.1, 0.2]) == pytest.approx(2 / 6)
    assert permuted([0, 0], [0, 0]) == 1


def test_the_page_is_what_its_results_make_it() -> None:
    results = ROOT / "docs" / "evidence"
    rows, values = results / "controlled.json", results / "values.json"
    for name, of in (("index.md", story.contents), ("controlled.md", contents)):
        page = (results / name).read_text()
        assert filled(page, of(rows, values).pieces) == page


def test_a_model_without_rows_is_named_under_its_table(tmp_path: Path) -> None:
    at = (At(64, 2, 30, 29, 16), At(16_384, 1, 30, 29, 16))
    row = Row("learned", "hard", 0, "hard", -2.0, 10, 4224, 256, "native", "0" * 16, at)
    write_rows(tmp_path / "rows.json", [row], order)
    pieces = contents(tmp_path / "rows.json", tmp_path / "none.json").pieces
    assert "AURA-Mem, opens above -2 | 1 | 96.67" in pieces["controlled-ablations"]
    assert "No rows yet: AURA-Mem, gate without surprise; " in pieces["controlled-ablations"]
    assert "No rows yet: AURA-Mem; " in pieces["controlled-easy"]
    # One that is not asked for there is not missed.
    assert "soft gate" not in pieces["controlled-easy"]


def test_a_calibrated_threshold_is_a_line_of_its_own_whatever_its_number() -> None:
    at = (At(64, 2, 30, 29, 16),)
    given = Row("learned", "hard", 0, "hard", 0.0, 10, 4224, 256, "native", "0" * 16, at)
    found = Row("learned", "hard", 0, "hard", 0.0, 10, 4224, 256, "native", "1" * 16, at, True)
    assert lines_of([found, given], "hard", "hard", ["learned"]) == [
        ("AURA-Mem, opens above 0", [given]),
        ("AURA-Mem, calibrated", [found]),
    ]
    digests = [q.digest for group in questions(Training("learned", "hard", 0)) for q in group]
    assert len(set(digests)) == len(digests)


def test_every_row_of_the_repository_belongs_to_a_question() -> None:
    rows: Iterator[Row] = iter(read_rows(ROOT / "docs" / "evidence" / "controlled.json", Row))
    asked = {
        question.digest
        for training in trainings(ARMS, CONFIGS)
        for group in questions(training)
        for question in group
    }
    for row in rows:
        assert row.digest in asked
        for at in row.at:
            assert (at.steps, at.streams) in HORIZONS or row.stream == INTERFERENCE
            assert 0 < at.right <= at.judged
            assert 0 <= at.writes <= at.steps * at.streams
