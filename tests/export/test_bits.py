"""One digest everywhere: kernels and steps give the same bits however they are built."""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

import stategate
from stategate.common.compiler import MATHS
from stategate.common.cpu import isa_of_this_machine
from stategate.contract import Bundle, write_bundle
from stategate.contract.c_library import NativeRef
from stategate.contract.chain import START, chained_all
from stategate.contract.errors import ParityError, SpecError
from stategate.runtime.check.build_native import build_native
from stategate.runtime.session import Session

FOLDER = Path(__file__).parent
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
    needed = {"aarch64-linux-gnu-gcc": "qemu-aarch64"}
    return [b for b in options if all(map(shutil.which, (b[0], needed.get(b[0], b[0]))))]


def outputs_of(sources: list[Path], folder: Path, data: bytes = b"") -> dict[bytes, list[str]]:
    """What a program prints, by output the builds that print it."""
    printed: dict[bytes, list[str]] = {}
    for i, build in enumerate(builds()):
        program = folder / f"program{i}"
        words = [*build, "-std=gnu11", "-Wall", "-Wextra", "-Werror", *MATHS, f"-I{KERNELS}"]
        words += [f"-I{sources[-1].parent}", f"-Wa,-I{sources[-1].parent}", *map(str, sources)]
        subprocess.run([*words, "-lm", "-o", str(program)], check=True)
        emulator = ["qemu-aarch64"] if build[0].startswith("aarch64") else []
        run = subprocess.run([*emulator, str(program)], input=data, capture_output=True)
        assert run.returncode == 0, (build, run.stdout)
        printed.setdefault(run.stdout, []).append(" ".join(build))
    assert printed
    return printed


def test_kernels_give_the_bits_of_their_plain_loops_in_every_build(tmp_path: Path) -> None:
    printed = outputs_of([FOLDER / "twins.c"], tmp_path)
    assert len(printed) == 1, printed


def test_a_step_gives_the_same_bits_in_every_build(native_bundle: Path, tmp_path: Path) -> None:
    folder = native_bundle / "native"
    sources = [f for f in sorted(folder.glob("*.c")) if f.name != "python.c"]
    main = Path(__file__).parents[2] / "docs/examples/native.c"
    golden = Bundle.open(native_bundle).golden()
    assert golden is not None
    z = golden.inputs["z"].astype("<f4").tobytes()
    assert len(outputs_of([main, *sources], tmp_path, z)) == 1


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
                chain = chained_all(chain, arrays)
    assert native.golden_digest == f"{chain:016x}"
    result = stategate.verify(native_bundle, engine="native")
    assert result.passed and result.replay is not None
    assert "every bit as promised" in result.replay.summary
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
    for digest, inexact in (("12", ()), ("G" * 16, ()), ("0" * 16, ("ai.onnx.Tan",))):
        with pytest.raises(SpecError, match="digest of the golden episode"):
            NativeRef(**ref, golden_digest=digest, inexact=inexact)
