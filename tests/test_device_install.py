"""The base install on a bare interpreter: what a device has, and what it must be able to do."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOST_ONLY = {"torch", "onnx", "onnxscript", "safetensors", "matplotlib"}


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with ``stategate[ort]`` from the wheel's own metadata."""
    folder = tmp_path_factory.mktemp("device") / "venv"
    venv.create(folder, with_pip=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "-c", ROOT / "constraints.txt", f"{ROOT}[ort]"], check=True)
    return folder / "bin"


def stategate(device: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [device / "stategate", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
    )


@pytest.mark.slow
def test_a_device_inspects_verifies_and_runs_without_torch(
    device: Path, aura_bundle: Path, tmp_path: Path
) -> None:
    listed = subprocess.run(
        [device / "python", "-m", "pip", "list", "--format=freeze"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert not {line.split("==")[0].lower() for line in listed.splitlines()} & HOST_ONLY
    for arguments in (
        ["--help"],
        ["inspect", aura_bundle],
        ["verify", "--digests", aura_bundle],
        ["verify", aura_bundle],
        ["wear", aura_bundle, "--rate", 30, "--tbw", 16],
        ["detect"],
        ["run", aura_bundle, "--steps", 500, "--out", tmp_path],
    ):
        done = stategate(device, *arguments)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
    missing = stategate(device, "export", "aura-hard", "--out", tmp_path / "b")
    assert missing.returncode == 2
    assert 'pip install "stategate[export]"' in missing.stderr


@pytest.mark.slow
def test_the_wheel_carries_every_room_and_its_data(tmp_path: Path) -> None:
    import zipfile

    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, ROOT],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "stategate/models/checkpoints/aura-hard.safetensors" in names
    assert "stategate/targets/profiles/cpu-x86-64.toml" in names
    assert "stategate/targets/media/emmc-16gb.toml" in names
    assert "stategate/targets/ladders/jetpack.toml" in names
    assert "stategate/targets/costs/onnxruntime.toml" in names
    assert "stategate/runtime/py.typed" in names
    assert not [n for n in names if n.split("/")[0] in {"runtime", "export", "tests"}]
