"""Recurrent networks of rl_games beside its own players."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from stategate.contract.errors import TraceError
from stategate.models import from_rl_games
from stategate.models.lifting.adapters import adapted

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    # The package runs its normalisers as TorchScript.
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
]

ARM = spaces.Box(np.float32([-1.0, -2.0, 0.0]), np.float32([3.0, 4.0, 0.5]))
OBSERVATIONS = spaces.Box(-10.0, 10.0, (7,))
DEFAULT = {"name": "default"}
CONTINUOUS = {
    "mu_activation": "None",
    "sigma_activation": "None",
    "mu_init": DEFAULT,
    "sigma_init": {"name": "const_initializer", "val": 0},
    "fixed_sigma": True,
}


def player_of(
    rnn: dict | None,
    actions: spaces.Space = ARM,
    observations: spaces.Space = OBSERVATIONS,
    *,
    network: dict | None = None,
    **config: Any,
) -> Any:
    """A player with fresh weights, its normaliser trained."""
    from rl_games.torch_runner import Runner

    kind = {"Box": "continuous", "Discrete": "discrete", "Tuple": "multi_discrete"}
    kind = kind[type(actions).__name__]
    model = {"continuous": "continuous_a2c_logstd"}.get(kind, f"{kind}_a2c")
    params = {
        "seed": 0,
        "torch_threads": 1,
        "algo": {"name": f"a2c_{kind.removeprefix('multi_')}"},
        "model": {"name": model},
        "network": {
            "name": "actor_critic",
            "separate": False,
            "space": {kind: CONTINUOUS if kind == "continuous" else {}},
            "mlp": {"units": [32, 24], "activation": "elu", "initializer": DEFAULT},
            **({"rnn": {"layers": 1, "units": 16, **rnn}} if rnn else {}),
            **(network or {}),
        },
        "config": {
            "name": "test",
            "env_name": "none",
            "env_info": {"action_space": actions, "observation_space": observations},
            "device_name": "cpu",
            "normalize_input": True,
            "reward_shaper": {},
            **config,
        },
    }
    torch.manual_seed(0)
    runner = Runner()
    runner.load({"params": params})
    player = runner.create_player()
    player.has_batch_dimension = True
    model = player.model
    for head in ("mu", "logits"):  # fresh heads answer near nothing
        for parameter in getattr(getattr(model.a2c_network, head, None), "parameters", list)():
            parameter.data.mul_(12.0)
    if kind == "continuous":
        model.a2c_network.mu.bias.data[0] = 1.0  # at the limit, so that clipping shows
    if model.normalize_input and isinstance(model.obs_shape, tuple):
        model.train()
        model.norm_obs(3.0 * torch.rand(64, *model.obs_shape) + 1.0)
        model.eval()
    return player


def answers_of(player: Any) -> Callable[[dict, bool], np.ndarray]:
    def answer(observation: dict, begins: bool) -> np.ndarray:
        if begins:
            player.reset()
        obs = {name: torch.from_numpy(array) for name, array in observation.items()}
        return player.get_action(obs.get("obs", obs), is_deterministic=True).numpy()

    return answer


@pytest.mark.parametrize(
    ("rnn", "network", "config"),
    [
        ({"name": "lstm", "layers": 2}, {}, {}),
        ({"name": "gru", "before_mlp": True, "layer_norm": True}, {}, {"clip_actions": False}),
        ({"name": "lstm", "concat_input": True, "concat_output": True}, {"separate": True}, {}),
        (
            {"name": "gru", "before_mlp": True, "concat_output": True},
            {"separate": True, "mlp": {"units": [24], "activation": "elu", "initializer": DEFAULT}},
            {"normalize_input": False},
        ),
    ],
    ids=[
        "lstm",
        "before the mlp, layer norm",
        "separate critic, concatenated",
        "gru, concatenated",
    ],
)
def test_a_player_of_rl_games_is_answered_as_it_plays(
    agrees: Callable, noise: Callable, rnn: dict, network: dict, config: dict
) -> None:
    player = player_of(rnn, network=network, **config)
    step = adapted(player)
    outputs = agrees(step, noise(obs=(7,)), answers_of(player), bundle=rnn["name"] == "lstm")
    assert step.family == rnn["name"]
    normalised = config.get("normalize_input", True)
    assert step.observations == ("normalised in the graph" if normalised else "as given")
    # The memory of a separate critic is not carried.
    assert len(step.step_spec().states) == (2 if rnn["name"] == "lstm" else 1)
    if config.get("clip_actions", True):
        highest = np.max([output["action"][0] for output in outputs], axis=0)
        assert (highest <= ARM.high).all() and (highest == ARM.high).any()


@pytest.mark.parametrize(
    "actions", [spaces.Discrete(5), spaces.Tuple((spaces.Discrete(3), spaces.Discrete(4)))]
)
def test_discrete_players_give_the_likeliest_choice_and_logits(
    agrees: Callable, noise: Callable, actions: spaces.Space
) -> None:
    player = player_of({"name": "lstm"}, actions)
    many = isinstance(actions, spaces.Tuple)
    outputs = agrees(adapted(player), noise(obs=(7,)), answers_of(player), bundle=many)
    assert outputs[0]["logits"].shape == (1, 7 if many else 5)


def test_pictures_of_bytes_are_scaled_as_the_player_does(agrees: Callable) -> None:
    picture = spaces.Box(0, 255, (3, 24, 24), np.uint8)
    conv = {"filters": 4, "kernel_size": 5, "strides": 3, "padding": 0}
    cnn = {"type": "conv2d", "activation": "elu", "initializer": DEFAULT, "convs": [conv]}
    player = player_of(
        {"name": "gru"}, observations=picture, network={"cnn": {**cnn, "permute_input": False}}
    )
    generator = np.random.default_rng(0)
    pictures = [{"obs": generator.integers(0, 256, (1, 3, 24, 24), np.uint8)} for _ in range(200)]
    agrees(adapted(player), pictures, answers_of(player))


def test_a_model_without_its_player_has_to_say_how_actions_are_scaled(
    agrees: Callable, noise: Callable
) -> None:
    player = player_of({"name": "lstm"})
    with pytest.raises(TraceError, match=r"from_rl_games\(model, action_space=env.action_space\)"):
        adapted(player.model)
    step = from_rl_games(player.model, action_space=ARM)
    agrees(step, noise(obs=(7,)), answers_of(player))
    player.clip_actions = False
    step = from_rl_games(player.model, action_space=nn.Identity())
    agrees(step, noise(obs=(7,)), answers_of(player))


def test_what_is_no_recurrent_player_of_rl_games_is_refused() -> None:
    with pytest.raises(TraceError, match=r"no recurrent unit[\s\S]*params.network"):
        adapted(player_of(None))
    with pytest.raises(TraceError, match="no player of rl_games"):
        from_rl_games(nn.Linear(1, 1))
