"""What a stranger gets: sdist and wheel, in empty environments of the oldest and newest Python.

``python -m lab.release`` builds both into ``dist/``, has twine read them, and installs the wheel
twice with nothing of this folder in reach. With ``[export]`` the tutorial makes a bundle; with
``[ort]``, on each Python, the README's own lines step it.
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
# What the README leaves to the reader: the robot.
ROBOT = "import numpy\nrobot = [numpy.zeros((1, 6), numpy.float32)] * 100\n"


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


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """Name, where one stands above it, and text of each fenced block."""
    pattern = rf"(?:^`([\w.]+)`\n)?^```{language}\n(.*?)^```"
    return re.findall(pattern, page.read_text(), re.MULTILINE | re.DOTALL)


def make_bundle(binaries: Path, folder: Path) -> None:
    """Follow the tutorial up to its export, which leaves ``build/mine`` in ``folder``."""
    page = ROOT / "docs/tutorial/index.md"
    for name, text in blocks(page, "python"):
        (folder / name).write_text(text)
    for _, text in blocks(page, "bash"):
        shell("bash", "-euc", f'PATH="{binaries}:$PATH"\n{text}', cwd=folder)
        if "stategate export" in text:
            break


def follow_readme(binaries: Path, folder: Path) -> None:
    """Check the bundle as a device would, and step it with the README's lines."""
    for verb in (["--version"], ["inspect"], ["verify"], ["run", "--steps", "500"]):
        bundle = [] if verb == ["--version"] else ["build/mine"]
        shell(binaries / "stategate", verb[0], *bundle, *verb[1:], cwd=folder)
    text = next(text for _, text in blocks(ROOT / "README.md", "python") if "Session" in text)
    (folder / "readme.py").write_text(ROBOT + text)
    print(shell(binaries / "python", "readme.py", cwd=folder).strip())


def main() -> None:
    """Check what would be released."""
    wheel = build(ROOT / "dist")
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch, "work")
        work.mkdir()
        own = f"{sys.version_info.major}.{sys.version_info.minor}"
        make_bundle(environment(Path(scratch, "export"), own, wheel, "export"), work)
        print(f"Python {own}: the tutorial makes a bundle with stategate[export]")
        for python in PYTHONS:
            follow_readme(environment(Path(scratch, python), python, wheel, "ort"), work)
            print(f"Python {python}: the README steps it with stategate[ort]")


if __name__ == "__main__":
    main()
