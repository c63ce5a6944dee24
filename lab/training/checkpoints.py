"""Writing what `stategate.models.zoo.checkpoint` reads."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path

import msgspec
import torch
from safetensors.torch import save as serialise
from torch import nn

from stategate.contract.durable import write_whole
from stategate.contract.errors import ResultError
from stategate.models.zoo.binding_stream import World
from stategate.models.zoo.checkpoint import MODEL, WORLD, Card


class Measured(msgspec.Struct, frozen=True):
    """One row of the table that belongs to a checkpoint.

    Attributes:
        gate: The rule that it was trained with.
        threshold: Of a hard gate; None for the others.
        steps: Horizon of each stream, from empty memory.
        streams: Streams at that horizon.
        accuracy: Share of queries answered rightly.
        write_ratio: Steps per write; of a gate of several elements, per write of one of them.
        seed: Of the training.
    """

    gate: str
    threshold: float | None
    steps: int
    streams: int
    accuracy: float
    write_ratio: float
    seed: int


def save(path: Path, model: nn.Module, world: World, card: Card) -> None:
    """Write ``path`` and its card beside it, with the suffix ``.json``.

    Args:
        path: The weights' file.
        model: What was trained.
        world: The world it lives in, which goes into the same file.
        card: Its digest is replaced by that of the file.

    Raises:
        ResultError: The suffix is not ``.safetensors``.
    """
    if path.suffix != ".safetensors":
        raise ResultError("a checkpoint has the suffix .safetensors", found=path)
    tensors = {MODEL + name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    tensors |= {WORLD + name: torch.from_numpy(array) for name, array in asdict(world).items()}
    raw = serialise(tensors)
    card = msgspec.structs.replace(card, sha256=hashlib.sha256(raw).hexdigest())
    write_whole(path, raw)
    write_whole(path.with_suffix(".json"), msgspec.json.format(msgspec.json.encode(card)) + b"\n")


def rows_of(card: Card) -> list[Measured]:
    """The table of a card."""
    return msgspec.convert(card.table, list[Measured])
