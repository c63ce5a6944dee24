"""A device has no torch and no onnx; what it never needs it must never load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HEAVY = {"torch", "onnx", "onnxruntime", "onnxscript", "safetensors", "matplotlib"}


def loaded_after(code: str, *arguments: object) -> set[str]:
    probe = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", probe, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])} & HEAVY


def test_importing_the_runtime_loads_no_engine() -> None:
    assert loaded_after("import stategate.runtime") == set()


def test_the_command_line_shows_its_help_without_any_library() -> None:
    code = "from stategate.cli.main import main\nmain(['--help'], standalone_mode=False)"
    assert loaded_after(code) == set()


def test_stepping_loads_the_engines_library_and_no_other(tiny_bundle: Path) -> None:
    code = (
        "import sys, numpy\n"
        "from stategate.runtime import Session\n"
        "Session.open(sys.argv[1]).step(x=numpy.zeros((1, 4), 'float32'))"
    )
    assert loaded_after(code, tiny_bundle) == {"onnxruntime"}


def test_device_verbs_never_load_torch_or_onnx(tiny_bundle: Path, tmp_path: Path) -> None:
    for arguments in (
        ["inspect", str(tiny_bundle)],
        ["verify", str(tiny_bundle)],
        ["run", str(tiny_bundle), "--steps", "50", "--out", str(tmp_path)],
    ):
        code = f"from stategate.cli.main import main\nmain({arguments}, standalone_mode=False)"
        assert loaded_after(code) <= {"onnxruntime"}


def test_checking_digests_needs_no_engine_at_all(tiny_bundle: Path) -> None:
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from stategate.cli.main import main\n"
        f"main(['verify', '--digests', {str(tiny_bundle)!r}], standalone_mode=False)"
    )
    assert "torch" not in loaded_after(code)
