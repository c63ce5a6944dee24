"""LSTM, GRU and minGRU as step models, the first two from the torch modules that users have.

Each layer is written out in plain operations, because the gate values have to come out too. With
s the logistic function, a_* the sums of products and biases, and the h of the layer below as x
(torch's own equations; minGRU after arXiv:2410.01201):

    LSTM     c <- c - s(-a_f) c + s(a_i) tanh(a_g)     h = s(a_o) tanh(c), projected if asked
    GRU      h <- h + s(-a_z) (n - h)                  n = tanh(W x + b + s(a_r) (U h + b'))
    minGRU   h <- h + s(a_z) (W x - h)                 a_z from x alone

A write is the change of one channel of c (LSTM) or h (others). The gate, by channel:

    soft     what share of the channel becomes new: s(a_i), s(-a_z), s(a_z); every step is a write
    hard     open where the gate is above ``write_threshold``; a closed channel keeps its value bit
             for bit. An LSTM's is max(s(a_i), s(-a_f)): forgetting changes c as well, and a channel
             that only forgets must not be held for ever by its closed input gate.

An LSTM's h is made from c and this step's output gate, so no gate guards it.

Gates are computed as 1 / (1 + exp(-a)), and what a gate lets go as s(-a), not as 1 - s(a): ONNX
Runtime's Sigmoid is 17 % off at -15 and zero from -18 on, where torch's is not, and 1 - s(a) is
rounding. This way engines agree on every decision, and a threshold of zero, which is below every
gate, is the plain model.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from stategate.contract import StepSpec
from stategate.contract.errors import SpecError
from stategate.contract.failures import failures
from stategate.models.functions import share
from stategate.models.memories.recurrent.config import RecurrentConfig
from stategate.models.step import StepResult, Tensors, opens

TorchRecurrent = nn.LSTM | nn.GRU | nn.LSTMCell | nn.GRUCell


class _Written(NamedTuple):
    """One layer's next states, by name, and its gate: all ``(rows, channels)``."""

    states: dict[str, Tensor]
    gate: Tensor


_Cell = Callable[[int, Tensor, dict[str, Tensor], Tensors], _Written]


def _through_layers(cell: _Cell, x: Tensor, inputs: Tensors, states: Tensors) -> StepResult:
    """Step every layer on the h of the one below; ``y`` is the h of the last."""
    written = []
    for i in range(states["h"].shape[1]):
        written.append(cell(i, x, {name: s[:, i] for name, s in states.items()}, inputs))
        x = written[-1].states["h"]
    after = {name: torch.stack([layer.states[name] for layer in written], 1) for name in states}
    return StepResult({"y": x}, after, {"write": torch.stack([w.gate for w in written], 1)})


def _where_open(gate: Tensor, new: Tensor, old: Tensor, inputs: Tensors) -> Tensor:
    threshold = inputs.get("threshold")  # a soft gate has none
    return new if threshold is None else torch.where(opens(gate, threshold), new, old)


class RecurrentStep(nn.Module):
    """A step model around an LSTM or GRU of torch, which it holds and does not copy.

    Dropout between layers is left out: torch applies it in training only, and a step never trains.

    Attributes:
        family: Kind of memory: ``lstm`` or ``gru``.
        config: Its sizes; ``config.step_spec()`` needs no weights.
        kv_bytes_per_step: Growth of the float32 key-value cache of as many attention layers of
            the same width.

    Args:
        module: Of any number of layers, with or without biases and projection; ``batch_first``
            says nothing about a single step.
        head: From the h of the last layer to ``y``; None gives that h itself.
        encoder: From ``x`` to the input of the first layer; None gives ``x`` itself.
        write_threshold: Makes the gate hard; None leaves it soft.
        features: Width of ``x``, for encoders that do not begin with an ``nn.Linear``.

    Raises:
        SpecError: Naming the argument and what to do.
    """

    def __init__(
        self,
        module: TorchRecurrent,
        head: nn.Module | None = None,
        encoder: nn.Module | None = None,
        write_threshold: float | None = None,
        features: int | None = None,
    ) -> None:
        super().__init__()
        _check_module(module)
        self.module, self.head, self.encoder = module, head, encoder
        self.write_threshold = write_threshold
        projection = int(getattr(module, "proj_size", 0)) or None
        width = projection or module.hidden_size
        self.config = RecurrentConfig(
            family="lstm" if isinstance(module, nn.LSTM | nn.LSTMCell) else "gru",
            features=_features(module, encoder, features),
            hidden=module.hidden_size,
            layers=getattr(module, "num_layers", 1),
            out_features=width if head is None else _width_of("head", head, width),
            projection=projection,
        )
        self.family = self.config.family
        self.kv_bytes_per_step = self.config.kv_bytes_per_step

    def step_spec(self) -> StepSpec:
        """Signature of one step with batch 1."""
        return self.config.step_spec(self.write_threshold)

    def step(self, inputs: Tensors, states: Tensors) -> StepResult:
        """One step; a closed channel gives its old value back, bit for bit."""
        x = inputs["x"] if self.encoder is None else self.encoder(inputs["x"])
        cell = self._lstm if self.family == "lstm" else self._gru
        result = _through_layers(cell, x, inputs, states)
        if self.head is None:
            return result
        return result._replace(outputs={"y": self.head(result.outputs["y"])})

    def _sums(self, i: int, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """What the input and the h of a layer say, biases included: ``(rows, 3 or 4 * hidden)``."""
        end = f"_l{i}" if isinstance(self.module, nn.RNNBase) else ""

        def part(name: str) -> Any:
            return getattr(self.module, f"{name}{end}", None)

        from_x = linear(x, part("weight_ih"), part("bias_ih"))
        return from_x, linear(h, part("weight_hh"), part("bias_hh"))

    def _lstm(self, i: int, x: Tensor, old: dict[str, Tensor], inputs: Tensors) -> _Written:
        from_x, from_h = self._sums(i, x, old["h"])
        a_i, a_f, a_g, a_o = torch.chunk(from_x + from_h, 4, -1)
        new, forgotten = share(a_i), share(-a_f)
        # A hard gate opens for forgetting too, or a closed input gate would hold c for ever.
        gate = new if self.write_threshold is None else torch.maximum(new, forgotten)
        c = old["c"] - forgotten * old["c"] + new * torch.tanh(a_g)
        c = _where_open(gate, c, old["c"], inputs)
        # From c after that decision: a closed channel shows what it still holds.
        h = torch.sigmoid(a_o) * torch.tanh(c)
        if self.config.projection:
            h = linear(h, getattr(self.module, f"weight_hr_l{i}"))
        return _Written({"h": h, "c": c}, gate)

    def _gru(self, i: int, x: Tensor, old: dict[str, Tensor], inputs: Tensors) -> _Written:
        from_x, from_h = self._sums(i, x, old["h"])
        r_x, z_x, n_x = torch.chunk(from_x, 3, -1)
        # Not summed at once: torch multiplies the candidate's recurrent part by its reset gate.
        r_h, z_h, n_h = torch.chunk(from_h, 3, -1)
        gate = share(-(z_x + z_h))
        n = torch.tanh(n_x + torch.sigmoid(r_x + r_h) * n_h)
        h = old["h"] + gate * (n - old["h"])
        return _Written({"h": _where_open(gate, h, old["h"], inputs)}, gate)


class MinGru(nn.Module):
    """A stack of minGRU layers and a linear head: ``x (1, features)`` to ``y (1, out_features)``.

    Neither gate nor candidate sees h, so that training can run over all steps at once.

    Attributes:
        family: Kind of memory.
        config: Its sizes; ``config.step_spec()`` needs no weights.
        kv_bytes_per_step: Growth of the float32 key-value cache of as many attention layers of
            the same width.

    Args:
        features: Width of the input.
        hidden: Channels of a layer.
        out_features: Width of the output.
        layers: How many.
        write_threshold: Makes the gate hard; None leaves it soft.
    """

    family = "mingru"

    def __init__(
        self,
        features: int,
        hidden: int,
        out_features: int,
        layers: int,
        write_threshold: float | None = None,
    ) -> None:
        super().__init__()
        self.config = RecurrentConfig("mingru", features, hidden, layers, out_features)
        self.kv_bytes_per_step = self.config.kv_bytes_per_step
        self.write_threshold = write_threshold
        widths = [features] + [hidden] * (layers - 1)
        self.to_z = nn.ModuleList(nn.Linear(width, hidden) for width in widths)
        self.to_h = nn.ModuleList(nn.Linear(width, hidden) for width in widths)
        self.head = nn.Linear(hidden, out_features)

    def step_spec(self) -> StepSpec:
        """Signature of one step with batch 1."""
        return self.config.step_spec(self.write_threshold)

    def step(self, inputs: Tensors, states: Tensors) -> StepResult:
        """One step; a closed channel gives its old value back, bit for bit."""
        result = _through_layers(self._cell, inputs["x"], inputs, states)
        return result._replace(outputs={"y": self.head(result.outputs["y"])})

    def _cell(self, i: int, x: Tensor, old: dict[str, Tensor], inputs: Tensors) -> _Written:
        gate = share(self.to_z[i](x))
        h = old["h"] + gate * (self.to_h[i](x) - old["h"])
        return _Written({"h": _where_open(gate, h, old["h"], inputs)}, gate)


def _check_module(module: object) -> None:
    """Refuse what one step forward in time cannot do."""
    if not isinstance(module, TorchRecurrent):
        raise SpecError(
            "RecurrentStep.module is of no kind that it steps",
            found=type(module).__name__,
            expected="nn.LSTM, nn.GRU, nn.LSTMCell or nn.GRUCell",
            remedy="docs/tutorial/index.md shows how to write a step of your own",
        )
    dropout = float(getattr(module, "dropout", 0.0))
    dtypes = {str(weight.dtype).removeprefix("torch.") for weight in module.parameters()}
    for fails, what, finding, remedy in (
        (
            getattr(module, "bidirectional", False),
            "bidirectional must be off",
            "bidirectional=True, whose second direction begins at the end of the sequence",
            "train it with bidirectional=False",
        ),
        (
            dropout > 0.0 and module.training,
            "dropout is on",
            f"dropout={dropout} in training mode",
            "call module.eval() first",
        ),
        (
            dtypes != {"float32"},
            "has weights of another dtype than float32",
            ", ".join(sorted(dtypes)),
            "call module.float() first",
        ),
    ):
        if fails:
            raise SpecError(f"RecurrentStep.module: {what}", found=finding, remedy=remedy)


def _features(module: TorchRecurrent, encoder: nn.Module | None, features: int | None) -> int:
    """Width of ``x``, which must fit encoder and module."""
    first = encoder[0] if isinstance(encoder, nn.Sequential) and encoder else encoder
    if features is None:
        features = module.input_size if encoder is None else getattr(first, "in_features", None)
    if features is None:
        raise SpecError(
            "RecurrentStep.features is needed for this encoder",
            found=type(encoder).__name__,
            expected="an nn.Linear, or an nn.Sequential that begins with one",
            remedy="RecurrentStep(..., features=width of x)",
        )
    width = features if encoder is None else _width_of("encoder", encoder, features)
    if width != module.input_size:
        raise SpecError(
            "RecurrentStep.encoder does not fit the module",
            found=f"{width} features",
            expected=f"{module.input_size}, the module's input_size",
        )
    return features


def _width_of(name: str, part: nn.Module, width: int) -> int:
    """Features that an encoder or head gives, tried on a copy that no call can change."""
    try:
        with torch.no_grad():
            output: Tensor = deepcopy(part).eval()(torch.zeros(1, width))
        rows, features = output.shape
    except failures() as problem:  # a user's module may raise anything
        raise SpecError(
            f"RecurrentStep.{name} does not take one row of {width} features to another row",
            found=f"{type(problem).__name__}: {problem}",
            expected=f"a module from (1, {width}) to (1, any width)",
        ) from problem
    return features
