"""One digest everywhere: kernels and steps give the same bits however they are built."""

from __future__ import annotations

import ctypes
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

import stategate
from lab.bits import BUILDS, MAIN, WARNINGS, compare
from stategate.bench.certify.builds import PLAIN, Build, records
from stategate.common.compiler import MATHS
from stategate.common.cpu import isa_of_this_machine
from stategate.contract import (
    Bundle,
    FileRef,
    StateSpec,
    StepSpec,
    TensorSpec,
    sha256,
    write_bundle,
)
from stategate.contract.c_library import NativeRef
from stategate.contract.chain import START, chained
from stategate.contract.errors import ParityError, SpecError
from stategate.export.c.lower import source_of
from stategate.export.frontends.trace import trace
from stategate.models.step import StepResult
from stategate.runtime.check.build_native import build_native
from stategate.runtime.check.golden import Replay
from stategate.runtime.session import Session
from stategate.runtime.trust.code import accept_for_this_process, code_digest

KERNELS = Path(__file__).parents[2] / "export" / "c"
LEVELS = ["x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4"]


def builds() -> list[tuple[str, ...]]:
    """Commands of compilers that are here, for what this machine or its emulator can run."""
    best = isa_of_this_machine() or ""
    able = LEVELS[: LEVELS.index(best) + 1] if best in LEVELS else []
    options = [("cc", "-O2")]
    options += [("cc", "-O3", f"-march={isa}") for isa in able]
    options += [("cc", "-O0", f"-march={able[-1]}")] if able else []
    options += [("clang", "-O3", f"-march={isa}") for isa in able[-1:]]
    options += [("aarch64-linux-gnu-gcc", o, "-static") for o in ("-O2", "-O3")]
    options += [("aarch64-linux-gnu-gcc", "-O3", "-march=armv8-a+nosimd", "-static")]
    needed = {"aarch64-linux-gnu-gcc": "qemu-aarch64"}
    return [b for b in options if all(map(shutil.which, (b[0], needed.get(b[0], b[0]))))]


def outputs_of(
    sources: list[Path], folder: Path, *more: tuple[str, ...], flags: tuple[str, ...] = ()
) -> dict[bytes, list[str]]:
    """What a program prints, by output the builds that print it."""
    printed: dict[bytes, list[str]] = {}
    for i, build in enumerate([*builds(), *more]):
        program = folder / f"program{i}"
        words = [*build, "-std=gnu11", "-Wall", "-Wextra", "-Werror", *MATHS, *flags]
        words += [
            f"-I{KERNELS}",
            f"-I{sources[-1].parent}",
            f"-Wa,-I{sources[-1].parent}",
            *map(str, sources),
        ]
        subprocess.run([*words, "-lm", "-o", str(program)], check=True)
        emulator = ["qemu-aarch64"] if build[0].startswith("aarch64") else []
        run = subprocess.run([*emulator, str(program)], capture_output=True)
        assert run.returncode == 0, (build, run.stdout)
        printed.setdefault(run.stdout, []).append(" ".join(build))
    assert printed
    return printed


@pytest.mark.slow
def test_kernels_give_the_bits_of_their_plain_loops_in_every_build(tmp_path: Path) -> None:
    printed = outputs_of(
        [KERNELS / "self_test_kernels.c"],
        tmp_path,
        ("cc", "-O2", PLAIN),
        flags=("-DSTATEGATE_SELF_TEST", "-DSTATEGATE_KERNELS_ALONE"),
    )
    assert len(printed) == 1, printed


FEW = [
    Build("gcc", "-O0", "x86-64"),
    Build("clang", "-O3", "x86-64-v3"),
    Build("aarch64-linux-gnu-gcc", "-O2", "aarch64"),
    Build("clang", "-O2", "x86-64", (PLAIN, *WARNINGS)),
]


@pytest.mark.parametrize(
    "chosen", [FEW, pytest.param(BUILDS, marks=pytest.mark.slow)], ids=["few", "all"]
)
def test_a_step_gives_the_promised_digest_in_every_build(
    native_bundle: Path, tmp_path: Path, chosen: list[Build]
) -> None:
    bundle = Bundle.open(native_bundle)
    result = compare(bundle, chosen, tmp_path)
    assert result["builds"] and len(result["builds"]) + len(result["lacking"]) == len(chosen)
    assert bundle.manifest.native is not None
    assert result["digests"] == [bundle.manifest.native.golden_digest], result["first_difference"]


@pytest.mark.slow
def test_of_builds_that_part_the_first_step_and_tensor_are_named(
    native_bundle: Path, tmp_path: Path
) -> None:
    fusing = Build("gcc", "-O2", "x86-64-v3", ("-ffp-contract=fast",))
    if fusing.lacking is not None:
        pytest.skip(fusing.lacking)
    result = compare(Bundle.open(native_bundle), [FEW[0], fusing], tmp_path)
    assert len(result["digests"]) == 2
    assert re.search(r"contract=fast parts from gcc -O0 x86-64 in step \d+ at \w+ '", str(result))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["lstm", "gru", "gated-deltanet"])
def test_plain_c99_is_free_of_warnings_and_has_the_promised_digest(
    model: str, tmp_path: Path
) -> None:
    bundle = stategate.make(model, tmp_path / "b", steps=40, engines="onnxruntime,native")
    plain = [Build(cc, "-O2", "x86-64", (PLAIN, *WARNINGS)) for cc in ("gcc", "clang")]
    result = compare(bundle, plain, tmp_path)
    assert result["builds"] and result["digests"] == [result["promised"]], result


@pytest.mark.slow
def test_the_guide_says_how_plain_c99_is_compiled_and_a_mixture_is_refused(
    native_bundle: Path, tmp_path: Path
) -> None:
    bundle = Bundle.open(native_bundle)
    golden = bundle.golden()
    assert golden is not None and bundle.manifest.native is not None
    page = (MAIN.parents[1] / "guides/native.md").read_text()
    commands = page[
        page.index("    { echo") : page.index("Program and bundle need the same choice")
    ]
    commands = commands.replace("BUNDLE", str(native_bundle)).replace(
        "docs/examples", str(MAIN.parent)
    )
    subprocess.run(["sh", "-e", "-c", commands], cwd=tmp_path, check=True)
    inputs = records(bundle, golden.inputs, is_plain=True)
    printed = subprocess.run([tmp_path / "digest"], input=inputs, capture_output=True, check=True)
    assert printed.stdout.decode().split() == [bundle.manifest.native.golden_digest]

    mixed = commands.replace("cc ", "cc -c ").replace(" -lm -o digest", "")
    subprocess.run(["sh", "-e", "-c", mixed], cwd=tmp_path, check=True)
    words = ["cc", "-std=c99", f"-I{native_bundle / 'native'}", str(MAIN), "-o", "mixed"]
    objects = [path.name for path in tmp_path.glob("*.o") if path.name != "digest.o"]
    subprocess.run([*words, *objects, "-lm"], cwd=tmp_path, check=True)
    printed = subprocess.run([tmp_path / "mixed"], input=inputs, capture_output=True)
    assert printed.stdout == b"step 0 was refused: -6\n"


class Fading(nn.Module):
    """A memory that decays by 1 in 500 a step, and what leaks between its cells."""

    def __init__(self) -> None:
        super().__init__()
        self.leak = nn.Linear(16, 16, bias=False)

    def step_spec(self) -> StepSpec:
        shape = (1, 16)
        inputs, outputs = (TensorSpec("x", shape),), (TensorSpec("y", shape),)
        return StepSpec(inputs=inputs, outputs=outputs, states=(StateSpec("s", shape),))

    def step(self, inputs: dict, states: dict) -> StepResult:
        s = 0.998 * states["s"] + inputs["x"]
        return StepResult({"y": torch.tanh(self.leak(s))}, {"s": s}, {})


# Ten steps of sound, then silence. Prints the chain, how many numbers were next to zero, and the
# fastest thousand steps of the first and of the last fifth, in nanoseconds.
SILENCE = """
#include <inttypes.h>
#include <stdio.h>
#include <time.h>
#include "stategate.h"
static stategate_session session;
static stategate_inputs in;
static stategate_outputs out;
int main(void)
{
    uint64_t chain = 0, small = 0, fastest[5] = {UINT64_MAX, 0, 0, 0, UINT64_MAX};
    stategate_init(&session);
    for (int block = 0; block < 100; ++block) {
        struct timespec start, end;
        clock_gettime(CLOCK_MONOTONIC, &start);
        for (int step = 0; step < 1000; ++step) {
            for (int i = 0; i < 16; ++i) {
                in.x[i] = block == 0 && step < 10 ? (float)(i - step) : 0.0f;
            }
            stategate_step(&session, &in, &out);
            chain = stategate_chain(&session, chain);
        }
        clock_gettime(CLOCK_MONOTONIC, &end);
        const uint64_t ns = (uint64_t)((end.tv_sec - start.tv_sec) * 1000000000L + end.tv_nsec)
            - (uint64_t)start.tv_nsec;
        uint64_t *least = &fastest[block / 20];
        *least = ns < *least ? ns : *least;
        const stategate_states *live = &session.bank[session.parity & 1u];
        for (int i = 0; i < 16; ++i) {
            const float size = live->s[i] < 0 ? -live->s[i] : live->s[i];
            small += size != 0.0f && size < 0x1p-100f;
        }
    }
    printf("%016" PRIx64 " %" PRIu64, chain, small);
    printf(" %" PRIu64 " %" PRIu64 "\\n", fastest[0], fastest[4]);
    return 0;
}
"""


@pytest.mark.slow
def test_100000_silent_steps_cost_what_any_step_costs_and_keep_their_bits(tmp_path: Path) -> None:
    model = Fading()
    torch.manual_seed(5)
    nn.init.normal_(model.leak.weight)
    for name, raw in source_of(
        trace(model).SerializeToString(), model.step_spec(), {}
    ).files.items():
        (tmp_path / name).write_bytes(raw)
    (tmp_path / "main.c").write_text(SILENCE)
    sources = [f for f in sorted(tmp_path.glob("*.c")) if f.name != "python.c"]
    chains = set()
    for words in (["cc", "-O0"], ["cc", "-O3", "-march=native"]):
        words += ["-std=gnu11", *MATHS, f"-I{tmp_path}", f"-Wa,-I{tmp_path}", *map(str, sources)]
        subprocess.run([*words, "-lm", "-o", str(tmp_path / "robot")], check=True)
        done = subprocess.run([tmp_path / "robot"], capture_output=True, text=True, check=True)
        chain, small, first_ns, last_ns = done.stdout.split()
        chains.add(chain)
        assert int(small) == 0
        assert int(last_ns) < 3 * int(first_ns)  # subnormal numbers cost 16 to 45 times as much
    assert len(chains) == 1


FUNCTIONS: dict[str, tuple[Callable[[float], float], float, float, float]] = {
    # name: reference in double, from, to, largest error in units of the last place
    "expf": (math.exp, -87.0, 88.0, 2.0),
    "tanhf": (math.tanh, -10.0, 10.0, 3.0),
    "logf": (math.log, 1e-30, 1e30, 2.0),
    "log1pf": (math.log1p, -0.9, 50.0, 3.0),
    "sigmoidf": (lambda x: 1.0 / (1.0 + math.exp(-x)), -80.0, 80.0, 3.0),
    "erff": (math.erf, -5.0, 5.0, 4.0),
}


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("functions")
    names = [*FUNCTIONS, "softplusf", "sinf", "cosf"]
    text = "".join(f"float call_{n}(float x) {{ return stategate_{n}(x); }}\n" for n in names)
    text += "float call_powf(float x, float y) { return stategate_powf(x, y); }\n"
    (folder / "f.c").write_text('#include "stategate_math.h"\n' + text)
    words = ["cc", "-O2", "-shared", "-fPIC", *MATHS, f"-I{KERNELS}", "f.c", "-lm", "-o", "f.so"]
    subprocess.run(words, cwd=folder, check=True)
    library = ctypes.CDLL(str(folder / "f.so"))
    for name in [*names, "powf"]:
        getattr(library, f"call_{name}").restype = ctypes.c_float
        getattr(library, f"call_{name}").argtypes = [ctypes.c_float] * (2 if name == "powf" else 1)
    return library


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_near_those_of_double_precision(functions: ctypes.CDLL, name: str) -> None:
    reference, low, high, most = FUNCTIONS[name]
    call = getattr(functions, f"call_{name}")
    points = (np.geomspace if name == "logf" else np.linspace)(low, high, 4001)
    for x in points.astype(np.float32):
        exact = reference(float(x))
        unit = float(np.spacing(np.float32(abs(exact))))
        assert abs(call(x) - exact) <= most * max(unit, 1e-45), (float(x), call(x), exact)


@pytest.mark.parametrize("x", [0.0, 1e-8, -3.25, 1234.5, -98765.4])
def test_waves_and_powers_are_near_those_of_double_precision(
    functions: ctypes.CDLL, x: float
) -> None:
    angle = float(np.float32(x))
    assert functions.call_sinf(x) == pytest.approx(math.sin(angle), abs=6e-8)
    assert functions.call_cosf(x) == pytest.approx(math.cos(angle), abs=6e-8)
    assert functions.call_powf(abs(x) + 0.5, 0.75) == pytest.approx(
        float(np.float32(abs(x) + 0.5)) ** 0.75, rel=1e-6
    )


@pytest.mark.parametrize("name", [*FUNCTIONS, "softplusf", "sinf", "cosf"])
def test_nan_goes_through_every_function(functions: ctypes.CDLL, name: str) -> None:
    assert math.isnan(getattr(functions, f"call_{name}")(math.nan))


def test_what_is_infinite_or_impossible_is_said(functions: ctypes.CDLL) -> None:
    assert functions.call_expf(math.inf) == math.inf and functions.call_expf(-math.inf) == 0.0
    assert functions.call_logf(0.0) == -math.inf and math.isnan(functions.call_logf(-1.0))
    assert functions.call_logf(math.inf) == math.inf
    assert functions.call_tanhf(math.inf) == 1.0 and functions.call_tanhf(-math.inf) == -1.0
    assert functions.call_softplusf(math.inf) == math.inf
    assert math.isnan(functions.call_sinf(math.inf))
    assert math.isnan(functions.call_powf(-2.0, 0.5)) and functions.call_powf(-2.0, 3.0) == -8.0
    assert functions.call_powf(0.0, -1.0) == math.inf and functions.call_powf(5.0, 0.0) == 1.0


def test_the_manifest_promises_the_digest_of_the_golden_episode(native_bundle: Path) -> None:
    bundle = Bundle.open(native_bundle)
    golden, native = bundle.golden(), bundle.manifest.native
    assert golden is not None and native is not None
    chain = START
    with Session.open(native_bundle, engine="native") as session:
        for inputs in golden:
            named = [session.step(**inputs), session.gates]
            named += [{s.name: session.state(s.name)} for s in bundle.manifest.states]
            for arrays in named:
                for array in arrays.values():
                    chain = chained(chain, array)
    assert native.golden_digest == f"{chain:016x}"
    result = stategate.verify(native_bundle, engine="native")
    assert result.passed and result.replay is not None
    assert "every bit as promised" in result.replay.summary
    assert not stategate.verify(native_bundle, engine="native", tolerance=1e-12).passed
    # Another engine gives other bits, and is held to the tolerance.
    result = stategate.verify(native_bundle, engine="onnxruntime")
    assert result.passed and result.replay is not None and result.replay.digest == ""


Copier = Callable[[Path], Path]


def promising(folder: Path, digest: str) -> Path:
    bundle = Bundle.open(folder)
    assert bundle.manifest.native is not None
    native = msgspec.structs.replace(bundle.manifest.native, golden_digest=digest)
    manifest = msgspec.structs.replace(bundle.manifest, native=native)
    content = {f.path: bundle.read(f) for f in bundle.manifest.all_files}
    return write_bundle(folder, manifest, content).path


def test_a_library_that_gives_other_bits_is_refused_and_an_older_bundle_opens(
    native_bundle: Path, copy_of: Copier
) -> None:
    folder = promising(copy_of(native_bundle), "0123456789abcdef")
    result = stategate.verify(folder, engine="native")
    assert not result.passed and result.replay is not None
    assert "not the 0123456789abcdef that is promised" in result.replay.summary
    assert stategate.verify(folder, engine="onnxruntime").passed
    promising(folder, "")
    assert stategate.verify(folder, engine="native").passed


def with_wrong_sigmoid(folder: Path, **receipt: float) -> None:
    """C that is off by a thousandth, no promise yet, and a receipt that says something else."""
    bundle = Bundle.open(folder)
    manifest = bundle.manifest
    assert manifest.native is not None and manifest.verification is not None
    content = {f.path: bundle.read(f) for f in manifest.all_files}
    maths, right = "native/stategate_math.h", b"1.0f / stategate_logistic(x)"
    content[maths] = content[maths].replace(right, b"0.999f / stategate_logistic(x)")
    manifest = msgspec.structs.replace(
        manifest,
        files=tuple(FileRef(f.path, sha256(content[f.path])) for f in manifest.files),
        native=msgspec.structs.replace(manifest.native, golden_digest=""),
        verification=msgspec.structs.replace(manifest.verification, **receipt),
    )
    write_bundle(folder, manifest, content)
    accept_for_this_process(code_digest(manifest))


@pytest.mark.slow
def test_what_fewer_bits_may_cost_says_nothing_about_the_native_library(
    native_bundle: Path, copy_of: Copier
) -> None:
    folder = copy_of(native_bundle)
    with_wrong_sigmoid(folder, tolerance=0.5, flip_rate=0.0, max_flip_rate=1.0)
    with pytest.raises(ParityError, match="at most 0.0001 and no flip"):
        build_native(folder, flags=["-O1"])


@pytest.mark.slow
def test_activations_in_int8_have_a_digest_though_engines_round_them_apart(tmp_path: Path) -> None:
    out = tmp_path / "int8"
    bundle = stategate.quantise("aura-hard", out, steps=60, engines="onnxruntime,native")
    native, receipt = bundle.manifest.native, bundle.manifest.verification
    assert native is not None and receipt is not None and receipt.max_output_error is not None
    replayed = stategate.verify(out, engine="native").replay
    assert replayed is not None and replayed.passed and replayed.digest == native.golden_digest
    assert replayed.max_output_error <= receipt.max_output_error

    # However much int8 costs, C that is wrong by a thousandth parts in more steps than rounding.
    with_wrong_sigmoid(out, max_output_error=0.5)
    with pytest.raises(ParityError, match="in half of the steps"):
        build_native(out)


def test_a_promised_digest_speaks_for_the_step_and_for_no_chunk_of_steps() -> None:
    right = Replay(9, 0.0, 0.0, 0, 1e-4, digest="1" * 16, promised_digest="1" * 16, is_exact=True)
    assert right.passed
    for graph in ("max_chunk_error", "max_fused_error", "max_prologue_error"):
        assert not replace(right, **{graph: 0.1}).passed


@pytest.mark.slow
def test_a_build_that_fuses_breaks_the_promise_and_is_refused(
    native_bundle: Path, copy_of: Copier
) -> None:
    if isa_of_this_machine() not in ("x86-64-v3", "x86-64-v4"):
        pytest.skip("this machine does not fuse a product and a sum")
    folder = copy_of(native_bundle)
    before = Bundle.open(folder).digest
    with pytest.raises(ParityError, match="the digest"):
        build_native(folder, flags=["-ffp-contract=fast"])
    assert Bundle.open(folder).digest == before


def test_a_promise_is_16_digits_and_none_where_operators_are_inexact() -> None:
    ref = {"abi": 2, "sources": (), "generator": "x"}
    for digest, inexact in (
        ("12", ()),
        ("G" * 16, ()),
        ("0" * 16, ()),
        ("1" * 16, ("ai.onnx.Tan",)),
    ):
        with pytest.raises(SpecError, match="digest of the golden episode"):
            NativeRef(**ref, golden_digest=digest, inexact=inexact)
