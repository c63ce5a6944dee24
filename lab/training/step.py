"""How a Gated DeltaNet-2 stack and a GRU learn the binding stream, and how step models are scored.

Their gates are soft in training: every step writes, by as much as the gates say. The price on the
mean gate is what makes a threshold useful afterwards: gates that save nothing learn to stay shut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from lab.training.stream import Recipe, Score
from stategate.models.step import StepModel, Tensors, initial_states, opens, threshold_inputs
from stategate.models.zoo.binding_stream import NO_LABEL, BindingStreams
from stategate.models.zoo.makers import gdn2_hard, gru_few


class DeltaLearner:
    """The delta stack, trained through its chunked form.

    Args:
        recipe: Of its training; weights are drawn here.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.module = gdn2_hard()

    def start(self, streams: int) -> Tensors:
        """Empty memories."""
        return initial_states(self.module, streams)

    def run(
        self, iteration: int, z: Tensor, states: Tensors
    ) -> tuple[Callable[[Tensor], Tensor], Tensors, Tensor]:
        """Go through a chunk."""
        outputs, gates = [], []
        never = torch.zeros(1)  # below every gate: all is written
        for part in torch.split(z.transpose(0, 1), self.module.chunk_steps, dim=1):
            valid = torch.ones(part.shape[:2], dtype=torch.bool)
            result = self.module.chunk({"x": part, "threshold": never}, states, valid)
            states = result.states
            outputs.append(result.outputs["y"])
            gates.append(result.gates["write"])
        y = torch.cat(outputs, 1).transpose(0, 1)
        return lambda queries: y[queries], states, torch.cat(gates, 1).mean()


class GruLearner:
    """The GRU, trained through torch's own sequence form.

    Args:
        recipe: Of its training; weights are drawn here.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.module = gru_few()

    def start(self, streams: int) -> Tensors:
        """Empty memories."""
        return initial_states(self.module, streams)

    def run(
        self, iteration: int, z: Tensor, states: Tensors
    ) -> tuple[Callable[[Tensor], Tensor], Tensors, Tensor]:
        """Go through a chunk; nothing is priced."""
        model = self.module
        encoder, head = cast(nn.Module, model.encoder), cast(nn.Module, model.head)
        h, last = model.module(encoder(z), states["h"].transpose(0, 1).contiguous())
        return lambda queries: head(h[queries]), {"h": last.transpose(0, 1)}, torch.zeros(())


@torch.no_grad()
def score(
    model: StepModel,
    source: BindingStreams,
    streams: int,
    steps: int,
    thresholds: Mapping[str, float] | None = None,
    report: Callable[[int], None] = lambda _: None,
    chunk: int = 256,
) -> Score:
    """Step a model through held-out streams, from empty memory.

    A gate of several elements (heads, channels) counts as written by the share that is open.

    Args:
        model: Takes ``x`` and gives ``y``; a closed gate leaves states alone by itself, row by row.
        source: Held-out streams; they are advanced.
        streams: How many there are.
        steps: Steps of each.
        thresholds: Of its hard gates, by name; those of its spec if left out.
        report: Called with the number of steps done after each chunk.
        chunk: Steps drawn at a time.
    """
    spec = model.step_spec()
    limits = threshold_inputs(spec, thresholds)
    states: Tensors = initial_states(model, streams)
    right = queries = 0
    opened: list[float] = []
    for start in range(0, steps, chunk):
        piece = source.take(min(chunk, steps - start))
        label = torch.from_numpy(piece.label)
        for t, x in enumerate(torch.from_numpy(piece.z)):
            result = model.step({"x": x, **limits}, states)
            states = result.states
            right += int((result.outputs["y"].argmax(-1) == label[t]).sum())
            for gate in spec.gates:
                limit = limits.get(gate.threshold_input or "", torch.zeros(1))
                opened.append(float(opens(result.gates[gate.name], limit).float().mean()))
        queries += int((piece.label != NO_LABEL).sum())
        report(min(start + chunk, steps))
    write_rate = sum(opened) / len(opened)
    return Score(right / max(1, queries), write_rate, queries, steps * streams)
