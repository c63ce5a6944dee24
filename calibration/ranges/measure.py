"""From a float bundle and recordings to ranges of its activations, in one call."""

from __future__ import annotations

from pathlib import Path

from stategate.calibration.episodes import Cluster
from stategate.calibration.ranges.record import Roller, measured
from stategate.calibration.recordings import Episodes, on_disk
from stategate.common import console
from stategate.contract import Bundle
from stategate.contract.bundle import folder_of
from stategate.contract.precision import RangeRecord
from stategate.export.precision import with_constant_weights


def measure_ranges(
    bundle: str | Path | Bundle,
    episodes: Episodes,
    *,
    cluster: Cluster | None = None,
    progress: console.Progress | None = None,
) -> RangeRecord:
    """Measure how large the tensors of a float bundle become, in closed loop on its own state.

    Args:
        bundle: In float32, exported or adopted; the record is good for its model's weights.
        episodes: Recordings of any length, read a block at a time.
        cluster: A Dask cluster that rolls them; it finds bundle and files under the same paths.
        progress: Called with stage, steps done and steps in all.

    Raises:
        BundleError: It is no bundle.
        EpisodeError: An episode does not fit the model.
        CalibrationError: Something is not finite, or a tensor never changes.
    """
    opened = Bundle.open(folder_of(bundle).resolve())  # where a cluster finds it too
    manifest = opened.manifest
    raw = opened.read(manifest.step_graph.file)
    graph, _ = with_constant_weights(raw, manifest.step, manifest.model.family)
    roller = Roller(opened, graph)
    with (
        on_disk(episodes) as files,
        console.progress(files.steps, "rolling", listener=progress) as report,
    ):
        return measured(roller, files, cluster, report)
