"""A frozen policy gets a memory: training of one room, export of another."""

from __future__ import annotations

from pathlib import Path

from stategate.calibration.recordings import Episodes
from stategate.calibration.settings import Place, WrapRecipe, check_place
from stategate.calibration.wrap.backbone import BackboneSource
from stategate.calibration.wrap.results import Threshold
from stategate.calibration.wrap.wrap import Wrapped, train_memory
from stategate.common.console import Progress
from stategate.contract import refuse_to_replace
from stategate.contract.durable import check_writable
from stategate.export.backbone import carried
from stategate.export.deploy import Engines
from stategate.export.make import make
from stategate.targets import TargetProfile


def wrap(
    backbone: BackboneSource,
    recordings: Episodes,
    out: str | Path,
    *,
    actions: int | None = None,
    label: str = "action",
    allowed_loss: float = 0.005,
    price: float | None = None,
    chunk: int | None = None,
    iterations: int = 1500,
    seed: int = 0,
    holdout: float = 0.25,
    threshold: Threshold = "auto",
    place: Place = "auto",
    steps: int = 1000,
    engines: Engines = "onnxruntime",
    target: str | TargetProfile | None = None,
    progress: Progress | None = None,
) -> Wrapped:
    """Give a frozen policy a memory of 4,224 bytes, and a gate that writes it where that pays.

    Memory and gate are trained on recordings; the backbone stays as it is. The last recordings are
    held out: they choose the threshold and are what the report speaks of. The report is also saved
    as ``OUT.json``.

        bundle, report, _ = stategate.wrap(backbone, "recordings/", "build/wrapped")
        print("\\n".join(report.lines()))

    Args:
        backbone: A module that gives features, what makes one, ``path/to/module.py:factory``, an
            ``.onnx`` file; or None, where it runs elsewhere and ``input.features`` is recorded.
        recordings: Episodes with its inputs, and with ``label.action`` (classes, -1 where nothing
            is judged) or ``input.action`` (numbers): what the policy or an expert did.
        out: The bundle's folder; an older bundle there is replaced.
        actions: Classes; as many as the labels show where it is None.
        label: Name of the labels.
        allowed_loss: Accuracy that fewer writes may cost, or error of continuous actions, in units
            of their spread.
        price: What a write must save, in nats or squared spreads; 0.1 where it is None. Where a
            gate closes for ever or loses too much, a third and a ninth are tried.
        chunk: Steps back-propagated through; by how rare hard labels are where it is None.
        iterations: Optimiser steps.
        seed: Of everything drawn.
        holdout: Share of the recordings that is held out.
        threshold: Of the gate, 0 or less; ``auto``: the highest that loses no more than is allowed.
        place: Where the backbone goes: ``inside`` the step; or ``apart``, as ``backbone.onnx`` of a
            bundle whose step takes features, for `stategate.runtime.WrappedSession`, which runs
            both on engines of their own. ``auto``: inside, but a file apart.
        steps: Closed-loop steps of the bundle's check.
        engines: What the bundle can be stepped with.
        target: The device.
        progress: Called with stage, units done and units in all.

    Raises:
        EpisodeError: The recordings have no labels, or cannot be used.
        CalibrationError: No label needs a memory, the recordings are too short, the memory does not
            learn, or no gate keeps what is needed. No bundle is written then.
        ExportError: See `make`.
    """
    report_path = Path(f"{out}.json")
    refuse_to_replace(Path(out))  # an hour is not spent on what cannot be written
    check_writable(report_path)
    is_file = isinstance(backbone, str | Path) and str(backbone).endswith(".onnx")
    check_place(place, is_file=is_file, is_missing=backbone is None)
    recipe = WrapRecipe(iterations, seed, holdout, price, chunk)
    trained = train_memory(
        backbone,
        recordings,
        actions=actions,
        label=label,
        allowed_loss=allowed_loss,
        threshold=threshold,
        recipe=recipe,
        inside=place != "apart",
        progress=progress,
    )
    source = trained.backbone.onnx or trained.backbone.module
    if source is not None and trained.policy.backbone is None:
        trained.policy.carries = carried(
            source,
            trained.backbone.sha256,
            trained.backbone.inputs,
            trained.frames,
            trained.episode.inputs["features"],
        )
    bundle = make(
        trained.policy,
        out,
        episode=trained.episode,
        steps=steps,
        calibration=trained.calibration,
        engines=engines,
        target=target,
        progress=progress,
    )
    trained.report.save(report_path)
    return Wrapped(bundle, trained.report, trained.policy)
