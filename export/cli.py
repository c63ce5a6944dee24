"""``stategate export``: a torch module becomes a verified bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import click
import onnx

from stategate.contract import (
    Budget,
    CalibrationRecord,
    Episode,
    ModelRef,
    batched,
    load_episode,
    refuse_to_replace,
)
from stategate.contract.console import progress
from stategate.contract.errors import GraphError
from stategate.export.engines_cli import deployed, engine_options
from stategate.export.native import medians_us, sample
from stategate.export.pack import Candidate, random_episode, seal
from stategate.export.precision import Lower, precision_options
from stategate.export.receipt import print_receipt
from stategate.export.rows import RowsReference, side_by_side, staggered
from stategate.export.stateful import StatefulReference
from stategate.export.storage_cli import storage_options
from stategate.export.tensorrt_target import with_tensorrt_told
from stategate.export.trace import TorchReference, trace, trace_chunk
from stategate.export.verify import STEPS, Reference
from stategate.export.ways import Asked
from stategate.models.checkpoint import weights_sha256
from stategate.models.lift import Lifted
from stategate.models.load import LoadedModel, load_model
from stategate.models.operators import Operators
from stategate.models.step import ChunkModel, StepModel, initial_states
from stategate.models.zoo import HELD_OUT_SEED
from stategate.targets import generic, load


@click.command()
@click.argument("model")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The bundle's folder.")
@click.option(
    "--calibration",
    "calibration_paths",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Record with a gate's threshold, from: stategate calibrate; repeat for other gates.",
)
@click.option(
    "--sessions",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Sessions that one step serves; more than one makes a bundle for a pool.",
)
@click.option(
    "--operators",
    type=click.Choice([*(o.value for o in Operators), "fastest"]),
    default=Operators.PORTABLE.value,
    show_default=True,
    help="Primitive operators that every engine has, opset 27's linear attention, ONNX Runtime's "
    "own, or whichever is fastest on this machine, by measurement.",
)
@engine_options
@click.option(
    "--require-tensorrt",
    is_flag=True,
    help="Refuse a step that a TensorRT of the target would not take, instead of saying so.",
)
@precision_options
@storage_options
@click.option("--target", help="Device it is for; this machine's if left out.")
@click.option(
    "--episode",
    "episode_path",
    type=click.Path(exists=True, path_type=Path),
    help="Inputs of the parity check, a .npz or a folder of them, repeated if short; "
    "benchmark or random if left out.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=STEPS,
    show_default=True,
    help="Closed-loop steps of the parity check.",
)
@click.option(
    "--max-state-bytes",
    type=click.IntRange(min=1),
    help="Budget: refuse a larger memory, all sessions together.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the receipt as JSON.")
def export(
    model: str,
    out: Path,
    calibration_paths: tuple[Path, ...],
    sessions: int,
    operators: str,
    split: Asked,
    engines: str,
    require_tensorrt: bool,
    target: str | None,
    episode_path: Path | None,
    steps: int,
    max_state_bytes: int | None,
    as_json: bool,
    **precision: Any,
) -> None:
    """Make a bundle from MODEL, a zoo name or path/to/module.py:factory.

    Traces one step, checks it against the model in closed loop, and writes the bundle only if
    outputs, states and every gate decision agree.

    \b
    Examples:
      stategate export aura-hard --out build/aura
      stategate export my_policy.py:MyPolicy --out build/mine
      stategate export aura-hard --sessions 4 --out build/pool
      stategate export aura-hard --split read-write --out build/two
      stategate export aura-hard --engines onnxruntime,native --out build/fast
      stategate export aura-hard --precision int8-weights --out build/small
      stategate export aura-hard --state-storage S=int8 --error-feedback --out build/small
    """
    lower = Lower.asked(**precision)
    profile = load(target) if target else generic()
    refuse_to_replace(out)
    loaded = load_model(model)
    candidate = candidate_from(loaded, sessions, operators)
    for path in calibration_paths:
        candidate = candidate.calibrated(CalibrationRecord.load(path))
    reference = reference_for(loaded.model, candidate)
    candidate = with_tensorrt_told(lower.of(candidate, profile), profile, required=require_tensorrt)
    episode = episode_for(loaded, candidate, episode_path, steps)
    candidate = deployed(candidate, engines, split, episode, here=target is None)
    with progress(episode.steps, "verifying") as report:
        bundle = seal(
            out,
            candidate,
            reference,
            episode,
            target=profile.ref(),
            budget=Budget(max_state_bytes),
            limits=lower.limits,
            report=report,
        )
    print_receipt(bundle, as_json)


def episode_for(
    loaded: LoadedModel, candidate: Candidate, path: Path | None, steps: int
) -> Episode:
    """Inputs of a check: a recording, the zoo's benchmark, or noise, for every session.

    Raises:
        EpisodeError: The recording cannot be read, or does not fit the model.
    """
    sessions = candidate.sessions
    if path is not None:
        episode = load_episode(path, steps * sessions)
        episode = staggered(episode, sessions) if sessions > 1 else episode
        episode.check(candidate.spec)
        return episode.resized(steps)
    if loaded.episode is not None:
        seeds = range(HELD_OUT_SEED, HELD_OUT_SEED + sessions)
        streams = [loaded.episode(steps, seed) for seed in seeds]
        return side_by_side(streams) if sessions > 1 else streams[0]
    return random_episode(candidate.spec, steps)


def reference_for(model: StepModel, candidate: Candidate) -> Reference:
    """The float model in closed loop; for several sessions, once for each of them."""
    rows: list[Reference] = [
        StatefulReference(model)
        if isinstance(model, Lifted)
        else TorchReference(model, candidate.spec.thresholds)
        for _ in range(candidate.sessions)
    ]
    return rows[0] if candidate.sessions == 1 else RowsReference(rows)


def candidate_from(
    loaded: LoadedModel, sessions: int = 1, operators: str = Operators.PORTABLE.value
) -> Candidate:
    """Trace a model into a candidate, thresholds as its own spec has them.

    Args:
        loaded: The model.
        sessions: How many sessions one step serves.
        operators: One of `Operators`, or ``fastest`` for the fastest of all on this machine.
    """
    spec = batched(loaded.model.step_spec(), sessions)
    wanted = [Operators(operators)] if operators != "fastest" else [Operators.PORTABLE]
    if operators == "fastest" and isinstance(getattr(loaded.model, "operators", None), Operators):
        wanted = list(Operators)
    graphs = {}
    for form in wanted:
        try:
            graphs[form.value] = _serialised(trace(loaded.model, sessions, form))
        except GraphError:  # one of several that the installed onnx does not know
            if len(wanted) == 1:
                raise
    operators = wanted[0].value
    metadata = {}
    if len(graphs) > 1:
        times = medians_us(graphs, sample(spec))
        operators = min(times, key=lambda name: times[name])
        told = ", ".join(f"{name} {us:.0f} us" for name, us in times.items())
        metadata["operators"] = f"{operators}, the fastest where it was built: {told}"
    chunk = None
    steps = getattr(loaded.model, "chunk_steps", 0)
    if steps and sessions == 1:
        chunk = _serialised(trace_chunk(cast(ChunkModel, loaded.model), Operators(operators)))
    initial = {
        name: tensor.numpy()
        for name, tensor in initial_states(loaded.model, sessions).items()
        if bool(tensor.any())
    }
    return Candidate(
        model=ModelRef(
            loaded.name,
            loaded.family,
            loaded.source,
            weights_sha256(loaded.module),
            getattr(loaded.module, "kv_bytes_per_step", None),
        ),
        spec=spec,
        graph=graphs[operators],
        made_with=("torch", "onnx", "onnxscript"),
        initial=initial,
        metadata=metadata,
        sessions=sessions,
        chunk=chunk,
        chunk_steps=steps if chunk else 0,
    )


def _serialised(graph: onnx.ModelProto) -> bytes:
    raw: bytes = graph.SerializeToString(deterministic=True)
    return raw
