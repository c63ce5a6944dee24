"""Flash and RAM of a session in C on a microcontroller, by its own compiler."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

from stategate.common.compiler import BARE_METAL
from stategate.contract import Bundle
from stategate.contract.c_library import SOURCE_FOLDER
from stategate.contract.errors import BuildError
from stategate.contract.precision import PrecisionPlan
from stategate.contract.staging import scratch_folder
from stategate.targets import TargetProfile
from stategate.targets.fits import Fit, Verdict

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
