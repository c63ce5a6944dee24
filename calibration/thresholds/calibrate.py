"""From a model and episodes to a calibration record, in one call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from stategate.calibration.closed_loop import hard_gate
from stategate.calibration.episodes import Cluster, Fleet, connected
from stategate.calibration.recordings import Episodes, episodes_for, listed
from stategate.calibration.settings import TOLERANCE, Wish
from stategate.calibration.thresholds.curve import calibrate_gate
from stategate.common import console
from stategate.contract import CalibrationRecord, Episode, EpisodeSet
from stategate.contract.errors import CalibrationError
from stategate.contract.numbers import whole
from stategate.models.load import evaluating
from stategate.models.weights import weights_sha256


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
