"""The runtime itself on aarch64: Debian's Python, the wheels and a cross-compiled library in qemu.

`make aarch64` prepares that machine, `make test-aarch64` runs this too.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import stategate
from stategate.cli.main import main
from stategate.contract import Bundle
from stategate.runtime.check.build_native import build_native
from tests.bench.ssh_board import board

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
EMULATED = ROOT / "build" / "aarch64" / "stategate"
COUNTERS = ("steps", "writes", "quiet_steps", "suppressed_writes", "memory_bytes_written")


@pytest.fixture(scope="module")
def bundle(native_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AURA-Mem with a library for aarch64, made on this machine."""
    if not EMULATED.exists():
        pytest.skip("no emulated aarch64 machine: make aarch64 prepares one")
    if shutil.which("aarch64-linux-gnu-gcc") is None:
        pytest.skip("no aarch64-linux-gnu-gcc: see make test-aarch64")
    copy = tmp_path_factory.mktemp("aarch64") / "bundle"
    shutil.copytree(native_bundle, copy)
    return build_native(copy, cc="aarch64-linux-gnu-gcc").path


def emulated(*words: object) -> subprocess.CompletedProcess[str]:
    command = [str(EMULATED), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def told(*words: object) -> dict[str, Any]:
    done = emulated(*words, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("engine", ["onnxruntime", "native"])
def test_aarch64_verifies_the_bundle(bundle: Path, engine: str) -> None:
    report = told("verify", bundle, "--engine", engine)
    opened = Bundle.open(bundle)
    golden = opened.golden()
    assert golden is not None
    assert report["passed"] is True
    assert report["digest"] == opened.digest
    replayed = report["replay"]
    assert replayed["steps"] == golden.steps
    assert replayed["gate_flips"] == 0
    # Zero would be a comparison of the golden episode with itself: sums are taken in other orders.
    assert 0.0 < replayed["max_output_error"] < 1e-5
    assert replayed["max_state_error"] < 1e-5
    if engine == "native":
        assert opened.manifest.native is not None
        assert replayed["digest"] == opened.manifest.native.golden_digest != ""


@pytest.mark.parametrize("engine", ["onnxruntime", "native"])
def test_aarch64_writes_in_the_same_steps_as_this_machine(
    bundle: Path, native_bundle: Path, engine: str
) -> None:
    theirs = told("run", bundle, "--engine", engine, "--steps", 200)
    words = ["run", str(native_bundle), "--engine", engine, "--steps", "200", "--json"]
    ours = json.loads(CliRunner().invoke(main, words).stdout)
    assert theirs["engine"].startswith(engine)
    assert 0 < theirs["writes"] < 200
    assert {name: theirs[name] for name in COUNTERS} == {name: ours[name] for name in COUNTERS}
    # A sample before each step and one at the end, so that equal samples are equal decisions.
    assert theirs["timeline"]["step"] == list(range(201))
    assert theirs["timeline"]["writes"] == ours["timeline"]["writes"]


def test_aarch64_shows_the_bundle_as_this_machine_does(bundle: Path) -> None:
    shown = emulated("inspect", bundle)
    assert shown.returncode == 0, shown.stderr
    here = CliRunner().invoke(main, ["inspect", str(bundle)]).stdout
    pairs = list(zip(shown.stdout.splitlines(), here.splitlines(), strict=True))
    # The one thing that depends on who looks: whether the library can be loaded.
    ((there, refused),) = [(a, b) for a, b in pairs if a != b]
    assert there.endswith("; not measured here")
    assert refused.endswith("the library is for aarch64, this machine is x86_64")


def test_aarch64_refuses_the_library_of_another_machine(native_bundle: Path, bundle: Path) -> None:
    del bundle
    refused = emulated("verify", native_bundle, "--engine", "native")
    assert refused.returncode == 1
    assert "the library is for x86_64, this machine is aarch64" in refused.stderr


def test_aarch64_refuses_a_library_that_needs_more_than_its_cpu_has(
    bundle: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    build_native(copy, cc="aarch64-linux-gnu-gcc", isa="armv9-a")
    refused = emulated("verify", copy, "--engine", "native")  # on a Cortex-A76, which is ARMv8.2
    assert refused.returncode == 1
    assert "sve2, which this CPU does not have" in refused.stderr


def test_the_page_of_the_raspberry_pi_deploys_to_an_emulated_one(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del bundle  # it skips where there is no emulator
    page = (ROOT / "docs" / "guides" / "raspberry-pi.md").read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    with board() as machine:
        (machine.home / ".local" / "bin" / "stategate").write_text(
            # Its rooms are on the path, and pip installed nothing that has a version.
            f'#!/bin/sh\n[ "$1" = --version ] && echo stategate, version {stategate.__version__} '
            f'|| exec {EMULATED} "$@"\n'
        )
        uname = machine.home / "bin" / "uname"  # a shell of this machine says this machine's
        uname.parent.mkdir()
        uname.write_text('#!/bin/sh\n[ "$1" = -m ] && echo aarch64 || exec /usr/bin/uname "$@"\n')
        uname.chmod(0o755)
        here = (Path(machine.ssh).parent, Path(sys.executable).parent, os.environ["PATH"])
        monkeypatch.setenv("PATH", os.pathsep.join(map(str, here)))
        for block in blocks:
            script = block.replace("/var/lib/robot", f"{machine.home}/robot")
            done = subprocess.run(
                ["sh", "-e", "-c", script],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
        report = json.loads((tmp_path / "build" / "robot-7" / "deploy.json").read_text())
        assert (report["machine"], report["phase"]) == ("aarch64", "steady")
        assert report["notes"] == []  # its library is accepted, and steps it
        installed = Bundle.open(machine.home / "robot" / "a")
    assert installed.digest == report["digest"] == Bundle.open(tmp_path / "build" / "pi").digest
    assert installed.manifest.native is not None
    assert installed.manifest.native.machine == "aarch64"
