"""What a step costs that no neighbour changes: instructions, stack, flash and RAM, by machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stategate.bench.certify.builds import (
    AARCH64,
    CORTEX_M7,
    Build,
    checked,
    objects_of,
    records,
)
from stategate.contract import Bundle
from stategate.contract.staging import scratch_folder

_PROGRAM = Path(__file__).with_name("count.c")
_PLUGIN = Path(__file__).with_name("count_plugin.c")
_NO_NEON = ("-march=armv8-a+nosimd",)
# Where steps are counted. QEMU 7.2 knows x86-64 up to -v3, and its CPU decides which copies of
# memory the C library takes; without an emulator this CPU's trap after each instruction counts.
MACHINES = {
    "x86-64": Build("gcc", "-O3", "x86-64", runner=("qemu-x86_64", "-cpu", "qemu64")),
    "x86-64-v2": Build("gcc", "-O3", "x86-64-v2", runner=("qemu-x86_64", "-cpu", "Nehalem")),
    "x86-64-v3": Build("gcc", "-O3", "x86-64-v3", runner=("qemu-x86_64", "-cpu", "max")),
    "x86-64-v4": Build("gcc", "-O3", "x86-64-v4"),
    "aarch64": Build("aarch64-linux-gnu-gcc", "-O3", AARCH64),
    "aarch64 without NEON": Build("aarch64-linux-gnu-gcc", "-O3", AARCH64, _NO_NEON),
    "cortex-m7": Build("arm-none-eabi-gcc", "-O2", CORTEX_M7),
}


@dataclass(frozen=True, slots=True)
class Steps:
    """What counted steps took."""

    instructions: dict[int, list[int]]  # of each, by what it answered: 0 quiet, 1 wrote, 2 held
    stack_bytes: int  # deepest byte of stack that one wrote
    flash_bytes: int  # code and constants of the bundle's C
    ram_bytes: int  # its static memory, and one session with its inputs and outputs


def count_steps(path: Path, isa: str, each: int = 5) -> Steps:
    """Count the first steps of each answer over the golden episode on one machine.

    Raises:
        RuntimeError: It is not compiled, or not stepped, there.
    """
    build, bundle = MACHINES[isa], Bundle.open(path)
    golden = bundle.golden()
    if golden is None:
        raise RuntimeError("the bundle has no golden episode")
    with scratch_folder() as scratch:
        folder = Path(scratch)
        words = [*build.emulator]
        trap = () if words else ("-DTRAP",)
        program = build.compile(path, _PROGRAM, folder, (f"-DEACH={each}", *trap))
        if words:
            plugin = folder / "plugin.so"
            checked(["cc", "-O2", "-shared", "-fPIC", str(_PLUGIN), "-o", str(plugin)])
            words[1:1] = ["-plugin", str(plugin)]
        done = checked([*words, str(program)], records(bundle, golden.inputs))
        flash, ram = _sizes(build, program)
    # An emulator may warn on stderr as well.
    marks = [int(line) for line in done.stderr.split() if line.isdigit()]
    *steps, own = [list(map(int, line.split())) for line in done.stdout.splitlines()]
    instructions = [end - start for start, end in zip(marks[::2], marks[1::2], strict=True)]
    kinds: dict[int, list[int]] = {}
    for (kind, _), one in zip(steps, instructions, strict=True):
        kinds.setdefault(kind, []).append(one)
    return Steps(kinds, max(step[1] for step in steps), flash, ram + own[0])


def _sizes(build: Build, program: Path) -> tuple[int, int]:
    """Bytes of flash and of RAM of the bundle's C, without session, stack and C library."""
    tool = {AARCH64: "aarch64-linux-gnu-size", CORTEX_M7: "arm-none-eabi-size"}
    objects = map(str, sorted(objects_of(program).glob("*.o")))
    lines = checked([tool.get(build.isa, "size"), *objects]).stdout.splitlines()[1:]
    text, data, zeros = (sum(int(line.split()[i]) for line in lines) for i in range(3))
    return text + data, data + zeros
