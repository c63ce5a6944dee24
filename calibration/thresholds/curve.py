"""The threshold of a hard gate: a curve from closed loops, and a rule that chooses from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stategate.calibration.closed_loop import (
    LoopCounts,
    check_changes,
    hard_gate,
    roll,
    sample_gate,
)
from stategate.calibration.cluster import Cluster, connected
from stategate.calibration.episodes import Fleet, Progress, Report, ask_each
from stategate.calibration.recordings import Episodes, episodes_for, listed
from stategate.calibration.settings import REFINEMENTS, TOLERANCE, Wish
from stategate.common import console
from stategate.common.statistics import rate_interval
from stategate.contract import CalibrationRecord, Episode, EpisodeSet, GateSpec
from stategate.contract.calibration import CurvePoint, GateCalibration
from stategate.contract.errors import CalibrationError
from stategate.contract.numbers import whole
from stategate.models.load import evaluating
from stategate.models.step import StepModel
from stategate.models.weights import weights_sha256

PROPOSED_RATES = (0.9, 0.75, 0.5, 0.35, 0.25, 0.18, 0.125, 0.09, 0.06, 0.03, 0.01)
"""Write rates whose thresholds are tried where none are given, if gates were as at the start."""
_FINER = 7  # thresholds in each round of a search between two thresholds
_RATE_TOLERANCE = 0.05  # of the wanted write rate
_AS_FEW = 0.02  # more writes than the fewest that count as no more: episodes differ by more


def calibrate_gate(
    model: StepModel,
    episodes: Iterable[Episode] | Fleet,
    thresholds: Sequence[float] | None = None,
    wish: Wish | None = None,
    gate_name: str | None = None,
    report: Report = lambda _: None,
) -> GateCalibration:
    """Choose a threshold by what each of them does in closed loop.

    Args:
        model: With a hard gate. The threshold that its spec declares is the reference: the plain
            model where the gate was never trained, for that is declared below every gate value.
        episodes: Held-out inputs, gone through several times; with labels of an output where the
            rule needs an accuracy. A `Fleet` has them rolled elsewhere.
        thresholds: What to try; None proposes some from the gate's own values.
        wish: What to choose for.
        gate_name: Which gate; None for the only one.
        report: Called with the number of steps done, see `Wish.rounds`.
    """
    wish = wish or Wish()
    gate = hard_gate(model.step_spec(), gate_name)
    assert gate.threshold is not None
    reference = float(gate.threshold)
    count = Progress(report)
    proposed = thresholds is None
    if thresholds is None:
        look = partial(sample_gate, gate=gate, threshold=reference)
        thresholds = propose(ask_each(model, episodes, look, count).values, gate)
        count.next()
    if not thresholds:
        raise CalibrationError("no thresholds to try were given")
    refused = [threshold for threshold in thresholds if not gate.allows(threshold)]
    if refused:
        raise CalibrationError(
            f"gate {gate.name!r} cannot have such a threshold",
            found=", ".join(f"{threshold!r}" for threshold in refused),
            expected="{:g} up to but not {:g}, in float32".format(*gate.threshold_range or ()),
        )

    def curve_of(tried: Iterable[float]) -> list[CurvePoint]:
        live = partial(roll, gate=gate, thresholds=sorted(set(tried)), reference=reference)
        rolled = ask_each(model, episodes, live, count)
        check_changes(rolled.inputs, int(rolled.steps.sum()))
        count.next()
        return _points(rolled)

    curve = curve_of(thresholds)
    if wish.write_rate is not None:
        for _ in range(REFINEMENTS):
            between = _between(curve, wish.write_rate)
            if not between:
                break
            curve = _merged(curve, curve_of(between))
    chosen, rule = _choose(curve, wish)
    if proposed and wish.write_rate is None:
        # The bound is crossed between this threshold and the next that was tried.
        rest = [point.threshold for point in curve if point.threshold > chosen.threshold]
        finer = _inside(chosen.threshold, rest[0]) if rest else []
        curve = _merged(curve, curve_of(finer) if finer else [])
        chosen, rule = _choose(curve, wish, back_off=True)
    return GateCalibration(
        gate.name, chosen.threshold, chosen.write_rate, rule, tuple(curve), reference
    )


def propose(values: NDArray[np.float32], gate: GateSpec) -> list[float]:
    """Thresholds in the gate's own units, from values of it, of any shape."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        raise CalibrationError(
            f"gate {gate.name!r} never changes, so no threshold parts its writes",
            found=f"{low:g} in every step",
            expected="a gate that depends on the inputs or the memory",
            remedy="give episodes in which something happens; check that inputs are not constant",
        )
    quantiles = np.quantile(values, [1 - rate for rate in PROPOSED_RATES])
    margin = 1e-3 * (high - low)
    assert gate.threshold is not None
    tried = [low - margin, *quantiles.tolist(), high + margin, gate.threshold]
    return sorted({t for value in tried if gate.allows(t := float(f"{value:.6g}"))})


def _points(rolled: LoopCounts) -> list[CurvePoint]:
    steps = rolled.steps
    total, judged = int(steps.sum()), int(rolled.judged.sum())
    points = []
    for i, threshold in enumerate(rolled.thresholds):
        writes, openings, right = (a[:, i] for a in (rolled.writes, rolled.openings, rolled.right))
        points.append(
            CurvePoint(
                threshold=float(threshold),
                write_rate=int(writes.sum()) / total,
                element_rate=int(openings.sum()) / (total * rolled.elements),
                accuracy=int(right.sum()) / judged if judged else None,
                output_error=float(rolled.output_error[i]),
                write_interval=rate_interval(openings, steps * rolled.elements),
                accuracy_interval=rate_interval(right, rolled.judged),
            )
        )
    return points


def _between(curve: Sequence[CurvePoint], rate: float) -> list[float]:
    """Thresholds between the two neighbours whose write rates enclose the wanted one."""
    if min(abs(point.element_rate - rate) for point in curve) <= _RATE_TOLERANCE * rate / 10:
        return []
    for above, below in zip(curve, curve[1:], strict=False):
        if above.element_rate >= rate >= below.element_rate:
            return _inside(above.threshold, below.threshold)
    return []


def _inside(low: float, high: float) -> list[float]:
    """Thresholds strictly between two, as float32 parts them."""
    inner = np.linspace(low, high, _FINER + 2).astype(np.float32)[1:-1]
    return sorted({float(v) for v in inner if np.float32(low) < v < np.float32(high)})


def _merged(curve: Sequence[CurvePoint], more: Sequence[CurvePoint]) -> list[CurvePoint]:
    return sorted([*curve, *more], key=lambda point: point.threshold)


def _choose(
    curve: Sequence[CurvePoint], wish: Wish, *, back_off: bool = False
) -> tuple[CurvePoint, str]:
    if wish.write_rate is not None:
        return _by_rate(curve, wish.write_rate)
    if wish.max_output_error is not None:
        bound = wish.max_output_error
        return _fewest(
            curve,
            lambda point: point.output_error is not None and point.output_error <= bound,
            f"fewest writes with an output error of at most {bound:g}",
            f"output errors from {min(p.output_error or 0.0 for p in curve):.3g}",
            back_off=back_off,
        )
    accuracies = [point.accuracy for point in curve if point.accuracy is not None]
    if not accuracies:
        raise CalibrationError(
            "the episode has no labels to judge by",
            expected="label.<output> with at least one index >= 0",
            remedy="choose by --write-rate or --max-output-error, which need none",
        )
    best_accuracy = max(accuracies)
    least = best_accuracy - wish.tolerance if wish.accuracy is None else wish.accuracy
    return _fewest(
        curve,
        lambda point: point.accuracy is not None and point.accuracy >= least,
        f"fewest writes within {wish.tolerance:g} of the best accuracy ({best_accuracy:.4f})"
        if wish.accuracy is None
        else f"fewest writes with an accuracy of at least {least:g}",
        f"accuracies up to {best_accuracy:.4f}",
        back_off=back_off,
    )


def _fewest(
    curve: Sequence[CurvePoint],
    fits: Callable[[CurvePoint], bool],
    rule: str,
    figures: str,
    *,
    back_off: bool,
) -> tuple[CurvePoint, str]:
    """The fewest writes; to back off, as few from as far as can be from what does not fit."""
    fitting = [point for point in curve if fits(point)]
    if not fitting:
        raise CalibrationError(
            "no threshold meets the request",
            found=f"{figures} over thresholds {curve[0].threshold:g} to {curve[-1].threshold:g}",
            expected=rule,
            remedy="ask for less, or give other thresholds with --thresholds",
        )
    fewest = min(fitting, key=lambda point: (point.element_rate, -point.threshold))
    misses = [point.threshold for point in curve if not fits(point)]
    if not (back_off and misses):
        return fewest, rule
    as_few = [p for p in fitting if p.element_rate <= (1 + _AS_FEW) * fewest.element_rate]
    gaps = [min(abs(point.threshold - miss) for miss in misses) for point in as_few]
    chosen = as_few[int(np.argmax(gaps))]
    if chosen is fewest:
        return fewest, rule
    cliff = min(misses, key=lambda miss: abs(miss - fewest.threshold))
    return chosen, (
        f"{rule}; not {fewest.threshold:g}, which writes {fewest.element_rate:.2%}, "
        f"because {cliff:g} misses that"
    )


def _by_rate(curve: Sequence[CurvePoint], rate: float) -> tuple[CurvePoint, str]:
    best = min(curve, key=lambda point: abs(point.element_rate - rate))
    if abs(best.element_rate - rate) > _RATE_TOLERANCE * rate:
        rates = sorted(point.element_rate for point in curve)
        near = [max((r for r in rates if r <= rate), default=None)]
        near.append(min((r for r in rates if r >= rate), default=None))
        shown = " and ".join(f"{r:.4g}" for r in near if r is not None)
        raise CalibrationError(
            f"no threshold gives a write rate of {rate:g}",
            found=f"rates from {rates[0]:.4g} to {rates[-1]:.4g}; nearest are {shown}",
            expected=f"{rate:g} within {_RATE_TOLERANCE:.0%} of it",
            remedy="ask for a rate in that range; other --thresholds may widen it",
        )
    return best, f"write rate nearest to {rate:g}"


def calibrate(
    model: object,
    episodes: Episodes | None = None,
    *,
    gate: str | None = None,
    thresholds: Sequence[float] | None = None,
    tolerance: float = TOLERANCE,
    accuracy: float | None = None,
    write_rate: float | None = None,
    max_output_error: float | None = None,
    steps: int = 2048,
    count: int = 4,
    cluster: Cluster | None = None,
    progress: console.Progress | None = None,
) -> CalibrationRecord:
    """Choose the threshold of a hard gate by what each threshold does in closed loop.

        record = stategate.calibrate(policy, "recordings/", write_rate=0.2)
        bundle = stategate.make(policy, "build/policy", calibration=[record])

    One rule chooses; without any it is ``tolerance``.

    Args:
        model: See `stategate.make`.
        episodes: Recordings, with labels where the rule needs an accuracy; None for the benchmark
            of a zoo model.
        gate: Which hard gate, where there are several.
        thresholds: What to try; from quantiles of the gate's own values where it is None.
        tolerance: Accuracy that may be given up for fewer writes.
        accuracy: Rule: the fewest writes with at least this accuracy.
        write_rate: Rule: this share of the gate's elements opens.
        max_output_error: Rule: the fewest writes with at most this error of outputs, relative to
            their size, against the plain model.
        steps: Of each episode, for the zoo.
        count: Episodes, for the zoo.
        cluster: A Dask cluster that rolls recordings: ``local``, an address, or a client.
        progress: Called with stage, steps done, and the most that there can be.

    Raises:
        CalibrationError: The model has no such gate, the gate never changes, the rule needs labels
            that are not there, or no threshold meets it.
        EpisodeError: There are no episodes, or one does not fit the model.
        TraceError: The model cannot be stepped.
    """
    steps, count = whole("steps", steps), whole("count", count)
    wish = Wish(tolerance, accuracy, write_rate, max_output_error)
    with ExitStack() as stack:
        loaded = stack.enter_context(evaluating(model))
        hard_gate(loaded.model.step_spec(), gate)  # before anything is read
        sha256 = weights_sha256(loaded.module)
        rolled: Iterable[Episode] | Fleet
        rolled, total, source = episodes_for(loaded, episodes, steps, count)
        if cluster is not None:
            source_file, files = _anywhere(model), _files(episodes)
            client = stack.enter_context(connected(cluster))
            rolled = Fleet(source_file, sha256, files, client)
        rounds = wish.rounds(proposed=thresholds is None)
        report = stack.enter_context(
            console.progress(total * rounds, "calibrating", listener=progress)
        )
        chosen = calibrate_gate(loaded.model, rolled, thresholds, wish, gate, report)
    return CalibrationRecord(sha256, source, total, (chosen,))


def _files(episodes: Episodes | None) -> EpisodeSet:
    files = [one for one in listed(episodes or ()) if not isinstance(one, Episode)]
    if not files or len(files) < len(listed(episodes or ())):
        raise CalibrationError(
            "a cluster rolls files, which its workers find under the same paths",
            expected="recordings on disk: --episode",
        )
    return EpisodeSet.open(*files)


def _anywhere(model: object) -> str:
    """The same model for a process that stands in another folder."""
    if not isinstance(model, str):
        raise CalibrationError(
            "a worker of a cluster loads the model itself",
            found=f"a {type(model).__name__}",
            expected='a zoo name, or "path/to/module.py:factory"',
        )
    file, colon, factory = model.rpartition(":")
    return f"{Path(file).resolve()}:{factory}" if colon else model
