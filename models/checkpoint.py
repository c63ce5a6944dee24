"""Checkpoints: weights and world in one safetensors file, the recipe and its table beside it."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, fields
from importlib import resources
from pathlib import Path

import msgspec
import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import nn

from stategate.contract.console import write_whole
from stategate.contract.errors import OutputError
from stategate.models.aura import AuraMem
from stategate.models.aura_train import Recipe
from stategate.models.binding_stream import World

_WORLD = "world."
_MODEL = "model."


class Measured(msgspec.Struct, frozen=True):
    """One row of the table that belongs to a checkpoint.

    Attributes:
        gate: ``learned``, ``always``, ``random`` or ``periodic``, each trained with that rule.
        threshold: Of a learned gate; None for the others.
        steps: Horizon of each stream, from empty memory.
        streams: Streams at that horizon.
        accuracy: Share of queries answered rightly.
        write_ratio: Steps per write.
        seed: Of the training.
    """

    gate: str
    threshold: float | None
    steps: int
    streams: int
    accuracy: float
    write_ratio: float
    seed: int


class Card(msgspec.Struct, frozen=True):
    """Where a checkpoint comes from.

    Attributes:
        command: What remakes it.
        recipe: Every setting.
        torch: Version that trained it.
        table: What was measured on held-out streams.
    """

    command: str
    recipe: Recipe
    torch: str
    table: tuple[Measured, ...]


def folder() -> Path:
    """Where the shipped checkpoints are."""
    return Path(str(resources.files("stategate.models") / "checkpoints"))


def save(path: Path, model: AuraMem, world: World, card: Card) -> None:
    """Write ``path`` and its card beside it, with the suffix ``.json``.

    Raises:
        OutputError: The suffix is not ``.safetensors``.
    """
    if path.suffix != ".safetensors":
        raise OutputError("a checkpoint has the suffix .safetensors", found=path)
    tensors = {_MODEL + name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    tensors |= {_WORLD + name: torch.from_numpy(array) for name, array in asdict(world).items()}
    raw = msgspec.json.format(msgspec.json.encode(card), indent=2)
    write_whole(path.with_suffix(".json"), raw + b"\n")
    write_whole(path, serialise(tensors))


def load(path: Path) -> tuple[AuraMem, World, Card]:
    """Read a checkpoint and its card."""
    tensors = load_file(path)
    model = AuraMem()
    model.load_state_dict(
        {name.removeprefix(_MODEL): t for name, t in tensors.items() if name.startswith(_MODEL)}
    )
    world = World(*(tensors[_WORLD + field.name].numpy() for field in fields(World)))
    card = msgspec.json.decode(path.with_suffix(".json").read_bytes(), type=Card)
    return model.eval(), world, card


def weights_sha256(module: nn.Module) -> str:
    """Digest over names, dtypes, shapes and bytes of a module's parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        # As bytes: NumPy has no bfloat16.
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
