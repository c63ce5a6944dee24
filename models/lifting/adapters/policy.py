"""What the pages of recurrent policies share: one step of a recurrent unit, and its states."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stategate.models.lifting.lift import Lifted, lift


def run_once(
    rnn: nn.Module, x: Tensor, memory: dict[str, Tensor]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One step of nn.LSTM or nn.GRU, ``(batch, n)`` to ``(batch, hidden)``."""
    before = tuple(memory.values()) if len(memory) > 1 else memory["h"]
    y, after = rnn(x.unsqueeze(0), before)
    return y.squeeze(0), after if isinstance(after, tuple) else (after,)


def policy_step(
    step: nn.Module, rnn: nn.RNNBase, example: dict[str, Tensor], *, normalised: bool
) -> Lifted:
    """The step of a module whose memory is that of ``rnn``, as arguments ``h`` and ``c``.

    Args:
        step: Takes the inputs of ``example`` and the memory, ``(layers, batch, hidden)`` each;
            returns a dict of outputs and then the memory.
        rnn: Its recurrent unit.
        example: One observation, with a leading axis of 1.
        normalised: Whether a normaliser of observations is part of the step.
    """
    zeros = torch.zeros(rnn.num_layers, 1, rnn.hidden_size)
    names = ("h", "c") if isinstance(rnn, nn.LSTM) else ("h",)
    lifted = lift(
        step,
        example,
        hidden=dict.fromkeys(names, zeros),
        session_axes=dict.fromkeys(names, 1),
        returns=["action", *names],
    )
    lifted.family = type(rnn).__name__.lower()
    lifted.observations = "normalised in the graph" if normalised else "as given"
    return lifted
