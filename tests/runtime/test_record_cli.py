"""Episodes from sound, from experts, and from bundles that act."""

from __future__ import annotations

import json
import sys
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from click.testing import CliRunner, Result

from stategate.cli.main import main
from stategate.contract import Episode, EpisodeSet, load_episode
from stategate.runtime import Session, episodes

ENV = "StategateDrift-v0"
EXPERT = """
def make():
    return lambda seen: int(seen[2] + 0.5 * seen[3] > 0)
def wrong():
    return 3
"""


class Drift(gymnasium.Env):
    """Four numbers that follow the actions; over after 12 steps."""

    observation_space = gymnasium.spaces.Box(-9, 9, (4,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (4,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple:
        super().reset(seed=seed)
        self.at, self.t = self.np_random.normal(size=4), 0
        return self.at, {}

    def step(self, action: np.ndarray) -> tuple:
        assert self.action_space.contains(action)
        self.at, self.t = np.tanh(self.at) + action, self.t + 1
        return self.at, 0.0, self.t == 12, False, {}


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    gymnasium.register(ENV, Drift)
    yield
    gymnasium.registry.pop(ENV)


def stategate(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def write_wav(path: Path, samples: np.ndarray, rate: int = 16000) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(samples.dtype.itemsize)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return path


def test_windows_of_real_speech_are_the_samples(
    speech: Callable[[str], tuple[np.ndarray, int]], tmp_path: Path
) -> None:
    samples, rate = speech("beckett.wav")
    whole = (samples[: rate * 2] * 32768).astype("<i2")
    path = write_wav(tmp_path / "speech.wav", whole[:, None], rate)
    done = stategate("episode-wav", path, "--input", "x", "--window", 512, "--out", tmp_path / "o")
    assert done.exit_code == 0, done.output
    made = Episode.load(tmp_path / "o" / "speech.npz")
    assert made.inputs["x"].shape == (len(whole) // 512, 1, 512)
    assert made.rate_hz == rate / 512
    flat = made.inputs["x"].reshape(-1)
    assert flat.tobytes() == samples[: len(flat)].tobytes()
    again = stategate("episode-wav", path, "--input", "x", "--window", 512, "--out", tmp_path / "o")
    assert again.exit_code == 2 and "is there" in again.output


@pytest.mark.parametrize("dtype", ["<i2", "<i4"])
def test_windows_overlap_and_a_channel_is_chosen(tmp_path: Path, dtype: str) -> None:
    samples = np.arange(40).reshape(20, 2).astype(dtype)
    path = write_wav(tmp_path / "a.wav", samples)
    options = ["--input", "x", "--window", 8, "--hop", 4, "--channel", 1, "--out", tmp_path / "o"]
    assert stategate("episode-wav", path, *options).exit_code == 0
    made = Episode.load(tmp_path / "o" / "a.npz").inputs["x"][:, 0]
    scale = 2.0 ** (8 * samples.itemsize - 1)
    assert (made * scale).tolist() == [samples[i : i + 8, 1].tolist() for i in range(0, 13, 4)]


@pytest.mark.parametrize("rate", [48_000, 24_000, 8_000])
def test_sound_at_another_rate_is_the_same_sound(tmp_path: Path, rate: int) -> None:
    def tone(hz: int) -> np.ndarray:
        return 0.4 * np.sin(2 * np.pi * 440 * np.arange(hz) / hz)  # whole periods in a second

    path = write_wav(tmp_path / "a.wav", (tone(rate) * 32768).astype("<i2")[:, None], rate)
    options = ["--input", "x", "--window", 160, "--rate-hz", 16_000, "--out", tmp_path / "o"]
    assert stategate("episode-wav", path, *options).exit_code == 0
    made = Episode.load(tmp_path / "o" / "a.npz")
    assert (made.steps, made.rate_hz) == (100, 100.0)
    np.testing.assert_allclose(made.inputs["x"].reshape(-1), tone(16_000), atol=1e-4)
    assert f"{rate} Hz made 16000 Hz" in made.provenance


def test_a_tone_that_the_new_rate_cannot_hold_is_gone_and_not_folded_back(tmp_path: Path) -> None:
    high = 0.4 * np.sin(2 * np.pi * 10_000 * np.arange(48_000) / 48_000)
    path = write_wav(tmp_path / "a.wav", (high * 32768).astype("<i2")[:, None], 48_000)
    options = ["--input", "x", "--window", 160, "--rate-hz", 16_000, "--out", tmp_path / "o"]
    assert stategate("episode-wav", path, *options).exit_code == 0
    assert np.abs(Episode.load(tmp_path / "o" / "a.npz").inputs["x"]).max() < 1e-4


@pytest.mark.parametrize("rate_hz", [1, 100, 0, 10**9, "fast"])
def test_a_rate_at_which_nothing_is_left_is_refused(tmp_path: Path, rate_hz: int | str) -> None:
    path = write_wav(tmp_path / "a.wav", np.zeros((50, 1), "<i2"))
    options = ["--input", "x", "--window", 8, "--rate-hz", rate_hz, "--out", tmp_path / "o"]
    assert stategate("episode-wav", path, *options).exit_code == 2


@pytest.mark.parametrize(
    ("raw", "finding"),
    [(b"", "cannot be read"), (b"RIFF1234WAVE", "cannot be read"), (None, "shorter than a window")],
)
def test_sound_that_cannot_be_cut_is_refused(
    tmp_path: Path, raw: bytes | None, finding: str
) -> None:
    path = write_wav(tmp_path / "a.wav", np.zeros((5, 1), "<i2"))
    if raw is not None:
        path.write_bytes(raw)
    done = stategate("episode-wav", path, "--input", "x", "--window", 8, "--out", tmp_path / "o")
    assert done.exit_code == 2 and finding in done.output


def test_an_expert_balances_the_pole_and_what_it_saw_is_written(tmp_path: Path) -> None:
    (tmp_path / "expert.py").write_text(EXPERT)
    policy = f"{tmp_path / 'expert.py'}:make"
    options = ["--policy", policy, "--input", "obs", "--episodes", 2, "--rate", 50, "--seed", 4]
    done = stategate("episode-gym", "CartPole-v1", *options, "--out", tmp_path / "o")
    assert done.exit_code == 0, done.output
    found = EpisodeSet.open(tmp_path / "o")
    assert [file.steps for file in found.files] == [500, 500]  # where the environment truncates
    assert found.files[0].form == {"input.obs": ("float32", (1, 4))}
    first, _ = gymnasium.make("CartPole-v1").reset(seed=5)
    assert found.files[1].load().inputs["obs"][0, 0].tolist() == first.tolist()
    assert "seed 5" in found.files[1].provenance


@pytest.mark.parametrize(
    ("env", "policy", "finding"),
    [
        ("NoSuchThing-v0", "expert.py:make", "cannot be made"),
        ("CartPole-v1", "nowhere.py:make", "no such Python file"),
        ("CartPole-v1", "factory-left-out.py", "factory-left-out.py"),
        ("CartPole-v1", "expert.py:none", "has no 'none'"),
        ("CartPole-v1", "expert.py:wrong", "gives no function"),
    ],
)
def test_what_cannot_act_is_refused(tmp_path: Path, env: str, policy: str, finding: str) -> None:
    (tmp_path / "expert.py").write_text(EXPERT)
    done = stategate("episode-gym", env, "--policy", tmp_path / policy, "--out", tmp_path / "o")
    assert done.exit_code == 2 and finding in done.output


def test_a_bundle_acts_and_its_recording_gives_the_same_actions_again(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    options = ["--gym", ENV, "--episodes", 3, "--rate", 10, "--out", tmp_path / "o"]
    done = stategate("record", tiny_bundle, *options)
    assert done.exit_code == 0, done.output
    found = EpisodeSet.open(tmp_path / "o")
    assert [file.steps for file in found.files] == [12, 12, 12]
    for index, (_, episode) in enumerate(found):
        env = gymnasium.make(ENV)
        seen, _ = env.reset(seed=2_000_003 + index)
        with Session.open(tiny_bundle) as session:
            for inputs in episode:
                assert inputs["x"].tobytes() == seen.astype(np.float32).tobytes()
                answer = session.step(**inputs)["y"]
                seen = env.step(np.clip(answer[0], -1, 1))[0]


def test_recorded_inputs_are_recorded_again_to_the_bit(tiny_bundle: Path, tmp_path: Path) -> None:
    given = Episode({"x": np.random.default_rng(0).normal(size=(50, 1, 4)).astype("f4")})
    (tmp_path / "in.npz").write_bytes(given.to_bytes())
    options = ["--episode", tmp_path / "in.npz", "--steps", 45, "--block", 20, "--json"]
    done = CliRunner().invoke(
        main, ["record", str(tiny_bundle), *map(str, options), "--out", str(tmp_path / "o")]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["files"] == 3
    assert load_episode(tmp_path / "o").inputs["x"].tobytes() == given.inputs["x"][:45].tobytes()
    told = json.loads(stategate("episodes", tmp_path / "o", "--json").stdout)
    assert (told["steps"], told["episodes"]) == (45, 3)
    assert told["digest"] == EpisodeSet.open(tmp_path / "o").digest
    assert "45 steps" in stategate("episodes", tmp_path / "o").stdout


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_an_environment_of_another_size_is_refused(
    tiny_bundle: Path, tmp_path: Path, env: str
) -> None:
    done = stategate("record", tiny_bundle, "--gym", env, "--out", tmp_path / "o")
    assert done.exit_code == 2 and "not the size of an action" in done.output


def test_without_gymnasium_the_extra_is_named(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "stategate.runtime.episodes.gym", raising=False)
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    monkeypatch.delattr(episodes, "gym", raising=False)
    done = stategate("record", tiny_bundle, "--gym", ENV, "--out", tmp_path / "o")
    assert done.exit_code == 2 and "stategate[gym]" in done.output
