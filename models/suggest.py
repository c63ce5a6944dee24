"""What to write for a module that is no step yet: the call of `lift` that may fit it."""

from __future__ import annotations

import inspect
import re

import torch
from torch import nn

from stategate.models.programs import EXPORTED, TORCHSCRIPT, WEIGHTS
from stategate.models.slots import memory_like

# Names that arguments have which are taken and given back; the rest are inputs.
_HANDED_IN = re.compile(
    r"(rnn_|lstm_|gru_)?(hidden|cell|state|memory|cache|carry|hx|[hc]0?)s?(_in|_states?)?"
)


def offer(made: object) -> str:
    """Source of a ``lift`` call with the buffers and arguments that look like memory.

    Args:
        made: What the user's factory gave.
    """
    if isinstance(made, torch.jit.ScriptModule):
        return TORCHSCRIPT.format(file="policy.pt")
    if isinstance(made, torch.export.ExportedProgram):
        return EXPORTED.format(file="policy.pt2")
    if isinstance(made, dict):
        return WEIGHTS.format(file="weights.pt")
    if not isinstance(made, nn.Module):
        return "the factory has to return a torch.nn.Module"
    parameters = inspect.signature(made.forward).parameters.values()
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    hidden = [p.name for p in named if _HANDED_IN.fullmatch(p.name)]
    inputs = [p.name for p in named if p.name not in hidden and p.default is p.empty]
    memory = memory_like(made)
    parts = [f"{{{', '.join(f'{name!r}: torch.zeros(1, ...)' for name in inputs)}}}"]
    if memory:
        parts.append(f"states={list(memory)}")
    if hidden:
        parts.append(f"hidden={{{', '.join(f'{name!r}: torch.zeros(...)' for name in hidden)}}}")
    if not memory and not hidden:
        return "nothing in it looks like memory, and without any ONNX Runtime alone will do"
    return (
        "in the factory, with those of its buffers and arguments that are memory,\n"
        f"    from stategate.models import lift\n    return lift(module, {', '.join(parts)})"
    )
