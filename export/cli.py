"""``stategate export``: a torch module becomes a verified bundle."""

from __future__ import annotations

from pathlib import Path

import click

from stategate.contract import (
    Budget,
    CalibrationRecord,
    Episode,
    ModelRef,
    StepSpec,
    refuse_to_replace,
)
from stategate.contract.console import progress
from stategate.export.pack import Candidate, random_episode, seal
from stategate.export.receipt import print_receipt
from stategate.export.trace import OPSET, TorchReference, trace
from stategate.export.verify import STEPS
from stategate.models.checkpoint import weights_sha256
from stategate.models.load import LoadedModel, load_model
from stategate.models.step import initial_states
from stategate.models.zoo import HELD_OUT_SEED
from stategate.targets import detect, load


@click.command()
@click.argument("model")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The bundle's folder.")
@click.option(
    "--calibration",
    "calibration_path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Record with the gate's threshold, from: stategate calibrate.",
)
@click.option("--target", help="Device it is for; this machine's if left out.")
@click.option(
    "--episode",
    "episode_path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Inputs of the parity check (.npz), repeated if short; benchmark or random if left out.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=STEPS,
    show_default=True,
    help="Closed-loop steps of the parity check.",
)
@click.option(
    "--max-state-bytes", type=click.IntRange(min=1), help="Budget: refuse a larger memory."
)
@click.option("--json", "as_json", is_flag=True, help="Print the receipt as JSON.")
def export(
    model: str,
    out: Path,
    calibration_path: Path | None,
    target: str | None,
    episode_path: Path | None,
    steps: int,
    max_state_bytes: int | None,
    as_json: bool,
) -> None:
    """Make a bundle from MODEL, a zoo name or path/to/module.py:factory.

    Traces one step, checks it against the model in closed loop, and writes the bundle only if
    outputs, states and every gate decision agree.

    \b
    Examples:
      stategate export aura-hard --out build/aura
      stategate export my_policy.py:MyPolicy --out build/mine
    """
    profile = load(target) if target else detect()
    refuse_to_replace(out)
    loaded = load_model(model)
    candidate = candidate_from(loaded)
    if calibration_path is not None:
        candidate = candidate.calibrated(CalibrationRecord.load(calibration_path))
    if episode_path is not None:
        episode = _recorded(episode_path, candidate.spec, steps)
    elif loaded.episode is not None:
        episode = loaded.episode(steps, HELD_OUT_SEED)
    else:
        episode = random_episode(candidate.spec, steps)
    reference = TorchReference(loaded.model, candidate.spec.thresholds)
    with progress(episode.steps, "verifying") as report:
        bundle = seal(
            out,
            candidate,
            reference,
            episode,
            target=profile.ref(),
            budget=Budget(max_state_bytes),
            report=report,
        )
    print_receipt(bundle, as_json)


def _recorded(path: Path, spec: StepSpec, steps: int) -> Episode:
    episode = Episode.load(path)
    episode.check(spec)
    return episode.resized(steps)


def candidate_from(loaded: LoadedModel) -> Candidate:
    """Trace a model into a candidate, thresholds as its own spec has them."""
    graph = trace(loaded.model)
    initial = {
        name: tensor.numpy()
        for name, tensor in initial_states(loaded.model).items()
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
        spec=loaded.model.step_spec(),
        graph=graph.SerializeToString(deterministic=True),
        opset=OPSET,
        made_with=("torch", "onnx", "onnxscript"),
        initial=initial,
    )
