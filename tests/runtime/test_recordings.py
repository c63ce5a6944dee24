"""Recordings of other tools become episodes: right by name, unit and time, or not at all."""

from __future__ import annotations

import itertools
import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.formats import files
from stategate.cli.main import main
from stategate.contract import EpisodeSet, load_episode
from stategate.contract.errors import EpisodeError, MissingDependencyError
from stategate.runtime.recordings.convert import convert
from stategate.runtime.recordings.mapping import Map, Part
from stategate.runtime.recordings.resample import Rule, resampled
from stategate.runtime.recordings.source import Batch

JOINTS = "{hip,knee,ankle,wheel}"


def stategate(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def read(path: Path, *options: str, out: str = "episodes") -> EpisodeSet:
    """What ``stategate episodes read`` writes."""
    pairs = list(itertools.batched(options, 2)) if sys.version_info >= (3, 12) else [
        options[i : i + 2] for i in range(0, len(options), 2)
    ]  # fmt: skip
    texts = {key: [value for name, value in pairs if name == key] for key in ("--map", "--read")}
    convert(path, Map.read(texts["--map"], texts["--read"]), path.parent / out)
    return EpisodeSet.open(path.parent / out)


@pytest.mark.parametrize("name", files.FORMATS)
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
