"""The check for machines with a GPU, on one that is not there."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stategate.contract.engine_plan import stored_plans

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_check.py"


@pytest.fixture
def script() -> Any:
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gpu_check"]


def test_a_gpu_that_does_what_the_cpu_does_gets_a_receipt(
    script: Any, trt: Any, tiny_bundle: Path, copy_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    bundle, out = copy_of(tiny_bundle), tmp_path / "receipts"
    assert script.main([str(bundle), "--steps", "60", "--out", str(out)]) == 0
    receipt = json.loads((out / "fake-orin-tensorrt-10-3-0.json").read_text())
    assert receipt["passed"] and receipt["place"]["gpu"] == "Fake Orin"
    (model,) = receipt["models"].values()
    assert model["captured"]["engine"].endswith("captured")
    assert model["ping-pong"]["engine"].endswith("enqueued")
    assert model["captured"]["guard_fires"] and model["captured"]["max_output_error"] == 0.0
    assert stored_plans(bundle)[0].record.cuda_graph


def test_a_gpu_that_computes_something_else_does_not_pass(
    script: Any, trt: Any, tiny_bundle: Path, copy_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    trt.spoil = lambda view: np.add(view("y"), 0.5, out=view("y"))
    bundle, out = copy_of(tiny_bundle), tmp_path / "receipts"
    assert script.main([str(bundle), "--steps", "60", "--out", str(out)]) == 1
    assert not json.loads(next(out.iterdir()).read_text())["passed"]
    assert stored_plans(bundle) == []


def test_what_cannot_be_measured_or_written_down_is_refused_before_it_is_built(
    script: Any, trt: Any, tiny_bundle: Path, copy_of: Callable[[Path], Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    bundle, place = copy_of(tiny_bundle), tmp_path / "file"
    place.write_text("")
    with pytest.raises(SystemExit):
        script.main([str(bundle), "--steps", "0", "--out", str(tmp_path)])
    assert script.main([str(bundle), "--out", str(place)]) == 2
    assert "nothing can be written there" in capsys.readouterr().err
    assert stored_plans(bundle) == []


def test_a_machine_without_tensorrt_is_told_in_a_sentence(
    script: Any, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(tiny_bundle), "--out", str(tmp_path), "--library", "tensorrt"]
    assert script.main(arguments) == 1
    assert "bindings of tensorrt are not installed" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
