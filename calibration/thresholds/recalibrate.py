"""A threshold for a candidate that decides as the float bundle does, as well as it can.

Quantisation moves gate values, so the float model's threshold is no longer the right one. Both
bundles are stepped by the runtime, each on its own memory: a flip feeds back, so only a closed loop
says what a threshold does. Of those tried, the one with the fewest flips wins, and among equals the
one whose write rate is nearest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from stategate.calibration.closed_loop import check_changes, elements_of, extremes, hard_gate
from stategate.calibration.drift.judge import check_alike, check_judge
from stategate.calibration.episodes import Progress, Report
from stategate.calibration.recordings import Episodes, names_of, on_disk
from stategate.common import console
from stategate.common.statistics import rate_interval
from stategate.contract import Bundle, CalibrationRecord, Episode, GateSpec, write_bundle
from stategate.contract.calibration import CurvePoint, GateCalibration
from stategate.contract.errors import EpisodeError
from stategate.contract.staging import scratch_folder
from stategate.contract.write_rule import opens
from stategate.runtime.session import Session

_TRIED, _FINER = 9, 7
ROUNDS = 2 + _TRIED + 2 + _FINER
"""Times that the episodes are rolled, at most."""

Masks = list[NDArray[np.bool_]]
"""Which elements were open, ``(steps, elements)`` of each episode."""


@dataclass(frozen=True, slots=True)
class _Trace:
    """What a bundle did, a list entry for each episode."""

    gates: list[NDArray[np.float32]]  # ``(steps, elements)`` float32 gate values
    outputs: list[dict[str, NDArray[np.float32]]]  # by name ``(steps, *shape)``

    def openings(self, threshold: float) -> Masks:
        """What a threshold would have opened."""
        return [opens(values, threshold) for values in self.gates]


def recalibrate(
    float_bundle: str | Path,
    candidate: str | Path,
    episodes: Episodes,
    *,
    gate: str | None = None,
    swapped: str = "",
    progress: console.Progress | None = None,
) -> CalibrationRecord:
    """Choose the candidate's threshold by the float bundle's decisions.

    Args:
        float_bundle: What it shall decide like.
        candidate: What gets a threshold; the bundle itself is not changed.
        episodes: Held-out recordings, gone through several times.
        gate: Which gate; None for the only one.
        swapped: What to do where the two bundles are the wrong way round.
        progress: Called with stage, steps done and steps in all.

    Raises:
        CalibrationError: The first is not sealed in float32, the bundles have other inputs,
            outputs or gates, or no such hard gate.
        EpisodeError: An episode does not fit them, or there is none.
        BundleError: One of them cannot be opened, or serves several sessions.
    """
    with on_disk(episodes) as files:
        bundles = Bundle.open(float_bundle), Bundle.open(candidate)
        check_judge(*bundles, swapped)
        weights = [bundle.manifest.model.sha256 for bundle in bundles]
        if weights[0] != weights[1]:
            console.note("note: the two bundles are not of the same weights")
        total = files.steps * ROUNDS
        with console.progress(total, "recalibrating", listener=progress) as report:
            chosen = recalibrate_gate(*bundles, files.loaded, gate, report)
        return CalibrationRecord(weights[1], names_of(episodes), files.steps, (chosen,))


def recalibrate_gate(
    float_bundle: Bundle,
    candidate: Bundle,
    episodes: Iterable[Episode],
    gate_name: str | None = None,
    report: Report = lambda _: None,
) -> GateCalibration:
    """Choose one threshold of a candidate; ``report`` is called with the number of steps done."""
    float_spec, spec = float_bundle.manifest.step, candidate.manifest.step
    check_alike(float_spec, spec, gates=True)
    gate, float_gate = hard_gate(spec, gate_name), hard_gate(float_spec, gate_name)
    assert float_gate.threshold is not None
    reference_threshold = float_gate.threshold
    count = Progress(report)
    reference = _trace(float_bundle.path, float_gate, episodes, count)
    target = reference.openings(reference_threshold)
    rate = _rate(target)
    ranges = np.stack([extremes(episode) for episode in episodes])
    whole = np.stack((ranges[:, 0].min(axis=0), ranges[:, 1].max(axis=0)))
    check_changes(whole, sum(map(len, reference.gates)))

    def point_of(threshold: float) -> CurvePoint:
        with scratch_folder() as scratch:
            moved = _with_threshold(candidate, gate.name, threshold, Path(scratch) / "candidate")
            trace = _trace(moved, gate, episodes, count)
        return _point(threshold, trace, reference, target, episodes)

    def preference(point: CurvePoint) -> tuple[float, ...]:
        change = abs(point.element_rate - rate)
        return point.flip_rate or 0.0, change, abs(point.threshold - reference_threshold)

    # Gate values of the candidate at its old threshold say where to look for a better one.
    first = _trace(candidate.path, gate, episodes, count)
    tried = [t for t in _proposed(reference_threshold, first, rate) if gate.allows(t)]
    curve = {t: point_of(t) for t in tried}
    around = sorted(curve)
    best = around.index(min(curve.values(), key=preference).threshold)
    low, high = around[max(best - 1, 0)], around[min(best + 1, len(around) - 1)]
    for value in np.linspace(low, high, _FINER + 2).astype(np.float32).tolist():
        if value not in curve:
            curve[value] = point_of(value)
    chosen = min(curve.values(), key=preference)
    return GateCalibration(
        gate.name,
        chosen.threshold,
        chosen.write_rate,
        f"fewest flips ({chosen.flip_rate:.3%} of gate elements) beside the float bundle at "
        f"{reference_threshold:g}, which writes {rate:.3%}",
        tuple(sorted(curve.values(), key=lambda point: point.threshold)),
    )


def _with_threshold(bundle: Bundle, gate: str, threshold: float, out: Path) -> Path:
    """A copy of a bundle with another threshold."""
    gates = tuple(
        msgspec.structs.replace(g, threshold=threshold) if g.name == gate else g
        for g in bundle.manifest.gates
    )
    manifest = msgspec.structs.replace(bundle.manifest, gates=gates)
    return write_bundle(out, manifest, {f.path: bundle.read(f) for f in manifest.all_files}).path


def _trace(path: Path, gate: GateSpec, episodes: Iterable[Episode], count: Progress) -> _Trace:
    trace = _Trace([], [])
    with Session.open(path, health="off") as session:
        for episode in episodes:
            episode.check(session.manifest.step)
            session.reset()
            gates: list[NDArray[np.float32]] = []
            outputs: dict[str, list[NDArray[np.float32]]] = {}
            for t, inputs in enumerate(episode):
                for name, array in session.step(**inputs).items():
                    outputs.setdefault(name, []).append(array.copy())  # the next step reuses it
                flat = session.gates[gate.name].reshape(-1)
                gates.append(flat.max(keepdims=True) if elements_of(gate) == 1 else flat.copy())
                count(t + 1)
            count.next()
            trace.gates.append(np.stack(gates))
            trace.outputs.append({name: np.stack(arrays) for name, arrays in outputs.items()})
    if not trace.gates:
        raise EpisodeError("there are no episodes", expected="at least one")
    return trace


def _proposed(threshold: float, trace: _Trace, rate: float) -> list[float]:
    """The float threshold, the one that would match its write rate, and some around both."""
    values = np.concatenate([v.reshape(-1) for v in trace.gates])
    near = np.quantile(values, np.clip([1 - 1.1 * rate, 1 - rate, 1 - 0.9 * rate], 0, 1))
    low, high = min(threshold, float(near[0])), max(threshold, float(near[2]))
    grid = np.linspace(low, high, _TRIED).astype(np.float32).tolist()
    return sorted({*grid, float(np.float32(near[1])), float(np.float32(threshold))})


def _point(
    threshold: float,
    trace: _Trace,
    reference: _Trace,
    target: Masks,
    episodes: Iterable[Episode],
) -> CurvePoint:
    openings = trace.openings(threshold)
    flips = sum(int((a != b).sum()) for a, b in zip(openings, target, strict=True))
    sizes = np.array([mask.size for mask in openings])
    right, judged = _answers(trace, episodes)
    return CurvePoint(
        threshold=threshold,
        write_rate=float(np.mean(np.concatenate([mask.any(axis=1) for mask in openings]))),
        element_rate=_rate(openings),
        accuracy=float(right.sum() / judged.sum()) if judged.sum() else None,
        output_error=_output_error(trace, reference),
        flip_rate=flips / int(sizes.sum()),
        write_interval=rate_interval(np.array([int(mask.sum()) for mask in openings]), sizes),
        accuracy_interval=rate_interval(right, judged),
    )


def _answers(
    trace: _Trace, episodes: Iterable[Episode]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many labelled answers were right, and how many there are, by episode."""
    right, judged = [0] * len(trace.outputs), [0] * len(trace.outputs)
    for i, (episode, outputs) in enumerate(zip(episodes, trace.outputs, strict=True)):
        for name, labels in episode.labels.items():
            answers = outputs[name].reshape(episode.steps, -1).argmax(1)
            right[i] += int(((answers == labels) & (labels >= 0)).sum())
            judged[i] += int((labels >= 0).sum())
    return np.array(right, dtype=np.int64), np.array(judged, dtype=np.int64)


def _output_error(trace: _Trace, reference: _Trace) -> float | None:
    """As `stategate.contract.calibration.CurvePoint` has it; None without float outputs."""
    errors = []
    for name, array in reference.outputs[0].items():
        if array.dtype.kind == "f":
            new, old = (
                np.concatenate([outputs[name].reshape(-1) for outputs in one.outputs]).astype(float)
                for one in (trace, reference)
            )
            size = max(float(np.square(old).sum()), 1e-300)
            errors.append(float(np.square(new - old).sum() / size) ** 0.5)
    return max(errors, default=None)


def _rate(openings: Masks) -> float:
    return float(np.mean(np.concatenate([mask.reshape(-1) for mask in openings])))
