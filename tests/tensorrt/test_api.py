"""Every call of TensorRT in the sources exists in every release that they claim.

``api.json`` has what the bindings of seven releases define, taken from the packages themselves:
for each class the names, grouped by the releases that have them (a digit a release).
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SOURCES = [
    "export/tensorrt/build.py",
    "export/tensorrt/plans.py",
    "runtime/engines/tensorrt.py",
    "runtime/engines/tensorrt_api.py",
]
# What the sources call objects of each class.
CLASSES = {
    "builder": "Builder",
    "cache": "ITimingCache",
    "config": "IBuilderConfig",
    "context": "IExecutionContext",
    "engine": "ICudaEngine",
    "error": "ParserError",
    "layer": "ILayer",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "reader": "OnnxParserRefitter",
    "refitter": "Refitter",
    "runtime": "Runtime",
}
# Reached in some releases alone: types that the builder chooses, stripped weights, progress, and
# the size of scratch memory where its newer name is not there.
ONLY = {
    ("ICudaEngine", "device_memory_size"): "8.",
    ("IBuilderConfig", "progress_monitor"): "1",
    ("ILayer", "precision"): "8.",
    ("ILayer", "set_output_type"): "8.",
    ("module", "OnnxParserRefitter"): "1",
    ("OnnxParserRefitter", "refit_from_bytes"): "1",
}


def tables() -> dict[str, dict[str, set[str]]]:
    """By release, class and name."""
    raw = json.loads((HERE / "api.json").read_text())
    found: dict[str, dict[str, set[str]]] = {}
    for i, version in enumerate(raw["versions"]):
        found[version] = {
            kind: {n for mask, names in groups.items() if mask[i] == "1" for n in names.split()}
            for kind, groups in raw["members"].items()
        }
    return found


def calls(source: str) -> set[tuple[str, str]]:
    """Class and name of all that is asked of TensorRT, but for what hasattr asks."""
    tree = ast.parse(source)
    asked = {
        node.args[1].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") in ("getattr", "hasattr")
        and isinstance(node.args[1], ast.Constant)
    }
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or node.attr in asked or node.attr[:2] == "__":
            continue
        owner = node.value
        name = getattr(owner, "attr", getattr(owner, "id", "")).lstrip("_")
        if isinstance(owner, ast.Attribute) and getattr(owner.value, "id", "") == "trt":
            found.add((owner.attr, node.attr))
        elif isinstance(owner, ast.Name) and owner.id == "trt":
            found.add(("module", node.attr))
        elif name in CLASSES:
            found.add((CLASSES[name], node.attr))
    return found


def missing(source: str) -> list[str]:
    return sorted(
        f"{kind}.{name} in {version}"
        for version, table in tables().items()
        for kind, name in calls(source)
        if version.startswith(ONLY.get((kind, name), "")) and name not in table.get(kind, ())
    )


@pytest.mark.parametrize("path", SOURCES)
def test_no_release_lacks_a_call(path: str) -> None:
    assert missing((ROOT / path).read_text()) == []


def test_the_sources_are_seen_to_call_it() -> None:
    seen = set().union(*(calls((ROOT / path).read_text()) for path in SOURCES))
    assert len(seen) > 35
    assert {("IExecutionContext", "execute_async_v3"), ("Builder", "create_network")} <= seen


def test_no_other_source_calls_tensorrt() -> None:
    rooms = ("bench", "calibration", "contract", "export", "models", "runtime", "targets")
    others = [
        path.relative_to(ROOT).as_posix()
        for room in rooms
        for path in (ROOT / room).rglob("*.py")
        if re.search(r"\btrt\.", path.read_text())
    ]
    assert set(others) <= set(SOURCES)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.int8_calibrator = None", "IBuilderConfig.int8_calibrator in 11.0.0.114"),
        ("config.max_workspace_size = 1", "IBuilderConfig.max_workspace_size in 10.3.0"),
        ("context.execute_async_v2()", "IExecutionContext.execute_async_v2 in 10.3.0"),
        ("trt.BuilderFlag.FP16", "BuilderFlag.FP16 in 11.0.0.114"),
        ("self._engine.get_binding_name(0)", "ICudaEngine.get_binding_name in 10.3.0"),
        ("trt.IProgressMonitor", "module.IProgressMonitor in 8.6.1"),
    ],
)
def test_a_call_that_a_release_lacks_is_found(line: str, message: str) -> None:
    assert message in missing(line)
