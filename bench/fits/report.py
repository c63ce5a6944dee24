"""Does a bundle fit a device, is it legal there, and what bounds its step, in one report."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import msgspec

from stategate.bench.fits.footprint import footprint, plan_of
from stategate.bench.wear import StateBytes, journal_rows, state_bytes, wear_rows, write_rate
from stategate.common.compiler import BARE_METAL
from stategate.contract import Bundle, Manifest
from stategate.contract.bundle import MANIFEST
from stategate.contract.c_library import SOURCE_FOLDER, Engine
from stategate.contract.errors import BuildError, EngineError, ParityError, SpecError
from stategate.contract.numbers import bounded, whole
from stategate.contract.precision import PrecisionPlan
from stategate.contract.staging import scratch_folder
from stategate.targets import TargetProfile, generic, load, load_storage, names, recognise
from stategate.targets.detect import detect
from stategate.targets.fits import Fit, Footprint, Verdict, fit, load_costs, predict

# What a program has of a session: its banks, counters and outputs.
_SESSION = '#include "stategate.h"\nstategate_session session;\n'


def fit_in_c(one: Fit, bundle: Bundle, plan: PrecisionPlan, target: TargetProfile) -> Fit:
    """The verdict for a microcontroller, which runs the session in C and nothing else."""
    legal: tuple[str, ...] = () if target.lacks(plan, "c") else ("c",)
    if not legal:
        lacks = " and ".join(target.lacks(plan, "c"))
        return replace(one, verdict="not legal", reason=f"it does not run {lacks} in C", legal=())
    native = bundle.manifest.native
    if native is None:
        return replace(
            one,
            verdict="not legal",
            reason="the bundle has no C source; make it with --engines native",
            legal=(),
        )
    compiler = BARE_METAL[target.machine].split()
    if shutil.which(compiler[0]) is None:
        reason = f"{compiler[0]} is not here, which says how much flash and RAM the C takes"
        return replace(one, verdict="unknown", reason=reason, legal=legal)
    flash, ram = sizes_in_c(bundle, compiler)
    takes = f"{flash:,} bytes of flash and {ram:,} of RAM, without stack and C library"
    has = target.memory_bytes.value
    if has is None:
        reason = f"{takes}; what the chip has is not known: {target.memory_bytes.source}"
        return replace(one, verdict="unknown", reason=reason, legal=legal)
    spare = has - (target.system_reserve_bytes.value or 0) - ram
    verdict: Verdict = "fits" if spare >= 0 else "does not fit"
    return replace(one, verdict=verdict, reason=takes, legal=legal, left_bytes=spare)


def sizes_in_c(bundle: Bundle, compiler: list[str]) -> tuple[int, int]:
    """Bytes of flash and of RAM of the compiled C and one session, as the objects say."""
    native = bundle.manifest.native
    assert native is not None
    with scratch_folder() as scratch:
        folder = Path(scratch)
        for file in bundle.manifest.all_files:
            if file.path in native.sources:
                place = folder / file.path
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(bundle.read(file))
        source = folder / SOURCE_FOLDER
        (source / "session_of_a_program.c").write_text(_SESSION)
        names = sorted(path.name for path in source.glob("*.c"))
        words = [*compiler, "-I.", "-Wa,-I.", "-c", *names]
        size = [compiler[0].removesuffix("gcc") + "size", *(f"{n[:-2]}.o" for n in names)]
        try:
            for command in (words, size):
                done = subprocess.run(command, cwd=source, capture_output=True, text=True)
                if done.returncode:
                    raise BuildError("the C cannot be compiled", found=done.stderr[-2000:].strip())
        except OSError as problem:
            raise BuildError("the compiler cannot be run", found=problem) from problem
    rows = [[int(part) for part in line.split()[:3]] for line in done.stdout.splitlines()[1:]]
    text, data, zeros = (sum(row[i] for row in rows) for i in range(3))
    return text + data, data + zeros


STEPS = 100
# Both processes import the same; only one of them opens the bundle.
_SCRIPT = """
import json, sys
import numpy as np
if sys.argv[3] == "onnxruntime":
    import onnxruntime
else:
    import stategate.runtime.engines.native
from stategate.runtime.base.process import give_back_freed_memory, rss_bytes
from stategate.runtime.check.full_pool import begun
from stategate.runtime.session import Session
give_back_freed_memory()  # opening would, and it is not the bundle that freed it
imported = rss_bytes()
session = begun(Session.open(sys.argv[1], engine=sys.argv[3], health="off"))
inputs = {t.name: np.zeros(t.shape, t.dtype) for t in session.manifest.inputs}
for _ in range(int(sys.argv[2])):
    session.step(**inputs)
print(json.dumps({"imported": imported, "added": rss_bytes() - imported}))
"""


@dataclass(frozen=True, slots=True)
class Resident:
    """Resident memory in bytes."""

    imported: int  # of Python with the runtime and the engine's library imported
    added: int  # what opening and stepping the bundle added


def measure_resident(bundle: Path, steps: int = STEPS, engine: Engine = "onnxruntime") -> Resident:
    """Open and step a bundle in a fresh process, and see what that adds."""
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(bundle), str(steps), engine],
        capture_output=True,
        text=True,
        # One thread: each further one of numpy's has a stack and an arena of its own.
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    if done.returncode != 0:
        # The exception's own line; what it advises is indented below it.
        messages = [line for line in done.stderr.splitlines() if line and line[0] != " "]
        raise EngineError("the bundle could not be stepped", found=(messages or ["no message"])[-1])
    return Resident(**json.loads(done.stdout))


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
    bytes: tuple[StateBytes, ...] = ()  # of each state, appended, folded and persisted

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
        state_bytes(manifest, write_rate(manifest)),
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
            for row in (
                *wear_rows(load_storage(medium), snapshot_bytes, rate_hz, writes),
                *journal_rows(load_storage(medium), manifest, rate_hz, writes)[: sessions == 1],
            )
        }
        for medium in profile.storage.value or ()
    }
