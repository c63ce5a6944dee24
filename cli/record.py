"""Making episodes: ``stategate episodes record``, ``episode-gym`` and ``episode-wav``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

from stategate.cli.options import (
    COUNT,
    EXISTING,
    EXISTING_FILE,
    FOLDER,
    INDEX,
    POSITIVE,
    bundle_argument,
    bundle_verb,
    episode_option,
    group_of,
    option,
    out_option,
    seed_option,
    steps_option,
    verb,
)
from stategate.cli.recordings import as_episodes, convert_recording, recording_options
from stategate.cli.show import show
from stategate.common.console import progress
from stategate.common.ending import StopRequest, stop_request
from stategate.common.user_file import build_from_file, check_source
from stategate.contract import Episode, EpisodeSet, load_episode
from stategate.contract.durable import write_whole
from stategate.contract.errors import EpisodeError, ResultError
from stategate.contract.reading import printable
from stategate.runtime.base.buffers import Array
from stategate.runtime.episodes.recorder import BLOCK_STEPS, Recorder
from stategate.runtime.episodes.wav import wav_episode
from stategate.runtime.session import Session

_SEED = 2_000_003

_out = out_option("The folder.", FOLDER)
_loop = group_of(
    option("--episodes", type=COUNT, default=1, help="How many."),
    seed_option("Of the first episode; the next ones count up.", _SEED),
    option("--rate", type=POSITIVE, help="Steps per second, if known."),
)


@verb("episode-wav")
@click.argument("files", nargs=-1, required=True, type=EXISTING_FILE)
@option("--input", "name", required=True, help="Input of the model that takes a window.")
@option("--window", type=COUNT, required=True, help="Samples of a step.")
@option("--hop", type=COUNT, help="Samples between two steps; the window if left out.")
@option("--channel", type=INDEX, default=0, help="Counted from 0.")
@option(
    "--rate-hz",
    type=click.IntRange(1, 768_000),
    help="Samples per second that the model hears; those of the file if left out.",
)
@_out
def episode_wav(files: tuple[Path, ...], hop: int | None, out: Path, **cut: Any) -> None:
    """Cut sound (FILES, .wav) into episodes, one a file.

    \b
    Example:
      stategate episodes wav speech.wav --input x --window 512 --out build/speech
    """
    if len({path.stem for path in files}) < len(files):
        raise ResultError("two files have one name", expected="names that differ")
    cut["hop"] = hop or cut["window"]
    _write(out, ((path.stem, wav_episode(path, **cut)) for path in files))


@verb("episode-gym")
@click.argument("env_id")
@option(
    "--policy",
    required=True,
    help="path/to/file.py:factory; what it makes maps an observation to an action.",
)
@option("--input", "name", default="x", help="Input that observations go to.")
@steps_option("Most of an episode.", 1000)
@_loop
@_out
def episode_gym(
    env_id: str,
    policy: str,
    name: str,
    steps: int,
    episodes: int,
    seed: int,
    rate: float | None,
    out: Path,
) -> None:
    """Let an expert act in the Gymnasium environment ENV_ID, and write what it saw.

    Each episode has a policy of its own, fresh from the factory.

    \b
    Example:
      stategate episodes gym CartPole-v1 --policy expert.py:make --input obs --out build/cartpole
    """
    check_source(policy, EpisodeError)

    from stategate.runtime.episodes import gym

    def one(index: int) -> Episode:
        act = build_from_file(policy, EpisodeError)
        if not callable(act):
            raise EpisodeError(f"{policy} gives no function", found=type(act).__name__)
        observations = gym.observations(env, act, seed + index, steps)
        array = np.stack([gym.as_input(one, "float32") for one in observations])
        provenance = f"{env_id}, seed {seed + index}, acted in by {Path(policy).name}"
        return Episode({name: array}, rate_hz=rate, provenance=provenance)

    with gym.make(env_id) as env:
        _write(out, ((f"episode-{i:06d}", one(i)) for i in range(episodes)))


@bundle_verb()
@option("--gym", "env_id", help="Gymnasium environment that the bundle acts in.")
@episode_option(".", "episode_path")
@option("--output", help="With --gym: the output that is the action, where there are several.")
@steps_option("Most of an episode; 1000 with --gym.", None)
@option(
    "--block",
    type=COUNT,
    default=BLOCK_STEPS,
    help="Steps of a file; two blocks are held in memory.",
)
@_loop
@_out
def record(
    bundle: Path,
    env_id: str | None,
    episode_path: Path | None,
    output: str | None,
    steps: int | None,
    block: int,
    episodes: int,
    seed: int,
    rate: float | None,
    out: Path,
) -> None:
    """Step BUNDLE and record what its session takes.

    In an environment every episode starts with a fresh memory and in a file of its own. Ctrl-C and
    SIGTERM end it after the step at hand; what was recorded until then is whole.

    \b
    Examples:
      stategate episodes record build/policy --gym CartPole-v1 --episodes 20 --out build/cartpole
      stategate episodes record build/aura --episode logs --out build/recorded
    """
    if (env_id is None) == (episode_path is None):
        raise click.UsageError("either --gym ENV or --episode PATH")
    with stop_request() as stop, Session.open(bundle) as session:
        if episode_path is not None:
            played = load_episode(episode_path, steps)
            played.check(session.manifest.step, starts=True)
            rate = rate if rate is not None else played.rate_hz
        with Recorder(session, out, steps=block, rate_hz=rate, wait_for_disk=True) as recorder:
            if episode_path is not None:
                if played.start:
                    names = [state.name for state in session.manifest.states]
                    recorder.load_state({n: played.start.get(n, session.state(n)) for n in names})
                elif played.prologue:
                    recorder.begin(**played.prologue)
                with progress(played.steps, "recording") as report:
                    for t, inputs in enumerate(played):
                        if t in played.resets:
                            recorder.cut(fresh=True)
                            session.reset()
                        recorder.step(**inputs)
                        report(t + 1)
                        if stop:
                            break
            else:
                _act(recorder, session, str(env_id), output, episodes, seed, steps or 1000, stop)
    done = recorder.recorded
    if done.problem is not None:
        raise ResultError(
            f"{done.lost_steps:,} steps were stepped and not recorded", found=done.problem
        )
    text = f"{out}: {done.steps:,} steps in {done.files:,} files, {done.bytes:,} bytes"
    show(done, [text])
    if stop:
        raise stop.stopped(f"{done.steps:,} steps are recorded")


def _act(
    recorder: Recorder,
    session: Session,
    env_id: str,
    output: str | None,
    episodes: int,
    seed: int,
    steps: int,
    stop: StopRequest,
) -> None:
    from stategate.runtime.episodes import gym

    with gym.make(env_id) as env:
        wiring = gym.Wiring(session.manifest.step, env.action_space, output)
        port = wiring.input

        def act(observation: Array) -> Any:
            array = gym.as_input(observation, port.dtype, port.shape)
            outputs = recorder.step(**{port.name: array})
            return wiring.action(outputs[wiring.output])

        with progress(episodes, "recording") as report:
            for index in range(episodes):
                session.reset()
                recorder.cut(fresh=True)
                for _ in gym.observations(env, act, seed + index, steps):
                    if stop:
                        return
                report(index + 1)


def _write(out: Path, episodes: Iterable[tuple[str, Episode]]) -> None:
    """Write episodes one by one; none takes the place of a file that is there."""
    rows: list[dict[str, Any]] = []
    for name, episode in episodes:
        path = out / f"{name}.npz"
        if path.exists():
            raise ResultError("an episode of that name is there", found=path)
        episode.check_finite(name)
        write_whole(path, episode.to_bytes())
        rows.append({"path": str(path), "steps": episode.steps, "rate_hz": episode.rate_hz})
    show(rows, (f"{row['path']}: {row['steps']:,} steps" for row in rows))


@verb("read")
@click.argument("path", type=EXISTING)
@recording_options
@_out
def read_recording(path: Path, out: Path) -> None:
    """Write PATH, a recording of another tool, as episodes: once, for many commands.

    \b
    Examples:
      stategate episodes read drive.mcap --map 'x=/joint_states.position{hip,knee}[rad]' \\
        --read rate_hz=50 --out logs
      stategate episodes read demos.hdf5 --map x=obs/robot0_eef_pos --out logs
    """
    done = convert_recording(path, out)
    show(done, [line for one in done for line in one.lines()])


@verb("write")
@click.argument("run", type=EXISTING)
@bundle_argument
@option("--rate", type=POSITIVE, help="Steps per second; the episode's or the bundle's own.")
@recording_options
@out_option("Name of the file or folder: *.mcap, *.parquet, or no dot for a LeRobotDataset.")
def write_recording(run: Path, bundle: Path, rate: float | None, out: Path) -> None:
    """Write what BUNDLE did in RUN, a black box or an episode, for the tools of others.

    Inputs, outputs, gates, sizes of states and counts of writes of each step: an MCAP file for
    Foxglove and Rerun, a LeRobotDataset, or a Parquet table.

    \b
    Examples:
      stategate episodes write robot.rec build/policy --out robot.mcap
      stategate episodes write logs build/policy --rate 50 --out dataset
    """
    from stategate.runtime.recordings.write import write_run

    with progress(0, "writing") as report:
        done = write_run(as_episodes(run), bundle, out, rate, report)
    show(done, [f"{out}: {done.steps:,} steps in {done.episodes:,} episodes"])


@verb()
@click.argument("path", type=EXISTING)
def episodes(path: Path) -> None:
    """Read PATH, an episode or a folder of them, from end to end, and say what is in it.

    Of a recording of another tool it shows the fields that can become inputs.

    \b
    Examples:
      stategate episodes show build/recorded
      stategate episodes show drive.mcap
    """
    from stategate.runtime.recordings.convert import is_recording, open_recordings
    from stategate.runtime.recordings.source import example, table

    if is_recording(path):
        sources = [(source, source.fields()) for source in open_recordings(path)]
        rows = [
            {"path": s.path, "form": s.form, "rate_hz": s.rate_hz, "fields": f, "notes": s.notes}
            for s, f in sources
        ]
        lines = []
        for source, fields in sources:
            rate = f" at {source.rate_hz:g} Hz" if source.rate_hz else ""
            lines += [f"{printable(source.path)}: {source.form}{rate}"]
            lines += [f"  {line}" for line in [*table(fields), *source.notes]]
            lines += [f"  take a field with: {example(source, fields)}"]
        show(rows, lines)
        return
    recordings = EpisodeSet.open(path)
    with progress(recordings.steps, "reading") as report:
        done = 0
        for file in recordings.files:
            for block in file.blocks(starts=True):
                done += block.steps
                report(done)
    facts = {
        "episodes": len(recordings),
        "steps": recordings.steps,
        "rate_hz": recordings.rate_hz,
        "form": {key: [dtype, *shape] for key, (dtype, shape) in recordings.files[0].form.items()},
        "digest": recordings.digest,
        "files": [
            {"name": f.name, "steps": f.steps, "provenance": f.provenance} for f in recordings.files
        ],
    }
    show(facts, _contents(recordings))


def _contents(recordings: EpisodeSet) -> Iterator[str]:
    rate = f" at {recordings.rate_hz:g} Hz" if recordings.rate_hz is not None else ""
    count, steps = len(recordings), recordings.steps
    yield f"{count:,} episodes, {steps:,} steps{rate}, digest {recordings.digest}"
    for key, (dtype, shape) in recordings.files[0].form.items():
        yield f"  {key}: {dtype} {list(shape)}"
    for file in recordings.files:
        yield f"  {printable(file.name)}: {file.steps:,} steps  {printable(file.provenance)}"
