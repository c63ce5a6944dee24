from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lab.__main__ import main as lab
from stategate.cli.main import main
from stategate.contract.precision import PRESETS
from stategate.models.zoo.catalogue import ZOO
from stategate.targets import names

ROOT = Path(__file__).parents[2]


def stategate(*arguments: object) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


def matrix(*arguments: object) -> Result:
    return CliRunner().invoke(lab, ["matrix", *map(str, arguments)])


def test_the_matrix_tells_what_was_built_and_what_was_refused_and_why(
    aura_bundle: Path, tmp_path: Path
) -> None:
    for target in ("raspberry-pi-5", "jetson-nano"):
        out = tmp_path / "targets" / target
        assert stategate("retarget", aura_bundle, "--target", target, "--out", out).exit_code < 2
    log = tmp_path / "exports" / "gru" / "int8.log"
    log.parent.mkdir(parents=True)
    log.write_text("verifying\nParityError: it parts from the model\n  found: 0.3\n")
    text = matrix(tmp_path).stdout
    assert re.search(r"^raspberry-pi-5 +1 of 1$", text, re.M)
    assert re.search(r"^jetson-nano +0 of 1$", text, re.M)
    assert "1 x jetson-nano does not run float32" in text
    assert "gru int8: ParityError: it parts from the model; found: 0.3" in text
    assert "\n0 of the bundles are candidates" in text
    report = tmp_path / "targets" / "raspberry-pi-5" / "report.json"
    judged = json.loads(report.read_text())
    judged["cells"][0]["candidate"] = True
    report.write_text(json.dumps(judged))
    assert "\n1 of the bundles are candidates" in matrix(tmp_path).stdout
    found = json.loads(matrix(tmp_path, "--json").stdout)
    assert len(found["targets"]) == 2
    assert found["refused_exports"][0]["model"] == "gru"


@pytest.mark.parametrize("content", [None, "{", '{"target": 1}'])
def test_a_folder_without_a_readable_matrix_is_reported(
    tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "targets" / "x").mkdir(parents=True)
        (tmp_path / "targets" / "x" / "report.json").write_text(content)
    result = matrix(tmp_path)
    assert result.exit_code == 2
    assert "report" in result.stderr


def variable(name: str) -> list[str]:
    makefile = (ROOT / "lab" / "lab.mk").read_text()
    found = re.search(rf"^{name} := (.+)$", makefile, re.M)
    assert found, name
    return found[1].split()


def test_the_matrix_has_every_model_and_every_precision() -> None:
    assert set(variable("MODELS")) == set(ZOO)
    assert set(variable("PRECISIONS")) == set(PRESETS)


Plan = Callable[..., list[str]]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the rules look at, in which everything is as if it were built."""
    copy = tmp_path_factory.mktemp("tree")
    for room in ("bench", "calibration", "contract", "export", "models", "runtime", "targets"):
        ignored = shutil.ignore_patterns("__pycache__", "checkpoints")
        shutil.copytree(ROOT / room, copy / room, ignore=ignored)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, copy)
    (copy / "tests").mkdir()
    (copy / "lab").mkdir()
    shutil.copy(ROOT / "lab" / "lab.mk", copy / "lab")
    (copy / "venv" / "bin").mkdir(parents=True)
    (copy / "venv" / ".run").touch()
    matrix = copy / "build" / "matrix"
    exports = [matrix / "exports" / m / p for m in ZOO for p in PRESETS]
    built = [export.with_name(f"{export.name}.log") for export in exports]
    built += [matrix / "exports" / m / "ranges.json" for m in ZOO]
    reports = [matrix / "targets" / name / "report.json" for name in names()]
    for path in (*built, *reports):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    now = int(time.time())
    for path in copy.rglob("*"):
        os.utime(path, (now - 100, now - 100))
    order = [p for p in built if p.name == "float32.log"]
    ranges = [p for p in built if p.name == "ranges.json"]
    rest = [p for p in built if p not in order and p not in ranges]
    for age, paths in ((50, order), (40, ranges), (30, rest), (20, reports)):
        for path in paths:
            os.utime(path, (now - age, now - age))
    return copy


def dry_run(tree: Path, goal: str) -> str:
    """What make says that it would do; the tests may themselves be run by make."""
    done = subprocess.run(
        ["make", "-n", goal, "VENV=venv"],
        cwd=tree,
        capture_output=True,
        text=True,
        check=True,
        env={k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL")},
    )
    return done.stdout


@pytest.fixture
def planned(tree: Path) -> Plan:
    """What make would do after some files were edited; they are as old as before afterwards."""

    def plan(*edited: str) -> list[str]:
        before = {tree / name: (tree / name).stat().st_mtime for name in edited}
        for path in before:
            path.touch()
        told = dry_run(tree, "matrix")
        for path, age in before.items():
            os.utime(path, (age, age))
        exports = re.findall(r"stategate export (\S+) --precision (\S+)", told)
        devices = re.findall(r"--target (\S+)", told)
        return sorted([f"{model} {precision}" for model, precision in exports] + devices)

    return plan


def test_nothing_is_built_again_when_nothing_changed(planned: Plan) -> None:
    assert planned() == []


def test_editing_a_device_rebuilds_that_device_and_nothing_else(planned: Plan) -> None:
    assert planned("targets/profiles/jetson-nano.toml") == ["jetson-nano"]


def test_editing_a_medium_or_a_cost_looks_at_every_device_and_exports_nothing(
    planned: Plan,
) -> None:
    assert planned("targets/media/nvme-1tb.toml") == sorted(names())
    assert planned("targets/costs/onnxruntime.toml") == sorted(names())


def test_editing_the_arithmetic_of_fits_exports_nothing(planned: Plan) -> None:
    assert planned("targets/fits.py") == sorted(names())


def test_editing_the_exporter_exports_everything_again(planned: Plan) -> None:
    assert len(planned("export/frontends/trace.py")) == len(ZOO) * len(PRESETS) + len(names())


def test_what_was_interrupted_goes_on_where_it_was(tree: Path, planned: Plan) -> None:
    log = tree / "build/matrix/exports/gru/int8.log"
    age = log.stat().st_mtime
    log.unlink()
    assert planned() == sorted(["gru int8", *names()])
    log.touch()
    os.utime(log, (age, age))


def test_make_export_takes_model_target_and_precision(tree: Path) -> None:
    done = subprocess.run(
        ["make", "-n", "export", "VENV=venv", "MODEL=aura", "PRECISION=int8"]
        + ["TARGET=jetson-orin-nano-8gb"],
        cwd=tree,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.replace("\\\n", " ").splitlines()
    words = [line.split() for line in lines if "stategate" in line]
    assert [line[1] for line in words] == ["episode", "export", "ranges", "export", "fits"]
    final = " ".join(words[3])
    assert "export aura-hard --target jetson-orin-nano-8gb --precision int8 --ranges" in final
    assert final.endswith("--out build/export/aura-hard-int8-jetson-orin-nano-8gb")


def test_make_export_without_a_precision_names_none(tree: Path) -> None:
    line = " ".join(dry_run(tree, "export").replace("\\\n", " ").split())
    assert line == "venv/bin/stategate export aura-hard --out build/export/aura-hard"


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("TargetError: gru does not run there", True),
        ("OSError: b/graphs/step.onnx: No space left on device", False),
        ("Error: b/c: [Errno 28] No space left on device", False),
        ("MissingDependencyError: torch is not installed", False),
    ],
)
def test_a_refusal_is_kept_and_what_the_machine_did_is_tried_again(
    tree: Path, tmp_path: Path, said: str, kept: bool
) -> None:
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / ".run").touch()
    command = tmp_path / "venv" / "bin" / "stategate"
    command.write_text(f"#!/bin/sh\nprintf '%s\\n' '{said}'\nexit 2\n")
    command.chmod(0o755)
    log = tmp_path / "build" / "matrix" / "exports" / "gru" / "float32.log"
    done = subprocess.run(
        ["make", f"VENV={tmp_path / 'venv'}", f"BUILD={tmp_path / 'build'}", str(log)],
        cwd=tree,
        capture_output=True,
    )
    assert (done.returncode == 0, log.exists()) == (kept, kept), done
