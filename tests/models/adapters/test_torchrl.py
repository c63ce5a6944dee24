"""Policies of torchrl's recurrent modules beside the package's own rollout of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stategate.contract.errors import TraceError
from stategate.models import from_torchrl
from stategate.models.lifting.adapters import adapted

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

H, C = ("next", "recurrent_state_h"), ("next", "recurrent_state_c")


def policy_of(cell: str, head: str = "tanh", *, encoder: bool = False, **options: Any) -> Any:
    """Encoder, recurrent unit, network, distribution: as torchrl's tutorial builds a policy."""
    from tensordict.nn import InteractionType, TensorDictModule, TensorDictSequential
    from torchrl import modules

    torch.manual_seed(0)
    unit = {"lstm": modules.LSTMModule, "gru": modules.GRUModule}[cell]
    key = "features" if encoder else "observation"
    parts = []
    if encoder:
        parts.append(TensorDictModule(nn.Linear(5, 8), ["observation"], [key]))
    parts.append(unit(8 if encoder else 5, 16, in_key=key, out_key="embed", **options))
    net = modules.MLP(in_features=16, out_features=6, num_cells=[32])
    for parameter in net.parameters():  # fresh heads answer near nothing
        parameter.data.mul_(5.0)
    if head == "plain":
        return TensorDictSequential(*parts, TensorDictModule(net, ["embed"], ["action"]))
    if head == "tanh":
        net = nn.Sequential(net, modules.NormalParamExtractor())
        parts.append(TensorDictModule(net, ["embed"], ["loc", "scale"]))
        limits = {"low": -2.0, "high": 2.0}
        kind, keys = modules.TanhNormal, ["loc", "scale"]
    else:
        parts.append(TensorDictModule(net, ["embed"], ["logits"]))
        limits, keys = {}, ["logits"]
        kind = {"index": torch.distributions.Categorical, "one hot": modules.OneHotCategorical}[
            head
        ]
    return modules.ProbabilisticActor(
        TensorDictSequential(*parts),
        in_keys=keys,
        distribution_class=kind,
        distribution_kwargs=limits,
        default_interaction_type=InteractionType.RANDOM,
    )


def answers_of(policy: Any, transform: Any = None) -> Callable[[dict, bool], np.ndarray]:
    """The policy on two environments, its memory carried from ``next`` as ``step_mdp`` does."""
    from tensordict import TensorDict
    from torchrl.envs.utils import ExplorationType, set_exploration_type

    memory: dict[str, torch.Tensor] = {}
    for part in policy.modules():
        if hasattr(part, "make_tensordict_primer"):
            specs = part.make_tensordict_primer().primers
            memory |= {k: spec.zero().expand(2, *spec.shape) for k, spec in specs.items()}

    def answer(observation: dict, begins: bool) -> np.ndarray:
        x = torch.from_numpy(observation["observation"])
        inputs = {"observation": torch.cat([x, 2.0 * x]), "is_init": torch.tensor([[begins], [0]])}
        inputs["is_init"] = inputs["is_init"].bool()
        td = TensorDict({**inputs, **memory}, batch_size=[2])
        td = td if transform is None else transform(td)
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            td = policy(td)
        memory.update({key: td["next", key] for key in memory})
        return td["action"][0].numpy()

    return answer


@pytest.mark.parametrize(
    ("cell", "head", "options"),
    [
        ("lstm", "tanh", {"num_layers": 2}),
        ("gru", "plain", {"encoder": True}),
        ("lstm", "index", {"python_based": True}),
        ("gru", "one hot", {}),
    ],
)
def test_a_policy_of_torchrl_answers_as_in_its_deterministic_mode(
    agrees: Callable, noise: Callable, cell: str, head: str, options: dict
) -> None:
    policy = policy_of(cell, head, **options)
    step = from_torchrl(policy, normalizer=nn.Identity())
    outputs = agrees(step, noise(observation=(5,)), answers_of(policy), bundle=head != "plain")
    assert step.family == cell and step.observations == "as given"
    assert [spec.name for spec in step.step_spec().inputs] == ["observation"]
    assert [spec.name for spec in step.step_spec().states] == ["h", "c"][
        : 2 if cell == "lstm" else 1
    ]
    assert ("logits" in outputs[0]) == (head in ("index", "one hot"))


@pytest.mark.parametrize("standard", [True, False])
def test_the_normalisers_of_an_environment_become_part_of_the_step(
    agrees: Callable, noise: Callable, standard: bool
) -> None:
    from torchrl.envs import Compose, DoubleToFloat, InitTracker, ObservationNorm

    policy = policy_of("lstm")
    with pytest.raises(TraceError, match=r"from_torchrl\(policy, normalizer=env\.transform\)"):
        adapted(policy)
    norm = ObservationNorm(
        loc=torch.arange(5.0),
        scale=torch.full((5,), 0.4),
        in_keys=["observation"],
        standard_normal=standard,
    )
    transform = Compose(DoubleToFloat(), norm, InitTracker())
    step = from_torchrl(policy, normalizer=transform)
    agrees(step, noise(observation=(5,)), answers_of(policy, norm), bundle=standard)
    assert step.observations == "normalised in the graph"


@pytest.mark.parametrize("counts", [False, True])
def test_an_environment_says_what_is_observed_and_how_it_is_normalised(
    agrees: Callable, noise: Callable, counts: bool
) -> None:
    from torchrl.envs import GymEnv, ObservationNorm, TransformedEnv, VecNormV2

    keys = {"in_keys": ["observation"]}
    norm = VecNormV2(**keys) if counts else ObservationNorm(0.5, 2.0, **keys)
    env = TransformedEnv(GymEnv("Pendulum-v1"), norm)
    env.rollout(30)
    policy = policy_of("gru", "plain")
    policy[0].gru = nn.GRU(3, 16, batch_first=True)
    step = from_torchrl(policy, env)
    assert step.step_spec().inputs[0].shape == (1, 3)
    as_in_the_package = norm
    if counts:
        norm.freeze()

        def as_in_the_package(td: Any) -> Any:
            return norm._step(td, td)

    agrees(step, noise(observation=(3,)), answers_of(policy, as_in_the_package))


def test_two_recurrent_units_keep_both_of_their_memories(agrees: Callable, noise: Callable) -> None:
    from tensordict.nn import TensorDictModule, TensorDictSequential
    from torchrl.modules import GRUModule

    torch.manual_seed(0)

    def unit(width: int, source: str, out: str, key: str) -> Any:
        return GRUModule(width, 16, in_keys=[source, key], out_keys=[out, ("next", key)])

    def both(first: str, second: str) -> Any:
        return TensorDictSequential(
            unit(5, "observation", "low", first),
            unit(16, "low", "high", second),
            TensorDictModule(head, ["high"], ["action"]),
        )

    head = nn.Linear(16, 2)
    policy = both("h_low", "h_high")
    step = from_torchrl(policy, normalizer=nn.Identity())
    assert [spec.name for spec in step.step_spec().states] == ["h_low", "h_high"]
    agrees(step, noise(observation=(5,)), answers_of(policy))
    with pytest.raises(TraceError, match=r"share one memory[\s\S]*in_keys="):
        from_torchrl(both("h", "h"), normalizer=nn.Identity())


def test_what_is_no_recurrent_policy_of_torchrl_is_refused_with_a_remedy() -> None:
    from tensordict.nn import TensorDictModule, TensorDictSequential
    from torchrl.envs import CatFrames, ObservationNorm
    from torchrl.modules import LSTMModule

    plain = TensorDictModule(nn.Linear(5, 2), ["observation"], ["action"])
    with pytest.raises(TraceError, match=r"no recurrent unit[\s\S]*LSTMModule or GRUModule"):
        adapted(plain)
    attending = TensorDictModule(nn.TransformerEncoderLayer(4, 2), ["observation"], ["action"])
    with pytest.raises(TraceError, match=r"attention in module\.self_attn"):
        adapted(attending)
    as_given = {"normalizer": nn.Identity()}
    with pytest.raises(TraceError, match="gives no action"):
        from_torchrl(LSTMModule(5, 8, in_key="observation", out_key="embed"), **as_given)
    frames = CatFrames(N=4, dim=-1, in_keys=["observation"])
    with pytest.raises(TraceError, match="CatFrames cannot be part of a step"):
        from_torchrl(policy_of("lstm"), normalizer=frames)
    unset = ObservationNorm(in_keys=["observation"])
    with pytest.raises(TraceError, match="has no statistics yet"):
        from_torchrl(policy_of("lstm"), normalizer=unset)
    folded = TensorDictModule(nn.Flatten(), ["pixels"], ["observation"])
    with pytest.raises(TraceError, match=r"'pixels' looks like[\s\S]*example="):
        from_torchrl(TensorDictSequential(folded, policy_of("lstm", "plain")), **as_given)
