"""The models that come with stategate, as a table; what it names is imported when it is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal, Protocol

from stategate.contract.errors import ExportError
from stategate.contract.names import close_names

if TYPE_CHECKING:
    from torch import nn

    from stategate.contract import Episode, StepSpec
    from stategate.models.step import StepModel

HELD_OUT_SEED = 1_000_003  # far from training seeds, which are small
_WEIGHTS_SEED = 2026


class Sized(Protocol):
    """A configuration whose memory is known without its weights."""

    def step_spec(self) -> StepSpec:
        """Signature of one step."""
        ...


@dataclass(frozen=True, slots=True)
class ZooEntry:
    """One model that can be exported by name."""

    name: str  # for the command line, and of its maker in `stategate.models.zoo.makers.MAKERS`
    # ``trained`` ones are in a checkpoint of that name, ``seeded`` ones are drawn
    weights: Literal["trained", "seeded"]
    family: str  # kind of memory
    summary: str  # what it does, in one line
    write: str  # what counts as a write
    paper: str  # where the memory is published
    sizes: str = ""  # module below ``memories`` that holds published configurations, or nothing

    def build(self) -> StepModel:
        """The model, in evaluation mode; the caller's random numbers are left alone."""
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_WEIGHTS_SEED)
            makers = import_module("stategate.models.zoo.makers").MAKERS
            model: nn.Module = makers[self.name]()
        if self.weights == "trained":
            from stategate.models.zoo import checkpoint

            model = checkpoint.load(checkpoint.folder() / f"{self.name}.safetensors", model)[0]
        step: StepModel = model.eval()  # type: ignore[assignment]
        return step

    def episode(self, steps: int, seed: int) -> Episode:
        """A held-out episode: labelled for a trained model, noise for a seeded one."""
        if self.weights == "trained":
            from stategate.models.zoo.checkpoint import held_out

            return held_out(self.name, self.build(), steps, seed)
        import numpy as np

        from stategate.contract import Episode

        rng = np.random.default_rng(seed)
        inputs = self.build().step_spec().inputs
        return Episode(
            {t.name: rng.standard_normal((steps, *t.shape)).astype(t.dtype) for t in inputs}
        )

    @property
    def published(self) -> Mapping[str, Sized]:
        """Published configurations of the family, by name."""
        if not self.sizes:
            return {}
        sizes = import_module(f"stategate.models.memories.{self.sizes}").PUBLISHED
        return {
            name: config
            for name, config in sizes.items()
            if getattr(config, "family", self.family) == self.family
        }


def _seeded(*facts: str) -> ZooEntry:
    name, family, kind, *rest = facts
    summary = f"{kind}; weights from a seed, for trying things out"
    return ZooEntry(name, "seeded", family, summary, *rest)


_RANK_1 = "a rank-1 update k u^T of a head's matrix; decay is none, it is folded into the reads"
_CHANNEL = "every step; by channel where its gate is above a threshold, once one is calibrated"
_ENTRIES = (
    ZooEntry(
        "aura-hard", "trained", "aura",
        "AURA-Mem trained on the hard binding stream: 8 actions, 16 bindings",
        "a rank-1 update of the 32x32 matrix S and its bias b, when the gate opens",
        "arXiv:2606.02775", "aura",
    ),
    ZooEntry(
        "gdn2-hard", "trained", "gated_deltanet2",
        "two Gated DeltaNet-2 layers trained on the hard binding stream with a price on writing",
        _RANK_1, "arXiv:2605.22791",
    ),
    ZooEntry(
        "gru-few", "trained", "gru",
        "a GRU policy trained on a binding stream of two entities to remember",
        _CHANNEL, "arXiv:1406.1078",
    ),
    _seeded(
        "gated-deltanet", "gated_deltanet",
        "two Gated DeltaNet layers, value heads grouped by two",
        _RANK_1, "arXiv:2412.06464", "delta.config",
    ),
    _seeded(
        "gated-deltaproduct", "gated_deltaproduct",
        "two Gated DeltaProduct layers of two updates a step",
        "an update of rank 2 of a head's matrix; decay is none, it is folded into the reads",
        "arXiv:2502.10297", "delta.config",
    ),
    _seeded(
        "kda", "kda", "two KDA layers with bounded decay",
        _RANK_1, "arXiv:2510.26692", "delta.config",
    ),
    _seeded(
        "gated-deltanet2", "gated_deltanet2", "two Gated DeltaNet-2 layers",
        _RANK_1, "arXiv:2605.22791", "delta.config",
    ),
    _seeded(
        "mamba2", "mamba2", "two Mamba-2 layers with two groups",
        "decay and update of a head's matrix together, where dt is above the threshold",
        "arXiv:2405.21060", "mamba2.config",
    ),
    _seeded(
        "mamba3", "mamba3", "two Mamba-3 layers, half of whose columns turn",
        "this token and the one before into a head's matrix; decay and rotation are none",
        "arXiv:2603.15569", "mamba3",
    ),
    _seeded(
        "mlstm", "mlstm", "two mLSTM layers, as in xLSTM 7B",
        "one outer product into a head's matrix; forgetting is none, the stabiliser takes it",
        "arXiv:2405.04517", "xlstm",
    ),
    _seeded(
        "slstm", "slstm", "two sLSTM layers",
        "cell and normaliser of a channel; forgetting is none, the stabiliser takes it",
        "arXiv:2405.04517", "xlstm",
    ),
    _seeded(
        "rwkv7", "rwkv7", "two RWKV-7 layers with their channel mix",
        "an update of rank 2 of a head's matrix; decay is none, it is folded into the reads",
        "arXiv:2503.14456", "rwkv7",
    ),
    _seeded(
        "ttt-linear", "ttt_linear", "two TTT-linear layers, a step of descent for each token",
        "a rank-1 update of a head's matrix and its bias",
        "arXiv:2407.04620", "fast_weights",
    ),
    _seeded(
        "titans", "titans", "two layers of a Titans memory that is a matrix, with momentum",
        "memory and momentum of a head; forgetting is none, it is folded into the reads",
        "arXiv:2501.00663", "fast_weights",
    ),
    _seeded(
        "trim-kv", "trim_kv", "two attention layers of 32 slots with admission",
        "a token takes a slot of a key-value head; one that is weaker than all is not admitted",
        "arXiv:2512.03324", "trim_kv.config",
    ),
    _seeded(
        "window", "window", "two layers of attention over sinks and a window, admission by energy",
        "a token takes a slot of a ring", "arXiv:2309.17453", "window",
    ),
    _seeded(
        "ring", "ring", "the last observations that were kept, before two linear maps",
        "an observation takes a slot of a ring", "Nature 518, 2015",
    ),
    _seeded(
        "memory-tokens", "memory_tokens", "two layers of eight rows that attend to an observation",
        "a row is blended with its update", "arXiv:2207.06881",
    ),
    _seeded(
        "sega", "sega", "the state updater of SeedPolicy with 16 rows",
        "a token row is blended with its update, where its gate is above the threshold",
        "arXiv:2603.05117", "sega",
    ),
    _seeded(
        "lstm", "lstm", "torch's own LSTM, two layers", _CHANNEL, "Neural Computation 9(8), 1997"
    ),
    _seeded("gru", "gru", "torch's own GRU, two layers", _CHANNEL, "arXiv:1406.1078"),
    _seeded("mingru", "mingru", "two minGRU layers", _CHANNEL, "arXiv:2410.01201"),
)  # fmt: skip

ZOO: dict[str, ZooEntry] = {entry.name: entry for entry in _ENTRIES}


def entry(name: str) -> ZooEntry:
    """Look a model up."""
    if name not in ZOO:
        raise ExportError(
            "the zoo has no such model",
            found=name,
            expected=" or ".join(close_names(name, ZOO) or sorted(ZOO)),
            remedy="list them with: stategate model list; your own: path/to/module.py:factory",
        )
    return ZOO[name]
