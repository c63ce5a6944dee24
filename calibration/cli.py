"""``stategate calibrate``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from stategate.calibration.gate import TOLERANCE, Wish, calibrate_gate
from stategate.calibration.rolls import hard_gate
from stategate.contract import CalibrationRecord, CurvePoint, Episode, canonical_json
from stategate.contract.console import check_writable, progress, write_whole
from stategate.contract.errors import EpisodeError
from stategate.contract.specs import is_threshold
from stategate.models.checkpoint import weights_sha256
from stategate.models.load import LoadedModel, load_model

_CALIBRATION_SEED = 3_000_017  # neither the training's nor the held-out episode's


@dataclass(frozen=True, slots=True)
class EpisodeFiles:
    """Recorded episodes that are read one at a time, as often as they are gone through."""

    paths: tuple[Path, ...]

    @classmethod
    def find(cls, given: tuple[Path, ...]) -> EpisodeFiles:
        """Files, and the ``.npz`` files of folders in the order of their names.

        Raises:
            EpisodeError: A folder has none.
        """
        paths: list[Path] = []
        for path in given:
            inside = sorted(path.glob("*.npz")) if path.is_dir() else [path]
            if not inside:
                raise EpisodeError("the folder has no episodes", found=path, expected="*.npz files")
            paths += inside
        return cls(tuple(paths))

    def __iter__(self) -> Iterator[Episode]:
        """Each episode."""
        return (Episode.load(path) for path in self.paths)


def numbers(text: str, option: str) -> list[float]:
    """Thresholds separated by commas.

    Raises:
        BadParameter: One of them is none.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError as problem:
        raise click.BadParameter(str(problem), param_hint=option) from problem
    if not all(is_threshold(value) for value in values):
        raise click.BadParameter("thresholds must be finite in float32", param_hint=option)
    return values


@click.command()
@click.argument("model")
@click.option(
    "--episode",
    "episode_paths",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="Inputs (.npz, or a folder of them), with labels where the rule needs them; repeat for "
    "more. For a zoo model its own benchmark, if left out.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=2048,
    show_default=True,
    help="Of each, for the zoo.",
)
@click.option(
    "--episodes",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="How many, for the zoo.",
)
@click.option("--gate", "gate_name", help="Which hard gate, where there are several.")
@click.option(
    "--thresholds",
    help="What to try, separated by commas; from quantiles of the gate's own values, if left out.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, max=1),
    default=TOLERANCE,
    show_default=True,
    help="Accuracy that may be given up for fewer writes; the rule if no other is given.",
)
@click.option(
    "--accuracy",
    type=click.FloatRange(min=0, max=1),
    help="Choose the fewest writes with this accuracy.",
)
@click.option(
    "--write-rate",
    type=click.FloatRange(min=0, max=1),
    help="Choose the threshold that opens this share of the gate's elements.",
)
@click.option(
    "--max-output-error",
    type=click.FloatRange(min=0),
    help="Choose the fewest writes with this error of outputs against the plain model; needs no "
    "labels.",
)
@click.option(
    "--cost-missed",
    type=click.FloatRange(min=0),
    help="Choose the least cost; price of a step that should have written.",
)
@click.option(
    "--cost-needless",
    type=click.FloatRange(min=0),
    help="Choose the least cost; price of a step that need not have written.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The record (.json).")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def calibrate(
    model: str,
    episode_paths: tuple[Path, ...],
    steps: int,
    episodes: int,
    gate_name: str | None,
    thresholds: str | None,
    tolerance: float,
    accuracy: float | None,
    write_rate: float | None,
    max_output_error: float | None,
    cost_missed: float | None,
    cost_needless: float | None,
    out: Path,
    as_json: bool,
) -> None:
    """Choose a gate's threshold for MODEL, a zoo name or path/to/module.py:factory.

    \b
    Examples:
      stategate calibrate aura-hard --out build/calibration.json
      stategate calibrate kda --max-output-error 0.1 --out build/calibration.json
      stategate calibrate my.py:policy --episode logs/ --write-rate 0.2 --out build/calibration.json
    """
    values = None if thresholds is None else numbers(thresholds, "--thresholds")
    costs = None
    if cost_missed is not None or cost_needless is not None:
        if cost_missed is None or cost_needless is None:
            raise click.UsageError("--cost-missed and --cost-needless go together")
        costs = (cost_missed, cost_needless)
    wish = Wish(tolerance, accuracy, write_rate, max_output_error, costs)
    check_writable(out)
    loaded = load_model(model)
    hard_gate(loaded.model.step_spec(), gate_name)  # before anything is asked for
    rolled, source = episodes_for(loaded, episode_paths, steps, episodes)
    total = sum(episode.steps for episode in rolled)
    rounds = wish.rounds + (values is None)
    with progress(total * rounds, "calibrating") as report:
        gate = calibrate_gate(loaded.model, rolled, values, wish, gate_name, report)
    record = CalibrationRecord(weights_sha256(loaded.module), source, total, (gate,))
    raw = canonical_json(record)
    write_whole(out, raw)
    if as_json:
        click.echo(raw, nl=False)
        return
    for point in gate.curve:
        click.echo(line_of(point) + ("  <- chosen" if point.threshold == gate.threshold else ""))
    if all(point.write_interval is None for point in gate.curve):
        click.echo("confidence: unknown, from one episode; give two or more")
    click.echo(f"{gate.rule}: {out}")


def episodes_for(
    loaded: LoadedModel, paths: tuple[Path, ...], steps: int, count: int
) -> tuple[EpisodeFiles | list[Episode], str]:
    """The episodes that a command names, and what to call them in a record.

    Raises:
        UsageError: A model of the user's own, and no files.
        EpisodeError: A folder has no episodes.
    """
    if paths:
        return EpisodeFiles.find(paths), ", ".join(path.name for path in paths)
    if loaded.episode is None:
        raise click.UsageError("a model of your own needs --episode FILE.npz")
    seeds = range(_CALIBRATION_SEED, _CALIBRATION_SEED + count)
    what = "the model's own benchmark" if loaded.episode(1, 0).labels else "random inputs"
    return [loaded.episode(steps, seed) for seed in seeds], f"{what}, {count} from seed {seeds[0]}"


def line_of(point: CurvePoint) -> str:
    """A threshold and what it does, for the reader."""
    parts = [f"threshold {point.threshold:>10.6g}: writes {point.element_rate:.2%}"]
    if point.write_interval is not None:
        parts[0] += f" ({point.write_interval.low:.2%} to {point.write_interval.high:.2%})"
    if point.write_rate != point.element_rate:
        parts[0] += f" of elements, in {point.write_rate:.2%} of steps"
    if point.accuracy is not None:
        parts.append(f"accuracy {point.accuracy:.4f}")
        if point.accuracy_interval is not None:
            low, high = point.accuracy_interval.low, point.accuracy_interval.high
            parts[-1] += f" ({low:.4f} to {high:.4f})"
    if point.output_error is not None:
        parts.append(f"output error {point.output_error:.3g}")
    if point.missed_rate is not None and point.needless_rate is not None:
        parts.append(f"missed {point.missed_rate:.2%}, needless {point.needless_rate:.2%}")
    if point.flip_rate is not None:
        parts.append(f"flips {point.flip_rate:.3%}")
    return ", ".join(parts)
