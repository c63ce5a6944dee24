"""An export loads what it uses, and nothing of the C writer, the zoo or the trainings."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = """
import torch
from torch import nn
from stategate.models import lift

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(4, 4)
    def forward(self, x, h):
        h = torch.tanh(self.enter(x) + h)
        return 2 * h, h

def make():
    return lift(Net(), {"x": torch.zeros(1, 4)}, hidden={"h": torch.zeros(1, 4)})
"""
UNUSED = (
    "emx_onnx_cgen",
    "matplotlib",
    "stategate.calibration",
    "stategate.export.c.lower",
    "stategate.export.tensorrt",
    "stategate.models.training",
    "stategate.models.zoo.makers",
    "stategate.models.zoo.checkpoint",
    "stategate.models.memories.aura",
    "lab.training.stream",
)


@pytest.mark.slow
def test_an_export_for_onnx_runtime_loads_no_c_writer_and_no_zoo(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(MODULE)
    code = (
        "import json, sys\n"
        "from stategate.cli.main import main\n"
        "code = main(sys.argv[1:], standalone_mode=False)\n"
        "print(json.dumps([code, sorted(sys.modules)]))"
    )
    arguments = ["export", f"{tmp_path / 'net.py'}:make", "--out", tmp_path / "out", "--steps", "5"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    exit_code, modules = json.loads(done.stdout.splitlines()[-1])
    assert not exit_code
    assert (tmp_path / "out" / "manifest.json").exists()
    loaded = [name for name in modules for unused in UNUSED if f"{name}.".startswith(f"{unused}.")]
    assert not loaded
