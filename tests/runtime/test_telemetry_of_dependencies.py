"""ONNX Runtime reports nothing of a device, whichever room imports it, unless its owner asks."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEPS = """
import os, time
{first}
import numpy
from stategate.runtime import Session
with Session.open({bundle!r}, engine="onnxruntime") as session:
    session.step(x=numpy.zeros((1, 4), "float32"))
    time.sleep(0.2)  # a thread that was started writes
    print(len(os.listdir("/proc/self/task")))
"""


def rooms_that_import_onnxruntime() -> list[str]:
    rooms = set()
    for path in (path for init in ROOT.glob("*/__init__.py") for path in init.parent.rglob("*.py")):
        room = path.relative_to(ROOT).parts[0]
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "onnxruntime" for name in names):
                rooms.add(room)
    return sorted(rooms)


def in_an_empty_home(code: str, home: Path, **environment: str) -> tuple[str, set[str]]:
    """What the code prints, and the files that it leaves below ``$HOME``."""
    home.mkdir()
    kept = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=kept | {"HOME": str(home), "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip(), {path.name for path in home.rglob("*") if path.is_file()}


@pytest.mark.case("A8")
def test_a_session_writes_nothing_below_home_and_starts_no_thread(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    code = STEPS.format(first="", bundle=str(tiny_bundle))
    assert in_an_empty_home(code, tmp_path / "home") == ("1", set())


@pytest.mark.case("A8")
def test_who_asks_for_telemetry_gets_what_the_wheel_does(tmp_path: Path) -> None:
    code = "import os, stategate.runtime\nprint(os.environ['ORT_DISABLE_TELEMETRY'])"
    assert in_an_empty_home(code, tmp_path / "home", ORT_DISABLE_TELEMETRY="0")[0] == "0"


@pytest.mark.case("A8")
@pytest.mark.parametrize("room", rooms_that_import_onnxruntime())
def test_every_room_turns_it_off_before_it_imports_onnxruntime(room: str, tmp_path: Path) -> None:
    module = room if room == "lab" else f"stategate.{room}"  # the laboratory is not installed
    code = f"import os, sys\nsys.path.insert(0, {str(ROOT)!r})\nimport {module}, onnxruntime\n"
    code += "print(len(os.listdir('/proc/self/task')))"
    assert in_an_empty_home(code, tmp_path / "home") == ("1", set())
