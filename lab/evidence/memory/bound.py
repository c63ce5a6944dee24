"""What the bound on the loss of value says of a memory: ``python -m lab memory bound``.

A memory that is an (epsilon, delta) approximate information state loses at most

    2 (epsilon + gamma delta span(V)) / (1 - gamma)

of discounted reward against the whole history (Subramanian, Sinha, Seraj and Mahajan, JMLR 23,
2022; arXiv:2010.08843). Both numbers are suprema over histories. On the binding stream they are
known in closed form but for the memory's own belief: a right answer is worth 1; what comes next
depends on the history only where a repeat shows an entity's current value; and the belief in that
value is the softmax of the answer. So epsilon is how far the belief in an answer is from the truth,
and delta is that error times the chance of a repeat. Total variation is the distance, and span(V)
is at most what a perfect memory earns.

The supremum is the theorem. The 95th percentile and the mean in its place are readings of the same
formula, and no theorem; both stand next to it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click
import numpy as np
from numpy.typing import NDArray

from lab.evidence.records import write_rows
from stategate.common.console import progress
from stategate.contract import Episode, load_episode
from stategate.contract.durable import check_writable
from stategate.contract.errors import EpisodeError
from stategate.contract.specs import Record
from stategate.models.zoo.binding_stream import CONFIGS, NO_LABEL
from stategate.runtime.session import Session

HORIZONS = (10, 100, 1_000, 10_000, 100_000)
Reading = Literal["supremum", "q95", "mean"]


class BoundRow(Record, frozen=True):
    """The bound at one horizon, in answers; all figures are of one discounted life.

    Attributes:
        reading: What stands for the suprema.
        horizon: 1 / (1 - gamma), steps.
        epsilon: Error of the believed reward of a step.
        delta: Total variation of the believed next observation.
        bound: Reward lost at most.
        earned_at_best: What a perfect memory earns: the share of steps that ask, times the horizon.
        lost: What this memory loses, measured.
        vacuous: The bound allows to lose all there is.
    """

    reading: Reading
    horizon: int
    epsilon: float
    delta: float
    bound: float
    earned_at_best: float
    lost: float
    vacuous: bool


class Bounds(Record, frozen=True):
    """Of one bundle on one stream.

    Attributes:
        bundle: Its name and digest.
        config: Of the stream.
        steps: Of the stream.
        asked: Queries in it.
        accuracy: Of the answers.
        rows: For every reading and horizon.
    """

    bundle: str
    digest: str
    config: str
    steps: int
    asked: int
    accuracy: float
    rows: tuple[BoundRow, ...]


def bound(epsilon: float, delta: float, span: float, horizon: int) -> float:
    """The formula above, with gamma = 1 - 1 / horizon."""
    return 2 * (epsilon + (1 - 1 / horizon) * delta * span) * horizon


def bound_rows(
    error: NDArray[np.float64], wrong: float, asking: float, repeating: float
) -> tuple[BoundRow, ...]:
    """All readings at all horizons.

    Args:
        error: For each query 1 - the belief in the right answer.
        wrong: Share of wrong answers.
        asking: Share of steps that are queries.
        repeating: Chance of a repeat.
    """
    # The mean is over all steps, of which only queries are paid; the others are no worse than it.
    readings: dict[Reading, tuple[float, float]] = {
        "supremum": (float(error.max()), 1.0),
        "q95": (float(np.quantile(error, 0.95)), 1.0),
        "mean": (float(error.mean()), asking),
    }
    rows = []
    for reading, (belief, share) in readings.items():
        for horizon in HORIZONS:
            best = asking * horizon
            value = bound(belief * share, belief * repeating, best, horizon)
            rows.append(
                BoundRow(
                    reading,
                    horizon,
                    belief * share,
                    belief * repeating,
                    value,
                    best,
                    wrong * best,
                    value >= best,
                )
            )
    return tuple(rows)


def beliefs(session: Session, episode: Episode) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Step through the whole episode: ``1 - belief`` and whether it was right, for each query.

    Raises:
        EpisodeError: The episode asks nothing.
    """
    labelled = [name for name, array in episode.labels.items() if (array != NO_LABEL).any()]
    if not labelled:
        raise EpisodeError(
            "there is nothing to judge",
            found="an episode without a labelled query",
            remedy="stategate episodes zoo aura-hard --steps 100000 --out episode.npz",
        )
    name, labels = labelled[0], episode.labels[labelled[0]]
    errors, right = [], []
    with progress(episode.steps, "stepping") as report:
        for at, label in enumerate(labels):
            answer = session.step(**{key: array[at] for key, array in episode.inputs.items()})
            if label != NO_LABEL:
                logits = answer[name].astype(np.float64).ravel()
                weights = np.exp(logits - logits.max())
                errors.append(1 - weights[label] / weights.sum())
                right.append(logits.argmax() == label)
            if at % 1000 == 999:
                report(at + 1)
    return np.array(errors), np.array(right)


@click.command("bound")
@click.argument("bundles", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False))
@click.option("--episode", required=True, type=click.Path(exists=True), help="With labels.")
@click.option("--config", type=click.Choice(list(CONFIGS)), default="hard", show_default=True)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("docs/evidence/bound.json"),
    show_default=True,
)
def bound_command(bundles: tuple[str, ...], episode: str, config: str, out: Path) -> None:
    """Step BUNDLES through a labelled episode of the binding stream, and compute their bounds."""
    check_writable(out)
    recorded = load_episode(episode)
    results = []
    for path in bundles:
        with Session.open(path) as session:
            recorded.check(session.manifest.step)
            error, right = beliefs(session, recorded)
            name, digest = session.manifest.model.name, session.bundle_digest
        asking, wrong = len(right) / recorded.steps, 1 - right.mean()
        rows = bound_rows(error, float(wrong), asking, CONFIGS[config].kinds[1])
        results.append(
            Bounds(name, digest, config, recorded.steps, len(right), float(right.mean()), rows)
        )
        click.echo(f"{name}: {len(right):,} answers, {right.mean():.4%} right")
        for row in rows:
            click.echo(
                f"  {row.reading:<9} horizon {row.horizon:>7,}: epsilon {row.epsilon:.2g}, delta "
                f"{row.delta:.2g}, loses at most {row.bound:>10.4g} of {row.earned_at_best:>8.4g}"
                f"{' (vacuous)' if row.vacuous else ''}; lost {row.lost:.3g}"
            )
    write_rows(out, results, lambda row: (row.config, row.bundle))
