"""What a step asks of its machine: no system call, allocation or lock; stack and instructions."""

from __future__ import annotations

import re
import signal
from pathlib import Path

from stategate.bench.certify.builds import checked, ended, objects_of, records
from stategate.bench.certify.case import Case, Finding
from stategate.bench.certify.counting import MACHINES, count_steps
from stategate.common.compiler import MATHS

_SEALED_STEP = Path(__file__).with_name("sealed_step.c")
_WRAPS = ("-Wl,--wrap=malloc", "-Wl,--wrap=calloc", "-Wl,--wrap=realloc")
# What a session may call of others: memory that is copied, and functions of numbers.
_MEMORY = "memcpy memset memcmp memmove"
_MATHS = """acos acosh asin asinh atan atan2 atanh cbrt ceil copysign cos cosh erf exp exp2 expm1
fabs floor fma fmax fmin fmod frexp ldexp log log10 log1p log2 nearbyint pow remainder rint round
sin sinh sqrt tan tanh trunc lrint lround"""
_HARMLESS = {*_MEMORY.split(), *_MATHS.split(), *(f"{name}f" for name in _MATHS.split())}
_STEPPED = re.compile(rb"([1-9]\d*) steps, (\d+) calls\n")
_ENDS = {2: "the kernel does not seal it", 3: "a step was refused", 4: "a save was refused"}
_LOOP = re.compile(r"\b(for|while)\s*\(([^{]*?)\)\s*(?:\{|$)|\bdo\b\s*\{", re.MULTILINE)
_NUMBERS = r"(?:[\w.>-]+(?:\[\d+\])?|\d+u?|[-+*/%() ]|sizeof[ \w*()]+)+"
_BOUND = re.compile(
    rf"[^;]*;\s*(?:{_NUMBERS}(?:<=?|>=?|!=)\s*{_NUMBERS})?(?:\s*&&[^;]*)?;[^;]*", re.DOTALL
)
_EDGE = re.compile(r'^edge: \{ sourcename: "([^"]+)" targetname: "([^"]+)"', re.MULTILINE)
_NODE = re.compile(r'^node: \{ title: "([^"]+)" label: "([^"]*)"', re.MULTILINE)
_FRAME = re.compile(r"(\d+) bytes \(([\w,]+)\)")
_LIBRARY = 64  # bytes of stack, of the C library below a step
_TO_ALIGN = 56  # bytes at most from where a function begins to the next cache line below
_ANSWERS = ("quiet", "written", "held")
_COUNTED = 64  # steps of each answer


def fast_machine() -> str:
    """The machine of the fast form here."""
    for isa in ("x86-64-v3", "x86-64"):
        if not MACHINES[isa].lacking:
            return isa
    raise RuntimeError(f"{isa}: {MACHINES[isa].lacking}")


def no_calls(case: Case) -> None:
    """Step under seccomp's strict mode, count calls of an allocator, and list what is called."""
    done: list[Path | int] = []

    def sealed() -> Finding:
        build = MACHINES[fast_machine()]
        program = build.compile(case.bundle.path, _SEALED_STEP, case.scratch, _WRAPS)
        done.append(program)
        inputs = records(case.bundle, case.golden.inputs)
        ran = ended([str(program)], inputs, limit_s=case.limit_s)
        counted = _STEPPED.fullmatch(ran.stdout)
        if ran.returncode == -signal.SIGKILL:
            return "open", "it made a call, and was ended", {}
        if counted is None or ran.returncode:
            raise RuntimeError(f"ended with {ran.returncode}: {_ENDS.get(ran.returncode)}")
        steps, calls = int(counted[1]), int(counted[2])
        done.extend((steps, calls))
        case.figures |= {"syscalls_per_step": 0.0, "allocations_per_step": calls / steps}
        words = f"none in {steps} steps and saves, a load and a reset, {build.name}"
        return "shown", words, {}

    case.ask(
        "A step, and a save, make no call of the operating system",
        "seccomp's strict mode: any call but read, write and exit ends the program",
        sealed,
        "gcc",
    )

    def heap() -> Finding:
        _, steps, calls = done
        return "open" if calls else "shown", f"{calls} calls in {steps} steps", {}

    case.ask(
        "A step, and a save, allocate nothing",
        "malloc, calloc and realloc wrapped by the linker, and counted",
        heap,
        lacking=None if len(done) == 3 else "it did not come to its end",
    )
    case.ask(
        "A step takes no lock, and calls nothing but memory and numbers",
        "symbols that the compiled session leaves undefined (nm -u)",
        lambda: _calls_of(Path(str(done[0]))),
        lacking=None if done else "nothing was compiled",
    )


def _calls_of(program: Path) -> Finding:
    objects = [str(path) for path in sorted(objects_of(program).glob("*.o"))]
    named = checked(["nm", "-u", *objects]).stdout.decode()
    own = checked(["nm", "--defined-only", *objects]).stdout.decode()
    if "stategate_step" not in own:
        raise RuntimeError("nm does not name stategate_step")
    called = {line.split()[-1] for line in named.splitlines() if line.strip().startswith("U ")}
    called -= {line.split()[-1] for line in own.splitlines() if len(line.split()) == 3}
    strange = sorted(called - _HARMLESS)
    text = "\n".join(["What the objects call of others:", *sorted(called), ""])
    finding = f"calls {', '.join(sorted(called)) or 'nothing'}"
    finding += f"; not expected: {', '.join(strange)}" if strange else "; none of them takes a lock"
    return "open" if strange else "shown", finding, {"symbols.txt": text}


def stack(case: Case) -> None:
    """The bound of the compiler over its graph of calls, beside what a step was seen to write."""
    case.ask(
        "The stack of a step has a bound, and is no deeper when measured",
        "gcc -fcallgraph-info=su over all calls; the stack painted, and read after each step",
        lambda: _stack(case),
        "gcc",
        "qemu-x86_64",
    )


def _stack(case: Case) -> Finding:
    isa = fast_machine()
    build = MACHINES[isa]
    folder = case.scratch / "calls"
    folder.mkdir()
    source = (case.bundle.path / "native").resolve()
    words = [build.compiler, "-std=gnu11", build.optimise, f"-march={build.isa}", *MATHS]
    words += ["-fcallgraph-info=su", f"-I{source}", f"-Wa,-I{source}", "-c"]
    words += [str(source / path.name) for path in case.sources if path.name != "black_box.c"]
    checked(words, cwd=folder)
    graph = "\n".join(path.read_text() for path in sorted(folder.glob("*.ci")))
    graph = graph.replace(f"{source}/", "")
    frames: dict[str, int] = {}
    dynamic, calls = [], dict[str, set[str]]()
    for title, label in _NODE.findall(graph):
        if finding := _FRAME.search(label):
            frames[title] = int(finding[1])
            if finding[2] == "dynamic,bounded":  # what aligns it is not in the compiler's number
                frames[title] += _TO_ALIGN
            dynamic += [title] * (finding[2] == "dynamic")
    for caller, callee in _EDGE.findall(graph):
        calls.setdefault(caller, set()).add(callee)
    if not frames.get("stategate_step"):
        raise RuntimeError("gcc's graph of calls has no stategate_step")
    loops: list[str] = []
    bound, path = _deepest("stategate_step", frames, calls, (), loops)
    steps = case.counted.get(isa) or count_steps(case.bundle.path, isa)
    measured = steps.stack_bytes
    good = measured <= bound + _LIBRARY and not loops and not dynamic
    others = sorted({n for n in path if n not in frames})
    lines = [f"{frames.get(n, 0):>7} {n}" for n in path]
    text = "\n".join(["Deepest path of calls, bytes of each:", *lines, f"{bound:>7} in all", "",
                      f"Measured: {measured}", f"Recursion: {loops or 'none'}",
                      f"Frames of no fixed size: {dynamic or 'none'}",
                      f"Not of the bundle, not in the sum: {others or 'nothing'}", ""])  # fmt: skip
    words_of_it = (
        f"at most {bound:,} bytes by the compiler, {measured:,} measured, {build.name}; the C "
        f"library's memcpy, {_LIBRARY} bytes at most here, and the budget hook come on top"
    )
    case.figures |= {"stack_bytes": measured, "stack_bound_bytes": bound}
    return "shown" if good else "open", words_of_it, {"stack.txt": text}


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
    case.ask(
        "The longest step is known: no bound of a loop depends on data",
        "every loop of the plain form, its bound read: numbers of the model, no float, no array",
        lambda: _loops(case),
    )
    for isa, build in MACHINES.items():

        def look(isa: str = isa) -> Finding:
            case.counted[isa] = count_steps(case.bundle.path, isa, each=_COUNTED)
            counted = case.counted[isa].instructions
            most = max(map(max, counted.values()))
            spread = ", ".join(
                f"{len(n)} {_ANSWERS[kind]} {min(n):,} to {max(n):,}" for kind, n in counted.items()
            )
            if isa == fast_machine():
                case.figures["instructions_max"] = most
            return "shown", f"at most {most:,} were counted: {spread}", {}

        case.ask(
            "Instructions of the longest step are known, quiet or written",
            f"counted on {isa}, {' '.join(build.emulator[:1]) or 'a trap after each'}",
            look,
            lacking=build.lacking,
        )


def _loops(case: Case) -> Finding:
    loops, strange = [], []
    headers = case.sources[0].parent.glob("stategate*.h")
    others = ("black_box.c", "stategate_black_box.h", "stategate_install.h")
    for source in sorted({*case.sources, *headers}):
        if source.name in others:
            continue
        text = re.sub(r"/\*.*?\*/", "", source.read_text(), flags=re.DOTALL)
        for finding in _LOOP.finditer(text):
            line = f"{source.name}: {' '.join(finding[0].split())}"
            loops.append(line)
            if finding[1] != "for" or not _BOUND.fullmatch(finding[2]):
                strange.append(line)
    words = f"{len(loops)} loops, {len(strange)} whose bound is not a number of the model"
    text = "\n".join([words, "", "To be read:", *strange, "", "All:", *loops, ""])
    return "open" if strange else "shown", words, {"loops.txt": text}
