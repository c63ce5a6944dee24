"""A stack of delta layers that steps: Gated DeltaNet, KDA or Gated DeltaNet-2 by its config."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from stategate.contract import StepSpec
from stategate.models.memories.delta.cell import CHUNK
from stategate.models.memories.delta.config import DeltaStackConfig
from stategate.models.memories.delta.layer import DeltaLayer
from stategate.models.memories.matrix import Ring
from stategate.models.operators import Operators
from stategate.models.step import StepResult, Tensors


class DeltaStack(nn.Module):
    """Linear in, ``layers`` blocks of [norm, delta layer, norm, SwiGLU] with residuals, linear out.

    Attributes:
        family: Which member of the delta family.
        kv_bytes_per_step: What float32 key-value caches of the same widths would grow by a step.
        chunk_steps: Steps that `chunk` takes at once; 0 where the write gate looks at the update,
            which is not known before the step.
    """

    def __init__(self, config: DeltaStackConfig) -> None:
        super().__init__()
        self.config = config
        layer = config.layer
        self.family = layer.family
        per_layer = layer.heads * layer.key_dim + layer.value_heads * layer.value_dim
        self.kv_bytes_per_step = 4 * config.layers * per_layer
        self.chunk_steps = CHUNK if layer.skip_by == "gate" else 0
        self.encode = nn.Linear(config.features, layer.width)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(layer.width, eps=layer.norm_eps)
        self.head = nn.Linear(layer.width, config.out_features)

    @property
    def operators(self) -> Operators:
        """Operators that the step is traced with."""
        block: _Block = self.blocks[0]  # type: ignore[assignment]
        return block.delta.operators

    @operators.setter
    def operators(self, operators: Operators) -> None:
        for block in self.blocks:
            block.delta.operators = operators  # type: ignore[union-attr]

    def step_spec(self) -> StepSpec:
        """Signature of one step; see `DeltaStackConfig.step_spec`."""
        return self.config.step_spec()

    def rings(self) -> tuple[Ring, ...]:
        """One for the matrix of each layer; see `stategate.models.deferral`."""
        return tuple(self.config.layer.ring(f"layers.{i}.") for i in range(self.config.layers))

    def step(self, inputs: Tensors, states: Tensors) -> StepResult:
        """One observation ``(rows, features)``; a closed head keeps its matrix bit for bit."""
        return self._run(inputs["x"], inputs["threshold"], states, None)

    def chunk(self, inputs: Tensors, states: Tensors, valid: Tensor) -> StepResult:
        """Several observations ``(rows, time, features)``; outputs and gates have that time axis.

        Args:
            inputs: As for `step`, with a time axis behind the rows; thresholds have none.
            states: As for `step`.
            valid: ``(rows, time)`` bool, true up to the last observation that is meant.
        """
        return self._run(inputs["x"], inputs["threshold"], states, valid)

    def _run(
        self, x: Tensor, threshold: Tensor, states: Tensors, valid: Tensor | None
    ) -> StepResult:
        hidden = self.encode(x)
        after: dict[str, Tensor] = {}
        gates = []
        for i, block in enumerate(self.blocks):
            names = [state.name for state in self.config.layer.states(f"layers.{i}.")]
            before = tuple(states[name] for name in names)
            hidden, following, gate = block(hidden, before, threshold, valid)
            after.update(zip(names, following, strict=True))
            gates.append(gate)
        y = self.head(self.norm(hidden))
        return StepResult({"y": y}, after, {"write": torch.stack(gates, dim=-2)})


class _Block(nn.Module):
    def __init__(self, config: DeltaStackConfig) -> None:
        super().__init__()
        width, eps = config.layer.width, config.layer.norm_eps
        self.norm = nn.RMSNorm(width, eps=eps)
        self.delta = DeltaLayer(config.layer)
        self.mlp: nn.ModuleDict | None = None
        if config.mlp is not None:
            self.mlp = nn.ModuleDict(
                {
                    "norm": nn.RMSNorm(width, eps=eps),
                    "up": nn.Linear(width, 2 * config.mlp, bias=False),
                    "down": nn.Linear(config.mlp, width, bias=False),
                }
            )

    def forward(
        self,
        x: Tensor,
        states: tuple[Tensor, Tensor, Tensor],
        threshold: Tensor,
        valid: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor], Tensor]:
        normed = self.norm(x)
        if valid is None:
            mixed, after, gate = self.delta.step(normed, states, threshold)
        else:
            mixed, after, gate = self.delta.chunk(normed, states, threshold, valid)
        x = x + mixed
        if self.mlp is not None:
            gated, up = self.mlp["up"](self.mlp["norm"](x)).chunk(2, dim=-1)
            x = x + self.mlp["down"](silu(gated) * up)
        return x, after, gate
