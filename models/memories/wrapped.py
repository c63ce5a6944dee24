"""A frozen backbone with AURA-Mem behind its features: what `stategate.wrap` trains and exports."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stategate.contract import StepSpec, TensorSpec
from stategate.models.memories.aura import AuraMem, Projections
from stategate.models.step import StepResult, Tensors

FEATURES, ACTION = "features", "action"
_WIDEST = 128
"""Features that the memory takes as they are; more are reduced to as many by a linear map."""


class RememberingPolicy(nn.Module):
    """Observations in, an action out, and a memory of 4,224 bytes between steps.

    The backbone is not trained. Mean and spread of its features belong to the memory, and so do
    those of continuous actions, which the memory answers in units of their spread.

    Args:
        features: Numbers that the backbone gives.
        actions: Classes, or numbers of a continuous action.
        threshold: Of the write gate.

    Attributes:
        family: Kind of memory.
        kv_bytes_per_step: See `AuraMem`.
    """

    family = "aura"

    def __init__(
        self,
        features: int,
        actions: int,
        threshold: float = 0.0,
    ) -> None:
        super().__init__()
        self.inputs: tuple[TensorSpec, ...] = (TensorSpec(FEATURES, (1, features)),)
        self.backbone: nn.Module | None = None
        self.carries: object = None  # a backbone that travels beside the step, see export/backbone
        self.reduce = nn.Linear(features, _WIDEST) if features > _WIDEST else nn.Identity()
        self.memory = AuraMem(min(features, _WIDEST), actions=actions, threshold=threshold)
        self.kv_bytes_per_step = self.memory.kv_bytes_per_step
        self.mean: Tensor
        self.scale: Tensor
        self.action_mean: Tensor
        self.action_scale: Tensor
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.register_buffer("action_mean", torch.zeros(actions))
        self.register_buffer("action_scale", torch.ones(actions))

    def behind(self, backbone: nn.Module, inputs: Sequence[TensorSpec]) -> None:
        """Put a frozen backbone into the step, whose inputs are then observations.

        Args:
            backbone: Takes ``inputs`` by position.
            inputs: Each with a leading axis of 1.
        """
        self.backbone, self.inputs = backbone, tuple(inputs)

    def step_spec(self) -> StepSpec:
        """Signature of one step."""
        memory = self.memory.step_spec()
        return StepSpec(self.inputs, memory.outputs, memory.states, memory.gates)

    def project(self, features: Tensor) -> Projections:
        """What needs no memory, from features ``(..., features)`` as the backbone gives them."""
        return self.memory.project(self.standardised(features))

    def standardised(self, features: Tensor) -> Tensor:
        """Features ``(..., features)`` as the memory takes them."""
        z: Tensor = self.reduce((features - self.mean) * self.scale)
        return z

    def step(self, inputs: Tensors, states: Tensors) -> StepResult:
        """One observation; see `AuraMem.step`."""
        arguments = [inputs[tensor.name] for tensor in self.inputs]
        features = arguments[0] if self.backbone is None else self.backbone(*arguments)
        z = self.standardised(features.flatten(1).float())
        result = self.memory.step({"z": z, "threshold": inputs["threshold"]}, states)
        action = result.outputs[ACTION] * self.action_scale + self.action_mean
        return StepResult({ACTION: action}, result.states, result.gates)
