"""What a step costs that no neighbour changes: instructions, stack, flash and RAM, by machine."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low

import msgspec

from stategate.bench.certify.builds import (
    AARCH64,
    CORTEX_M7,
    INSTALL,
    Build,
    checked,
    package_of,
    records,
)
from stategate.contract import Bundle
from stategate.contract.staging import scratch_folder

_PROGRAM = Path(__file__).with_name("count.c")
_PLUGIN = Path(__file__).with_name("count_plugin.c")


@dataclass(frozen=True, slots=True)
class Machine:
    """Where steps are counted.

    Attributes:
        build: How the C is compiled for it.
        emulator: What runs it and counts, in place of the build's own; none where this CPU's trap
            after each instruction counts.
    """

    build: Build
    emulator: tuple[str, ...]

    @property
    def lacking(self) -> str | None:
        """Why nothing is counted, in words; None if it is."""
        if not self.emulator:
            return self.build.lacking
        for program in (self.build.compiler, self.emulator[0]):
            if shutil.which(program) is None:
                return f"{program} is not here: {INSTALL} {package_of(program)}"
        return None


def _x86(isa: str, *emulator: str) -> Machine:
    return Machine(Build("gcc", "-O3", isa), emulator)


def _other(compiler: str, optimise: str, isa: str, *flags: str) -> Machine:
    build = Build(compiler, optimise, isa, flags)
    return Machine(build, build.emulator)


# QEMU 7.2 knows x86-64 up to -v3. The CPU decides which copies of memory the C library takes.
MACHINES = {
    "x86-64": _x86("x86-64", "qemu-x86_64", "-cpu", "qemu64"),
    "x86-64-v2": _x86("x86-64-v2", "qemu-x86_64", "-cpu", "Nehalem"),
    "x86-64-v3": _x86("x86-64-v3", "qemu-x86_64", "-cpu", "max"),
    "x86-64-v4": _x86("x86-64-v4"),
    "aarch64": _other("aarch64-linux-gnu-gcc", "-O3", AARCH64),
    "aarch64 without NEON": _other(
        "aarch64-linux-gnu-gcc", "-O3", AARCH64, "-march=armv8-a+nosimd"
    ),
    "cortex-m7": _other("arm-none-eabi-gcc", "-O2", CORTEX_M7),
}


class Row(msgspec.Struct, frozen=True):
    """A bundle's step on a machine.

    Attributes:
        model: Name of the model.
        precision: As ``float32``.
        isa: Key of `MACHINES`.
        instructions_quiet: Of a quiet step; None if no step of the episode is quiet.
        instructions_write: Of a step that writes; None if none does.
        stack_bytes: Deepest byte of stack that a step wrote.
        flash_bytes: Code and constants of the bundle's C.
        ram_bytes: Its static memory, and one session with its inputs and outputs.
    """

    model: str
    precision: str
    isa: str
    instructions_quiet: int | None
    instructions_write: int | None
    stack_bytes: int
    flash_bytes: int
    ram_bytes: int

    @property
    def name(self) -> str:
        """As ``lstm, int8, aarch64``."""
        return f"{self.model}, {self.precision}, {self.isa}"


def version_of(compiler: str) -> str:
    """First line of what a compiler says of its version."""
    return checked([compiler, "--version"]).stdout.decode().splitlines()[0]


@dataclass(frozen=True, slots=True)
class Steps:
    """What counted steps took.

    Attributes:
        instructions: Of each, by what it answered: 0 quiet, 1 wrote, 2 held.
        stack_bytes: Deepest byte of stack that one wrote.
        flash_bytes: See `Row`.
        ram_bytes: See `Row`.
    """

    instructions: dict[int, list[int]]
    stack_bytes: int
    flash_bytes: int
    ram_bytes: int


def count_steps(path: Path, isa: str, each: int = 5) -> Steps:
    """Count the first steps of each answer over the golden episode on one machine.

    Raises:
        RuntimeError: It is not compiled, or not stepped, there.
    """
    machine, bundle = MACHINES[isa], Bundle.open(path)
    golden = bundle.golden()
    if golden is None:
        raise RuntimeError("the bundle has no golden episode")
    with scratch_folder() as scratch:
        folder = Path(scratch)
        trap = () if machine.emulator else ("-DTRAP",)
        program = machine.build.compile(path, _PROGRAM, folder, (f"-DEACH={each}", *trap))
        words = [*machine.emulator]
        if words:
            plugin = folder / "plugin.so"
            checked(["cc", "-O2", "-shared", "-fPIC", str(_PLUGIN), "-o", str(plugin)])
            words[1:1] = ["-plugin", str(plugin)]
        done = checked([*words, str(program)], records(bundle, golden.inputs))
        flash, ram = machine.build.sizes(program)
    # An emulator may warn on stderr as well.
    marks = [int(line) for line in done.stderr.split() if line.isdigit()]
    *steps, own = [list(map(int, line.split())) for line in done.stdout.splitlines()]
    instructions = [end - start for start, end in zip(marks[::2], marks[1::2], strict=True)]
    kinds: dict[int, list[int]] = {}
    for (kind, _), one in zip(steps, instructions, strict=True):
        kinds.setdefault(kind, []).append(one)
    return Steps(kinds, max(step[1] for step in steps), flash, ram + own[0])


def count(path: Path, model: str, precision: str, isa: str) -> Row:
    """The middle step of each answer, as a row."""
    steps = count_steps(path, isa)
    middle = {kind: median_low(values) for kind, values in steps.instructions.items()}
    return Row(
        model, precision, isa, middle.get(0), middle.get(1),
        steps.stack_bytes, steps.flash_bytes, steps.ram_bytes,
    )  # fmt: skip
