"""The policies that are compared, each with a step to be exported and a roll to be trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from stategate.calibration.gates.scan import GateChooser, scan
from stategate.contract import StateSpec, StepSpec, TensorSpec
from stategate.contract.errors import SpecError
from stategate.models.memories.aura import AuraMem
from stategate.models.memories.recurrent.cell import RecurrentStep
from stategate.models.memories.stack import Stack, StackConfig
from stategate.models.step import StepResult, Tensors, initial_states
from stategate.models.zoo.makers import GDN2

_WIDTH = 64
# Gated DeltaNet (arXiv:2412.06464): two heads of 16 x 16, 2,048 bytes.
_DELTA = replace(GDN2, decay_gate="head", write_gate="scalar", output_gate="full")

Roll = Callable[[Tensor, GateChooser], tuple[Tensor, Tensor | None]]
"""From ``(time, rows, features)`` and, for gates that are drawn, how, to actions
``(time, rows, actions)`` and the chance of a write ``(time, rows)``; None where none is priced."""


Policy = Any
"""What is both a `StepModel` and an ``nn.Module``, which the type system cannot say."""


class TwoFrames(nn.Module):
    """No memory but the observation before this one: enough to see a velocity.

    Attributes:
        family: Kind of memory.
    """

    family = "frame_stack"

    def __init__(self, features: int, actions: int) -> None:
        super().__init__()
        self.features, self.actions = features, actions
        self.net = nn.Sequential(
            nn.Linear(2 * features, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(),
            nn.Linear(96, actions),
        )  # fmt: skip

    def step_spec(self) -> StepSpec:
        """Signature of one step."""
        return StepSpec(
            (TensorSpec("x", (1, self.features)),),
            (TensorSpec("y", (1, self.actions)),),
            (StateSpec("previous", (1, self.features)),),
        )

    def step(self, inputs: Tensors, states: Tensors) -> StepResult:
        """One observation ``(rows, features)``."""
        x = inputs["x"]
        y = self.net(torch.cat((x, states["previous"]), dim=-1))
        return StepResult({"y": y}, {"previous": x}, {})

    def roll(self, x: Tensor, _: GateChooser) -> tuple[Tensor, Tensor | None]:
        """See `Roll`."""
        before = torch.cat((torch.zeros_like(x[:1]), x[:-1]))
        y: Tensor = self.net(torch.cat((x, before), dim=-1))
        return y, None


class AuraPolicy(nn.Module):
    """AURA-Mem behind a linear map to the 64 features that it takes.

    Attributes:
        family: Kind of memory.
        kv_bytes_per_step: See `AuraMem`.
    """

    family = "aura"

    def __init__(self, features: int, actions: int, threshold: float) -> None:
        super().__init__()
        self.features = features
        self.memory = AuraMem(actions=actions, threshold=threshold)
        self.kv_bytes_per_step = self.memory.kv_bytes_per_step
        self.lift = nn.Linear(features, self.memory.d_model)

    def step_spec(self) -> StepSpec:
        """Signature of one step."""
        inner = self.memory.step_spec()
        inputs = (TensorSpec("x", (1, self.features)),)
        return StepSpec(inputs, inner.outputs, inner.states, inner.gates)

    def step(self, inputs: Tensors, states: Tensors) -> StepResult:
        """One observation ``(rows, features)``."""
        z = silu(self.lift(inputs["x"]))
        return self.memory.step({"z": z, "threshold": inputs["threshold"]}, states)

    def roll(self, x: Tensor, choose: GateChooser) -> tuple[Tensor, Tensor | None]:
        """See `Roll`."""
        p = self.memory.project(silu(self.lift(x)))
        rows = x.shape[1]
        S = x.new_zeros(rows, self.memory.d_key, self.memory.d_value)
        scanned = scan(self.memory, p, S, S[:, 0], choose)
        return self.memory.act(scanned.o, p.x), torch.sigmoid(scanned.logits).squeeze(-1)


def build(
    policy: str, features: int, actions: int, threshold: float | None = None
) -> tuple[Policy, Roll]:
    """A policy with fresh weights, and how it is rolled in training.

    Args:
        policy: One of `POLICIES`.
        features: Of an observation.
        actions: Numbers of an action.
        threshold: Of its write gate; None for what writes always: a gate of 0 or no hard gate.

    Raises:
        SpecError: There is no such policy, or it has no gate for a threshold.
    """
    if policy == "two-frames" and threshold is None:
        frames = TwoFrames(features, actions)
        return frames, frames.roll
    if policy == "gru":
        encoder = nn.Sequential(nn.Linear(features, _WIDTH), nn.SiLU())
        head = nn.Linear(_WIDTH, actions)
        gru = RecurrentStep(nn.GRU(_WIDTH, _WIDTH), head, encoder, threshold)
        return gru, lambda x, _: (head(gru.module(encoder(x))[0]), None)
    if policy in ("delta", "delta-cost"):
        config = StackConfig(features, actions, 1, _WIDTH, _DELTA, threshold or 0.0)
        stack = Stack(config)
        return stack, lambda x, _: _through_chunks(stack, x)
    if policy == "aura" or (policy == "aura-always" and threshold is None):
        # Its gate is a logit: far below all of them is always.
        aura = AuraPolicy(features, actions, -1e9 if threshold is None else threshold)
        return aura, aura.roll
    raise SpecError(
        "there is no such policy, or it has no gate for a threshold",
        found=f"{policy}, threshold {threshold}",
        expected=", ".join(POLICIES),
    )


def _through_chunks(stack: Stack, x: Tensor) -> tuple[Tensor, Tensor | None]:
    states: Tensors = initial_states(stack, x.shape[1])
    outputs, gates = [], []
    for part in torch.split(x.transpose(0, 1), stack.chunk_steps, dim=1):
        valid = torch.ones(part.shape[:2], dtype=torch.bool)
        result = stack.chunk({"x": part, "threshold": torch.zeros(1)}, states, valid)
        states = result.states
        outputs.append(result.outputs["y"])
        gates.append(result.gates["write"].mean((-2, -1)))
    return torch.cat(outputs, 1).transpose(0, 1), torch.cat(gates, 1).transpose(0, 1)


POLICIES = ("two-frames", "gru", "delta", "delta-cost", "aura", "aura-always")
