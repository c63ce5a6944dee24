"""Model against code, step by step: float model, ONNX Runtime, and C on each machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from stategate.bench.certify.builds import (
    AARCH64,
    CORTEX_M7,
    LEVELS,
    PLAIN,
    Build,
    DidNotEndError,
    checked,
    ended,
)
from stategate.bench.certify.case import Case, Finding, Result, last_line
from stategate.contract.manifest import Manifest
from stategate.contract.receipts import Verification
from stategate.runtime.session import Session

_TOLERANCE = 1e-4  # of outputs between ONNX Runtime, which sums in another order, and C
_CHECKS = re.compile(r"^[1-9]\d* checks, 0 wrong$", re.MULTILINE)
_JUDGED = {  # a bundle in lower precision, by its standing
    "sealed": "`stategate drift` found it within its limits",
    "refused": "`stategate drift` found it beyond its limits, and somebody took it all the same",
    "candidate": "`stategate drift` has not judged it",
}
_EMULATED = 2_000  # steps at most, where an emulator takes fifty times as long
BUILDS = (
    Build("gcc", "-O2", LEVELS[0], (PLAIN,)),
    *(Build("gcc", "-O3", isa) for isa in LEVELS),
    Build("clang-19", "-O3", "x86-64-v3"),
    Build("aarch64-linux-gnu-gcc", "-O3", AARCH64),
    Build("arm-none-eabi-gcc", "-O2", CORTEX_M7),
)
_REQUIREMENT = "Code and model decide and answer alike"
Array = npt.NDArray[Any]


@dataclass(slots=True)
class _Run:
    """What steps gave: outputs and gates by name, and which gates were open."""

    outputs: dict[str, Array]
    opens: dict[str, Array]
    chain: Array | None = None


def back_to_back(case: Case) -> bytes:
    """Compare all of them; returns the golden episode as the self-test reads it."""
    manifest, golden = case.bundle.manifest, case.golden
    steps = len(next(iter(golden.inputs.values())))
    order = np.arange(max(steps, case.steps))
    order[steps:] = np.random.default_rng(0).integers(0, steps, len(order) - steps)
    inputs = {name: array[order] for name, array in golden.inputs.items()}
    names = [state.name for state in manifest.states]
    with Session.open(case.bundle, engine="onnxruntime") as session:
        golden.begin(session, names)
        start = b"".join(session.state(n).tobytes() for n in names) if golden.start else b""
        graph = _stepped(case, session, inputs)
    native = manifest.native
    promised = native.golden_digest if native is not None else ""
    episode = case.episode_bytes(golden.inputs, start, promised)
    (case.out / "golden.bin").write_bytes(episode)
    origin = f"{golden.provenance or manifest.model.name}, {steps} golden steps"
    float_run = _Run(dict(golden.outputs), _opens(case, golden.gates))
    if (exported := manifest.verification) is not None:
        how = f"float model beside ONNX Runtime, {exported.steps:,} steps at export"
        case.add(_REQUIREMENT, how, _at_export(manifest, exported))
    how = f"float model beside ONNX Runtime, {origin}"
    case.add(_REQUIREMENT, how, _compared(case, float_run, graph, steps, None, is_of_float=True))
    plain: _Run | None = None
    for build in BUILDS:
        count = min(len(order), _EMULATED) if build.emulator else len(order)

        def look(build: Build = build, count: int = count) -> Finding:
            nonlocal plain
            data = case.episode_bytes(
                {n: a[:count] for n, a in inputs.items()}, start, shows_steps=True
            )
            try:
                program = build.compile(case.bundle.path, None, case.scratch)
                case.programs[build] = program
                run = _read(case, build.run(program, data, limit_s=case.limit_s), count)
            except DidNotEndError:
                raise
            except RuntimeError as problem:  # C that does not compile or step is a finding
                return "open", last_line(str(problem)), {}
            plain = run if build.is_plain else plain
            return _compared(case, graph, run, count, plain)

        how = f"ONNX Runtime beside C, {build.name}, {count:,} steps"
        case.ask(_REQUIREMENT, how, look, lacking=build.lacking)
        if plain is not None and build.is_plain:
            finding = _compared(case, float_run, plain, steps, plain, is_of_float=True)
            case.add(_REQUIREMENT, f"float model beside C, {origin}", finding)
    return episode


def self_tests(case: Case, episode: bytes) -> None:
    """The self-test on each machine; by sanitizers, and by valgrind."""
    requirement = "The self-test of the bundle passes"
    for build, program in case.programs.items():
        tool = partial(_tested, case, [*build.emulator, str(program)], episode)
        case.ask(requirement, build.name, tool)
    folder = case.sources[0].parent

    def look(name: str, flags: tuple[str, ...], words: tuple[str, ...]) -> Finding:
        command = ["gcc", "-std=c99", "-O1", PLAIN, "-ffp-contract=off", *flags, f"-I{folder}"]
        command += ["-DSTATEGATE_SELF_TEST", *map(str, sorted(folder.glob("*.c"))), "-lm", "-o"]
        checked([*command, str(folder / name)], limit_s=case.limit_s)
        finding = _tested(case, [*words, str(folder / name)], episode, f"{name}.txt")
        says_so = not words or "ERROR SUMMARY: 0 errors" in finding[2][f"{name}.txt"]
        if finding[0] == "shown" and not says_so:
            raise RuntimeError("valgrind does not say that it found no error")
        return finding

    for name, flags, emulator in (
        ("sanitizers", ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"), ()),
        ("valgrind", (), ("valgrind", "--error-exitcode=9")),
    ):
        method = " ".join(["gcc -O1, plain form,", *(emulator or flags)])
        tool = partial(look, name, flags, emulator)
        case.ask(requirement, method, tool, "gcc", *emulator[:1])


def _tested(case: Case, words: list[str], episode: bytes, file: str = "") -> Finding:
    done = ended(words, episode, limit_s=case.limit_s)
    printed = (done.stdout + done.stderr).decode(errors="replace")
    finding = _CHECKS.search(printed)
    words_of_it = finding[0] if finding else last_line(printed)
    return _verdict(done.returncode, printed), words_of_it, {file: printed} if file else {}


def _verdict(code: int, printed: str) -> Result:
    """A self-test passed if it says so itself: an exit code of 0 is soon given."""
    return "shown" if code == 0 and _CHECKS.search(printed) else "open"


def _opens(case: Case, values: Mapping[str, Array]) -> dict[str, Array]:
    """Which gates are open, of those that decide."""
    gates = [gate for gate in case.bundle.manifest.gates if gate.kind == "hard"]
    return {gate.name: values[gate.name] > np.float32(gate.threshold) for gate in gates}


def _stepped(case: Case, session: Session, inputs: Mapping[str, Array]) -> _Run:
    steps = len(next(iter(inputs.values())))
    manifest = case.bundle.manifest
    outputs = {t.name: np.empty((steps, *t.shape), t.dtype) for t in manifest.outputs}
    gates = {g.name: np.empty((steps, *g.shape), np.float32) for g in manifest.gates}
    for step in range(steps):
        answer = session.step(**{name: array[step] for name, array in inputs.items()})
        for name, array in outputs.items():
            array[step] = answer[name]
        for name, array in gates.items():
            array[step] = session.gates[name]
    return _Run(outputs | gates, _opens(case, gates))


def _read(case: Case, raw: bytes, steps: int) -> _Run:
    """What the self-test wrote of each step: its result, the chain after it, outputs and gates."""
    manifest = case.bundle.manifest
    fields: list[Any] = [("result", "<i4"), ("chain", "<u8")]
    tensors = {t.name: (t.dtype, t.shape) for t in manifest.outputs}
    tensors |= {g.name: ("float32", g.shape) for g in manifest.gates}
    fields += [(n, np.dtype(d).newbyteorder("<"), tuple(s)) for n, (d, s) in tensors.items()]
    kind = np.dtype(fields)
    if len(raw) != steps * kind.itemsize:
        raise RuntimeError(f"{len(raw) // kind.itemsize:,} of {steps:,} steps were answered")
    table = np.frombuffer(raw, kind)
    outputs = {name: table[name] for name in tensors}
    if refused := int((table["result"] < 0).sum()):
        raise RuntimeError(f"{refused:,} of {steps:,} steps were refused")
    return _Run(outputs, _opens(case, outputs), table["chain"])


def _gap(one: Array, two: Array) -> float:
    """The largest difference as a part of the largest number, or of 1.

    NaN and infinity are as far as can be from whatever they are not.
    """
    same = (one == two) | ((one != one) & (two != two))
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.abs(one.astype(np.float64) - two.astype(np.float64))
        scale = np.abs(one.astype(np.float64)[np.isfinite(one)]).max(initial=1.0)
    distance[~np.isfinite(distance)] = np.inf
    if one.dtype.kind != "f":  # of integers beyond 2**53, too
        distance = np.maximum(distance, 1.0)
    return float(np.where(same, 0.0, distance).max(initial=0.0) / scale)


def _lower(manifest: Manifest) -> str:
    """What is said of a bundle in lower precision."""
    return f"the bundle is of lower precision, and {_JUDGED[manifest.standing]}"


def _at_export(manifest: Manifest, exported: Verification) -> Finding:
    """What `export` found, as the signed manifest keeps it."""
    error = exported.max_output_error
    words = f"largest difference of an output {'unknown' if error is None else f'{error:.2g}'}, "
    words += f"{exported.gate_flips} gate decisions differ, each on its own memory; "
    words += f"{exported.inputs.words} against {exported.reference}"
    is_alike = exported.gate_flips == 0 and error is not None and error <= _TOLERANCE
    if not manifest.is_lower:
        return "shown" if is_alike else "open", words, {}
    words += f"; {_lower(manifest)}"
    if is_alike:
        return "shown", words, {}
    return "explained" if manifest.standing == "sealed" else "open", words, {}


def _compared(
    case: Case, one: _Run, two: _Run, steps: int, plain: _Run | None, *, is_of_float: bool = False
) -> Finding:
    """The largest difference, gate decisions that differ, and bits beside the plain form's."""
    gap, flips, decisions = 0.0, 0, 0
    for name, array in one.outputs.items():
        gap = max(gap, _gap(array[:steps], two.outputs[name][:steps].reshape(array[:steps].shape)))
    for name, array in one.opens.items():
        pair = [x[:steps].reshape(steps, -1) for x in (array, two.opens[name])]
        flips += int((pair[0] != pair[1]).sum())
        decisions += pair[0].size
    words = f"largest difference of an output {gap:.2g}"
    words += f", {flips} of {decisions:,} gate decisions differ" if decisions else ", no gate"
    is_same = True
    if two.chain is not None and plain is None:
        words += "; bits were not compared, for the plain form did not run"
    elif two.chain is not None and plain is not two and plain and plain.chain is not None:
        differs = np.flatnonzero(plain.chain[:steps] != two.chain[:steps])
        is_same = not len(differs)
        words += (
            "; same bits as the plain form"
            if is_same
            else f"; other bits from step {differs[0]} on"
        )
    is_candidate = is_of_float and case.bundle.manifest.is_lower
    if is_candidate:
        words += f"; {_lower(case.bundle.manifest)}"
    good = flips == 0 and is_same and (gap <= _TOLERANCE or is_candidate)
    return "shown" if good else "open", words, {}
