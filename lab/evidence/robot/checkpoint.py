"""Trained robot policies: weights as safetensors, and a card beside them on how to remake them.

They lie here, not with the models' checkpoints: nothing that is installed can load them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
from safetensors import SafetensorError
from safetensors.torch import load as deserialise
from safetensors.torch import save as serialise
from torch import nn

from lab.evidence.robot.train import Recipe
from stategate.contract.durable import write_whole
from stategate.contract.errors import SpecError

FOLDER = Path(__file__).parent / "checkpoints"


class Card(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a checkpoint comes from.

    Attributes:
        command: What remakes it.
        recipe: Every setting.
        error: Mean squared error of its actions at the end of training.
        reached: Share of its demonstrations that reached the goal.
        torch: Version that trained it.
        sha256: Of the weights' file.
    """

    command: str
    recipe: Recipe
    error: float
    reached: float
    torch: str
    sha256: str = ""


def path_of(recipe: Recipe, folder: Path = FOLDER) -> Path:
    """Where the weights of a recipe are."""
    return folder / f"{recipe.task}-{recipe.policy}-{recipe.seed}.safetensors"


def save(path: Path, module: nn.Module, card: Card) -> None:
    """Write weights and card; its digest is replaced by that of the file."""
    raw = serialise({name: tensor.contiguous() for name, tensor in module.state_dict().items()})
    card = msgspec.structs.replace(card, sha256=hashlib.sha256(raw).hexdigest())
    write_whole(path, raw)
    write_whole(path.with_suffix(".json"), msgspec.json.format(msgspec.json.encode(card)) + b"\n")


def load(path: Path, module: nn.Module) -> Card:
    """Put weights into a module, and read their card.

    Raises:
        SpecError: A file is missing or damaged, or of another module.
    """
    try:
        card = msgspec.json.decode(path.with_suffix(".json").read_bytes(), type=Card)
        raw = path.read_bytes()
        if hashlib.sha256(raw).hexdigest() != card.sha256:
            raise SafetensorError(f"sha256 is not {card.sha256[:12]}, which its card has")
        module.load_state_dict(deserialise(raw))
    except (OSError, msgspec.MsgspecError, SafetensorError, RuntimeError) as problem:
        raise SpecError(
            "the checkpoint cannot be used",
            found=f"{path}: {problem}",
            expected=f"the weights of a {type(module).__name__} and their card",
            remedy="python -m lab robot train TASK POLICY --seed SEED makes both",
        ) from problem
    module.eval()
    return card
