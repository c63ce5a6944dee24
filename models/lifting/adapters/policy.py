"""What the pages of recurrent policies share: states, normalisers, discrete actions, refusals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stategate.contract import ObservationContract
from stategate.contract.errors import TraceError
from stategate.contract.observation import Signal, Term
from stategate.models.lifting.lift import Lifted, lift
from stategate.models.weights import weights_sha256


def policy_step(
    step: nn.Module,
    example: Mapping[str, Tensor],
    memory: Mapping[str, Tensor],
    *,
    family: str,
    normalised: bool = False,
    session_axis: int = 1,
    normalisers: Mapping[str, nn.Module] = MappingProxyType({}),
    terms: Mapping[str, tuple[Term, ...]] = MappingProxyType({}),
) -> Lifted:
    """The step of a module that takes observations and memory, and returns actions and memory.

    An `nn.Identity` among the normalisers says that the observation is taken as it is given.
    """
    clash = ", ".join(sorted({*example} & {*memory}))
    if clash:
        raise TraceError(
            f"the observation {clash!r} cannot be an input",
            found="an observation and a part of the memory of the same name",
            expected=f"observations that are not called {', '.join(memory)}",
        )
    lifted = lift(
        step,
        example,
        hidden=memory,
        session_axes=dict.fromkeys(memory, session_axis),
        returns=["action", *memory],
    )
    lifted.family = family
    norms = {n: part for n, part in normalisers.items() if not isinstance(part, nn.Identity)}
    lifted.observations = "normalised in the graph" if norms or normalised else "as given"
    in_graph = set(norms) or (set(example) if normalised else set())
    lifted.observes = ObservationContract(
        {
            name: Signal(
                terms.get(name, (Term(name, size=tensor.numel()),)),
                normaliser="in-graph" if name in in_graph else "as-given",
                statistics_sha256=weights_sha256(norms[name]) if name in norms else "",
            )
            for name, tensor in example.items()
        },
        {name: Signal(parts) for name, parts in terms.items() if name not in example},
        source=f"the package of {type(step).__name__}",
    )
    return lifted


def memory_of(rnn: nn.RNNBase) -> dict[str, Tensor]:
    """The zeros that a recurrent unit of torch begins with, ``(layers, 1, hidden)`` each."""
    layers = rnn.num_layers * (2 if rnn.bidirectional else 1)
    first = {"h": torch.zeros(layers, 1, rnn.proj_size or rnn.hidden_size)}
    if rnn.mode == "LSTM":
        first["c"] = torch.zeros(layers, 1, rnn.hidden_size)
    return first


def family_of(rnn: nn.RNNBase) -> str:
    """``lstm``, ``gru`` or ``rnn``."""
    return rnn.mode.partition("_")[0].lower()


def run_once(
    rnn: nn.Module, x: Tensor, memory: Mapping[str, Tensor]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One step of nn.LSTM, nn.GRU or nn.RNN, ``(batch, n)`` to ``(batch, hidden)``."""
    before = tuple(memory.values()) if len(memory) > 1 else memory["h"]
    y, after = rnn(x.unsqueeze(0), before)
    return y.squeeze(0), after if isinstance(after, tuple) else (after,)


class Normalized(nn.Module):
    """clip((x - mean) / spread, -limit, limit), its statistics frozen."""

    mean: Tensor
    rest: Tensor
    spread: Tensor

    def __init__(self, mean: Any, spread: Any, limit: float) -> None:
        super().__init__()
        self._limit = limit
        mean = torch.as_tensor(mean).detach()
        self.register_buffer("mean", mean.float())
        # What float32 cannot hold of a mean counts where the spread is small beside it.
        self.register_buffer("rest", (mean - mean.float()).float())
        self.register_buffer("spread", torch.as_tensor(spread).detach().float())

    def forward(self, x: Tensor) -> Tensor:
        """Normalised observations, of the same shape."""
        return ((x - self.mean - self.rest) / self.spread).clamp(-self._limit, self._limit)


def choices(logits: Tensor, sizes: Sequence[int] = ()) -> dict[str, Tensor]:
    """The likeliest choice, and the logits that it is made from.

    Args:
        logits: ``(batch, n)``.
        sizes: How many of them belong to each of several choices; of one choice nothing.

    Returns:
        ``action``, of ``(batch,)``, or ``(batch, choices)`` for several; ``logits`` as given.
    """
    if not sizes:
        return {"action": logits.argmax(-1), "logits": logits}
    parts = torch.split(logits, list(sizes), dim=-1)
    return {"action": torch.stack([part.argmax(-1) for part in parts], -1), "logits": logits}


def action_terms(space: Any) -> dict[str, tuple[Term, ...]]:
    """The bounds of an action, where they are one for all of it."""
    if not hasattr(space, "low"):
        return {}
    (low, *lows), (high, *highs) = sorted({*space.low.flat}), sorted({*space.high.flat})
    uniform = not (lows or highs) and np.isfinite([low, high]).all()
    clip = (float(low), float(high)) if uniform else None
    return {"action": (Term("action", size=space.low.size, clip=clip),)}


def unknown_normalizer(call: str, policy: object, where: str) -> TraceError:
    """The refusal of a policy that does not say whether its observations are normalised."""
    page = call.partition("(")[0]
    return TraceError(
        "nothing says whether the observations of this policy are normalised",
        found=f"{type(policy).__name__} without its normaliser",
        expected=f"the normaliser that it was trained behind: {where}; or a word that there is "
        "none",
        remedy=f"from stategate.models import {page}; {call}, normalizer={where}), or {call}, "
        "normalizer=torch.nn.Identity()) if it was trained without",
    )


def no_recurrence(policy: nn.Module, found: str, expected: str) -> TraceError:
    """The refusal of a policy without a recurrent unit that the page knows."""
    attention = [
        f"{name}: {type(part).__name__}"
        for name, part in policy.named_modules()
        if isinstance(part, nn.MultiheadAttention) or "attention" in type(part).__name__.lower()
    ]
    remedy = "a policy without memory needs no state: export it with torch.onnx"
    if attention:
        found = f"{found}, and attention in {', '.join(attention[:3])}"
        remedy = "give its window of the past a fixed size, keep it in a buffer, and name the "
        remedy += 'buffer: from stategate.models import lift; lift(policy, ..., states=["window"])'
    return TraceError(
        "this policy has no recurrent unit", found=found, expected=expected, remedy=remedy
    )
