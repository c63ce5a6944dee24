"""Libraries for other machines, run by emulators: `make test-aarch64` installs what is missing."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stategate.contract import Bundle, Episode
from stategate.contract.compiler import MATHS, WARNINGS
from stategate.contract.errors import CompilerError, EngineError
from stategate.runtime import Session
from stategate.runtime.build_native import build_native

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
_OUTPUT = np.dtype(
    {"names": ["action", "gate"], "formats": ["8f4", "f4"], "offsets": [0, 64], "itemsize": 128}
)
_M7 = ("-mcpu=cortex-m7", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv5-d16")


def needs(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: see make test-aarch64")


def golden_of(bundle: Path) -> Episode:
    golden = Bundle.open(bundle).golden()
    assert golden is not None
    return golden


def compile_with(cc: str, *words: str | Path) -> None:
    command = [cc, "-std=gnu11", "-O2", *MATHS, *WARNINGS, "-Werror", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def same_answers(raw: bytes, golden: Episode) -> None:
    table = np.frombuffer(raw, _OUTPUT, golden.steps)
    np.testing.assert_allclose(table["action"], golden.outputs["action"][:, 0], atol=1e-5)
    np.testing.assert_allclose(table["gate"], golden.gates["gate"].reshape(-1), rtol=1e-5)


def test_an_aarch64_library_is_built_and_refused_by_this_machine(
    native_bundle: Path, copy_of: Callable[[Path], Path]
) -> None:
    needs("aarch64-linux-gnu-gcc")
    bundle = build_native(copy_of(native_bundle), cc="aarch64-linux-gnu-gcc")
    assert bundle.manifest.native is not None
    assert bundle.manifest.native.machine == "aarch64"
    assert bundle.manifest.native.step_us == {}
    with Session.open(bundle.path) as session:
        assert session.engine_name.startswith("onnxruntime")
    with pytest.raises(EngineError, match="aarch64"):
        Session.open(bundle.path, engine="native")


def test_flags_that_take_the_look_for_nan_away_are_refused(native_bundle: Path) -> None:
    with pytest.raises(CompilerError, match="look for NaN"):
        build_native(native_bundle, flags=["-ffast-math"])


@pytest.mark.parametrize("cpu", ["cortex-a57", "cortex-a76"])
def test_aarch64_repeats_the_golden_episode(native_bundle: Path, tmp_path: Path, cpu: str) -> None:
    needs("aarch64-linux-gnu-gcc", "qemu-aarch64")
    folder, golden = native_bundle / "native", golden_of(native_bundle)
    sources = sorted(folder.glob("*.c"))
    robot = tmp_path / "robot"
    options = ("-static", f"-I{folder}", f"-Wa,-I{folder}")
    compile_with(
        "aarch64-linux-gnu-gcc", *options, EXAMPLES / "native.c", *sources, "-lm", "-o", robot
    )
    z = golden.inputs["z"].astype("<f4").tobytes()
    run = subprocess.run(["qemu-aarch64", "-cpu", cpu, robot], input=z, capture_output=True)
    if b"unable to find CPU model" in run.stderr:
        pytest.skip(f"this qemu has no {cpu}")
    assert run.returncode == 0, run.stderr
    same_answers(run.stdout, golden)


def test_a_cortex_m7_without_an_operating_system_repeats_the_golden_episode(
    native_bundle: Path, tmp_path: Path
) -> None:
    needs("arm-none-eabi-gcc", "arm-none-eabi-size", "qemu-system-arm")
    folder, golden = native_bundle / "native", golden_of(native_bundle)
    (tmp_path / "inputs.bin").write_bytes(golden.inputs["z"].astype("<f4").tobytes())
    image = tmp_path / "robot.elf"
    options = (*_M7, f"-I{folder}", f"-Wa,-I{folder}", f"-Wa,-I{tmp_path}", "-nostartfiles")
    options += ("-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections")
    sources = sorted(folder.glob("*.c"))
    script = f"-T{EXAMPLES / 'embedded.ld'}"
    tail = ("-lm", "-specs=nosys.specs", "-o", image)
    compile_with("arm-none-eabi-gcc", *options, script, EXAMPLES / "embedded.c", *sources, *tail)
    sizes = subprocess.run(
        ["arm-none-eabi-size", image], capture_output=True, text=True, check=True
    ).stdout.split("\n")[1]
    text, data, bss = map(int, sizes.split()[:3])
    inputs = golden.inputs["z"].nbytes
    print(f"Cortex-M7: {text + data - inputs} bytes of flash, {data + bss} bytes of RAM")
    assert text + data - inputs < 128 * 1024
    assert data + bss < 16 * 1024
    machine = ("-M", "mps2-an500", "-nographic", "-semihosting", "-kernel", str(image))
    words = ["qemu-system-arm", *machine]
    subprocess.run(words, cwd=tmp_path, timeout=60, check=True, capture_output=True)
    same_answers((tmp_path / "outputs.bin").read_bytes(), golden)
