from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from stategate.bench.record import BenchResult, read_result, times, to_json
from stategate.bench.report.compare import compare
from stategate.cli.main import main
from stategate.common.statistics import block_draws, paired_ratio, slope, slope_per_million
from stategate.contract.errors import ResultError

Maker = Callable[..., BenchResult]
Drift = Callable[[np.random.Generator, int], np.ndarray]


def test_the_same_program_on_a_drifting_machine_is_hardly_ever_called_slower(result: Maker) -> None:
    pairs = [compare(result(30.0, 2 * i), result(30.0, 2 * i + 1)) for i in range(40)]
    assert sum(answer.regressed for answer in pairs) == 0


def test_a_machine_that_is_half_as_fast_all_the_while_is_no_regression(result: Maker) -> None:
    answer = compare(result(30.0, 1), result(30.0, 2, machine=2.0))
    assert not answer.regressed
    assert answer.changes[0].after_us > 1.5 * answer.changes[0].before_us


@pytest.mark.parametrize("seed", range(5))
def test_a_step_that_takes_a_fifth_longer_is_found_on_a_drifting_machine(
    seed: int, result: Maker
) -> None:
    answer = compare(result(30.0, 100 + seed), result(36.0, 200 + seed))
    assert [change.verdict for change in answer.changes] == ["slower", "slower"]
    assert answer.changes[0].ratio == pytest.approx(1.2, rel=0.02)
    back = compare(result(36.0, 200 + seed), result(30.0, 100 + seed))
    assert [change.verdict for change in back.changes] == ["faster", "faster"]


def test_intervals_of_a_ratio_hold_the_truth_about_as_often_as_they_say(drifting: Drift) -> None:
    inside = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        both = drifting(rng, 100)
        above = 1.1 * both * np.exp(rng.normal(0, 0.03, 100))
        answer = paired_ratio(above, both)
        inside += answer.low < 1.1 < answer.high
    # Binomial(200, 0.95) lies above 175 in all but one of a hundred thousand cases; the median's
    # bootstrap is known to be a little too wide rather than too narrow.
    assert inside >= 176


def test_blocks_are_neighbours_and_cover_every_burst_alike() -> None:
    drawn = block_draws(100, np.random.default_rng(0))
    assert drawn.shape == (2000, 100)
    inside = np.diff(drawn.reshape(2000, 10, 10), axis=2) % 100
    assert (inside == 1).all()
    assert np.bincount(drawn.ravel(), minlength=100).std() < 100


def test_percentiles_are_steps_that_happened_and_rare_ones_need_enough_steps() -> None:
    us = np.random.default_rng(3).lognormal(3, 1, 5000)
    answer = times(us)
    assert answer is not None
    # The smallest value that so many do not exceed: of 5,000 the 2,500th, the 4,950th, the 4,995th.
    ascending = np.sort(us)
    assert answer.p50_us == ascending[2499]
    assert answer.p99_us == ascending[4949]
    assert answer.p999_us == ascending[4994]
    assert sum(count for _, count in answer.bins) == 5000
    few = times(us[:99])
    assert few is not None and few.p99_us is None and few.p999_us is None
    assert times(us[:0]) is None


def test_one_jump_of_memory_is_no_slope_and_steady_growth_is() -> None:
    at = np.arange(100.0)
    assert slope(at, np.where(at > 40, 1e6, 0.0)) == 0.0
    assert slope(at, 7 * at) == pytest.approx(7.0)
    assert slope(at[:1], at[:1]) == 0.0
    day = np.arange(300_000.0)  # whose pairs would take terabytes
    assert slope(day, 7 * day) == pytest.approx(7.0)


@pytest.mark.case("D14")
def test_a_figure_per_million_steps_needs_a_hundred_thousand_of_them() -> None:
    few, many = np.arange(0.0, 100_000.0, 1000), np.arange(0.0, 100_001.0, 1000)
    assert slope_per_million(few, 7 * few) is None
    assert slope_per_million(many, 7 * many) == pytest.approx(7e6)
    assert slope_per_million(many[:0], many[:0]) is None


def test_a_record_is_the_same_after_a_trip_to_disk(tmp_path: Path, result: Maker) -> None:
    path = tmp_path / "bench.json"
    path.write_bytes(to_json(result(30.0, 1)))
    assert read_result(path) == result(30.0, 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema_version": 2}, "another version"),
        ({"schema_version": "1"}, "another version\n  found: '1'"),
        ({"surprise": 1}, "unknown field `surprise`"),
        ({"subjects": [{}]}, "required field `name`"),
        ({"subjects": []}, "length >= 1"),
    ],
)
def test_a_result_of_another_version_or_shape_is_refused(
    tmp_path: Path, change: dict, said: str, result: Maker
) -> None:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(json.loads(to_json(result(30.0, 1))) | change))
    with pytest.raises(ResultError, match=said):
        read_result(path)
    assert CliRunner().invoke(main, ["bench", "report", str(path)]).exit_code == 2


def test_bursts_that_do_not_agree_on_their_number_are_refused(
    tmp_path: Path, result: Maker
) -> None:
    record = json.loads(to_json(result(30.0, 1)))
    record["subjects"][0]["rounds"]["pace_us"].pop()
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(record))
    with pytest.raises(ResultError, match="lists of"):
        read_result(path)


def test_files_that_are_no_results_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    for raw in (b"", b"\xff", b"[" * 100_000):
        path.write_bytes(raw)
        with pytest.raises(ResultError):
            read_result(path)
    with pytest.raises(ResultError):
        read_result(tmp_path / "none.json")


def test_too_few_bursts_and_strangers_are_not_compared(result: Maker) -> None:
    with pytest.raises(ResultError, match="too few"):
        compare(result(30.0, 1, count=10), result(30.0, 2))
    one = result(30.0, 1)
    pair = (one.subjects[0], msgspec.structs.replace(one.subjects[0], name="b"))
    stranger = tuple(msgspec.structs.replace(s, name=f"x{i}") for i, s in enumerate(pair))
    with pytest.raises(ResultError, match="in common"):
        compare(
            msgspec.structs.replace(one, subjects=pair),
            msgspec.structs.replace(one, subjects=stranger),
        )


def test_the_command_exits_with_1_on_a_regression_alone(tmp_path: Path, result: Maker) -> None:
    paths = []
    for name, us in (("before", 30.0), ("same", 30.1), ("slow", 40.0)):
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_bytes(to_json(result(us, len(paths))))
    run = CliRunner().invoke
    before, same, slow = map(str, paths)
    assert run(main, ["bench", "compare", before, same]).exit_code == 0
    done = run(main, ["bench", "compare", before, slow, "--json"])
    assert done.exit_code == 1 and json.loads(done.output)["regressed"]
    assert run(main, ["bench", "compare", before, slow, "--margin", "0.5"]).exit_code == 0
    assert run(main, ["bench", "compare", before, slow, "--margin", "nan"]).exit_code == 2


def test_another_machine_or_engine_is_pointed_out(result: Maker) -> None:
    one, other = result(30.0, 1), result(30.0, 2)
    moved = msgspec.structs.replace(
        other,
        machine=msgspec.structs.replace(other.machine, facts={"machine": "aarch64"}),
        subjects=(msgspec.structs.replace(other.subjects[0], engine="another"),),
    )
    notes = " ".join(compare(one, moved).notes)
    assert "different machines (machine)" in notes and "engine test before, another" in notes
