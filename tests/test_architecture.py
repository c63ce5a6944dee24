"""The house rules: who may import whom, and what each room may bring in."""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
BASE = {"numpy", "msgspec", "click"}
BELOW_EXPORT = {"contract", "common", "targets", "models"}
EVERY_ROOM = BELOW_EXPORT | {"calibration", "export", "runtime", "bench"}

# room -> (rooms it may import, third-party packages that any module of it may import)
RULES: dict[str, tuple[set[str], set[str]]] = {
    "contract": (set(), {"numpy", "msgspec"}),
    "common": ({"contract"}, BASE),
    "targets": ({"contract", "common"}, BASE),
    "models": ({"contract", "common"}, BASE | {"torch", "safetensors"}),
    "runtime": ({"contract", "common"}, {"numpy", "msgspec"}),
    "calibration": (
        BELOW_EXPORT | {"runtime"},
        BASE | {"torch", "onnx", "onnxruntime"},
    ),
    "export": (
        BELOW_EXPORT,
        BASE | {"torch", "onnx", "onnx_ir", "onnxruntime"},
    ),
    "bench": ({"contract", "common", "targets", "runtime"}, BASE | {"matplotlib", "onnxruntime"}),
    # Verbs: they may ask every room, and no room asks them.
    "cli": (EVERY_ROOM | {"stategate"}, BASE | {"torch", "onnx"}),
    # The front door: what it calls is imported when it is called.
    "stategate": (EVERY_ROOM, set()),
}
# Part of a room -> part of another that it may import too.
PARTS: dict[str, tuple[str, ...]] = {
    # Ranges are those of tensors of the step that export will quantise.
    "calibration/ranges": ("stategate.export.precision",),
    # What an envelope promises, C promises too.
    "calibration/health": ("stategate.export.c.health",),
    # Robots' folders are read on the cluster that calibration rolls episodes on.
    "bench/fleet": ("stategate.calibration.cluster",),
    # A candidate becomes a bundle once the runtime's own checks have stepped it.
    # What is sealed here may run here: its maker is the user.
    "export/seal": ("stategate.runtime.check", "stategate.runtime.trust"),
    # A TensorRT engine is built where it will be loaded, by the bindings that load it.
    "export/tensorrt": (
        "stategate.runtime.check",
        "stategate.runtime.engines",
        "stategate.runtime.trust",
    ),
}
# These have no door for a library that an extra brings; what is on every device has one for what
# a device can have.
CLOSED = {"contract", "common", "stategate", "cli"}
ON_DEVICES = {"runtime", "targets"}
# Where a distribution and what it is imported as differ.
IMPORTED_AS = {"pyyaml": "yaml", "dask": "distributed", "protobuf": "google", "fpdf2": "fpdf"}
# Inside of a room: a folder or module imports only what stands before it, and itself.
FLOORS = {
    "export": """candidate timing memory passes frontends c seal tensorrt inputs
    candidates precision sensitivity deploy make backbone adopt""",
    "runtime": """base trust engines deadline memory keep prefill pool watch session behind episodes
    check recordings install""",
}


def imported_names(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} relative import"
            names.add(node.module or "")
            if node.module == "stategate":
                names |= {f"stategate.{alias.name}" for alias in node.names}
    return names


def packages_of_extras(*extras: str) -> set[str]:
    """Import names of the distributions that pyproject.toml lists for ``extras``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [line for e in extras for line in project["optional-dependencies"][e]]
    names = {re.split(r"[^\w.-]", line)[0].lower() for line in listed} - {"stategate"}
    return {IMPORTED_AS.get(name, name.replace("-", "_")) for name in names}


def modules_of(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", RULES)
def test_a_room_imports_only_the_rooms_it_may(room: str) -> None:
    rooms, _ = RULES[room]
    for path in modules_of(room):
        rel = path.relative_to(ROOT).as_posix()
        parts = PARTS.get("/".join(rel.split("/")[:2]), ())
        for name in imported_names(path):
            top, _, rest = name.partition(".")
            if top == "stategate":
                other = rest.split(".")[0]
                if not other or (ROOT / "stategate" / f"{other}.py").exists():
                    other = "stategate"  # the front door has modules of its own
                allowed = other in rooms | {room} or name.startswith(parts)
                assert allowed, f"{rel} imports {name}"


@pytest.mark.parametrize("room", RULES)
def test_a_library_that_few_have_enters_a_room_in_one_module(room: str) -> None:
    extras = "ort export bench certify metrics watch cluster fleet gym trust carry recordings"
    optional = packages_of_extras(*extras.split())
    if room in ON_DEVICES:
        optional -= packages_of_extras("export") - {"tomli"}
    doors: dict[str, list[str]] = defaultdict(list)
    for path in modules_of(room):
        for package in {name.partition(".")[0] for name in imported_names(path)}:
            if package not in sys.stdlib_module_names | RULES[room][1] | {"stategate"}:
                doors[package].append(path.relative_to(ROOT).as_posix())
    assert not doors or room not in CLOSED, doors
    assert set(doors) <= optional, f"no extra brings these to {room}: {doors}"
    assert all(len(modules) == 1 for modules in doors.values()), doors


def test_what_is_installed_never_imports_the_laboratory() -> None:
    for path in (path for room in RULES for path in modules_of(room)):
        assert not {n for n in imported_names(path) if n.partition(".")[0] == "lab"}, path


@pytest.mark.parametrize("room", FLOORS)
def test_a_floor_of_a_room_stands_on_those_below_it(room: str) -> None:
    floors = FLOORS[room].split()
    for i, floor in enumerate(floors):
        inside = ROOT / room / floor
        for path in sorted(inside.rglob("*.py")) or [inside.with_suffix(".py")]:
            for name in imported_names(path):
                top, _, rest = name.removeprefix("stategate.").partition(".")
                other = rest.partition(".")[0]
                upwards = top == room and other in floors and floors.index(other) > i
                assert not upwards, f"{path.relative_to(ROOT)} imports {name}"


def test_every_room_has_rules() -> None:
    rooms = {p.parent.name for p in ROOT.glob("*/__init__.py")} - {"tests"}
    # The laboratory is not installed and may import everything.
    assert rooms == {*RULES, "lab"}


def test_no_module_outgrows_four_hundred_lines() -> None:
    long = {
        path.relative_to(ROOT).as_posix(): lines
        for room in (*RULES, "lab")
        for path in (ROOT / room).rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 400
    }
    assert not long
