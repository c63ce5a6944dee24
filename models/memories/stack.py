"""A stack of memory layers that steps; its configuration says of which family they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from stategate.contract import GateSpec, StateSpec, StepSpec, TensorSpec
from stategate.models.configuration import Configuration, Rule
from stategate.models.memories.matrix import Ring
from stategate.models.operators import Operators
from stategate.models.step import StepResult, Tensors

States = tuple[Any, ...]
"""The states of a layer, in the order of `LayerConfig.states`."""
Stepped = tuple[Tensor, States, Tensor]
"""Output ``(rows, width)``, next states, gate ``(rows, gates)``; of a chunk with a time axis."""


class LayerConfig(Configuration):
    """What a stack asks of the configuration of its layers; each family has its own.

    Attributes:
        kind: Kind of memory, where a family has one name.
        part: Name of the layer in its block, and so in names of weights.
        granularity: What one number of the gate guards.
        divided: Whether heads are parts of the width.
        width: Features of the layer's input and output.
        norm_eps: Of the norms around it.
        heads: How many, each with a gate of its own unless `gates` says otherwise.
    """

    __slots__ = ()
    kind: ClassVar[str] = ""
    part: ClassVar[str] = "memory"
    granularity: ClassVar[Literal["head", "channel", "slot"]] = "head"
    divided: ClassVar[bool] = False
    width: int
    norm_eps: float
    heads: int

    def rules(self) -> Iterable[Rule]:
        """Heads share evenly what they divide, and norms do not divide by zero."""
        if self.divided:
            yield Rule("heads", self.width % self.heads == 0, f"a divisor of width={self.width}")
        yield Rule("norm_eps", self.norm_eps > 0, "more than 0")

    @property
    def family(self) -> str:
        """Kind of memory."""
        return self.kind

    @property
    def gates(self) -> int:
        """Numbers of the layer's gate."""
        return self.width if self.granularity == "channel" else self.heads

    @property
    def native(self) -> bool:
        """Whether the layer has a form in native operators; see `stategate.models.operators`."""
        return False

    @property
    def chunk_steps(self) -> int:
        """Steps that the layer takes at once; 0 where it only takes one."""
        return 0

    @property
    def kv_bytes_per_step(self) -> int:
        """What a float32 key-value cache of the same width would grow by in each step."""
        return 8 * self.width

    def states(self, prefix: str = "") -> tuple[StateSpec, ...]:
        """The layer's states, in the order in which its step takes them."""
        raise NotImplementedError

    def ring(self, prefix: str = "") -> Ring | None:
        """What waits where writes are deferred; None where they cannot wait."""
        return None

    def build(self) -> nn.Module:
        """A layer with ``step(x, states, threshold)``, and ``chunk`` where it has one."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class StackConfig(Configuration):
    """Memory layers between a linear map in and a linear map out.

    Attributes:
        features: Of one observation.
        out_features: Of one answer.
        layers: How many memory layers.
        mlp: Hidden width of the SwiGLU block behind each of them; None for no such block.
        layer: What each of them is.
        threshold: Of the write gate; 0 writes always, and is the plain model.
    """

    features: int
    out_features: int
    layers: int
    mlp: int | None
    layer: LayerConfig
    threshold: float = 0.0

    @property
    def family(self) -> str:
        """Which family its layers are of."""
        return self.layer.family

    def step_spec(self) -> StepSpec:
        """Signature of one step, known without building any weights."""
        layer, n = self.layer, self.layers
        gate = GateSpec(
            "write",
            "hard",
            (1, n, layer.gates),
            self.threshold,
            "threshold",
            granularity=layer.granularity,
        )
        return StepSpec(
            inputs=(TensorSpec("x", (1, self.features)),),
            outputs=(TensorSpec("y", (1, self.out_features)),),
            states=tuple(s for i in range(n) for s in layer.states(f"layers.{i}.")),
            gates=(gate,),
        )


class Stack(nn.Module):
    """Linear in, ``layers`` blocks of [norm, layer, norm, SwiGLU] with residuals, linear out.

    Attributes:
        family: Which family its layers are of.
        kv_bytes_per_step: What float32 key-value caches of the same widths would grow by a step.
        chunk_steps: Steps that `chunk` takes at once; 0 where its layers only take one.
    """

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.config = config
        layer = config.layer
        self.family = layer.family
        self.kv_bytes_per_step = config.layers * layer.kv_bytes_per_step
        self.chunk_steps = layer.chunk_steps
        self.encode = nn.Linear(config.features, layer.width)
        self.blocks = nn.ModuleList(self._block() for _ in range(config.layers))
        self.norm: nn.Module = nn.RMSNorm(layer.width, eps=layer.norm_eps)
        self.head = nn.Linear(layer.width, config.out_features)

    @property
    def operators(self) -> Operators | None:
        """Operators that the step is traced with; None where layers have primitive ones alone."""
        block: Any = self.blocks[0]
        return block.layer.operators if self.config.layer.native else None

    @operators.setter
    def operators(self, operators: Operators) -> None:
        for block in self.blocks:
            block.layer.operators = operators  # type: ignore[union-attr]

    def step_spec(self) -> StepSpec:
        """Signature of one step; see `StackConfig.step_spec`."""
        return self.config.step_spec()

    def initial_states(self) -> dict[str, Tensor]:
        """Of states that do not start at zero."""
        start: dict[str, Tensor] = {}
        for i, block in enumerate(self.blocks):
            layer = getattr(block, "layer", None)
            named: dict[str, Tensor] = getattr(layer, "initial_states", dict)()
            start |= {f"layers.{i}.{name}": value for name, value in named.items()}
        return start

    def rings(self) -> tuple[Ring, ...]:
        """What waits, by layer; see `stategate.models.deferral`."""
        rings = [self.config.layer.ring(f"layers.{i}.") for i in range(self.config.layers)]
        return tuple(ring for ring in rings if ring is not None)

    def step(self, inputs: Tensors, states: Tensors) -> StepResult:
        """One observation ``(rows, features)``; what is closed keeps its memory bit for bit."""
        return self._run(inputs["x"], inputs["threshold"], states, None)

    def chunk(self, inputs: Tensors, states: Tensors, valid: Tensor) -> StepResult:
        """Several observations ``(rows, time, features)``; outputs and gates have that time axis.

        Args:
            inputs: As for `step`, with a time axis behind the rows; thresholds have none.
            states: As for `step`.
            valid: ``(rows, time)`` bool, true up to the last observation that is meant.
        """
        return self._run(inputs["x"], inputs["threshold"], states, valid)

    def _block(self) -> nn.Module:
        return _Block(self.config)

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
    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        width, eps = config.layer.width, config.layer.norm_eps
        self.norm = nn.RMSNorm(width, eps=eps)
        self._part = config.layer.part
        self.add_module(self._part, config.layer.build())
        self.mlp: nn.ModuleDict | None = None
        if config.mlp is not None:
            self.mlp = nn.ModuleDict(
                {
                    "norm": nn.RMSNorm(width, eps=eps),
                    "up": nn.Linear(width, 2 * config.mlp, bias=False),
                    "down": nn.Linear(config.mlp, width, bias=False),
                }
            )

    @property
    def layer(self) -> Any:
        """The memory layer."""
        return getattr(self, self._part)

    def forward(
        self, x: Tensor, states: States, threshold: Tensor, valid: Tensor | None
    ) -> Stepped:
        normed = self.norm(x)
        if valid is None:
            mixed, after, gate = self.layer.step(normed, states, threshold)
        else:
            mixed, after, gate = self.layer.chunk(normed, states, threshold, valid)
        x = x + mixed
        if self.mlp is not None:
            gated, up = self.mlp["up"](self.mlp["norm"](x)).chunk(2, dim=-1)
            x = x + self.mlp["down"](silu(gated) * up)
        return x, after, gate
