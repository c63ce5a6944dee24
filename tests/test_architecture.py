"""The house rules: who may import whom, and what each room may bring in."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BASE = {"numpy", "msgspec", "click"}
EVERY = {"contract", "common", "targets", "models", "calibration", "export", "runtime", "bench"}

# room -> (rooms it may import, third-party packages it may import)
RULES: dict[str, tuple[set[str], set[str]]] = {
    "contract": (set(), {"numpy", "msgspec"}),
    "common": ({"contract"}, {"numpy", "msgspec", "click"}),
    "targets": ({"contract", "common"}, BASE | {"tomli"}),
    "models": ({"contract", "common"}, BASE | {"torch", "safetensors"}),
    "runtime": ({"contract", "common"}, {"numpy", "msgspec"}),
    "calibration": (
        {"contract", "common", "targets", "models", "runtime"},
        BASE | {"torch", "onnx", "onnxruntime"},
    ),
    "export": (
        {"contract", "common", "targets", "models"},
        BASE
        | {"torch", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "networkx"}
        | {"tensorrt", "safetensors", "yaml"},
    ),
    "bench": (
        {"contract", "common", "targets", "runtime"},
        BASE | {"matplotlib", "onnxruntime"},
    ),
    # Verbs: they may ask every room, and no room asks them.
    "cli": (
        EVERY | {"stategate"},
        BASE | {"torch", "onnx"},
    ),
    # The front door: what it calls is imported when it is called.
    "stategate": (
        EVERY,
        set(),
    ),
    # No room: it is not installed, composes all of them, and nobody imports it. It races other
    # people's runtimes and drives other people's robots.
    "lab": (
        EVERY | {"stategate"},
        BASE
        | {"lab", "torch", "onnx", "onnxruntime", "matplotlib", "safetensors"}
        | {"MNN", "ai_edge_litert", "ai_edge_quantizer", "executorch", "litert_torch"}
        | {"nncf", "openvino", "torchao"}
        | {"gymnasium", "gymnasium_robotics", "metaworld"},
    ),
}
# Inside of a room: a folder or module imports only what stands before it, and itself.
FLOORS = {
    "export": """candidate reference timing memory passes frontends c seal tensorrt inputs
    candidates precision sensitivity deploy make adopt""",
    "runtime": """base engines deadline memory keep prefill pool watch session episodes check""",
}
ROOM_EXCEPTIONS = {
    ("export/seal/verify.py", "runtime"),
    # A TensorRT plan is built where it will be loaded.
    ("export/tensorrt/build.py", "runtime"),
    ("export/tensorrt/plans.py", "runtime"),
}
# A library that few devices have enters in one file, and nowhere else.
PACKAGE_EXCEPTIONS = {
    ("bench/fits/footprint.py", "onnx"),
    ("calibration/cluster.py", "distributed"),
    ("calibration/drift/page.py", "matplotlib"),
    ("export/c/generator.py", "emx_onnx_cgen"),
    ("runtime/episodes/gym.py", "gymnasium"),
    ("runtime/engines/ort.py", "onnxruntime"),
    ("runtime/watch/prometheus.py", "prometheus_client"),
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


@pytest.mark.parametrize("room", RULES)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    rooms, packages = RULES[room]
    for path in sorted((ROOT / room).rglob("*.py")):
        rel = path.relative_to(ROOT).as_posix()
        for name in imported_names(path):
            top, _, rest = name.partition(".")
            if top == "stategate":
                other = rest.split(".")[0] or "stategate"
                known = other in rooms | {room} or (rel, other) in ROOM_EXCEPTIONS
            else:
                known = top in sys.stdlib_module_names | packages
                known = known or (rel, top) in PACKAGE_EXCEPTIONS
            assert known, f"{rel} imports {name}"


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
    assert rooms == set(RULES)


def test_no_module_outgrows_four_hundred_lines() -> None:
    long = {
        path.relative_to(ROOT).as_posix(): lines
        for room in RULES
        for path in (ROOT / room).rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 400
    }
    assert not long
