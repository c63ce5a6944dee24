"""Checkpoints: weights and world in one safetensors file, where they come from beside it."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load as deserialise
from torch import nn

from stategate.contract import Episode
from stategate.contract.errors import SpecError
from stategate.contract.failures import failures
from stategate.contract.reading import read_bounded
from stategate.contract.records import load_record
from stategate.models.step import StepModel
from stategate.models.zoo.binding_stream import CONFIGS, World, single_stream

M = TypeVar("M", bound=nn.Module)

WORLD, MODEL = "world.", "model."  # before the names of tensors


class Card(msgspec.Struct, frozen=True):
    """Where a checkpoint comes from."""

    command: str  # what remakes it
    recipe: dict[str, Any]  # every setting of the training, of which ``config`` names the stream
    torch: str  # version that trained it
    # what was measured on held-out streams, a row each; its maker says which
    table: tuple[dict[str, Any], ...]
    sha256: str = ""  # of the weights' file


def folder() -> Path:
    """Where the shipped checkpoints are."""
    return Path(str(resources.files("stategate.models") / "checkpoints"))


def held_out(name: str, model: StepModel, steps: int, seed: int) -> Episode:
    """A labelled stream of the world that a shipped checkpoint was trained in."""
    assert isinstance(model, nn.Module)
    _, world, card = load(folder() / f"{name}.safetensors", model)
    spec = model.step_spec()
    chunks = list(single_stream(CONFIGS[card.recipe["config"]], world, steps, seed))
    return Episode(
        inputs={spec.inputs[0].name: np.concatenate([chunk.z for chunk in chunks])},
        labels={spec.outputs[0].name: np.concatenate([chunk.label[:, 0] for chunk in chunks])},
    )


def load(path: Path, model: M) -> tuple[M, World, Card]:
    """Read a checkpoint and its card."""
    card = load_record(path.with_suffix(".json"), Card, SpecError, "the checkpoint's card")
    try:
        raw = read_bounded(path)
    except failures(OSError) as problem:
        raise SpecError("the checkpoint cannot be read", found=problem) from problem
    digest = hashlib.sha256(raw).hexdigest()
    if digest != card.sha256:
        raise SpecError(
            f"{path} is not the file that its card describes",
            found=f"{len(raw):,} bytes with sha256 {digest[:12]}",
            expected=f"sha256 {card.sha256[:12]}",
            remedy=f"take both from one source, or remake them: {card.command}",
        )
    try:
        tensors = deserialise(raw)
        world = World(*(tensors.pop(WORLD + field.name).numpy() for field in fields(World)))
        model.load_state_dict({name.removeprefix(MODEL): t for name, t in tensors.items()})
    except (SafetensorError, KeyError, RuntimeError) as problem:
        raise SpecError(
            f"{path} does not fit the model",
            found=f"{type(problem).__name__}: {problem}",
            expected=f"the weights of a {type(model).__name__} and its world",
        ) from problem
    return model.eval(), world, card
