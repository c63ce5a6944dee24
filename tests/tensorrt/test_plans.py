"""Plans beside a bundle: which of them is loaded, and what is told of the others."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from stategate.cli.main import main
from stategate.contract import Bundle, canonical_json
from stategate.contract.errors import EngineError
from stategate.contract.tensorrt_plan import PLAN, RECORD, PlanFingerprint, stored_plans
from stategate.export.tensorrt.build import Settings
from stategate.export.tensorrt.plans import build_engine, keep_plan
from stategate.runtime import Session
from stategate.runtime.engines.cuda import Cuda

pytestmark = [
    pytest.mark.usefixtures("nothing_left"),
    pytest.mark.parametrize("driver", [False], ids=["discrete"], indirect=True),
]


@pytest.fixture
def both(built: Path, rtx: Any) -> Path:
    """A bundle with a plan of TensorRT and one of TensorRT-RTX."""
    bundle = Bundle.open(built)
    with closing(Cuda()) as cuda:
        keep_plan(build_engine(bundle, rtx, cuda, Settings(1 << 20)), bundle)
    return built


def inspected(bundle: Path) -> list[str]:
    done = CliRunner().invoke(main, ["inspect", str(bundle)])
    assert done.exit_code == 0, done.output
    return [line[13:] for line in done.output.splitlines() if line.startswith("engine ")]


def loaded(bundle: Path) -> str:
    with Session.open(bundle, engine="tensorrt") as session:
        return session.engine_name.split(",")[0]


def test_of_two_libraries_the_one_is_taken_whose_plan_is_for_this_place(
    both: Path, trt: Any, rtx: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert loaded(both) == "tensorrt 10.3.0"  # both may be loaded
    trt.__version__ = "10.7.0"
    assert loaded(both) == "tensorrt_rtx 1.7.1.116"
    rtx.__version__ = "1.8.0"
    with pytest.raises(EngineError, match="TensorRT 10.3.0 in the plan, 10.7.0 here"):
        Session.open(both, engine="tensorrt")
    rtx.__version__ = "1.7.1.116"
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert loaded(both) == "tensorrt_rtx 1.7.1.116"


def test_inspect_tells_of_each_plan_whether_this_machine_loads_it(
    both: Path, rtx: Any, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed = Bundle.open(both).manifest.step_graph.file.sha256
    first, second = sorted(inspected(both)[::2])
    assert first.startswith("tensorrt 10.3.0 for Fake Orin (8 x 8.7), CUDA 12.6")
    assert second.startswith("tensorrt_rtx 1.7.1.116 for Fake Orin")
    assert f"of graph {sealed[:12]}" in first and f"of graph {sealed[:12]}" in second
    assert inspected(both)[1::2] == ["for this machine"] * 2
    driver.version = 13000
    rtx.__version__ = "1.8.0"
    told = inspected(both)
    assert sorted(told[1::2]) == [
        "not to be loaded here: CUDA of the driver 12.6 in the plan, 13.0 here",
        "not to be loaded here: TensorRT 1.7.1.116 in the plan, 1.8.0 here; "
        "CUDA of the driver 12.6 in the plan, 13.0 here",
    ]
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert any("bindings of tensorrt_rtx are not installed" in one for one in inspected(both))
    driver.version = 10020
    assert inspected(both)[1] == "not to be loaded here: the NVIDIA driver is too old"


def test_inspect_tells_a_machine_what_it_needs_in_json(both: Path) -> None:
    (stored, _) = stored_plans(both)
    (stored.folder / PLAN).write_bytes(b"cut")
    done = CliRunner().invoke(main, ["inspect", str(both), "--json"])
    engines = json.loads(done.stdout)["engines"]
    assert [one["hindrances"] for one in engines] == [
        [f"the engine's file {PLAN} is truncated or missing"], [],
    ]  # fmt: skip
    assert msgspec.convert(engines[0]["fingerprint"], PlanFingerprint) == stored.record.fingerprint


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (b'"library": "tensorrt"', b'"library": "antigravity"', "Invalid enum value"),
        (b'"path": "step.plan"', b'"path": "../step.plan"', "path"),
        (b'"built_by": "python"', b'"built_by": "python", "more": 1', "unknown field"),
    ],
)
def test_a_record_that_names_anything_else_is_refused(
    built: Path, old: bytes, new: bytes, told: str
) -> None:
    (stored,) = stored_plans(built)
    record = stored.folder / RECORD
    assert old in record.read_bytes()
    record.write_bytes(record.read_bytes().replace(old, new))
    with pytest.raises(EngineError, match="the record of an engine cannot be read") as caught:
        Session.open(built, engine="tensorrt")
    assert told in str(caught.value) and "stategate device build-engine" in str(caught.value)
    assert "antigravity" not in sys.modules
    done = CliRunner().invoke(main, ["inspect", str(built)])
    assert done.exit_code == 1 and "the record of an engine cannot be read" in done.output


@pytest.mark.parametrize("field", ["plan_bytes", "workspace_bytes"])
@pytest.mark.parametrize("size", [-4096, 0])
def test_a_record_of_no_size_is_refused(built: Path, field: str, size: int) -> None:
    (stored,) = stored_plans(built)
    fields = json.loads(canonical_json(stored.record)) | {field: size}
    (stored.folder / RECORD).write_text(json.dumps(fields))
    with pytest.raises(EngineError, match="plan and workspace have a size"):
        Session.open(built, engine="tensorrt")
