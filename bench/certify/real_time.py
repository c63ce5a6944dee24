"""What a step asks of its machine: no system call, allocation or lock; stack and instructions."""

from __future__ import annotations

import re
import signal
from pathlib import Path

from stategate.bench.certify.builds import Build, checked, ended, records
from stategate.bench.certify.case import Case
from stategate.bench.certify.counting import MACHINES, count_steps

_SEALED_STEP = Path(__file__).with_name("sealed_step.c")
_WRAPS = ("-Wl,--wrap=malloc", "-Wl,--wrap=calloc", "-Wl,--wrap=realloc")
# What a session may call of others: memory that is copied, and functions of numbers.
_HARMLESS = frozenset(("memcpy", "memset", "memcmp", "memmove"))
_LOOP = re.compile(r"\b(for|while)\s*\(([^{]*?)\)\s*(?:\{|$)|\bdo\b\s*\{", re.MULTILINE)
_NUMBERS = r"(?:[\w.>-]+(?:\[\d+\])?|\d+u?|[-+*/%() ]|sizeof[ \w*()]+)+"
_BOUND = re.compile(
    rf"[^;]*;\s*(?:{_NUMBERS}(?:<=?|>=?|!=)\s*{_NUMBERS})?(?:\s*&&[^;]*)?;[^;]*", re.DOTALL
)
_EDGE = re.compile(r'^edge: \{ sourcename: "([^"]+)" targetname: "([^"]+)"', re.MULTILINE)
_NODE = re.compile(r'^node: \{ title: "([^"]+)" label: "([^"]*)"', re.MULTILINE)
_LIBRARY = 64  # bytes of stack, of the C library below a step
_FRAME = re.compile(r"(\d+) bytes \(([\w,]+)\)")


def fast_build() -> Build:
    """The fast form on this machine."""
    builds = [MACHINES[isa].build for isa in ("x86-64-v3", "x86-64")]
    if (build := next((b for b in builds if not b.lacking), None)) is None:
        raise RuntimeError(f"{builds[-1].name}: {builds[-1].lacking}")
    return build


def no_calls(case: Case) -> None:
    """Step under seccomp's strict mode, count calls of an allocator, and list what is called."""
    sealed = "A step, and a save, make no call of the operating system"
    heap = "A step, and a save, allocate nothing"
    locks = "A step takes no lock, and calls nothing but memory and numbers"
    how = "seccomp's strict mode: any call but read, write and exit ends the program"
    wrapped = "malloc, calloc and realloc wrapped by the linker, and counted"
    if case.lacks(sealed, how, "gcc") or case.lacks(heap, wrapped, "gcc"):
        return
    with case.asking(sealed, how):
        program = _sealed(case, sealed, how, heap, wrapped)
        with case.asking(locks, _NAMED):
            _calls_of(case, program, locks)


def _sealed(case: Case, sealed: str, how: str, heap: str, wrapped: str) -> Path:
    build = fast_build()
    program = build.compile(case.bundle.path, _SEALED_STEP, case.scratch, _WRAPS)
    inputs = records(case.bundle, case.golden.inputs)
    done = ended([str(program)], inputs, limit_s=case.limit_s)
    counted = _STEPPED.fullmatch(done.stdout)
    if counted is None or done.returncode:
        code = done.returncode
        killed = code == -signal.SIGKILL
        why = "it made a call, and was ended" if killed else f"ended with {code}: {_ENDS.get(code)}"
        case.add(sealed, how, "open" if killed else "not run", why)
        case.add(heap, wrapped, "not run", "it did not come to its end")
        return program
    steps, calls = int(counted[1]), int(counted[2])
    case.figures |= {"syscalls_per_step": 0.0, "allocations_per_step": calls / steps}
    case.add(
        sealed, how, "shown", f"none in {steps} steps and saves, a load and a reset, {build.name}"
    )
    case.add(heap, wrapped, "open" if calls else "shown", f"{calls} calls in {steps} steps")
    return program


_STEPPED = re.compile(rb"([1-9]\d*) steps, (\d+) calls\n")
_ENDS = {2: "the kernel does not seal it", 3: "a step was refused", 4: "a save was refused"}
_NAMED = "symbols that the compiled session leaves undefined (nm -u)"


def _calls_of(case: Case, program: Path, locks: str) -> None:
    objects = program.with_name(f"{program.name}.objects")
    named = checked(["nm", "-u", *map(str, sorted(objects.glob("*.o")))]).stdout.decode()
    own = checked(["nm", "--defined-only", *map(str, sorted(objects.glob("*.o")))]).stdout.decode()
    called = {line.split()[-1] for line in named.splitlines() if line.strip().startswith("U ")}
    called -= {line.split()[-1] for line in own.splitlines() if len(line.split()) == 3}
    strange = sorted(n for n in called if n not in _HARMLESS and not _is_of_maths(n))
    text = "\n".join(["What the objects call of others:", *sorted(called), ""])
    finding = f"calls {', '.join(sorted(called)) or 'nothing'}"
    finding += f"; not expected: {', '.join(strange)}" if strange else "; none of them takes a lock"
    if "stategate_step" not in own:
        raise RuntimeError("nm does not name stategate_step")
    case.add(locks, _NAMED, "open" if strange else "shown", finding, symbols_txt=text)


def _is_of_maths(name: str) -> bool:
    listed = re.findall(r"\b(\w+)\b", _MATHS)
    return name in listed or name.removesuffix("f") in listed


_MATHS = """acos acosh asin asinh atan atan2 atanh cbrt ceil copysign cos cosh erf exp exp2 expm1
fabs floor fma fmax fmin fmod frexp ldexp log log10 log1p log2 nearbyint pow remainder rint round
sin sinh sqrt tan tanh trunc lrint lround"""


def stack(case: Case) -> None:
    """The bound of the compiler over its graph of calls, beside what a step was seen to write."""
    requirement = "The stack of a step has a bound, and is no deeper when measured"
    how = "gcc -fcallgraph-info=su over all calls; the stack painted, and read after each step"
    if case.lacks(requirement, how, "gcc", "qemu-x86_64"):
        return
    with case.asking(requirement, how):
        _stack(case, requirement, how)


def _stack(case: Case, requirement: str, how: str) -> None:
    build = fast_build()
    folder = case.scratch / "calls"
    folder.mkdir()
    source = (case.bundle.path / "native").resolve()
    names = sorted(p.name for p in source.glob("*.c"))
    skipped = ("python.c", "black_box.c", "self_test.c", "self_test_kernels.c")
    words = [build.compiler, "-std=gnu11", build.optimise, f"-march={build.isa}", *_FLAGS]
    words += ["-fcallgraph-info=su", f"-I{source}", f"-Wa,-I{source}", "-c"]
    words += [str(source / name) for name in names if name not in skipped]
    checked(words, cwd=folder)
    graph = "\n".join(path.read_text() for path in sorted(folder.glob("*.ci")))
    graph = graph.replace(f"{source}/", "")
    frames, kinds, calls = _graph(graph)
    loops: list[str] = []
    bound, path = _deepest("stategate_step", frames, calls, (), loops)
    others = sorted({n for n in path if n not in frames})
    measured = count_steps(case.bundle.path, _machine_of(build)).stack_bytes
    dynamic = sorted(
        n for n, kind in kinds.items() if kind == "dynamic"
    )  # not "bounded" ones, which are aligned
    if not frames.get("stategate_step"):
        raise RuntimeError("gcc's graph of calls has no stategate_step")
    good = measured <= bound + _LIBRARY and not loops and not dynamic
    lines = [f"{frames.get(n, 0):>7} {n}" for n in path]
    text = "\n".join(["Deepest path of calls, bytes of each:", *lines, f"{bound:>7} in all", "",
                      f"Measured: {measured}", f"Recursion: {loops or 'none'}",
                      f"Frames of no fixed size: {dynamic or 'none'}",
                      f"Not of the bundle, not in the sum: {others or 'nothing'}", ""])  # fmt: skip
    finding = f"at most {bound:,} bytes by the compiler, {measured:,} measured, {build.name}"
    finding += (
        f"; the C library's memcpy, {_LIBRARY} bytes at most here, and the budget hook come on top"
    )
    case.add(requirement, how, "shown" if good else "open", finding, stack_txt=text)
    case.figures |= {"stack_bytes": measured, "stack_bound_bytes": bound}


_ANSWERS = ("quiet", "written", "held")
_FLAGS = ("-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno", "-fwrapv")


def _machine_of(build: Build) -> str:
    return next(name for name, machine in MACHINES.items() if machine.build == build)


def _graph(text: str) -> tuple[dict[str, int], dict[str, str], dict[str, set[str]]]:
    """Frames in bytes, their kinds, and who calls whom, by name."""
    frames, kinds = {}, {}
    for title, label in _NODE.findall(text):
        if finding := _FRAME.search(label):
            frames[title] = int(finding[1])
            kinds[title] = finding[2]
    calls: dict[str, set[str]] = {}
    for source, target in _EDGE.findall(text):
        calls.setdefault(source, set()).add(target)
    return frames, kinds, calls


def _deepest(
    name: str,
    frames: dict[str, int],
    calls: dict[str, set[str]],
    before: tuple[str, ...],
    loops: list[str],
) -> tuple[int, list[str]]:
    if name in before:
        loops.append(name)
        return 0, []
    below = [
        _deepest(n, frames, calls, (*before, name), loops) for n in sorted(calls.get(name, ()))
    ]
    most, path = max(below, default=(0, []), key=lambda one: one[0])
    return frames.get(name, 0) + most, [name, *path]


def longest(case: Case) -> None:
    """Instructions of the longest step by machine, and why no other is longer."""
    bounds = "The longest step is known: no bound of a loop depends on data"
    how = "every loop of the plain form, its bound read: numbers of the model, no float, no array"
    loops, strange = [], []
    folder = case.sources[0].parent
    others = ("black_box.c", "stategate_black_box.h", "stategate_install.h")
    for source in sorted({*case.sources, *folder.glob("stategate*.h")}):
        if source.name in others:
            continue
        text = re.sub(r"/\*.*?\*/", "", source.read_text(), flags=re.DOTALL)
        for finding in _LOOP.finditer(text):
            line = f"{source.name}: {' '.join(finding[0].split())}"
            loops.append(line)
            is_bound = finding[1] == "for" and _BOUND.fullmatch(finding[2])
            if not is_bound:
                strange.append(line)
    words = f"{len(loops)} loops, {len(strange)} whose bound is not a number of the model"
    listed = "\n".join([words, "", "To be read:", *strange, "", "All:", *loops, ""])
    case.add(bounds, how, "open" if strange else "shown", words, loops_txt=listed)
    requirement = "Instructions of the longest step are known, quiet or written"
    for isa, machine in MACHINES.items():
        how = f"counted on {isa}, {' '.join(machine.emulator[:1]) or 'a trap after each'}"
        if machine.lacking:
            case.add(requirement, how, "not run", machine.lacking)
            continue
        with case.asking(requirement, how):
            counted = count_steps(case.bundle.path, isa, each=64).instructions
            most = max(map(max, counted.values()))
            spread = ", ".join(
                f"{len(n)} {_ANSWERS[kind]} {min(n):,} to {max(n):,}" for kind, n in counted.items()
            )
            case.add(requirement, how, "shown", f"at most {most:,} were counted: {spread}")
            if isa == _machine_of(fast_build()):
                case.figures["instructions_max"] = most
