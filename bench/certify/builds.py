"""A bundle's C, compiled in one of many ways together with a program, and run here or emulated."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stategate.common.compiler import BARE_METAL, MATHS
from stategate.common.cpu import isa_of_this_machine
from stategate.contract import Bundle
from stategate.contract.c_library import SOURCE_FOLDER

_FOLDER = Path(__file__).parent
LEVELS = ("x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4")
AARCH64, CORTEX_M7 = "aarch64", "cortex-m7"
PLAIN = "-DSTATEGATE_PORTABLE"  # the form that is C99 and no more
# Debian's packages, where a program does not name its own.
_PACKAGES = {
    "qemu-aarch64": "qemu-user",
    "qemu-x86_64": "qemu-user",
    "arm-none-eabi-gcc": "gcc-arm-none-eabi libnewlib-arm-none-eabi",
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
    "clang-19": "clang-19 libclang-rt-19-dev",
    "llvm-cov-19": "llvm-19",
    "llvm-profdata-19": "llvm-19",
    "frama-c": "frama-c-base",
}
_M7 = tuple(word for word in BARE_METAL["armv7e-m"].split()[1:] if word[:2] != "-O")
# Without an operating system: where memory lies, what starts main, and newlib by semihosting.
_M7_PROGRAM = (
    *("-nostartfiles", "-specs=rdimon.specs", "-Wl,--gc-sections", "-Wl,--defsym=end=bss_end"),
    *(f"-T{_FOLDER / 'm7.ld'}", str(_FOLDER / "m7.c")),
)
_EMULATORS = {
    AARCH64: ("qemu-aarch64",),
    CORTEX_M7: (
        *("qemu-system-arm", "-M", "mps2-an500", "-display", "none", "-monitor", "none"),
        *("-serial", "none", "-semihosting-config", "enable=on,target=native", "-kernel"),
    ),
}


def missing(*programs: str) -> str | None:
    """Which of these programs are not here, and what installs them; None if all are."""
    lost = [program for program in programs if shutil.which(program) is None]
    packages = " ".join(dict.fromkeys(_PACKAGES.get(program, program) for program in lost))
    return f"{', '.join(lost)} is not here: apt-get install {packages}" if lost else None


@dataclass(frozen=True, slots=True)
class Build:
    """One way to compile and run."""

    compiler: str
    optimise: str  # as -O2
    isa: str  # one of `LEVELS`, aarch64 or cortex-m7
    flags: tuple[str, ...] = ()
    runner: tuple[str, ...] = ()  # an emulator in place of the one that the isa needs

    @property
    def name(self) -> str:
        """As ``gcc -O3 x86-64-v3``, with what else is asked for."""
        return " ".join([self.compiler, self.optimise, self.isa, *self.flags])

    @property
    def emulator(self) -> tuple[str, ...]:
        """What a program is started with; nothing where this machine runs it."""
        return self.runner or _EMULATORS.get(self.isa, ())

    @property
    def lacking(self) -> str | None:
        """Why it cannot be compiled or run here, in words; None if it can."""
        able = isa_of_this_machine() or ""
        runs = able in LEVELS and self.isa in LEVELS[: LEVELS.index(able) + 1]
        why = None if runs or self.emulator else f"this machine does not run {self.isa}"
        return missing(self.compiler, *self.emulator[:1]) or why

    @property
    def is_plain(self) -> bool:
        """Whether it is of the form that is C99 and no more."""
        return PLAIN in self.flags

    def compile(
        self, bundle: Path, main: Path | None, folder: Path, more: Sequence[str | Path] = ()
    ) -> Path:
        """A program of the bundle's C and a ``main``, in a folder that is there.

        Args:
            bundle: A bundle with C source.
            main: What includes ``stategate.h`` and has ``main``; none for the bundle's self-test.
            folder: Where the program goes.
            more: Further words of the compiler, such as ``-D`` and sources.
        """
        source = (bundle / SOURCE_FOLDER).resolve()
        sources = [str(path) for path in sorted(source.glob("*.c")) if path.name != "python.c"]
        program = folder.resolve() / self.name.replace(" ", "_").replace("/", "_")
        objects = objects_of(program)
        shutil.rmtree(objects, ignore_errors=True)
        objects.mkdir()
        march = {AARCH64: ("-march=armv8-a", "-static"), CORTEX_M7: _M7}
        isa = march.get(self.isa, (f"-march={self.isa}", "-static"))
        language = "-std=c99" if self.is_plain else "-std=gnu11"
        words = [self.compiler, language, self.optimise, *isa, *MATHS, *self.flags]
        words += [f"-I{source}", f"-Wa,-I{source}"]
        if self.is_plain:
            sources.append(str(write_weights(source, objects)))
        if main is None:
            words.append("-DSTATEGATE_SELF_TEST")
        checked(
            [*words, *(w for w in map(str, more) if w[:2] == "-D"), "-c", *sources], cwd=objects
        )
        words += map(str, [*filter(None, [main]), *more, *sorted(objects.glob("*.o"))])
        words += _M7_PROGRAM if self.isa == CORTEX_M7 else ()
        checked([*words, "-lm", "-o", str(program)])
        return program

    def run(self, program: Path, data: bytes = b"", limit_s: float | None = None) -> bytes:
        """What a program of `compile` writes to stdout, having read ``data`` from stdin."""
        return checked([*self.emulator, str(program)], data, limit_s=limit_s).stdout


def objects_of(program: Path) -> Path:
    """The folder of the bundle's own objects of a program that `Build.compile` made."""
    return program.with_name(f"{program.name}.objects")


class DidNotEndError(RuntimeError):
    """A command that was ended because it took too long."""


def ended(
    words: Sequence[str], data: bytes = b"", cwd: Path | None = None, limit_s: float | None = None
) -> subprocess.CompletedProcess[bytes]:
    """A command that came to an end, good or bad.

    Raises:
        DidNotEndError: It took longer than ``limit_s``.
        RuntimeError: It cannot be started.
    """
    try:
        return subprocess.run(words, input=data, capture_output=True, cwd=cwd, timeout=limit_s)
    except subprocess.TimeoutExpired as problem:
        late = f"{Path(words[0]).name} did not end within {limit_s:g} s; --limit-s gives it longer"
        raise DidNotEndError(late) from problem
    except OSError as problem:
        raise RuntimeError(f"{words[0]} cannot be started: {problem}") from problem


def checked(
    words: Sequence[str], data: bytes = b"", cwd: Path | None = None, limit_s: float | None = None
) -> subprocess.CompletedProcess[bytes]:
    """A command that must end well; RuntimeError with what it wrote to stderr where it does not."""
    done = ended(words, data, cwd, limit_s)
    if done.returncode:
        printed = (done.stderr or done.stdout).decode(errors="replace")[-2000:]
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}\n{printed}")
    return done


def version_of(program: str) -> str:
    """What a tool says of its version; empty where it is not here."""
    if shutil.which(program) is None:
        return ""
    word = "-version" if program == "frama-c" else "--version"
    try:
        printed = checked([program, word], limit_s=60.0).stdout.decode(errors="replace")
    except RuntimeError:
        printed = ""
    first = printed.strip().partition("\n")[0] or "is here, but does not say its version"
    return first if program != "frama-c" else f"Frama-C {first}"


def write_weights(source: Path, folder: Path) -> Path:
    """``weights.c`` of the plain form; docs/guides/native.md has a command for the same."""
    words = np.frombuffer((source / "weights.bin").read_bytes().ljust(1, b"\0"), np.uint8)
    words = np.pad(words, (0, -len(words) % 8)).view("<u8")
    declared = "const uint64_t stategate_weight_words[]"
    body = "".join(f"0x{word:016x}u,\n" for word in words.tolist())
    path = folder / "weights.c"
    path.write_text(f"#include <stdint.h>\nextern {declared};\n{declared} = {{\n{body}0u}};\n")
    return path


def portable_source(bundle: Bundle, folder: Path) -> list[Path]:
    """The C of a bundle and its plain weights in a folder that is there; its sources by name.

    Python's door is left out, which is no C99, and tests, which no program holds.
    """
    source = bundle.path / SOURCE_FOLDER
    for path in sorted(source.glob("*.[ch]")):
        if path.name != "python.c":
            shutil.copy(path, folder)
    write_weights(source, folder)
    names = (path for path in folder.glob("*.c") if path.name != "weights.c")
    return sorted(path for path in names if not path.name.startswith("self_test"))


def records(
    bundle: Bundle, arrays: Mapping[str, npt.NDArray[np.generic]], *, is_plain: bool = False
) -> bytes:
    """Inputs of an episode as ``stategate_inputs`` structs, one after the other.

    Args:
        bundle: What declares the inputs, in the order of the struct.
        arrays: By name, steps first.
        is_plain: Whether the structs are of the plain form, where members lie as in C99.
    """
    place, widest, fields = 0, 1, []
    for spec in bundle.manifest.inputs:
        kind = np.dtype(spec.dtype)
        alignment = kind.alignment if is_plain else 64
        place, widest = -(-place // alignment) * alignment, max(widest, alignment)
        fields.append((spec.name, kind, tuple(spec.shape), place))
        place += int(np.prod(spec.shape)) * kind.itemsize
    names, kinds, shapes, offsets = zip(*fields, strict=True)
    formats = list(zip(kinds, shapes, strict=True))
    size = -(-place // widest) * widest
    struct = np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": size})
    table = np.zeros(len(arrays[names[0]]), struct)
    for name in names:
        table[name] = arrays[name].reshape(table[name].shape)
    return table.tobytes()
