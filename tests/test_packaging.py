"""A folder that is not declared works when edited in place and is missing from the wheel."""

from __future__ import annotations

import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_on_disk_is_declared() -> None:
    setuptools = PROJECT["tool"]["setuptools"]
    rooms = {folder: name for name, folder in setuptools["package-dir"].items()}
    on_disk = set()
    for room, name in rooms.items():
        for init in (ROOT / room).rglob("__init__.py"):
            on_disk.add(".".join([name, *init.parent.relative_to(ROOT / room).parts]))
    assert on_disk == set(setuptools["packages"])


def test_every_data_file_is_declared() -> None:
    data = PROJECT["tool"]["setuptools"]["package-data"]
    for package, folder in PROJECT["tool"]["setuptools"]["package-dir"].items():
        patterns = [*data["*"], *data.get(package, [])]
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix not in {".py", ".pyc"}:
                rel = path.relative_to(ROOT / folder)
                assert any(rel.match(pattern) for pattern in patterns), f"{package}: {rel}"


def test_torch_is_pinned_and_every_dependency_has_a_pin() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {line.split("==")[0].lower() for line in lines if "==" in line}
    assert "torch==2.13.0" in lines
    wanted = PROJECT["project"]["dependencies"] + [
        requirement
        for extra in PROJECT["project"]["optional-dependencies"].values()
        for requirement in extra
    ]
    names = {
        requirement.split(";")[0].split("[")[0].split(">")[0].split("=")[0].strip().lower()
        for requirement in wanted
    }
    assert names - {"stategate"} <= pins


def test_the_repository_holds_no_file_over_five_megabytes() -> None:
    for room in (*PROJECT["tool"]["setuptools"]["package-dir"].values(), "docs", "tests"):
        for path in (ROOT / room).rglob("*"):
            assert not path.is_file() or path.stat().st_size < 5_000_000, path
