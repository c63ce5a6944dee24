"""The models that come with stategate, by name."""

from __future__ import annotations

import difflib

import numpy as np
import torch

from stategate.contract import Episode, StepSpec
from stategate.contract.errors import ExportError
from stategate.models import checkpoint
from stategate.models.aura import AuraMem
from stategate.models.binding_stream import CONFIGS, single_stream
from stategate.models.zoo_entry import ZooEntry
from stategate.models.zoo_seeded import ENTRIES

HELD_OUT_SEED = 1_000_003  # far from training seeds, which are small


def _aura_hard() -> AuraMem:
    return checkpoint.load(checkpoint.folder() / "aura-hard.safetensors")[0]


def _aura_hard_episode(steps: int, seed: int) -> Episode:
    _, world, card = checkpoint.load(checkpoint.folder() / "aura-hard.safetensors")
    chunks = list(single_stream(CONFIGS[card.recipe.config], world, steps, seed))
    return Episode(
        inputs={"z": np.concatenate([chunk.z for chunk in chunks])},
        labels={"action": np.concatenate([chunk.label[:, 0] for chunk in chunks])},
    )


class _AuraSize:
    """The published configuration, which is the shipped one."""

    def step_spec(self) -> StepSpec:
        with torch.device("meta"):
            return AuraMem().step_spec()


ZOO: dict[str, ZooEntry] = {
    one.name: one
    for one in (
        ZooEntry(
            name="aura-hard",
            family="aura",
            summary="AURA-Mem trained on the hard binding stream: 8 actions, 16 bindings",
            write="a rank-1 update of the 32x32 matrix S and its bias b, when the gate opens",
            paper="arXiv:2606.02775",
            weights="trained",
            build=_aura_hard,
            episode=_aura_hard_episode,
            published={"aura-mem": _AuraSize()},
        ),
        *ENTRIES,
    )
}


def entry(name: str) -> ZooEntry:
    """Look a model up.

    Raises:
        ExportError: It is not in the zoo.
    """
    if name not in ZOO:
        near = difflib.get_close_matches(name, ZOO) or sorted(ZOO)
        raise ExportError(
            "the zoo has no such model",
            found=name,
            expected=" or ".join(near),
            remedy="list them with: stategate zoo; your own: path/to/module.py:factory",
        )
    return ZOO[name]
