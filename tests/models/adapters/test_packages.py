"""Packages that need no adapter: `lift` takes their modules, held beside their own inference."""

from __future__ import annotations

import ast
import importlib.util
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import stategate
from stategate.models import lift

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

Noise = Callable[..., list[dict[str, np.ndarray]]]


def carrying(call: Callable[[Any, Any], tuple[torch.Tensor, Any]]) -> Callable:
    """Answers of a package whose memory is handed in, ``None`` where an episode begins."""
    memory = [None]

    def answer(observation: dict[str, np.ndarray], begins: bool) -> np.ndarray:
        inputs = {name: torch.from_numpy(array) for name, array in observation.items()}
        result, memory[0] = call(inputs, None if begins else memory[0])
        return result.numpy().copy()

    return answer


@pytest.mark.parametrize("kind", ["wired, with a memory cell", "of uneven time", "LTC"])
def test_networks_of_ncps_are_steps(kind: str, agrees: Callable, noise: Noise) -> None:
    from ncps.torch import LTC, CfC
    from ncps.wirings import AutoNCP

    torch.manual_seed(0)
    state: object = torch.zeros(1, 24)
    observations = noise(input=(1, 8))
    if kind == "LTC":
        net = LTC(8, AutoNCP(24, 2, seed=1))
    elif kind == "of uneven time":
        net = CfC(8, 24, proj_size=2)
        for t, observation in enumerate(observations):
            observation["timespans"] = np.full((1, 1), 0.1 + t % 7, np.float32)
    else:
        net, state = CfC(8, AutoNCP(24, 2, seed=1), mixed_memory=True), (state, state)
    example = {name: torch.zeros(array.shape) for name, array in observations[0].items()}
    step = lift(net, example, hidden={"hx": state}, outputs=["action"])
    own = carrying(lambda inputs, memory: net(inputs["input"], memory, inputs.get("timespans")))
    agrees(step, observations, own, bundle=True)


class Stack(nn.Module):
    """Blocks of xlstm with their memory in an attribute."""

    def __init__(self) -> None:
        from xlstm import mLSTMBlockConfig, mLSTMLayerConfig, xLSTMBlockStack, xLSTMBlockStackConfig

        super().__init__()
        torch.manual_seed(0)
        block = mLSTMBlockConfig(mLSTMLayerConfig(conv1d_kernel_size=4, num_heads=2))
        # Fewer places than steps: only the parallel form has a mask of this size.
        config = xLSTMBlockStackConfig(
            mlstm_block=block, num_blocks=2, embedding_dim=16, context_length=64
        )
        self.stack, self.memory = xLSTMBlockStack(config), {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, self.memory = self.stack.step(x, state=self.memory)
        return y


def test_blocks_of_xlstm_are_steps(agrees: Callable, noise: Noise) -> None:
    module, observations = Stack().eval(), noise(x=(1, 16))
    step = lift(module, {"x": torch.zeros(1, 1, 16)}, states=["memory"], outputs=["action"])
    stack = Stack().eval().stack
    own = carrying(lambda inputs, memory: stack.step(inputs["x"], state=memory))
    agrees(step, observations, own, bundle=True)


class Layer(nn.Module):
    """A layer around a recurrent form of fla-core, for any number of steps in one call."""

    def __init__(self, form: str, naive: ModuleType) -> None:
        super().__init__()
        torch.manual_seed(0)
        heads, head, self.form = 2, 8, form
        self.keys = 2 if form == "gated_delta_product" else 1  # written in one step
        self.shape = (1, -1, heads, head)
        self.delta = getattr(naive, NAIVE[form])
        self.q, self.kv = nn.Linear(16, heads * head), nn.Linear(16, self.keys * 2 * heads * head)
        decays = heads * head if form == "kda" else heads
        self.decay, self.beta = nn.Linear(16, decays), nn.Linear(16, self.keys * heads)
        self.out = nn.Linear(heads * head, 16)

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        q = nn.functional.normalize(self.q(x).view(self.shape), dim=-1)
        k, v = self.kv(x).view(1, -1, 2, *self.shape[2:]).unbind(2)
        k = nn.functional.normalize(k, dim=-1)
        g = nn.functional.logsigmoid(self.decay(x) + 2.0)
        g = g.view(self.shape) if self.form == "kda" else g
        beta = self.beta(x).view(1, -1, 2).sigmoid()
        begin = {"scale": 0.35, "initial_state": memory, "output_final_state": True}
        if self.keys > 1:
            begin["num_householder"] = self.keys
        y, memory = self.delta(q=q, k=k, v=v, g=g, beta=beta, **begin)
        return self.out(y.flatten(2)), memory


NAIVE = {
    "gated_delta_rule": "naive_recurrent_gated_delta_rule",
    "gated_delta_product": "naive_recurrent_gated_delta_product",
    "kda": "naive_recurrent_kda",
}


@pytest.mark.parametrize("form", NAIVE)
def test_recurrent_forms_of_fla_are_steps_that_equal_their_whole_sequence(
    form: str, fla_naive: Callable[[str], ModuleType], agrees: Callable, noise: Noise
) -> None:
    layer, observations = Layer(form, fla_naive(form)), noise(x=(1, 16))
    empty = torch.zeros(1, 2, 8, 8)
    step = lift(layer, {"x": torch.zeros(1, 1, 16)}, hidden={"memory": empty}, outputs=["action"])
    sequence = torch.from_numpy(np.concatenate([o["x"] for o in observations], 1))
    place, begin = 0, 0

    def own(observation: dict[str, np.ndarray], begins: bool) -> np.ndarray:
        nonlocal place, begin
        begin, place = place if begins else begin, place + 1
        # All of the episode in one call, as the package computes a sequence.
        return layer(sequence[:, begin:place], empty)[0][:, -1].numpy()

    agrees(step, observations, own, bundle=True)


class Network(nn.Module):
    """In place of ACT's transformer: a chunk of 10 actions, ``(1, 10, 3)``, first of a tuple."""

    def __init__(self, config: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 30))

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, None]:
        return self.layers(batch["observation.state"]).reshape(1, 10, 3), None


class Pretrained(nn.Module):
    """In place of the base class, which loads and saves."""

    def __init__(self, config: object) -> None:
        super().__init__()


def act_policy(coefficient: float | None) -> nn.Module:
    """LeRobot's own ``ACTPolicy``, around a small network.

    Its classes are taken out of their file: importing it needs torchvision and ten more packages.
    """
    package = importlib.util.find_spec("lerobot")
    assert package is not None and package.submodule_search_locations
    folder = Path(package.submodule_search_locations[0])
    tree = ast.parse((folder / "policies" / "act" / "modeling_act.py").read_text())
    names = {"ACTPolicy", "ACTTemporalEnsembler"}
    tree.body = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name in names]
    space = {"PreTrainedPolicy": Pretrained, "ACT": Network, "ACTConfig": object}
    space |= {"torch": torch, "Tensor": torch.Tensor, "deque": deque}
    exec(compile(tree, "modeling_act.py", "exec"), space)
    config = SimpleNamespace(
        validate_features=lambda: None,
        image_features={},
        chunk_size=10,
        n_action_steps=10,
        temporal_ensemble_coeff=coefficient,
    )
    return space["ACTPolicy"](config).eval()


class SelectAction(nn.Module):
    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.policy.select_action(batch)


@pytest.mark.parametrize(
    ("coefficient", "states"),
    [
        (
            0.01,
            ["temporal_ensembler.ensembled_actions", "temporal_ensembler.ensembled_actions_count"],
        ),
        (None, ["_action_queue"]),
    ],
)
def test_the_queue_and_the_ensemble_of_lerobots_act_are_states(
    coefficient: float | None, states: list[str], noise: Noise, tmp_path: Path
) -> None:
    step = lift(
        SelectAction(act_policy(coefficient)),
        {"batch": {"observation.state": torch.zeros(1, 6)}},
        states=[f"policy.{name}" for name in states],
        outputs=["action"],
    )
    bundle = stategate.make(step, tmp_path / "bundle", steps=50)
    own, (name,) = act_policy(coefficient), (i.name for i in bundle.manifest.inputs)
    with stategate.Session.open(bundle.path) as session:
        for t, observation in enumerate(noise(state=(6,))):
            if t in (0, 35, 36, 150):
                own.reset()
                session.reset()
            action = own.select_action(
                {"observation.state": torch.from_numpy(observation["state"])}
            )
            answer = session.step(**{name: observation["state"]})["action"]
            np.testing.assert_allclose(answer, action.numpy(), atol=1e-5)
