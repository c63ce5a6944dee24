"""What a stranger gets: sdist and wheel, in empty environments of the oldest and newest Python.

``python -m lab.release`` builds both into ``dist/``, has twine read them, and installs the wheel
with nothing of this folder in reach. With ``[export]`` the README's own lines make a bundle and
step it; with ``[ort]``, on each Python, a device checks that bundle and steps it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.13")
# What a device does with the bundle that the README makes.
PROGRAM = """
import numpy as np, stategate
with stategate.Session.open("build/policy") as session:
    print(session.step(x=np.ones((1, 6), np.float32))["action"], session.ledger)
"""


def shell(*command: object, cwd: Path = ROOT) -> str:
    """Run ``command`` with no path into this folder, and end with its words if it fails."""
    dropped = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    # Where pyenv keeps its interpreters; uv looks along PATH.
    installed = Path(environment.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    folders = [str(folder) for folder in sorted(installed.glob("*/bin"))]
    environment["PATH"] = os.pathsep.join([environment["PATH"], *folders])
    process = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    if process.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{process.stdout}{process.stderr}")
    return process.stdout


def build(folder: Path) -> Path:
    """Build both archives into ``folder``, let twine judge them, and return the wheel."""
    shutil.rmtree(folder, ignore_errors=True)
    shell(sys.executable, "-m", "build", "--outdir", folder)
    archives = sorted(folder.iterdir())
    print(shell(sys.executable, "-m", "twine", "check", "--strict", *archives).strip())
    (wheel,) = folder.glob("*.whl")
    return wheel


def environment(folder: Path, python: str, wheel: Path, extra: str) -> Path:
    """An empty environment that holds ``wheel`` and what ``extra`` asks for."""
    # uv finds an interpreter or fetches one; where neither works, its words end the check.
    shell(sys.executable, "-m", "uv", "venv", "--quiet", "--seed", "--python", python, folder)
    binaries = folder / "bin"
    pip = [binaries / "python", "-m", "pip", "install", "--quiet"]
    shell(*pip, "-c", ROOT / "constraints.txt", f"stategate[{extra}] @ {wheel.as_uri()}")
    return binaries


def follow_readme(binaries: Path, folder: Path) -> None:
    """Run the first lines of Python in the README, which leave ``build/policy`` in ``folder``."""
    text = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert text is not None, "the README has no Python"
    (folder / "readme.py").write_text(text.group(1))
    print(shell(binaries / "python", "readme.py", cwd=folder).strip())


def step_on_device(binaries: Path, folder: Path) -> None:
    """Check the bundle as a device would, by the command line and in a program."""
    shell(binaries / "stategate", "--version", cwd=folder)
    for verb, *options in (["inspect"], ["verify"], ["run", "--steps", "500"]):
        shell(binaries / "stategate", verb, "build/policy", *options, cwd=folder)
    print(shell(binaries / "python", "-c", PROGRAM, cwd=folder).strip())


def main() -> None:
    """Check what would be released."""
    wheel = build(ROOT / "dist")
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch, "work")
        work.mkdir()
        own = f"{sys.version_info.major}.{sys.version_info.minor}"
        follow_readme(environment(Path(scratch, "export"), own, wheel, "export"), work)
        print(f"Python {own}: the README makes a bundle with stategate[export]")
        for python in PYTHONS:
            step_on_device(environment(Path(scratch, python), python, wheel, "ort"), work)
            print(f"Python {python}: a device steps it with stategate[ort]")


if __name__ == "__main__":
    main()
