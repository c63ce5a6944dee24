"""Does a bundle fit a device, is it legal there, and what bounds its step, in one report."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import msgspec

from stategate.bench.fits.embedded import fit_in_c
from stategate.bench.fits.footprint import footprint, plan_of
from stategate.bench.measure.resident import Resident, measure_resident
from stategate.bench.wear import wear_rows, write_rate
from stategate.contract import Bundle, Manifest
from stategate.contract.bundle import MANIFEST
from stategate.contract.c_library import Engine
from stategate.contract.errors import ParityError, SpecError
from stategate.contract.numbers import bounded, whole
from stategate.targets import TargetProfile, generic, load, load_storage, names, recognise
from stategate.targets.detect import detect
from stategate.targets.fits import Fit, Footprint, fit, load_costs, predict

Wear = dict[str, dict[str, float | None]]


@dataclass(frozen=True, slots=True)
class FitsReport:
    """What became of one bundle on one device or more."""

    footprint: Footprint  # what its step holds and does
    fits: tuple[Fit, ...]  # one verdict a device
    wear: dict[str, Wear]  # years by device, medium and snapshot policy; None: it never wears out
    horizon_steps: int  # after which the key-value cache that the memory replaces is looked at
    rate_hz: float  # steps per second, for the life of the flash
    predicted_added_bytes: int  # of memory, by the engine and the model
    measured: Resident | None  # the same, measured here

    @property
    def passed(self) -> bool:
        """Whether it fits one of the devices."""
        return any(one.verdict == "fits" for one in self.fits)


def fits_report(
    bundle: Bundle,
    profiles: Sequence[TargetProfile],
    *,
    sessions: int | None = None,
    horizon_steps: int = 100_000,
    rate_hz: float = 30.0,
    engine: Engine = "onnxruntime",
    measure: bool = False,
) -> FitsReport:
    """Hold a bundle against devices; see `stategate.fits`."""
    sessions = None if sessions is None else whole("sessions", sessions)
    horizon_steps, rate_hz = whole("horizon_steps", horizon_steps), bounded("rate_hz", rate_hz)
    manifest, counted = bundle.manifest, footprint(bundle, engine)
    if measure and manifest.sessions != 1:
        raise SpecError(
            "one session is opened to measure it, and this bundle serves several",
            found=f"{manifest.sessions} sessions",
            remedy="leave --measure out",
        )
    costs, plan = load_costs(engine), plan_of(bundle)
    count = sessions or counted.sessions
    verdicts = (
        fit(counted, plan, profile, costs, sessions=sessions, horizon_steps=horizon_steps)
        for profile in profiles
    )
    return FitsReport(
        counted,
        tuple(
            fit_in_c(one, bundle, plan, profile) if profile.is_microcontroller else one
            for one, profile in zip(verdicts, profiles, strict=True)
        ),
        {p.name: _wear(p, manifest, counted.snapshot_bytes, rate_hz, count) for p in profiles},
        horizon_steps,
        rate_hz,
        predict(counted, costs).added,
        measure_resident(bundle.path, engine=engine) if measure else None,
    )


def devices(target: str | None) -> list[TargetProfile]:
    """The device that is named, ``all`` of them, or this machine with the memory that it has."""
    if target == "all":
        return [load(name) for name in names()]
    if target is not None:
        return [load(target)]
    host = detect()
    profile = recognise(host.compatible) or generic(host.machine)
    if profile.memory_bytes.value is not None or host.memory_bytes is None:
        return [profile]
    memory = msgspec.structs.replace(
        profile.memory_bytes,
        value=host.memory_bytes,
        source="MemTotal of this machine",
        date=date.today(),
    )
    return [msgspec.structs.replace(profile, memory_bytes=memory)]


def bundle_at(model: object, precision: str | None) -> Bundle | None:
    """The bundle that is meant; None where it is a model that no bundle was made of yet."""
    if not isinstance(model, str | os.PathLike):
        return None
    path = Path(model)
    is_bundle = (path / MANIFEST).exists()
    if not is_bundle and not (path.is_dir() and precision is None):
        return None
    if precision is not None:
        raise SpecError("a bundle has its precision; --precision is for a model", found=path)
    return Bundle.open(path)


@contextmanager
def only_for_its_size(model: object) -> Iterator[None]:
    """A model is made into a bundle on random inputs, and a refusal says what to do instead."""
    try:
        yield
    except ParityError as problem:  # its remedy is for options that are not here
        raise ParityError(
            problem.what,
            remedy="make the bundle first, on inputs that the model is made for, and look at that: "
            f"stategate export {model} --episode FILE --out bundle, then stategate fits bundle",
        ) from problem


def _wear(
    profile: TargetProfile, manifest: Manifest, snapshot_bytes: int, rate_hz: float, sessions: int
) -> Wear:
    """Years of each medium under each snapshot policy; sessions share them."""
    writes = write_rate(manifest)
    return {
        medium: {
            row.policy: None if row.years is None else row.years / sessions
            for row in wear_rows(load_storage(medium), snapshot_bytes, rate_hz, writes)
        }
        for medium in profile.storage.value or ()
    }
