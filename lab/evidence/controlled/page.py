"""All tables of the controlled benchmark, from its rows alone: docs/evidence/controlled.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean

from lab.evidence.controlled.arms import ARMS, CALIBRATED, CONFIGS, DEPLOYED, Threshold
from lab.evidence.controlled.rows import (
    At,
    Row,
    is_at,
    lines_of,
    name_of,
    of_several_weights,
    shown,
)
from lab.evidence.controlled.streams import (
    HORIZONS,
    INTERFERENCE,
    SESSIONS,
    SHIFTED,
    steps_of_lesson,
    steps_per_asked_event,
)
from lab.evidence.controlled.train import trainings
from lab.evidence.controlled.values import ByValue
from lab.evidence.intervals import over_seeds, permuted, wilson
from lab.evidence.pages import Contents, table
from lab.evidence.records import read_rows
from stategate.models.zoo.binding_stream import VALUES

_ABLATED = ("learned", "blind", "soft", "free", "square-16", "square-64")
_LARGE = ("gru-256", "lstm-528", "gru-1056")
_RECIPES = ("learned", "tutored", "longer", "always", "always-longer")
_ELSEWHERE = {*_ABLATED, *_LARGE, *_RECIPES} - {"learned", "always"}
_COMPARED = tuple(name for name in ARMS if name not in _ELSEWHERE)
_LONGEST = HORIZONS[-1][0]
# Steps per write at no more than so many points of accuracy lost (the targets).
_TARGETS = {"hard": 8.0, "easy": 12.0}
_MOST_LOST = 0.5
# What is gated, and what is written always by as many iterations.
_PAIRED = {"learned": "always", "tutored": "always", "longer": "always-longer"}
_OPENS: tuple[Threshold, ...] = (DEPLOYED, 0.0, CALIBRATED)


def contents(results: Path, values: Path) -> Contents:
    """Everything that the page shows.

    Args:
        results: Rows of `Row`.
        values: Rows of `ByValue`.

    Raises:
        SpecError: A file does not hold rows.
    """
    rows, by_value = read_rows(results, Row), read_rows(values, ByValue)
    pieces = {f"controlled-{config}": _table(rows, config, _arms(config)) for config in CONFIGS}
    pieces |= {
        "controlled-engines": _engines(rows),
        "controlled-missing": f"{missing(rows)}\n\n{_several(rows)}",
        "controlled-targets": table(*targets(rows, _PAIRED, _OPENS, (16_384, _LONGEST))),
        "controlled-seeds": _seeds(rows),
        "controlled-recipes": "\n\n".join(
            f"{config}:\n\n{_table(rows, config, _RECIPES)}" for config in CONFIGS[:3]
        ),
        "controlled-ablations": _table(rows, "hard", (*_ABLATED, "always")),
        "controlled-shifts": _shifts(rows),
        "controlled-interference": interference(rows, SESSIONS),
        "controlled-values": _values(by_value),
    }
    return Contents(pieces, {})


def _arms(config: str) -> Sequence[str]:
    if config == "slow":
        return ("learned", "always")
    return _COMPARED + (_LARGE if config == "hard" else ())


def _engines(rows: Iterable[Row]) -> str:
    counts = Counter(row.engine for row in rows)
    text = "; ".join(f"{engine}, rows: {count}" for engine, count in sorted(counts.items()))
    return f"Stepped by: {text}."


def missing(rows: Sequence[Row]) -> str:
    """Trainings that the table asks for and the results lack, by configuration."""
    done = {(row.arm, row.config, row.seed) for row in rows}
    lacking = [training for training in trainings(ARMS, CONFIGS) if training not in done]
    lines = []
    for config in CONFIGS:
        counts = Counter(training.arm for training in lacking if training.config == config)
        arms = "; ".join(f"{ARMS[arm].says} ({count})" for arm, count in counts.items())
        lines += [f"* {config}: {arms}"] if arms else []
    if not lines:
        return "Every training that the tables ask for has its rows."
    return "\n".join(("Rows still to come, of so many trainings each:\n", *lines))


def _several(rows: Sequence[Row]) -> str:
    """Trainings of which some rows were measured with earlier weights."""
    names = "; ".join(
        f"{c} {ARMS[arm].says}, seed {seed}" for arm, c, seed in of_several_weights(rows)
    )
    return f"Rows of more than one set of weights: {names or 'of no training'}."


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and half of its interval; a single value alone."""
    interval = over_seeds(values)
    if interval is None:
        return f"{values[0]:.{digits}f}"
    return f"{interval.estimate:.{digits}f} ± {interval.high - interval.estimate:.{digits}f}"


def accuracy(of: Sequence[Row], steps: int) -> str:
    """Per cent over trainings; of a single one with Wilson's interval."""
    points = [at for row in of if (at := row.up_to(steps)) is not None]
    if not points:
        return "–"
    if len(points) == 1:
        one = wilson(points[0].right, points[0].judged)
        return f"{100 * one.estimate:.2f} [{100 * one.low:.2f}, {100 * one.high:.2f}]"
    return spread([100 * at.accuracy for at in points], 2)


def size_of(of: Sequence[Row]) -> str:
    """Bytes of the memory."""
    size = of[0].state_bytes
    return "grows" if size is None else f"{size:,}"


def _table(rows: Sequence[Row], config: str, arms: Sequence[str]) -> str:
    head = ["model", "n", *(f"{steps:,}" for steps, _ in HORIZONS)]
    head += ["writes in 1,000 steps", "steps per write", "state bytes"]
    head += [f"KV bytes at {_LONGEST:,}", "iterations"]
    lines = []
    for name, of in lines_of(rows, config, config, arms):
        last = [row.at[-1] for row in of]
        lines.append(
            [
                name,
                str(len(of)),
                *(accuracy(of, steps) for steps, _ in HORIZONS),
                f"{fmean(1000 / at.ratio for at in last):.1f}",
                spread([at.ratio for at in last], 2),
                size_of(of),
                f"{of[0].kv_bytes_per_step * _LONGEST:,}",
                f"{of[0].iterations:,}",
            ]
        )
    present = {row.arm for row in rows if row.config == config}
    absent = [ARMS[a].says for a in arms if a not in present and config in ARMS[a].seeds]
    return table(head, lines) + (f"\n\nNo rows yet: {'; '.join(absent)}." if absent else "")


def _pairs(
    rows: Sequence[Row], config: str, arm: str, threshold: Threshold, steps: int
) -> list[tuple[At, At]]:
    """A gated arm and always-write of the same seed."""

    def of(arm: str, threshold: Threshold) -> dict[int, At]:
        return {
            row.seed: at
            for row in rows
            if (row.arm, row.config, row.stream) == (arm, config, config)
            and (threshold is None or is_at(row, threshold))
            and (at := row.up_to(steps)) is not None
        }

    gated, always = of(arm, threshold), of(_PAIRED[arm], None)
    return [(gated[seed], always[seed]) for seed in sorted(gated) if seed in always]


def targets(
    rows: Sequence[Row],
    arms: Iterable[str],
    thresholds: Sequence[Threshold],
    lengths: Sequence[int],
) -> tuple[list[str], list[list[str]]]:
    """What is written less than always, and what it costs, against the goals: head and lines."""
    head = ["stream", "model", "steps", "n", "steps per write", "points lost to always-write"]
    head += ["steps per event", "per event that is asked for", "target", "seeds that meet both"]
    lines = []
    for config, target in _TARGETS.items():
        for arm, threshold in product(arms, thresholds):
            for steps in lengths:
                pairs = _pairs(rows, config, arm, threshold, steps)
                if not pairs:
                    continue
                lost = [100 * (always.accuracy - gated.accuracy) for gated, always in pairs]
                ratios = [gated.ratio for gated, _ in pairs]
                met = [r >= target and d <= _MOST_LOST for r, d in zip(ratios, lost, strict=True)]
                lines.append(
                    [
                        config,
                        f"{ARMS[arm].says}, {name_of(threshold)}",
                        f"{steps:,}",
                        str(len(pairs)),
                        spread(ratios, 2),
                        spread(lost, 2),
                        _ideal(rows, config, steps),
                        f"{steps_per_asked_event(config):.2f}",
                        f"{target:g} at {_MOST_LOST}",
                        f"{sum(met)} of {len(met)}",
                    ]
                )
    return head, lines


def _ideal(rows: Sequence[Row], config: str, steps: int) -> str:
    """Steps per write of a gate that knows the events."""
    for row in rows:
        if (row.arm, row.config) == ("oracle", config) and (at := row.up_to(steps)) is not None:
            return f"{at.ratio:.2f}"
    return "–"


def _seeds(rows: Sequence[Row]) -> str:
    """Each training of the shipped recipe and of its always-write, one at a time."""
    head = ["model", "seed", *(f"{steps:,}" for steps, _ in HORIZONS), "steps per write"]
    lines = [
        [
            name,
            str(row.seed),
            *(accuracy([row], steps) for steps, _ in HORIZONS),
            f"{row.at[-1].ratio:.2f}",
        ]
        for name, of in lines_of(rows, "hard", "hard", ("longer", "always-longer"))
        for row in of
    ]
    return table(head, lines)


def _shifts(rows: Sequence[Row]) -> str:
    head = ["stream", "model", "n", "4,096", "16,384", "steps per write"]
    lines = []
    for stream in ("hard", *SHIFTED):
        for name, of in lines_of(rows, "hard", stream, ("learned", "always", "gated-delta")):
            far = [at.ratio for row in of if (at := row.up_to(16_384)) is not None]
            accuracies = [accuracy(of, steps) for steps in (4096, 16_384)]
            lines.append([stream, name, str(len(of)), *accuracies, spread(far, 2)])
    return table(head, lines)


def interference(rows: Sequence[Row], sessions: Sequence[int]) -> str:
    """Right answers about a lesson after so many sessions about other things."""
    head = ["model", "n", *(f"k = {k}" for k in sessions), "writes in 1,000 steps, k = 7"]
    lines = [
        [
            name,
            str(len(of)),
            *(accuracy(of, steps_of_lesson(k)) for k in sessions),
            f"{fmean(1000 / row.at[-1].ratio for row in of):.0f}",
        ]
        for name, of in shown(rows, ARMS, INTERFERENCE)
    ]
    done = {(row.arm, row.seed) for row in rows if row.stream == INTERFERENCE}
    lacking = Counter(
        name
        for name, arm in ARMS.items()
        for seed in range(arm.seeds["hard"] if arm.interfered else 0)
        if (name, seed) not in done
    )
    text = "; ".join(f"{ARMS[name].says} ({count})" for name, count in lacking.items())
    return table(head, lines) + (f"\n\nTrainings still to come: {text}." if text else "")


def _values(rows: Sequence[ByValue]) -> str:
    """What each training writes of each value, and what it answers."""
    head = ["model", "seed", *(f"value {i}" for i in range(VALUES))]
    head += ["blind to", "right of those", "right of the others", "right"]
    lines = []
    for row in rows:
        written = (f"{100 * w / e:.0f}" for w, e in zip(row.written, row.events, strict=True))
        blind = row.blind
        others = [value for value in range(VALUES) if value not in blind]
        lines.append(
            [
                ARMS[row.arm].says,
                str(row.seed),
                *written,
                ", ".join(map(str, blind)) or "none",
                _right(row, blind),
                _right(row, others),
                f"{100 * row.accuracy:.1f}",
            ]
        )
    return table(head, lines)


def _right(row: ByValue, values: Sequence[int]) -> str:
    queries = sum(row.asked[value] for value in values)
    return f"{100 * sum(row.right[value] for value in values) / queries:.0f}" if queries else "–"


def blind(rows: Sequence[ByValue]) -> str:
    """Trainings without and with tutoring, and how likely chance alone parts them so far."""
    without, with_it = ([row for row in rows if row.arm == arm] for arm in ("learned", "tutored"))
    figures: dict[str, Callable[[ByValue], float]] = {
        "trainings blind to a value": lambda row: float(bool(row.blind)),
        "blind values": lambda row: float(len(row.blind)),
        "right, per cent": lambda row: 100 * row.accuracy,
    }
    head = ["", *(f"{ARMS[of[0].arm].says}, n = {len(of)}" for of in (without, with_it) if of)]
    lines = []
    for name, figure in figures.items():
        groups = [[figure(row) for row in of] for of in (without, with_it)]
        if not all(groups):
            continue
        shares = name.startswith("right")
        cells = [spread(of, 1) if shares else f"{sum(of):.0f}" for of in groups]
        lines.append([name, *cells, f"{permuted(*groups):.2g}"])
    return table([*head, "p"], lines)
