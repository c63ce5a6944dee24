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

from stategate.calibration.drift.judge import check_judge
from stategate.calibration.rolls import Report, check_changes, elements_of, extremes, hard_gate
from stategate.common.statistics import rate_interval
from stategate.contract import (
    Bundle,
    CurvePoint,
    Episode,
    GateCalibration,
    GateSpec,
    StepSpec,
    write_bundle,
)
from stategate.contract.errors import CalibrationError, EpisodeError
from stategate.contract.staging import scratch_folder
from stategate.contract.write_rule import opens
from stategate.runtime.session import Session

_TRIED, _FINER = 9, 7
ROUNDS = 2 + _TRIED + 2 + _FINER
"""Times that the episodes are rolled, at most."""


@dataclass(frozen=True, slots=True)
class _Life:
    """What a bundle did, a list entry for each episode.

    Attributes:
        values: ``(steps, elements)`` float32 gate values.
        outputs: By name ``(steps, *shape)``.
        inputs: ``(2, elements)``, see `extremes`.
    """

    values: list[NDArray[np.float32]]
    outputs: list[dict[str, NDArray[np.float32]]]
    inputs: list[NDArray[np.float64]]

    def opened(self, threshold: float) -> list[NDArray[np.bool_]]:
        """Which elements were open."""
        return [opens(values, threshold) for values in self.values]


def recalibrate(
    float_bundle: Path,
    candidate: Path,
    episodes: Iterable[Episode],
    gate_name: str | None = None,
    report: Report = lambda _: None,
) -> GateCalibration:
    """Choose the candidate's threshold by the float bundle's decisions.

    Args:
        float_bundle: What it shall decide like.
        candidate: What is given a threshold; the bundle itself is not changed.
        episodes: Held-out inputs, gone through several times.
        gate_name: Which gate; None for the only one.
        report: Called with the number of steps done.

    Raises:
        CalibrationError: The first is not sealed in float32, the bundles have other inputs,
            outputs or gates, or no such hard gate.
        EpisodeError: An episode does not fit them, or there is none.
        BundleError: One of them cannot be opened, or serves several sessions.
    """
    bundles = Bundle.open(float_bundle), Bundle.open(candidate)
    check_judge(*bundles)
    theirs, ours = (bundle.manifest.step for bundle in bundles)
    _check_alike(theirs, ours)
    gate, plain = hard_gate(ours, gate_name), hard_gate(theirs, gate_name)
    assert plain.threshold is not None
    count = _Steps(report)
    reference = _live(float_bundle, plain, episodes, count)
    wanted = reference.opened(plain.threshold)
    seen = np.stack(reference.inputs)
    steps = sum(map(len, reference.values))
    check_changes(np.stack((seen[:, 0].min(axis=0), seen[:, 1].max(axis=0))), steps)

    def point_of(threshold: float) -> CurvePoint:
        with scratch_folder() as scratch:
            moved = _with_threshold(candidate, gate.name, threshold, Path(scratch) / "candidate")
            life = _live(moved, gate, episodes, count)
        return _compared(gate, threshold, life, reference, wanted, episodes)

    first = _live(candidate, gate, episodes, count)
    tried = [t for t in _proposed(plain.threshold, first, wanted) if gate.allows(t)]
    curve = {t: point_of(t) for t in tried}
    around = sorted(curve)
    best = around.index(_best(curve.values(), wanted, plain.threshold).threshold)
    low, high = around[max(best - 1, 0)], around[min(best + 1, len(around) - 1)]
    for value in np.linspace(low, high, _FINER + 2).astype(np.float32).tolist():
        if value not in curve:
            curve[value] = point_of(value)
    chosen = _best(curve.values(), wanted, plain.threshold)
    return GateCalibration(
        gate.name,
        chosen.threshold,
        chosen.write_rate,
        f"fewest flips ({chosen.flip_rate:.3%} of gate elements) beside the float bundle at "
        f"{plain.threshold:g}, which writes {_rate(wanted):.3%}",
        tuple(sorted(curve.values(), key=lambda point: point.threshold)),
    )


def _check_alike(theirs: StepSpec, ours: StepSpec) -> None:
    def face(spec: StepSpec) -> list[object]:
        gates = [(g.name, g.kind, g.shape, g.granularity) for g in spec.gates]
        return [spec.inputs, spec.outputs, gates]

    for what, a, b in zip(("inputs", "outputs", "gates"), face(theirs), face(ours), strict=True):
        if a != b:
            raise CalibrationError(
                f"the two bundles have different {what}, so they are not of one model",
                found=b,
                expected=a,
            )


def _with_threshold(path: Path, gate: str, threshold: float, out: Path) -> Path:
    """A copy of a bundle with another threshold."""
    bundle = Bundle.open(path)
    gates = tuple(
        msgspec.structs.replace(g, threshold=threshold) if g.name == gate else g
        for g in bundle.manifest.gates
    )
    manifest = msgspec.structs.replace(bundle.manifest, gates=gates)
    return write_bundle(out, manifest, {f.path: bundle.read(f) for f in manifest.all_files}).path


def _live(path: Path, gate: GateSpec, episodes: Iterable[Episode], count: _Steps) -> _Life:
    life = _Life([], [], [])
    with Session.open(path) as session:
        for episode in episodes:
            episode.check(session.manifest.step)
            session.reset()
            values: list[NDArray[np.float32]] = []
            outputs: dict[str, list[NDArray[np.float32]]] = {}
            for inputs in episode:
                for name, array in session.step(**inputs).items():
                    outputs.setdefault(name, []).append(array.copy())
                flat = session.gates[gate.name].reshape(-1)
                values.append(flat.max(keepdims=True) if elements_of(gate) == 1 else flat.copy())
                count.step()
            life.values.append(np.stack(values))
            life.inputs.append(extremes(episode))
            life.outputs.append({name: np.stack(arrays) for name, arrays in outputs.items()})
    if not life.values:
        raise EpisodeError("there are no episodes", expected="at least one")
    return life


def _proposed(threshold: float, life: _Life, wanted: list[NDArray[np.bool_]]) -> list[float]:
    """The float threshold, the one that would match its write rate, and some around both."""
    values = np.concatenate([v.reshape(-1) for v in life.values])
    rate = _rate(wanted)
    near = np.quantile(values, np.clip([1 - 1.1 * rate, 1 - rate, 1 - 0.9 * rate], 0, 1))
    low, high = min(threshold, float(near[0])), max(threshold, float(near[2]))
    grid = np.linspace(low, high, _TRIED).astype(np.float32).tolist()
    return sorted({*grid, float(np.float32(near[1])), float(np.float32(threshold))})


def _compared(
    gate: GateSpec,
    threshold: float,
    life: _Life,
    reference: _Life,
    wanted: list[NDArray[np.bool_]],
    episodes: Iterable[Episode],
) -> CurvePoint:
    opened = life.opened(threshold)
    flips = sum(int((a != b).sum()) for a, b in zip(opened, wanted, strict=True))
    sizes = np.array([a.size for a in opened])
    right, judged = _answers(life, episodes)
    return CurvePoint(
        threshold=threshold,
        write_rate=float(np.mean(np.concatenate([a.any(axis=1) for a in opened]))),
        element_rate=_rate(opened),
        accuracy=float(right.sum() / judged.sum()) if judged.sum() else None,
        output_error=_output_error(life, reference),
        flip_rate=flips / int(sizes.sum()),
        write_interval=rate_interval(np.array([int(a.sum()) for a in opened]), sizes),
        accuracy_interval=rate_interval(right, judged),
    )


def _answers(
    life: _Life, episodes: Iterable[Episode]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many labelled answers were right, and how many there are, by episode."""
    right, judged = [], []
    for episode, outputs in zip(episodes, life.outputs, strict=True):
        asked = {name: labels >= 0 for name, labels in episode.labels.items()}
        given = {name: outputs[name].reshape(episode.steps, -1).argmax(1) for name in asked}
        right.append(sum(int(((given[n] == episode.labels[n]) & asked[n]).sum()) for n in asked))
        judged.append(sum(int(mask.sum()) for mask in asked.values()))
    return np.array(right, dtype=np.int64), np.array(judged, dtype=np.int64)


def _output_error(life: _Life, reference: _Life) -> float | None:
    """As `stategate.contract.CurvePoint` has it; None without float outputs."""
    errors = []
    for name in reference.outputs[0]:
        if reference.outputs[0][name].dtype.kind != "f":
            continue
        ours, theirs = (
            np.concatenate([outputs[name].reshape(-1) for outputs in one.outputs]).astype(float)
            for one in (life, reference)
        )
        size = max(float(np.square(theirs).sum()), 1e-300)
        errors.append(float(np.square(ours - theirs).sum() / size) ** 0.5)
    return max(errors, default=None)


def _rate(opened: list[NDArray[np.bool_]]) -> float:
    return float(np.mean(np.concatenate([mask.reshape(-1) for mask in opened])))


def _best(
    curve: Iterable[CurvePoint], wanted: list[NDArray[np.bool_]], threshold: float
) -> CurvePoint:
    rate = _rate(wanted)
    return min(
        curve,
        key=lambda point: (
            point.flip_rate,
            abs(point.element_rate - rate),
            abs(point.threshold - threshold),
        ),
    )


class _Steps:
    def __init__(self, report: Report) -> None:
        self._report, self._done = report, 0

    def step(self) -> None:
        self._done += 1
        self._report(self._done)
