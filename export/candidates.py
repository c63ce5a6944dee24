"""From a loaded model to a candidate, its reference, and the inputs on which both are compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import onnx

from stategate.contract import Episode
from stategate.contract.manifest import ModelRef
from stategate.contract.receipts import InputsRef
from stategate.contract.sessions import batched
from stategate.export.candidate import Candidate, Reference
from stategate.export.frontends.padded import window_notes
from stategate.export.frontends.references import StatefulReference, TorchReference
from stategate.export.frontends.rows import RowsReference, side_by_side, staggered
from stategate.export.frontends.trace import trace, trace_chunk
from stategate.export.inputs import Range, drawn, recorded
from stategate.export.passes.graph import serialised
from stategate.models.lifting.lift import Lifted
from stategate.models.load import LoadedModel
from stategate.models.operators import Operators
from stategate.models.step import ChunkModel, StepModel, initial_states
from stategate.models.weights import weights_sha256
from stategate.models.zoo.catalogue import HELD_OUT_SEED


def episode_for(
    loaded: LoadedModel,
    candidate: Candidate,
    source: str | Path | Episode | None,
    steps: int,
    ranges: Mapping[str, Range] | None = None,
) -> tuple[Episode, InputsRef]:
    """Inputs of a check for every session, and where they are from.

    They are a recording where there is one, else the zoo's benchmark, else random numbers.
    """
    sessions = candidate.sessions
    if source is not None:
        episode, name = recorded(source, steps * sessions, ranges)
        episode = staggered(episode, sessions) if sessions > 1 else episode
        episode.check(candidate.spec, starts=True)
        return episode.resized(steps), InputsRef("recording", name)
    if loaded.episode is not None and not ranges:
        seeds = range(HELD_OUT_SEED, HELD_OUT_SEED + sessions)
        streams = [loaded.episode(steps, seed) for seed in seeds]
        return side_by_side(streams) if sessions > 1 else streams[0], InputsRef("benchmark")
    model = onnx.load_model_from_string(candidate.graph)
    return drawn(candidate.spec, steps, ranges or {}, model)


def reference_for(model: StepModel, candidate: Candidate) -> Reference:
    """The float model in closed loop; for several sessions, once for each of them."""
    notes = window_notes(onnx.load_model_from_string(candidate.graph), candidate.spec)
    rows: list[Reference] = [
        StatefulReference(model, notes)
        if isinstance(model, Lifted)
        else TorchReference(model, candidate.spec.thresholds)
        for _ in range(candidate.sessions)
    ]
    return rows[0] if candidate.sessions == 1 else RowsReference(rows)


def candidate_from(
    loaded: LoadedModel, sessions: int = 1, operators: str = Operators.PORTABLE.value
) -> Candidate:
    """Trace a model into a candidate, thresholds as its own spec has them."""
    graph = serialised(trace(loaded.model, sessions, Operators(operators)))  # refuses first
    metadata = {}
    for fact in ("observations", "attention"):
        if words := getattr(loaded.module, fact, ""):
            metadata[fact] = words
    chunk = None
    steps = getattr(loaded.model, "chunk_steps", 0)
    if steps and sessions == 1:
        chunk = serialised(trace_chunk(cast(ChunkModel, loaded.model), Operators(operators)))
    initial = {
        name: tensor.numpy()
        for name, tensor in initial_states(loaded.model, sessions).items()
        if bool(tensor.any())
    }
    carried = getattr(loaded.module, "carries", None)
    return Candidate(
        model=ModelRef(
            loaded.name,
            loaded.family,
            loaded.source,
            weights_sha256(loaded.module),
            getattr(loaded.module, "kv_bytes_per_step", None),
        ),
        spec=batched(loaded.model.step_spec(), sessions),
        graph=graph,
        made_with=("torch", "onnx", "onnxscript"),
        initial=initial,
        metadata=metadata,
        observation=getattr(loaded.module, "observes", None),
        sessions=sessions,
        chunk=chunk,
        chunk_steps=steps if chunk else 0,
        attached=dict(carried.files) if carried else {},
        backbone=carried.ref if carried else None,
    )
