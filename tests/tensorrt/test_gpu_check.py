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
import torch
from torch import nn

from stategate.contract import Bundle, Episode, StateSpec, StepSpec, TensorSpec
from stategate.contract.tensorrt_plan import stored_plans
from stategate.models.step import StepResult

SCRIPT = Path(__file__).parents[2] / "lab" / "gpu_check.py"


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


def test_a_check_that_is_killed_half_way_leaves_the_engine_as_it_was(
    script: Any, trt: Any, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (kept,) = stored_plans(built)
    record = kept.folder / "record.json"
    record.write_bytes(
        record.read_bytes().replace(b'"workspace_bytes":1048576', b'"workspace_bytes":1')
    )
    before, seen = stored_plans(built), []

    def compared(bundle: Bundle, episode: Episode) -> Any:
        seen.append(stored_plans(built))  # what a kill would leave now
        if len(seen) == 2:
            raise KeyboardInterrupt
        return way(bundle, episode)

    way = script.compared
    monkeypatch.setattr(script, "compared", compared)
    with pytest.raises(KeyboardInterrupt):
        script.main([str(built), "--steps", "5", "--out", str(tmp_path / "r")])
    assert seen == [before, before] and stored_plans(built) == before


class Counter(nn.Module):
    """Remembers an integer alone, which cannot hold NaN."""

    def step_spec(self) -> StepSpec:
        counted = (StateSpec("n", (1, 1), "int32"),)
        return StepSpec((TensorSpec("x", (1, 1)),), (TensorSpec("y", (1, 1)),), counted)

    def step(self, inputs: dict, states: dict) -> StepResult:
        n = states["n"] + 1
        return StepResult({"y": inputs["x"] + n.to(torch.float32)}, {"n": n}, {})


def test_a_model_that_remembers_no_float_passes_without_a_guard(
    script: Any, trt: Any, seal_model: Callable[..., Bundle], tmp_path: Path
) -> None:
    bundle = seal_model(tmp_path / "counter", Counter()).path
    assert script.main([str(bundle), "--steps", "20", "--out", str(tmp_path / "r")]) == 0
    (model,) = json.loads(next((tmp_path / "r").iterdir()).read_text())["models"].values()
    assert model["captured"]["guard_fires"] is None


def test_what_cannot_be_measured_or_written_down_is_refused_before_it_is_built(
    script: Any, trt: Any, tiny_bundle: Path, copy_of: Callable[[Path], Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    bundle, place = copy_of(tiny_bundle), tmp_path / "file"
    place.write_text("")
    with pytest.raises(SystemExit):
        script.main([str(bundle), "--steps", "0", "--out", str(tmp_path)])
    for tolerance in ("nan", "-1", "inf"):
        with pytest.raises(SystemExit):
            script.main([str(bundle), "--tolerance", tolerance, "--out", str(tmp_path)])
    assert script.main([str(bundle), str(bundle), "--out", str(tmp_path / "r")]) == 2
    assert "two bundles are of one model" in capsys.readouterr().err
    assert script.main([str(bundle), str(tmp_path / "none"), "--out", str(tmp_path / "r")]) == 2
    assert "this is not a bundle" in capsys.readouterr().err
    assert script.main([str(bundle), "--out", str(place)]) == 2
    assert "nothing can be written there" in capsys.readouterr().err
    assert stored_plans(bundle) == []


def test_a_machine_without_tensorrt_is_reported_in_a_sentence(
    script: Any,
    tiny_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = [str(tiny_bundle), "--out", str(tmp_path), "--library", "tensorrt"]
    assert script.main(arguments) == 1
    assert "bindings of tensorrt are not installed" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert script.main(arguments[:3]) == 1
    assert "neither TensorRT nor TensorRT-RTX can be imported" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
