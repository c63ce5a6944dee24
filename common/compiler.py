"""Compiling the C source of a bundle, by whatever C compiler is there."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stategate.common import cpu
from stategate.contract.errors import BuildError
from stategate.contract.manifest import TargetRef
from stategate.contract.staging import scratch_folder

WARNINGS = ("-Wall", "-Wextra")
# No flag may change a bit: a product and a sum are rounded one after the other, and no sum gets
# another order. Nobody looks at errno or at traps of the CPU.
MATHS = ("-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno", "-fwrapv")
_MACHINES = {"arm": "armv7l", "amd64": "x86_64"}
_DEFAULT_ISA = {**cpu.LEAST, "x86_64": "x86-64-v3"}
# Names of Debian's packages for other machines, which other distributions and toolchains share.
_COMPILERS = {
    "x86_64": "x86_64-linux-gnu-gcc",
    "aarch64": "aarch64-linux-gnu-gcc",
    "armv7l": "arm-linux-gnueabihf-gcc",
    "riscv64": "riscv64-linux-gnu-gcc",
}
# What compiles the C for a machine that loads no library, as an object for the user's program.
BARE_METAL = {
    "armv7e-m": "arm-none-eabi-gcc -mcpu=cortex-m7 -mthumb -mfloat-abi=hard -mfpu=fpv5-d16 -O2 "
    "-ffunction-sections -fdata-sections",
}


@dataclass(frozen=True, slots=True)
class Compiled:
    """A shared object and how it was made."""

    library: bytes  # its bytes
    machine: str  # CPU that it is for, as Linux names it
    isa: str  # instruction set, in the words of ``-march``
    needs: tuple[str, ...]  # what it made of that and of the flags; see `NativeRef`
    compiler: str  # first line of the compiler's version
    flags: tuple[str, ...]  # flags of the compiler


def compiler_for(machine: str) -> str | None:
    """What compiles for a machine, here or across; None for an unknown kind."""
    return "cc" if machine == platform.machine() else _COMPILERS.get(machine)


def package_of(cc: str) -> str:
    """Debian's package of a compiler, as far as its name tells."""
    across = cc.removesuffix("-gcc").replace("_", "-")
    return f"gcc-{across}" if cc.endswith("-gcc") else "gcc"


def compile_library(
    sources: Mapping[str, bytes],
    *,
    cc: str = "cc",
    isa: str | None = None,
    extra: Sequence[str] = (),
    target: TargetRef | None = None,
) -> Compiled:
    """One shared object of C sources, without libraries but that of mathematics.

    Args:
        sources: Files by name; those that end in ``.c`` are compiled.
        cc: The compiler.
        isa: What it gets as ``-march``; by default that of the target, the best of this machine, or
            a common one of the machine that a cross compiler is for.
        extra: Further flags.
        target: Device that the library is for.
    """
    program = shutil.which(cc)
    if program is None:
        raise BuildError(
            "the C compiler is not there",
            found=cc,
            expected="gcc or clang, for this machine or another",
            remedy=f"apt-get install {package_of(cc)}, or name one with --cc",
        )
    version = _run([program, "--version"], Path.cwd()).splitlines()[0]
    named = _run([program, "-dumpmachine"], Path.cwd()).split("-")[0].strip()
    machine = _MACHINES.get(named, named)
    if machine not in cpu.LEAST:
        raise BuildError(
            "the compiler is for a CPU of a kind that no bundle can name",
            found=machine,
            expected=", ".join(cpu.LEAST),
            remedy="compile the C source in the bundle with the program that uses it",
        )
    if isa is None and target is not None and target.machine == machine:
        isa = target.isa or None
    if isa is None:
        isa = cpu.isa_of_this_machine() if machine == platform.machine() else None
        isa = isa or _DEFAULT_ISA[machine]
    kind = ("-std=gnu11", "-O3", f"-march={isa}", "-fPIC", "-shared", "-fvisibility=hidden")
    flags = (*kind, *MATHS, *WARNINGS, *extra)
    for_all = [flag for flag in flags if flag.startswith(("-f", "-O", "-D"))]
    least = _macros(program, [*for_all, f"-march={cpu.LEAST[machine]}"])
    chosen = _macros(program, [flag for flag in flags if flag in for_all or flag[:2] == "-m"])
    with scratch_folder() as scratch:
        folder = Path(scratch)
        for name, data in sources.items():
            (folder / name).write_bytes(data)
        inputs = sorted(name for name in sources if name.endswith(".c"))
        _run([program, *flags, *inputs, "-o", "lib.so", "-lm"], folder)
        library = (folder / "lib.so").read_bytes()
    return Compiled(library, machine, isa, cpu.used(chosen, least), version, flags)


def _macros(program: str, flags: Sequence[str]) -> set[str]:
    """What a compiler defines as a number other than zero."""
    text = _run([program, *flags, "-dM", "-E", "-x", "c", os.devnull], Path.cwd())
    return set(re.findall(r"^#define (\w+) [1-9]\d*$", text, re.M))


def _run(command: list[str], folder: Path) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except subprocess.CalledProcessError as problem:
        lines = [line for line in problem.stderr.splitlines() if "error" in line]
        raise BuildError(
            f"{Path(command[0]).name} refused the source",
            found="\n".join(lines[:5]) or problem.stderr[-500:],
            remedy="use another compiler with --cc, or other flags with --isa and --flag",
        ) from problem
    except OSError as problem:
        raise BuildError("the C compiler cannot be started", found=problem) from problem
    if done.stderr:
        raise BuildError("the C compiler warned", found=done.stderr[-800:])
    return done.stdout
