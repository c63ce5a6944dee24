"""Recordings of other tools become episodes: right by name, unit and time, or not at all."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.formats import files
from stategate.bench.measure.worker import Worker
from stategate.calibration.recordings import listed
from stategate.cli.main import main
from stategate.contract import Episode, EpisodeSet, load_episode
from stategate.contract.episodes import load_stream
from stategate.contract.errors import EpisodeError, MissingDependencyError
from stategate.export.inputs import recorded
from stategate.runtime import Session
from stategate.runtime.keep.black_box import BlackBox
from stategate.runtime.recordings.convert import convert
from stategate.runtime.recordings.mapping import Map, Part
from stategate.runtime.recordings.resample import Rule, resampled
from stategate.runtime.recordings.source import Batch
from stategate.runtime.recordings.write import write_run

JOINTS = "{hip,knee,ankle,wheel}"


def stategate(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def read(path: Path, *options: str, out: str = "episodes") -> EpisodeSet:
    """What ``stategate episodes read`` writes."""
    pairs = list(zip(options[::2], options[1::2], strict=True))
    texts = {key: [value for name, value in pairs if name == key] for key in ("--map", "--read")}
    convert(path, Map.read(texts["--map"], texts["--read"]), path.parent / out)
    return EpisodeSet.open(path.parent / out)


@pytest.mark.slow
def test_a_dataset_of_lerobots_own_package_keeps_its_episodes_and_names(tmp_path: Path) -> None:
    x = files.joint_angles(70)
    pytest.importorskip("datasets", reason="datasets 5.2 needs Python 3.11 and pandas")
    options = files.lerobot(tmp_path / "d", x, [30])
    first, second = (e.inputs["x"][:, 0] for _, e in read(tmp_path / "d", *options))
    assert np.array_equal(first, x[:30]) and np.array_equal(second, x[30:])


FAST = [name for name in files.FORMATS if "LeRobot" not in name]


@pytest.mark.parametrize("name", FAST)
def test_each_format_gives_the_recorded_numbers_by_their_names(name: str, tmp_path: Path) -> None:
    x = files.joint_angles(60)
    file, make = files.FORMATS[name]
    episodes = read(tmp_path / file, *make(tmp_path / file, x))
    ((_, episode),) = episodes
    assert episode.rate_hz == files.RATE_HZ and episode.resets == (0,)
    assert np.abs(episode.inputs["x"][:, 0] - x).max() < 3e-7  # degrees cost the last bit


def mcap(path: Path, times: list[float], values: list[float]) -> Path:
    """JSON messages ``/a`` with a number ``v``, at times in seconds."""
    from mcap.writer import Writer

    with path.open("wb") as file:
        writer = Writer(file)
        writer.start()
        schema = writer.register_schema("A", "jsonschema", b"{}")
        channel = writer.register_channel("/a", "json", schema)
        for t, v in zip(times, values, strict=True):
            ns = round(t * 1e9)
            writer.add_message(channel, ns, json.dumps({"v": v}).encode(), ns)
        writer.finish()
    return path


def test_a_gap_begins_a_new_episode_and_is_never_filled(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.2, 0.3, 1.3, 1.4, 1.5]
    path = mcap(tmp_path / "gap.mcap", times, [0, 1, 2, 3, 13, 14, 15])
    episodes = read(path, "--map", "x=/a.v", "--read", "rate_hz=20", "--read", "resample=linear")
    first, second = (episode.inputs["x"].ravel() for _, episode in episodes)
    assert first.tolist() == pytest.approx(np.arange(7) / 2) and second[0] == 13
    joined = load_episode(tmp_path / "episodes")
    assert joined.resets == (0, len(first))
    with pytest.raises(EpisodeError, match="has a gap"):
        read(path, "--map", "x=/a.v", "--read", "rate_hz=20", "--read", "gaps=refuse", out="b")


def test_times_that_go_backwards_are_refused_and_sorted_where_that_is_said(tmp_path: Path) -> None:
    path = mcap(tmp_path / "back.mcap", [0.0, 0.1, 0.3, 0.2, 0.4], [0, 1, 3, 2, 4])
    options = ("--map", "x=/a.v", "--read", "rate_hz=10")
    with pytest.raises(EpisodeError, match="go backwards") as refused:
        read(path, *options)
    option = str(refused.value).rpartition("order: ")[2]
    ((_, episode),) = read(path, *options, *shlex.split(option), out="sorted")
    assert episode.inputs["x"].ravel().tolist() == [0, 1, 2, 3, 4]


def test_positions_of_joints_are_never_taken_without_names(tmp_path: Path) -> None:
    path = tmp_path / "drive.mcap"
    x = files.joint_angles(30)
    files.mcap_ros2(path, x)
    done = stategate("episodes", "read", path, "--map", "x=/joint_states.position",
                     "--read", "rate_hz=50", "--out", tmp_path / "o")  # fmt: skip
    assert done.exit_code == 2 and "stand in the order of each message" in done.output
    pasted = shlex.split(done.output.rpartition("what to do: ")[2])
    again = stategate("episodes", "read", path, *pasted, "--read", "rate_hz=50",
                      "--out", tmp_path / "o")  # fmt: skip
    assert again.exit_code == 0, again.output
    order = [files.JOINTS.index(n) for n in Part.parse(pasted[1].partition("=")[2]).elements]
    assert np.array_equal(load_episode(tmp_path / "o").inputs["x"][:, 0], x[:, order])


def test_what_is_in_a_recording_is_listed_with_a_line_that_works(tmp_path: Path) -> None:
    path = tmp_path / "bag"
    files.bag_sqlite(path, files.joint_angles(30))
    shown = stategate("episodes", "show", path)
    assert shown.exit_code == 0 and "/joint_states.position: 4 float64, 30 at 50 Hz" in shown.output
    line = shown.output.rpartition("take a field with: ")[2].partition(", with your")[0]
    done = stategate("episodes", "read", path, *shlex.split(line), "--out", tmp_path / "o")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("x=/b", "has no field '/b'"),
        ("x=/a.v[deg>m]", "turns one kind of thing into another"),
        ("x=/a.v[furlong]", "is no unit"),
        ("x=/a.v{hip}", "has no element of that name"),
        ("--read=rate_hz=fast", "this says not how"),
    ],
)
def test_a_wrong_mapping_is_refused_in_words(setting: str, words: str, tmp_path: Path) -> None:
    path = mcap(tmp_path / "a.mcap", [0.0, 0.1], [0, 1])
    options = [setting, "--map", "x=/a.v"] if setting.startswith("--") else ["--map", setting]
    done = stategate("episodes", "read", path, "--read", "rate_hz=10", "--out", tmp_path / "o",
                     *options)  # fmt: skip
    assert done.exit_code == 2 and words in done.output and not (tmp_path / "o").exists()


def test_a_number_that_is_not_finite_or_not_exact_is_refused(tmp_path: Path) -> None:
    options = ("--read", "rate_hz=10")
    with pytest.raises(EpisodeError, match="not finite"):
        read(mcap(tmp_path / "n.mcap", [0, 0.1], [0, np.nan]), "--map", "x=/a.v", *options)
    path = tmp_path / "i.csv"
    path.write_text("t,v\n0,16777217\n1,2\n")
    toml = tmp_path / "map.toml"
    toml.write_text('rate_hz = 1\ntime = "t[s]"\n[inputs.x]\nfrom = "v"\ndtype = "float32"\n')
    with pytest.raises(EpisodeError, match="is no float32"):
        read(path, "--map", str(toml), out="i")


def test_a_library_that_is_missing_is_named_with_its_pip_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = mcap(tmp_path / "a.mcap", [0.0], [0])
    monkeypatch.delitem(sys.modules, "stategate.runtime.recordings.mcap_files", raising=False)
    monkeypatch.setitem(sys.modules, "mcap.reader", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "stategate\[recordings\]"'):
        read(path, "--map", "x=/a.v")


Stream = tuple[list[int], list[int]]


@st.composite
def streams(draw: st.DrawFn) -> list[Stream]:
    """Times in milliseconds, and where batches end, of two topics."""
    both = []
    for _ in range(2):
        steps = draw(st.lists(st.sampled_from([0, 3, 10, 11, 40, 3000]), min_size=1, max_size=30))
        cuts = draw(st.lists(st.integers(1, 29), max_size=3))
        both.append((np.cumsum(steps).tolist(), cuts))
    return both


@given(streams(), st.sampled_from(["hold", "linear"]))
@settings(max_examples=60, deadline=None)
def test_resampling_is_the_definition_and_skips_every_gap(both: list[Stream], way: str) -> None:
    gap_ms, rate = 30, 100.0
    rules = [Rule("a", way, gap_ms * 1e6), Rule("b", way, gap_ms * 1e6)]
    moments = sorted((t, part) for part, (times, _) in enumerate(both) for t in times)
    blocks: list[list[Batch]] = [[]]
    for i, (t, part) in enumerate(moments):
        value = np.array([np.sin(t / 50.0) + part])
        blocks[-1].append(Batch(part, np.array([t * 1_000_000]), value))
        if i in both[part][1]:
            blocks.append([])
    got = [np.stack(p.values, 1) for p in resampled(blocks, rules, rate)]

    right = []
    start = max(times[0] for times, _ in both)
    for tick in range(start, max(times[-1] for times, _ in both) + 1, 10):
        row = []
        for part, (times, _) in enumerate(both):
            before = [t for t in times if t <= tick]
            after = [t for t in times if t >= tick]
            if not before or not after or after[0] - before[-1] > gap_ms:
                break
            low, high = (np.sin(t / 50.0) + part for t in (before[-1], after[0]))
            share = (tick - before[-1]) / ((after[0] - before[-1]) or 1)
            row.append(low if way == "hold" else low + share * (high - low))
        if len(row) == 2:
            right.append(row)
    assert np.allclose(np.concatenate(got) if got else np.empty((0, 2)), np.reshape(right, (-1, 2)))


@pytest.fixture(scope="module")
def run(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A black box of 90 steps with a reset after 60, and its inputs."""
    x = files.joint_angles(90)[:, None]
    path = tmp_path_factory.mktemp("box") / "robot.rec"
    with Session.open(tiny_bundle, black_box=BlackBox(path)) as session:
        for t, row in enumerate(x):
            if t == 60:
                session.reset()
            session.step(x=row)
    return path, x


def test_a_black_box_comes_back_from_every_format(
    run: tuple[Path, np.ndarray], tiny_bundle: Path, tmp_path: Path
) -> None:
    box, x = run
    for name, words in (
        ("run.mcap", ["--map", "x=/stategate/input/x.values", "--read", "rate_hz=50"]),
        ("run.parquet", ["--map", "x=input.x", "--read", "time=rows", "--read", "episode=episode"]),
        ("dataset", ["--map", "x=observation.x"]),
    ):
        out = tmp_path / name
        done = stategate("episodes", "write", box, tiny_bundle, "--rate", 50, "--out", out)
        assert done.exit_code == 0 and "90 steps in 2 episodes" in done.output, done.output
        again = read(out, *words, out=f"o-{name}")
        arrays = [episode.inputs["x"] for _, episode in again]
        assert np.concatenate(arrays).tobytes() == x.tobytes(), name
        if name != "run.mcap":  # which says it in its counts, and has no episodes
            assert [len(a) for a in arrays] == [60, 30]


def test_mcaps_own_reader_finds_times_schemas_and_counts(
    run: tuple[Path, np.ndarray], tiny_bundle: Path, tmp_path: Path
) -> None:
    from mcap.reader import make_reader

    out = tmp_path / "run.mcap"
    write_run(run[0], tiny_bundle, out, 50)
    with out.open("rb") as file:
        messages = list(make_reader(file, validate_crcs=True).iter_messages("/stategate/counts"))
    times = np.array([message.log_time for *_, message in messages])
    assert len(times) == 90 and np.median(np.diff(times)) == 20_000_000 and np.diff(times).min() > 0
    assert abs(times[0] / 1e9 - time.time()) < 3600
    last = json.loads(messages[-1][2].data)
    with Session.open(tiny_bundle) as session:
        for t, row in enumerate(run[1]):
            if t == 60:
                session.reset()
            session.step(x=row)
        assert (last["step"], last["writes"]) == (90, session.ledger.writes)
    assert {schema.encoding for schema, *_ in messages} == {"jsonschema"}


@pytest.mark.slow
def test_lerobots_own_package_reads_the_dataset(
    run: tuple[Path, np.ndarray], tiny_bundle: Path, tmp_path: Path
) -> None:
    pytest.importorskip("datasets", reason="datasets 5.2 needs Python 3.11 and pandas")
    with files.lerobot_package():
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

    write_run(run[0], tiny_bundle, tmp_path / "d", 50)
    dataset = LeRobotDataset("me/d", root=tmp_path / "d", delta_timestamps={"observation.x": [0]})
    assert (dataset.num_episodes, dataset.num_frames, dataset.fps) == (2, 90, 50)
    rows = np.stack([dataset[i]["observation.x"].numpy().ravel() for i in range(90)])
    assert np.array_equal(rows, run[1][:, 0])
    assert dataset[65]["frame_index"] == 5 and dataset[65]["task"] == "Tiny"
    assert np.allclose(dataset.meta.stats["observation.x"]["mean"], run[1].mean((0, 1)), atol=1e-6)
    assert np.allclose(dataset.meta.stats["observation.x"]["std"], run[1].std((0, 1)), atol=1e-6)


def test_a_run_of_two_recordings_begins_the_second_anew(tiny_bundle: Path, tmp_path: Path) -> None:
    x = files.joint_angles(40)
    options = files.zarr_store(tmp_path / "r.zarr", x, [25, 40])
    done = stategate("run", tiny_bundle, "--episode", tmp_path / "r.zarr", *options, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["resets"] == 1


def fresh(path: Path, *steps: int) -> Path:
    """A folder of recordings, each of which begins anew; its inputs count on."""
    path.mkdir()
    for i, count in enumerate(steps):
        x = files.joint_angles(count, seed=i)[:, None]
        (path / f"{i}.npz").write_bytes(Episode({"x": x}, resets=(0,)).to_bytes())
    return path


def test_who_never_resets_steps_one_recording_of_a_folder(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    folder = fresh(tmp_path / "logs", 10, 30, 20)
    longest = Episode.load(folder / "1.npz").inputs["x"]
    checked, _ = recorded(folder, 1000)
    assert np.array_equal(checked.inputs["x"], longest)
    assert checked.resized(100).to_bytes()  # what `sensitivity` keeps its trials by
    worker = Worker(str(tiny_bundle), str(folder), "stategate.bench.measure.subject:Subject",
                    {"engine": "auto"})  # fmt: skip
    assert len(worker._feeds) == 30 and np.array_equal(worker._feeds[4]["x"], longest[4])
    # Files that go on from one another are one recording, however many there are.
    going_on = Episode({"x": longest}).to_bytes()
    (folder / "3.npz").write_bytes(going_on)
    assert load_stream(folder).steps == 50 and load_stream(folder, 15).steps == 15


def test_recordings_that_were_joined_are_refused_where_nobody_resets(tmp_path: Path) -> None:
    joined = load_episode(fresh(tmp_path / "logs", 10, 30))
    assert joined.resets == (0, 10)
    for take in (lambda: recorded(joined, 40), joined.to_bytes, lambda: listed([joined])):
        with pytest.raises(EpisodeError, match="holds several recordings"):
            take()


def test_a_column_with_an_empty_cell_is_refused_as_that(tmp_path: Path) -> None:
    (tmp_path / "hole.csv").write_text("t,a,b\n0,1.5,2\n0.02,1.6,\n")
    with pytest.raises(EpisodeError, match="column 'b' has empty cells"):
        read(tmp_path / "hole.csv", "--map", "x=a+b", "--read", "time=rows")
