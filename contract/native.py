"""The native engine in a bundle: its C source, the library made of it, and who may load that.

A shared object runs code as soon as it is mapped, so everything that can be known about it is
looked at while it is still bytes: digest, file format, machine, interface and graph.
"""

from __future__ import annotations

import platform
import struct
from typing import Literal

from stategate.contract.errors import EngineError, SpecError
from stategate.contract.specs import Record

# Counts up whenever the functions that the runtime calls change their meaning.
ABI = 2
LIBRARY_PATH = "native/libstep.so"
SOURCE_FOLDER = "native"

Engine = Literal["onnxruntime", "native"]

# e_machine of the ELF header (System V ABI, chapter 4) by the name that the kernel gives the CPU.
_ELF_MACHINES = {"x86_64": 62, "aarch64": 183, "armv7l": 40, "riscv64": 243}
# x86-64 psABI, micro-architecture levels: what each needs beyond the one before, as Linux spells
# it. gcc takes the level's name for -march.
_X86_LEVELS = {
    "x86-64": frozenset[str](),
    "x86-64-v2": frozenset({"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"}),
    "x86-64-v3": frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"}),
    "x86-64-v4": frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
}


class NativeRef(Record, frozen=True, kw_only=True):
    """The native engine of a bundle; its files are among ``Manifest.files``.

    Attributes:
        abi: Version of the interface between library and runtime.
        sources: Paths of the C source, those that are compiled and those they include.
        generator: What made them of the graph.
        library: Path of the shared object, or None until a compiler has run.
        machine: CPU that it is for, as the kernel names it.
        isa: Instruction set that it needs, in the compiler's words for ``-march``.
        compiler: First line of the compiler's version.
        flags: What the compiler was told.
        max_output_error: Largest difference of an output from the golden episode, when the
            library was built; None where it could not be run.
        step_us: Median microseconds of a step by engine, measured side by side when the library
            was built; empty where it could not be run.
    """

    abi: int
    sources: tuple[str, ...]
    generator: str
    library: str | None = None
    machine: str = ""
    isa: str = ""
    compiler: str = ""
    flags: tuple[str, ...] = ()
    max_output_error: float | None = None
    step_us: dict[str, float] = {}

    def __post_init__(self) -> None:
        """Check that a library says what it is for."""
        if self.library is not None and not (self.machine and self.isa and self.compiler):
            raise SpecError(
                "a native library does not say what it is for",
                found=f"machine {self.machine!r}, isa {self.isa!r}, compiler {self.compiler!r}",
            )

    @property
    def fastest(self) -> Engine:
        """The engine that was faster when both were measured; onnxruntime where none was."""
        ours, theirs = self.step_us.get("native"), self.step_us.get("onnxruntime")
        faster = ours is not None and theirs is not None and ours <= theirs
        return "native" if faster else "onnxruntime"


def tag(abi: int, graph_sha256: str) -> bytes:
    """What a library carries among its constants, so that it can be known from its bytes."""
    return f"stategate native abi {abi} graph {graph_sha256}".encode()


def isa_of_this_machine() -> str:
    """The best instruction set that this CPU has a portable name for."""
    machine = platform.machine()
    if machine != "x86_64":
        return {"aarch64": "armv8-a", "armv7l": "armv7-a"}.get(machine, "native")
    flags, best = _cpu_flags(), "x86-64"
    for level, needed in _X86_LEVELS.items():
        if not needed <= flags:
            break
        best = level
    return best


def why_not_here(native: NativeRef) -> str | None:
    """Why this machine cannot load a bundle's library; None where it can."""
    if native.library is None:
        return "the bundle holds C source only; compile it with: stategate build-native"
    if native.abi != ABI:
        return f"the library speaks interface {native.abi}, this runtime {ABI}"
    if native.machine != platform.machine():
        return f"the library is for {native.machine}, this machine is {platform.machine()}"
    if native.isa in _X86_LEVELS:
        levels = list(_X86_LEVELS)
        if levels.index(native.isa) > levels.index(isa_of_this_machine()):
            return f"the library needs {native.isa}, this CPU has {isa_of_this_machine()}"
    return None


def check_library(data: bytes, native: NativeRef, graph_sha256: str) -> None:
    """Hold the bytes of a shared object against what the manifest says, before it is mapped.

    Raises:
        EngineError: It is no shared object, for another machine, of another interface, or was
            made from another graph.
    """
    if len(data) < 20 or data[:4] != b"\x7fELF":
        raise _refused("it is not an ELF file", data[:4].hex(), b"\x7fELF".hex())
    # EI_CLASS, EI_DATA, then e_type and e_machine at byte 16 in the file's own byte order.
    order = {1: "<", 2: ">"}.get(data[5], "<")
    kind, machine = struct.unpack_from(f"{order}HH", data, 16)
    if kind != 3:
        raise _refused("it is not a shared object", f"e_type {kind}", "e_type 3")
    wanted = _ELF_MACHINES.get(native.machine)
    if machine != wanted:
        raise _refused(f"it is not for {native.machine}", f"e_machine {machine}", wanted)
    if tag(native.abi, graph_sha256) not in data:
        raise _refused(
            "it was made from another graph, or for another interface",
            "no such tag in it",
            tag(native.abi, graph_sha256).decode(),
        )


def _refused(why: str, found: object, expected: object) -> EngineError:
    return EngineError(
        f"the native library was not loaded: {why}",
        found=found,
        expected=expected,
        remedy="build it again: stategate build-native",
    )


def _cpu_flags() -> set[str]:
    try:
        with open("/proc/cpuinfo") as lines:  # noqa: PTH123
            line = next((line for line in lines if line.startswith("flags")), "")
    except OSError:
        return set()
    return set(line.split())
