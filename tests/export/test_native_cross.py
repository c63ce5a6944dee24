"""Libraries for other machines, run by emulators: `make emulators` installs what is missing."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from lab.counts import count
from stategate.bench.certify.builds import CORTEX_M7, Build, records
from stategate.cli.device import describe
from stategate.cli.main import main
from stategate.common.compiler import MATHS, WARNINGS
from stategate.contract import Bundle, Episode
from stategate.contract.errors import BuildError, EngineError
from stategate.contract.manifest import TargetRef
from stategate.runtime import Session
from stategate.runtime.check.build_native import build_native

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
_OUTPUT = np.dtype(
    {"names": ["action", "gate"], "formats": ["8f4", "f4"], "offsets": [0, 64], "itemsize": 128}
)
_M7 = ("-mcpu=cortex-m7", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv5-d16")


MODEL = """
import torch
from torch import nn
from stategate.models import lift

class Leaky(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("s", torch.zeros(1, 4))

    def forward(self, x):
        self.s.mul_(0.9).add_(x)
        return torch.tanh(self.s)

def leaky():
    return lift(Leaky(), {"x": torch.zeros(1, 4)}, states=["s"], outputs=["y"])
"""


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "leaky.py"
    path.write_text(MODEL)
    return f"{path}:leaky"


def needs(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: see make emulators")


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


@pytest.mark.slow
@pytest.mark.case("D5")
@pytest.mark.parametrize(
    ("target", "machine", "isa"),
    [("raspberry-pi-5", "aarch64", "armv8.2-a"), ("cpu-x86-64", "x86_64", "x86-64")],
)
def test_a_library_is_built_for_the_target_and_not_for_this_machine(
    tiny_file: str, tmp_path: Path, target: str, machine: str, isa: str
) -> None:
    needs("aarch64-linux-gnu-gcc")
    out = tmp_path / "bundle"
    words = ["export", tiny_file, "--target", target, "--engines", "onnxruntime,native"]
    done = CliRunner().invoke(main, [*words, "--steps", "40", "--out", str(out)])
    assert done.exit_code == 0, done.output
    native = Bundle.open(out).manifest.native
    assert native is not None and (native.machine, native.isa) == (machine, isa)
    shown = CliRunner().invoke(main, ["inspect", str(out)]).output
    assert (native.machine == platform.machine()) == ("not to be loaded here" not in shown)


@pytest.mark.slow
@pytest.mark.case("D5")
def test_without_a_compiler_for_the_target_the_bundle_has_the_command_that_builds_it(
    tiny_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("cc", "aarch64-linux-gnu-gcc")
    which, out = shutil.which, tmp_path / "bundle"
    words = ["export", tiny_file, "--target", "raspberry-pi-5", "--steps", "40", "--engines"]
    demanded = tmp_path / "demanded"
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "which", lambda cc: None if "-" in cc else which(cc))
        done = CliRunner().invoke(main, [*words, "onnxruntime,native", "--out", str(out)])
        refused = CliRunner().invoke(main, [*words, "native", "--out", str(demanded)])
    assert refused.exit_code != 0 and "aarch64" in refused.stderr and not demanded.exists()
    assert done.exit_code == 0 and f"stategate device build-native {out} --cc" in done.stderr
    manifest = Bundle.open(out).manifest
    assert manifest.native is not None and manifest.native.library is None
    # The command is pasted, on a machine with that compiler.
    command = done.stderr.partition("stategate device build-native ")[2].splitlines()[0].split()
    built = CliRunner().invoke(main, ["build-native", *command])
    assert built.exit_code == 0, built.output
    manifest = Bundle.open(out).manifest
    assert manifest.native is not None and manifest.native.isa == "armv8.2-a"
    assert manifest.no_native == ""


@pytest.mark.slow
@pytest.mark.case("D6")
def test_a_microcontroller_gets_c_that_its_compiler_takes_and_fits_says_how_much(
    tiny_file: str, tmp_path: Path
) -> None:
    needs("cc", "arm-none-eabi-gcc", "arm-none-eabi-size")
    out = tmp_path / "bundle"
    words = ["export", tiny_file, "--target", "cortex-m7", "--steps", "40", "--out", str(out)]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    native = Bundle.open(out).manifest.native
    assert native is not None and native.library is None and native.sources
    # The line is pasted, in the bundle.
    shown = CliRunner().invoke(main, ["inspect", str(out)]).output
    line = next(part for part in shown.splitlines() if "in the bundle: " in part)
    command = line.partition("in the bundle: ")[2]
    subprocess.run(command, shell=True, cwd=out, check=True, capture_output=True)
    assert (out / "session.o").stat().st_size > 0
    for made in out.glob("*.o"):
        made.unlink()
    fits = CliRunner().invoke(main, ["fits", str(out), "--target", "cortex-m7"])
    figures = re.search(r"([\d,]+) bytes of flash and ([\d,]+) of RAM", fits.output)
    assert figures is not None and "not known" in fits.output, fits.output
    flash, ram = (int(part.replace(",", "")) for part in figures.groups())
    assert 2_000 < flash < 40_000 and 100 < ram < 10_000
    refused = CliRunner().invoke(main, [*words, "--precision", "int4-weights"])
    assert refused.exit_code != 0 and "cortex-m7 does not run int4 with c" in refused.stderr


@pytest.mark.case("D5")
def test_inspect_says_that_the_target_cannot_load_a_library_for_this_machine(
    native_bundle: Path, copy_of: Callable[[Path], Path]
) -> None:
    bundle = Bundle.open(copy_of(native_bundle))
    target = TargetRef("raspberry-pi-5", "aarch64")
    manifest = msgspec.structs.replace(bundle.manifest, target=target)
    lines = dict(describe(manifest))
    assert "raspberry-pi-5 (aarch64) cannot load it" in lines["native"]


def test_flags_that_take_the_look_for_nan_away_are_refused(native_bundle: Path) -> None:
    with pytest.raises(BuildError, match="look for NaN"):
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
    script = f"-T{EXAMPLES.parents[1] / 'bench/certify/m7.ld'}"
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


@pytest.mark.slow
@pytest.mark.parametrize("model", ["aura-hard", "lstm"])
def test_int8_on_a_cortex_m7_carries_the_bits_of_this_machine_through_thousands_of_steps(
    model: str, tmp_path: Path
) -> None:
    m7, host = Build("arm-none-eabi-gcc", "-O2", CORTEX_M7), Build("gcc", "-O3", "x86-64")
    if (why := m7.lacking or host.lacking) is not None:
        pytest.skip(why)
    plan, out = EXAMPLES / "int8-all.json", tmp_path / "bundle"
    words = ["quantise", model, "--precision", str(plan), "--engines", "onnxruntime,native"]
    done = CliRunner().invoke(main, [*words, "--steps", "256", "--out", str(out)])
    assert done.exit_code == 0, done.output
    bundle, golden = Bundle.open(out), golden_of(out)
    data = records(bundle, golden.inputs) * 12
    # The program saves its session once, spoils it and loads it again.
    robot = EXAMPLES / "native.c"
    printed = [b.run(b.compile(out, robot, tmp_path), data) for b in (m7, host)]
    assert printed[0] == printed[1]
    row = count(out, model, "int8-all", "cortex-m7")
    print(row)
    assert row.flash_bytes < 80_000 and row.ram_bytes + row.stack_bytes < 16_384
