"""Ship models whose memory never grows.

A model with a constant-size gated memory goes in, a verified bundle for one device comes out, and a
small runtime steps it for ever and counts every write:

    >>> import tempfile
    >>> import numpy as np
    >>> import torch
    >>> import stategate
    >>> from stategate.contract import GateSpec, StateSpec, StepSpec, TensorSpec
    >>> from stategate.models import StepResult

    >>> class Latch(torch.nn.Module):
    ...     '''Remembers the last input that is above 1.'''
    ...
    ...     def step_spec(self):
    ...         return StepSpec(
    ...             inputs=(TensorSpec("x", (1, 1)),),
    ...             outputs=(TensorSpec("y", (1, 1)),),
    ...             states=(StateSpec("h", (1, 1), gate="large"),),
    ...             gates=(GateSpec("large", "hard", (1, 1), 1.0, "limit"),),
    ...         )
    ...
    ...     def step(self, inputs, states):
    ...         x = inputs["x"]
    ...         h = torch.where(x > inputs["limit"], x, states["h"])
    ...         return StepResult({"y": h + 0.0}, {"h": h}, {"large": x})

    >>> bundle = stategate.make(Latch(), tempfile.mkdtemp() + "/latch")
    >>> bundle.receipt.steps, bundle.receipt.gate_flips
    (1000, 0)
    >>> stategate.verify(bundle).passed
    True
    >>> with stategate.Session.open(bundle.path) as session:
    ...     for x in (0.5, 3.0, 0.25, -1.0):
    ...         y = session.step(x=np.full((1, 1), x, np.float32))["y"]
    ...     print(y.item(), session.ledger.steps, session.ledger.writes)
    3.0 4 1

What is named here loads its room when it is used: importing this package costs NumPy and msgspec.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from stategate.bench.fits.report import FitsReport
    from stategate.bench.fleet.deploy import deploy
    from stategate.calibration.drift.compare import compare
    from stategate.calibration.health.learn import learn_health
    from stategate.calibration.ranges.record import measure_ranges
    from stategate.calibration.thresholds.curve import calibrate
    from stategate.common.console import Progress
    from stategate.contract import Budget, Bundle, Episode
    from stategate.contract.c_library import Engine
    from stategate.contract.precision import PrecisionPlan, RangeRecord
    from stategate.export.adopt import adopt
    from stategate.export.bill.write import bill
    from stategate.export.make import Record, make
    from stategate.runtime import BlackBox, Pool, Session, SnapshotPolicy
    from stategate.runtime.carry.pull import pull
    from stategate.runtime.carry.push import push
    from stategate.runtime.check.bisect import bisect
    from stategate.runtime.check.replay import replay
    from stategate.runtime.check.verification import verify
    from stategate.runtime.install.install import install
    from stategate.runtime.install.installation import Installation
    from stategate.runtime.install.record import Trial
    from stategate.runtime.install.release import release
    from stategate.runtime.trust.sign import sign
    from stategate.wrapping import wrap

__version__ = "0.2.0"
__all__ = [
    "BlackBox",
    "Budget",
    "Bundle",
    "Installation",
    "Pool",
    "Session",
    "SnapshotPolicy",
    "Trial",
    "__version__",
    "adopt",
    "bill",
    "bisect",
    "calibrate",
    "compare",
    "deploy",
    "fits",
    "install",
    "learn_health",
    "make",
    "measure_ranges",
    "pull",
    "push",
    "quantise",
    "release",
    "replay",
    "sign",
    "verify",
    "wrap",
]

# name: the module that has it, and the extra that this needs
_HOMES = {
    "BlackBox": ("runtime", ""),
    "Budget": ("contract", ""),
    "Bundle": ("contract", ""),
    "Installation": ("runtime.install.installation", ""),
    "Pool": ("runtime", ""),
    "Session": ("runtime", ""),
    "SnapshotPolicy": ("runtime", ""),
    "Trial": ("runtime.install.record", ""),
    "adopt": ("export.adopt", "export"),
    "bill": ("export.bill.write", ""),
    "bisect": ("runtime.check.bisect", ""),
    "calibrate": ("calibration.thresholds.curve", "export"),
    "compare": ("calibration.drift.compare", "bench"),
    "deploy": ("bench.fleet.deploy", ""),
    "install": ("runtime.install.install", ""),
    "learn_health": ("calibration.health.learn", ""),
    "pull": ("runtime.carry.pull", "carry"),
    "push": ("runtime.carry.push", "carry"),
    "make": ("export.make", "export"),
    "measure_ranges": ("calibration.ranges.record", "export"),
    "release": ("runtime.install.release", ""),
    "replay": ("runtime.check.replay", ""),
    "sign": ("runtime.trust.sign", "trust"),
    "verify": ("runtime.check.verification", ""),
    "wrap": ("wrapping", "export"),
}
# room: the extra that it needs; ``stategate.models.lift(...)`` in a hint works where it is pasted
_ROOMS = {
    "bench": "bench",
    "calibration": "export",
    "contract": "",
    "export": "export",
    "models": "export",
    "runtime": "",
    "targets": "",
}


def quantise(
    model: object,
    out: str | Path,
    precision: str | Path | PrecisionPlan = "int8",
    *,
    episode: str | Path | Episode | None = None,
    steps: int = 1000,
    calibration: Record | Iterable[Record] = (),
    ranges: RangeRecord | str | Path | None = None,
    progress: Progress | None = None,
    **making: Any,
) -> Bundle:
    """Make a bundle in lower precision, and measure the ranges that it needs.

    What comes out is a candidate: `compare` judges it beside its float model, and seals it.

        candidate = stategate.quantise(policy, "build/int8", episode="log.npz")
        report = stategate.compare("build/float", candidate, "held-out.npz", sealed="build/sealed")

    Args:
        model: See `make`, like all that is not said here.
        out: The bundle's folder.
        precision: A preset (``int8``, ``int8-weights``, ``int4-weights``, ``float16-weights``), a
            plan, or a plan's ``.json``.
        episode: Recorded inputs: of the check, and of the ranges where activations are quantised.
            A zoo model has its own.
        steps: Closed-loop steps of the check.
        calibration: A record with a gate's threshold, or several; no iterator.
        ranges: Of activations; measured here where it is None and the precision needs them, on a
            float bundle that is thrown away.
        progress: Called with stage, units done and units in all.
        making: Of `make`: ``state_precision``, ``error_feedback``, ``max_output_error`` and
            ``max_flip_rate``, which are left to `compare` where they are None, and all else.

    Raises:
        SpecError: There is no such precision, or it names something that the model lacks.
        EpisodeError: Ranges are needed and nothing is recorded, or a recording does not fit.
        ParityError: The candidate is beyond the limits.
        ExportError: Anything else that `make` raises.
    """
    from inspect import signature

    from stategate.calibration.ranges.record import measure_ranges
    from stategate.calibration.recordings import episodes_for
    from stategate.contract.precision import PrecisionPlan
    from stategate.contract.staging import scratch_folder
    from stategate.export.make import make
    from stategate.models.load import load_model

    plan = precision if isinstance(precision, PrecisionPlan) else PrecisionPlan.named(precision)
    signature(make).bind(model, out, **making)  # a name that it lacks is not found out afterwards
    loaded = load_model(model)
    if ranges is None and plan.activations != "float32":
        recordings = episode
        if recordings is None:
            (recordings,), _, _ = episodes_for(loaded, None, 4096, 1)
        with scratch_folder() as scratch:
            exact = make(
                loaded,
                f"{scratch}/float",
                episode=episode,
                steps=steps,
                calibration=calibration,
                split="fused",
                progress=progress,
            )
            ranges = measure_ranges(exact, recordings, progress=progress)
    return make(
        loaded,
        out,
        episode=episode,
        steps=steps,
        calibration=calibration,
        precision=plan,
        ranges=ranges,
        **making,
        progress=progress,
    )


def fits(
    model: object,
    target: str | None = None,
    *,
    sessions: int | None = None,
    horizon_steps: int = 100_000,
    rate_hz: float = 30.0,
    engine: Engine = "onnxruntime",
    precision: str | None = None,
    measure: bool = False,
    progress: Progress | None = None,
) -> FitsReport:
    """Say whether a model fits a device, is legal there, and what bounds its step.

        report = stategate.fits("build/policy", "jetson-orin-nano-8gb")
        print(report.passed, report.fits[0].reason)

    Args:
        model: A bundle or its folder; or what `make` takes, which is made for the moment.
        target: The device; ``all`` for every one that is known, None for this machine.
        sessions: Sessions that share the graph; the bundle's where it is None.
        horizon_steps: Steps after which the key-value cache that the memory replaces is looked at.
        rate_hz: Steps per second, for the life of the flash.
        engine: What steps it there.
        precision: Of a model that is no bundle yet; float32 where it is None.
        measure: Also open and step it here, and compare with the prediction.
        progress: Called with stage, steps done and steps in all.

    Raises:
        TargetError: There is no such target.
        BundleError: The folder holds no bundle.
        SpecError: A precision is asked for a bundle, which has its own; or one of several sessions
            shall be measured.
        ParityError: A model cannot be checked on random inputs: make its bundle first.
        EngineError: It cannot be stepped here, and shall be measured.
    """
    from stategate.bench.fits.report import bundle_at, devices, fits_report, only_for_its_size
    from stategate.contract.staging import scratch_folder
    from stategate.runtime.trust.code import trials

    profiles = devices(target)
    in_c = len(profiles) == 1 and profiles[0].is_microcontroller
    with scratch_folder() as scratch:
        bundle = bundle_at(model, precision)
        if bundle is None:
            from stategate.export.make import make

            with only_for_its_size(model), trials():
                bundle = make(
                    model,
                    f"{scratch}/bundle",
                    steps=32,
                    precision=precision or "float32",
                    engines="onnxruntime" if engine == "onnxruntime" else "onnxruntime,native",
                    target=target if in_c else None,
                    progress=progress,
                )
        return fits_report(
            bundle,
            profiles,
            sessions=sessions,
            horizon_steps=horizon_steps,
            rate_hz=rate_hz,
            engine=engine,
            measure=measure,
        )


def __getattr__(name: str) -> object:
    """A name of the front door, or a room, which is imported when it is used.

    Raises:
        MissingDependencyError: A library of the room's extra is not installed.
    """
    if name not in _HOMES and name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, extra = _HOMES.get(name) or (name, _ROOMS[name])
    try:
        room = import_module(f"{__name__}.{module}")
        return getattr(room, name) if name in _HOMES else room
    except ModuleNotFoundError as missing:
        if not extra or (missing.name or __name__).startswith(__name__):
            raise
        from stategate.contract.errors import MissingDependencyError

        raise MissingDependencyError(missing.name or "a library", extra) from missing


def __dir__() -> list[str]:
    return sorted(__all__)
