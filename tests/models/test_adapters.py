"""Policies of the real packages, beside the packages' own way of running them."""

from __future__ import annotations

import copy
import runpy
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from gymnasium import spaces
from rsl_rl.models import MLPModel, RNNModel
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tensordict import TensorDict
from torch import nn

from stategate.cli.main import main
from stategate.contract import Bundle
from stategate.contract.errors import TraceError
from stategate.models import from_rsl_rl, from_sb3
from stategate.models.lifting.adapters import adapted
from stategate.models.lifting.lift import Lifted
from stategate.runtime import Pool, Session

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS, RESET = 200, 120


def recorded(env_name: str, **options: object) -> np.ndarray:
    """Observations of a real environment under random actions, ``(STEPS, n)``."""
    env = gymnasium.make(env_name, **options)
    env.action_space.seed(0)
    observation, _ = env.reset(seed=0)
    seen = []
    for _ in range(STEPS):
        seen.append(observation)
        observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            observation, _ = env.reset()
    return np.stack(seen)


def rolled(step: Lifted, inputs: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """Outputs of the step in closed loop, reset before step RESET."""
    states, outputs = step.initial_states(), []
    with torch.no_grad():
        for t, given in enumerate(inputs):
            states = step.initial_states() if t == RESET else states
            result = step.step({n: torch.from_numpy(a) for n, a in given.items()}, states)
            states = dict(result.states)
            outputs.append({n: tensor.numpy() for n, tensor in result.outputs.items()})
    return outputs


# --- rsl_rl ---------------------------------------------------------------------------------------

GAUSSIAN = "rsl_rl.modules.distribution:GaussianDistribution"
WIDE = "rsl_rl.modules.distribution:HeteroscedasticGaussianDistribution"
BETA = "rsl_rl.modules.distribution:BetaDistribution"


def seen_by_a_robot(steps: int, seed: int) -> TensorDict:
    """Isaac Lab's shape: proprioception and commands, in two groups, 48 numbers together."""
    generator = torch.Generator().manual_seed(seed)
    groups = {"policy": 45, "command": 3}
    drawn = {n: 2.0 * torch.randn(steps, w, generator=generator) + 0.5 for n, w in groups.items()}
    return TensorDict(drawn, batch_size=[steps])


def actor(kind: str = "lstm", head: str | None = GAUSSIAN, layers: int = 1) -> RNNModel:
    torch.manual_seed(0)
    policy = RNNModel(
        seen_by_a_robot(1, 0), {"actor": ["policy", "command"]}, "actor", 12, (128, 64), "elu",
        head is not None, {"class_name": head} if head else None, kind, 256, layers,
    )  # fmt: skip
    for _ in range(10):
        policy.train().update_normalization(seen_by_a_robot(64, 1))
    for parameter in policy.mlp.parameters():  # fresh heads answer near nothing
        parameter.data.mul_(3.0)
    return policy.eval()


@torch.no_grad()
def answers(policy: RNNModel, seen: TensorDict) -> np.ndarray:
    """What the package's own stateful inference gives, one robot, done once on the way."""
    policy.reset()
    given = []
    for t in range(len(seen)):
        if t == RESET:
            policy.reset(torch.tensor([1]))
        given.append(policy(seen[t : t + 1]).numpy())
    return np.stack(given)


@pytest.mark.parametrize(
    ("kind", "head", "layers"),
    [("lstm", GAUSSIAN, 1), ("gru", BETA, 2), ("lstm", WIDE, 2), ("gru", None, 1)],
)
def test_an_rsl_rl_actor_answers_as_in_its_package(kind: str, head: str, layers: int) -> None:
    policy, seen = actor(kind, head, layers), seen_by_a_robot(STEPS, 2)
    step = adapted(policy)
    assert step is not None and step.family == kind
    obs = torch.cat([seen["policy"], seen["command"]], dim=-1).numpy()
    stepped = np.stack([o["action"] for o in rolled(step, [{"obs": row[None]} for row in obs])])
    reference = answers(policy, seen)
    np.testing.assert_allclose(stepped, reference, atol=1e-5)
    assert reference.std() > 0.05
    without_reset = rolled(step, [{"obs": row[None]} for row in obs[1:]])
    assert np.abs(without_reset[RESET - 1]["action"] - reference[RESET]).max() > 1e-3


RSL_RL = """
import torch
from rsl_rl.models import RNNModel
from tensordict import TensorDict

def policy():
    torch.manual_seed(0)
    obs = TensorDict({"policy": torch.zeros(1, 235)}, batch_size=[1])
    return RNNModel(obs, {"actor": ["policy"]}, "actor", 12, (128, 64), "elu", True, {
        "class_name": "rsl_rl.modules.distribution:GaussianDistribution"}, "lstm", 256, 1)

def actor():
    actor = policy()
    actor.train().update_normalization(TensorDict({"policy": 1 + torch.randn(64, 235)}, [64]))
    return actor.eval()
"""


def exported(folder: Path, source: str, factory: str, *options: str) -> tuple[Path, object]:
    """What `stategate export FILE:FACTORY` makes, and what the factory gives."""
    file = folder / "mine.py"
    file.write_text(source)
    arguments = ["export", f"{file}:{factory}", "--steps", "50", "--out", str(folder / "b")]
    result = CliRunner().invoke(main, [*arguments, *options])
    assert result.exit_code == 0, result.output
    return folder / "b", runpy.run_path(str(file))[factory]()


@pytest.mark.slow
def test_a_factory_that_returns_an_rsl_rl_actor_is_exported_as_it_is(tmp_path: Path) -> None:
    bundle, policy = exported(tmp_path, RSL_RL, "actor")
    obs = 2.0 * torch.randn(STEPS, 235, generator=torch.Generator().manual_seed(5))
    reference = answers(policy, TensorDict({"policy": obs}, [STEPS]))
    with Session.open(bundle) as session:
        for t in range(STEPS):
            if t == RESET:
                session.reset()
            stepped = session.step(obs=obs[t : t + 1].numpy())["action"]
            np.testing.assert_allclose(stepped, reference[t], atol=1e-5)


@pytest.mark.slow
def test_two_robots_with_one_actor_share_a_graph(tmp_path: Path) -> None:
    bundle, policy = exported(tmp_path, RSL_RL, "actor", "--sessions", "2")
    obs = torch.randn(STEPS, 2, 235, generator=torch.Generator().manual_seed(6))
    policy.reset()
    with Pool.open(bundle) as pool, torch.no_grad():
        left, right = pool.join(), pool.join()
        for t in range(STEPS):
            if t == RESET:
                pool.reset(right)
                policy.reset(torch.tensor([0, 1]))
            stepped = pool.step(obs=obs[t].numpy())["action"]
            reference = policy(TensorDict({"policy": obs[t]}, [2])).numpy()
            np.testing.assert_allclose(stepped[[left, right]], reference, atol=1e-5)


class Memory(nn.Module):
    """Where versions 2 and 3 kept their recurrent unit."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(inputs, 8)


class ActorCriticRecurrent(nn.Module):
    """The parts of it that have names to be found by; version 2 has no normaliser."""

    def __init__(self, rows: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.memory_a, self.memory_c = Memory(5), Memory(7)
        self.actor: nn.Module = nn.Linear(8, 2 * rows)
        self.state_dependent_std = rows == 2
        if self.state_dependent_std:
            self.actor = nn.Sequential(self.actor, nn.Unflatten(-1, (2, 2)))
        self.distribution = None

    @torch.no_grad()
    def act_inference(self, seen: torch.Tensor) -> torch.Tensor:
        """A whole sequence at once, ``(time, 5)``."""
        y = self.actor(self.memory_a.rnn(seen[:, None])[0][:, 0])
        return y[..., 0, :] if self.state_dependent_std else y


@pytest.mark.parametrize("rows", [1, 2])
def test_policies_of_older_rsl_rl_are_known_by_their_parts(rows: int) -> None:
    policy, seen = ActorCriticRecurrent(rows), torch.randn(RESET, 5)
    normalizer = nn.BatchNorm1d(5, affine=False)
    normalizer(3.0 * seen + 1.0)
    step = from_rsl_rl(policy, normalizer)
    stepped = [o["action"][0] for o in rolled(step, [{"obs": row[None]} for row in seen.numpy()])]
    reference = policy.act_inference(normalizer.eval()(seen))
    np.testing.assert_allclose(np.stack(stepped), reference, atol=1e-6)
    policy.actor_obs_normalizer = normalizer  # since version 3
    found = adapted(policy)
    assert found is not None
    again = [o["action"][0] for o in rolled(found, [{"obs": row[None]} for row in seen.numpy()])]
    np.testing.assert_array_equal(np.stack(stepped), np.stack(again))


def test_a_normaliser_that_is_elsewhere_has_to_be_said() -> None:
    with pytest.raises(TraceError, match=r"normalizer=runner.obs_normalizer[\s\S]*Identity"):
        adapted(ActorCriticRecurrent())
    with pytest.raises(TraceError, match="no recurrent policy of rsl_rl"):
        from_rsl_rl(nn.Linear(1, 1))


def test_a_policy_without_a_recurrent_unit_is_not_recognised() -> None:
    seen = seen_by_a_robot(1, 0)
    assert adapted(MLPModel(seen, {"actor": ["policy"]}, "actor", 12)) is None
    assert adapted(nn.LSTM(3, 4)) is None and adapted(object()) is None


# --- stable-baselines3 ----------------------------------------------------------------------------


def learner(env: object, policy: str = "MlpLstmPolicy", **options: object) -> RecurrentPPO:
    sde = bool(options.pop("use_sde", False))
    model = RecurrentPPO(
        policy, env, seed=0, device="cpu", n_steps=8, use_sde=sde, policy_kwargs=options
    )
    for parameter in model.policy.action_net.parameters():  # fresh heads answer near nothing
        parameter.data.mul_(40.0)
    return model


def predictions(model: RecurrentPPO, seen: list) -> np.ndarray:
    """What the package's own ``predict`` gives, a new episode beginning at RESET."""
    memory, actions = None, []
    for t, observation in enumerate(seen):
        action, memory = model.predict(
            observation, state=memory, episode_start=np.array([t in (0, RESET)]), deterministic=True
        )
        actions.append(action)
    return np.stack(actions)


SB3 = """
from sb3_contrib import RecurrentPPO
from stategate.models import from_sb3
from torch.nn import Identity

def model(env="Pendulum-v1"):
    model = RecurrentPPO("MlpLstmPolicy", env, seed=0, device="cpu", n_steps=8)
    model.policy.action_net.weight.data.mul_(200.0)
    model.policy.action_net.bias.data.fill_(1.98)
    return model

def policy():
    return from_sb3(model("CartPole-v1").policy, normalizer=Identity())
"""


@pytest.mark.slow
@pytest.mark.corners("policy-CartPole-v1-int64")
@pytest.mark.parametrize(
    ("factory", "env", "dtype"),
    [("model", "Pendulum-v1", "float32"), ("policy", "CartPole-v1", "int64")],
)
def test_a_factory_that_returns_a_recurrent_ppo_is_exported_as_it_is(
    tmp_path: Path, factory: str, env: str, dtype: str
) -> None:
    bundle, _ = exported(tmp_path, SB3, factory)
    model = runpy.run_path(str(tmp_path / "mine.py"))["model"](env)
    seen = recorded(env)
    reference = predictions(model, list(seen))
    assert len(np.unique(reference)) > 1
    assert env != "Pendulum-v1" or reference.max() == 2.0 > reference.min()  # clipped
    with Session.open(bundle) as session:
        assert session.manifest.outputs[0].dtype == dtype
        for t, observation in enumerate(seen):
            if t == RESET:
                session.reset()
            stepped = session.step(obs=observation[None].astype(np.float32))["action"]
            np.testing.assert_allclose(stepped[0], reference[t], atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"enable_critic_lstm": False},
        {"enable_critic_lstm": False, "shared_lstm": True, "n_lstm_layers": 2},
        {"share_features_extractor": False, "lstm_hidden_size": 32},
    ],
    ids=["no critic lstm", "shared lstm", "features of its own"],
)
def test_only_the_actors_lstm_counts(options: dict) -> None:
    model, seen = learner("Pendulum-v1", **options), recorded("Pendulum-v1")
    step = from_sb3(model)
    shape = model.policy.lstm_hidden_state_shape
    assert [s.shape for s in step.step_spec().states] == [(1, shape[0], shape[2])] * 2
    stepped = [o["action"][0] for o in rolled(step, [{"obs": row[None]} for row in seen])]
    np.testing.assert_allclose(np.stack(stepped), predictions(model, list(seen)), atol=1e-5)


class Stub(gymnasium.Env):
    """Spaces, and nothing that happens in them."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, **_):
        return self.observation_space.sample(), {}

    def step(self, _):
        return self.observation_space.sample(), 0.0, False, False, {}


BOX = spaces.Box(-1.0, 1.0, (5,))
IMAGE = spaces.Box(0, 255, (3, 36, 36), np.uint8)
ARM = spaces.Box(np.float32([-1.0, -20.0]), np.float32([3.0, 40.0]))


@pytest.mark.parametrize(
    ("observations", "actions", "policy", "options"),
    [
        (BOX, spaces.MultiDiscrete([3, 4]), "MlpLstmPolicy", {}),
        (BOX, spaces.MultiBinary(4), "MlpLstmPolicy", {}),
        (BOX, ARM, "MlpLstmPolicy", {"use_sde": True, "squash_output": True}),
        (spaces.Discrete(7), spaces.Discrete(3), "MlpLstmPolicy", {}),
        (spaces.Dict({"arm": BOX, "hand": spaces.Discrete(3)}), ARM, "MultiInputLstmPolicy", {}),
        (IMAGE, spaces.Discrete(3), "CnnLstmPolicy", {"share_features_extractor": False}),
    ],
)
def test_every_space_is_answered_as_predict_does(observations, actions, policy, options) -> None:
    model = learner(Stub(observations, actions), policy, lstm_hidden_size=16, **options)
    observations.seed(3)
    seen = [observations.sample() for _ in range(STEPS)]
    given = [
        {n: np.asarray(a)[None] for n, a in (s if isinstance(s, dict) else {"obs": s}).items()}
        for s in seen
    ]
    stepped = np.stack([o["action"][0] for o in rolled(from_sb3(model), given)])
    reference = predictions(model, seen)
    np.testing.assert_allclose(stepped, reference.reshape(stepped.shape), atol=1e-4)
    assert len(np.unique(reference)) > 1


def test_statistics_that_the_policy_was_trained_behind_are_not_forgotten() -> None:
    env = VecNormalize(DummyVecEnv([lambda: gymnasium.make("Pendulum-v1")]), clip_obs=0.5)
    seen = recorded("Pendulum-v1")
    env.obs_rms.update(seen)
    model, statistics = learner(env), copy.deepcopy(env.obs_rms)
    with pytest.raises(TraceError, match=r"normalizer=model.get_vec_normalize_env\(\)"):
        adapted(model)
    measured = rolled(from_sb3(model, normalizer=env), [{"obs": row[None]} for row in seen])
    contract = from_sb3(model, normalizer=env).observes
    assert contract is not None and contract.inputs["obs"].normaliser == "in-graph"
    assert contract.outputs["action"].terms[0].clip == (-2.0, 2.0)
    env.obs_rms.update(seen + 1.0)
    other = from_sb3(model, normalizer=env).observes
    assert other is not None and other.inputs["obs"] != contract.inputs["obs"]
    env.obs_rms = copy.deepcopy(statistics)
    normal = env.normalize_obs(seen)
    reference = predictions(model, list(normal))
    np.testing.assert_allclose(np.stack([o["action"][0] for o in measured]), reference, atol=1e-4)
    as_given = from_sb3(model, normalizer=nn.Identity())
    given = rolled(as_given, [{"obs": row[None]} for row in normal])
    np.testing.assert_allclose(np.stack([o["action"][0] for o in given]), reference, atol=1e-5)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[RecurrentPPO, VecNormalize, Path]:
    """A policy that was trained behind a normaliser, loaded without its environment."""
    env = VecNormalize(DummyVecEnv([lambda: gymnasium.make("Pendulum-v1")]))
    env.obs_rms.update(5.0 + recorded("Pendulum-v1"))
    learner(env).save(tmp_path / "model.zip")
    env.save(str(tmp_path / "normalizer.pkl"))
    return RecurrentPPO.load(tmp_path / "model.zip", device="cpu"), env, tmp_path


@pytest.mark.case("D1")
def test_a_loaded_policy_does_not_lose_its_normaliser_in_silence(saved: tuple) -> None:
    model, env, folder = saved
    for normalizer in (None, model.get_vec_normalize_env()):
        with pytest.raises(TraceError, match="nothing says whether the observations"):
            from_sb3(model, normalizer=normalizer)
    for made in (model, model.policy):  # a factory with a plain `return model`
        with pytest.raises(TraceError, match="VecNormalize.save"):
            adapted(made)
    seen = recorded("Pendulum-v1")
    reference = predictions(model, list(env.normalize_obs(seen)))
    for normalizer in (env, folder / "normalizer.pkl", str(folder / "normalizer.pkl")):
        step = from_sb3(model, normalizer=normalizer)
        assert step.observations == "normalised in the graph"
        stepped = rolled(step, [{"obs": row[None]} for row in seen])
        np.testing.assert_allclose(
            np.stack([o["action"][0] for o in stepped]), reference, atol=1e-4
        )
    assert from_sb3(model, normalizer=nn.Identity()).observations == "as given"


def test_a_normaliser_of_rewards_alone_leaves_observations_as_they_are() -> None:
    env = VecNormalize(DummyVecEnv([lambda: gymnasium.make("Pendulum-v1")]), norm_obs=False)
    model, seen = learner(env), recorded("Pendulum-v1")
    for step in (from_sb3(model), from_sb3(model.policy, normalizer=env)):
        assert step.observations == "as given"
        stepped = rolled(step, [{"obs": row[None]} for row in seen])
        reference = predictions(model, list(seen))
        np.testing.assert_allclose(
            np.stack([o["action"][0] for o in stepped]), reference, atol=1e-5
        )


def test_a_dict_of_observations_is_normalised_by_the_keys_that_its_normaliser_has() -> None:
    both = spaces.Dict({"arm": BOX, "mast": spaces.Box(9e3, 11e3, (2,))})
    env = VecNormalize(DummyVecEnv([lambda: Stub(both, ARM)]), norm_obs_keys=["mast"], clip_obs=2.0)
    both.seed(4)
    seen = [both.sample() for _ in range(STEPS)]
    # A mean that float32 cannot hold, and a spread that is small beside it.
    env.obs_rms["mast"].update(10_000.0003 + 0.01 * np.random.default_rng(0).normal(size=(64, 2)))
    for observation in seen:
        observation["mast"] = np.float32(10_000 + 0.02 * (observation["mast"] - 10_000) / 1_000)
    model = learner(env, "MultiInputLstmPolicy", lstm_hidden_size=16)
    step = from_sb3(model, normalizer=env)
    stepped = rolled(step, [{n: a[None] for n, a in s.items()} for s in seen])
    reference = predictions(model, [env.normalize_obs(s) for s in seen])
    np.testing.assert_allclose(np.stack([o["action"][0] for o in stepped]), reference, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("keys", [["arm"], ["arm", "camera"]])
def test_pictures_with_channels_last_go_in_as_the_policy_sees_them(keys: list[str]) -> None:
    camera = spaces.Box(0, 255, (36, 36, 3), np.uint8)
    both = spaces.Dict({"camera": camera, "arm": BOX})
    env = VecNormalize(DummyVecEnv([lambda: Stub(both, ARM)]), norm_obs_keys=keys)
    both.seed(5)
    pictures = [both.sample() for _ in range(STEPS)]
    for name in keys:
        env.obs_rms[name].update(np.stack([p[name] for p in pictures[:32]]).astype(float))
    model = learner(env, "MultiInputLstmPolicy", lstm_hidden_size=16)
    step = from_sb3(model, normalizer=env)
    # Bytes are turned by the package; what is normalised is no picture to it any more.
    turn = (0, 1, 2) if "camera" in keys else (2, 0, 1)
    inputs = [
        {"arm": p["arm"][None], "camera": p["camera"].transpose(turn)[None]} for p in pictures
    ]
    reference = predictions(model, [env.normalize_obs(p) for p in pictures])
    stepped = rolled(step, inputs)
    np.testing.assert_allclose(np.stack([o["action"][0] for o in stepped]), reference, atol=1e-4)


def test_a_normaliser_that_is_none_or_anothers_is_refused(saved: tuple) -> None:
    model, _, folder = saved
    (folder / "notes.txt").write_text("mean 0")
    with pytest.raises(TraceError, match="cannot be read"):
        from_sb3(model, normalizer=folder / "notes.txt")
    with pytest.raises(TraceError, match="no normaliser of stable-baselines3"):
        from_sb3(model, normalizer={"mean": 0.0})
    other = VecNormalize(DummyVecEnv([lambda: gymnasium.make("CartPole-v1")]))
    with pytest.raises(TraceError, match="other observations than the policy's"):
        from_sb3(model, normalizer=other)


@pytest.mark.slow
@pytest.mark.case("D1")
def test_export_and_inspect_say_whether_observations_are_normalised(tmp_path: Path) -> None:
    for factory, said in (("actor", "normalised in the graph"), ("plain", "as given")):
        folder = tmp_path / factory
        folder.mkdir()
        source = f"{RSL_RL}\ndef plain():\n    made = actor()\n"
        source += "    made.obs_normalizer = torch.nn.Identity()\n    return made\n"
        bundle, _ = exported(folder, source, factory)
        shown = CliRunner().invoke(main, ["inspect", str(bundle)])
        assert f"observations: {said}" in shown.output
        contract = Bundle.open(bundle).manifest.observation
        assert contract is not None
        obs = contract.inputs["obs"]
        in_graph = factory == "actor"
        assert obs.normaliser == ("in-graph" if in_graph else "as-given")
        assert bool(obs.statistics_sha256) == in_graph and len(obs.elements()) == 235


def test_what_no_step_can_take_is_refused() -> None:
    with pytest.raises(TraceError, match="no recurrent policy of stable-baselines3"):
        from_sb3(nn.Linear(1, 1))
    named_like_memory = Stub(spaces.Dict({"h": BOX}), ARM)
    with pytest.raises(TraceError, match="'h' cannot be an input"):
        from_sb3(learner(named_like_memory, "MultiInputLstmPolicy", lstm_hidden_size=8))
