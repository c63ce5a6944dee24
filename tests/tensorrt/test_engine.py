"""The TensorRT engine on a GPU that is not there, beside the onnxruntime engine."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from stategate.cli.main import main
from stategate.contract import (
    Bundle,
    FileRef,
    GateSpec,
    StateSpec,
    StepSpec,
    TensorSpec,
    canonical_json,
    sha256,
)
from stategate.contract.errors import (
    EngineError,
    EngineFallbackWarning,
    MemoryBudgetError,
    SnapshotError,
    SpecError,
    StateFault,
)
from stategate.contract.tensorrt_plan import PLAN, RECORD, PlanRecord, stored_plans
from stategate.export.tensorrt.build import Settings
from stategate.export.tensorrt.plans import build_engine, keep_plan
from stategate.models.step import StepResult
from stategate.runtime import Pool, Session
from stategate.runtime.check.faults import inject
from stategate.runtime.engines.cuda import Cuda, checked_driver
from stategate.runtime.trust import code

pytestmark = pytest.mark.usefixtures("nothing_left")


def feed(seed: int, opens: bool) -> dict[str, np.ndarray]:
    x = np.random.default_rng(seed).standard_normal((1, 4)).astype(np.float32)
    x[0, 0] = abs(x[0, 0]) + 0.1 if opens else -1.0
    return {"x": x}


def change_record(bundle: Path, **fields: Any) -> None:
    (stored,) = stored_plans(bundle)
    record = msgspec.structs.replace(
        stored.record, fingerprint=msgspec.structs.replace(stored.record.fingerprint, **fields)
    )
    (stored.folder / RECORD).write_bytes(canonical_json(record))


def refusal(bundle: Path, error: type[Exception] = EngineError) -> str:
    with pytest.raises(error) as caught:
        Session.open(bundle, engine="tensorrt")
    return str(caught.value)


@pytest.mark.parametrize("captured", [True, False])
def test_steps_on_the_gpu_are_those_of_onnxruntime(
    built: Path, driver: Any, captured: bool
) -> None:
    (stored,) = stored_plans(built)
    record = msgspec.structs.replace(stored.record, cuda_graph=captured)
    (stored.folder / RECORD).write_bytes(canonical_json(record))
    with Session.open(built, engine="tensorrt") as gpu, Session.open(built) as cpu:
        assert gpu.engine_name == f"tensorrt 10.3.0, {'captured' if captured else 'enqueued'}"
        for step in range(40):
            given = feed(step, opens=step % 3 != 0)
            ours, theirs = gpu.step(**given), cpu.step(**given)
            np.testing.assert_array_equal(ours["y"], theirs["y"])
            if step % 7 == 0:
                np.testing.assert_array_equal(gpu.state("h"), cpu.state("h"))
        assert gpu.ledger == cpu.ledger
        assert bool(driver.launched) == captured


def test_a_step_allocates_nothing_on_the_gpu(built: Path, driver: Any) -> None:
    with Session.open(built, engine="tensorrt") as session:
        held = (len(driver.device), len(driver.host), len(driver.open))
        for step in range(5):
            session.step(**feed(step, opens=True))
        assert (len(driver.device), len(driver.host), len(driver.open)) == held


def test_a_next_state_with_nan_is_refused_on_the_gpu(built: Path, trt: Any) -> None:
    with Session.open(built, engine="tensorrt") as session:
        session.step(**feed(1, opens=True))
        before = session.state("h")

        def spoil(view: Callable[[str], np.ndarray]) -> None:
            view("h_next")[0, 2] = np.nan
            view("stategate_sum_abs")[0] = np.nan

        trt.spoil = spoil
        with pytest.raises(StateFault, match="'h"):
            session.step(**feed(2, opens=True))
        trt.spoil = lambda view: None
        np.testing.assert_array_equal(session.state("h"), before)
        assert session.ledger.faults == 1


def test_no_kernel_reads_a_state_that_nobody_has_written(built: Path, trt: Any) -> None:
    seen = []
    trt.spoil = lambda view: seen.append(float(view("h").sum()) + int(view("count").sum()))
    with Session.open(built, engine="tensorrt"):
        assert len(seen) > 1  # the runs before each capture
        assert np.isfinite(seen).all() and min(seen) >= 0


def test_large_finite_states_whose_sum_overflows_are_no_fault(built: Path, trt: Any) -> None:
    def spoil(view: Callable[[str], np.ndarray]) -> None:
        view("stategate_sum_abs")[:] = np.inf

    trt.spoil = spoil
    with Session.open(built, engine="tensorrt") as session:
        session.step(**feed(1, opens=True))
        assert session.ledger.writes == 1


def test_a_failed_step_says_so_and_the_session_goes_on(built: Path, driver: Any) -> None:
    with Session.open(built, engine="tensorrt") as session:
        session.step(**feed(1, opens=True))
        before = session.state("h")
        driver.failing["cuGraphLaunch"] = 719
        with pytest.raises(EngineError, match="state is that of the step before"):
            session.step(**feed(2, opens=True))
        driver.failing.clear()
        np.testing.assert_array_equal(session.state("h"), before)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("version", "10.7.0", "TensorRT 10.7.0 in the plan, 10.3.0 here"),
        ("gpu", "NVIDIA Thor", "GPU NVIDIA Thor in the plan, Fake Orin here"),
        ("compute_capability", "11.0", "compute capability 11.0 in the plan, 8.7 here"),
        ("multiprocessors", 16, "multiprocessors of the GPU 16 in the plan, 8 here"),
        ("cuda", "13.0", "CUDA of the driver 13.0 in the plan, 12.6 here"),
        ("l4t", "36.4.3", "Jetson Linux 36.4.3 in the plan, none here"),
        ("onnx_sha256", "0" * 64, "graph of the bundle 000000000000 in the plan"),
        ("recipe", 0, "stategate's graph recipe 0 in the plan, 1 here"),
    ],
)
def test_a_plan_of_another_place_is_refused_and_the_difference_reported(
    built: Path, field: str, value: Any, told: str
) -> None:
    change_record(built, **{field: value})
    assert told in refusal(built)


def test_a_truncated_plan_is_refused_before_it_is_loaded(built: Path) -> None:
    (stored,) = stored_plans(built)
    plan = stored.folder / PLAN
    plan.write_bytes(plan.read_bytes()[:100])
    assert "step.plan is truncated or missing" in refusal(built)
    plan.write_bytes(b"x" * stored.record.plan_bytes)
    assert "step.plan is not the one that was built" in refusal(built)
    (stored.folder / RECORD).write_text("{")
    assert "the record of an engine cannot be read" in refusal(built)


def test_a_bundle_without_an_engine_says_how_to_build_one(
    tiny_bundle: Path, trt: Any, copy_of: Callable[[Path], Path]
) -> None:
    assert "stategate device build-engine BUNDLE" in refusal(copy_of(tiny_bundle))


def test_too_little_memory_is_reported_before_the_plan_is_loaded(
    built: Path, trt: Any, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(log: Any) -> None:
        pytest.fail("the plan was loaded")

    driver.free_bytes = 1000
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "MemAvailable: 1 kB")
    monkeypatch.setattr(trt, "Runtime", loaded)
    told = refusal(built, MemoryBudgetError)
    assert "does not fit the GPU's free memory" in told
    total, gpu = f"{1 << 35:,}", driver.gpu.decode()
    free = 1024 if driver.integrated else 1000
    assert f"bytes needed, {free:,} of {total} free on {gpu}" in told
    assert "end what else runs on the GPU, or use onnxruntime or native" in told


def test_too_little_memory_between_layers_is_reported_before_it_is_taken(
    built: Path, trt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = trt.Runtime.deserialize_cuda_engine

    def greedy(runtime: Any, plan: bytes) -> Any:
        engine = load(runtime, plan)
        engine.device_memory_size_v2 = 1 << 60
        engine.create_execution_context = lambda: pytest.fail("a context was made")
        return engine

    monkeypatch.setattr(trt.Runtime, "deserialize_cuda_engine", greedy)
    assert "does not fit the GPU's free memory" in refusal(built, MemoryBudgetError)


def test_an_old_driver_is_reported(built: Path, driver: Any) -> None:
    driver.version = 10020
    assert "the NVIDIA driver is too old" in refusal(built)
    with pytest.raises(EngineError, match="no cuInit"):
        checked_driver(object())


@pytest.mark.parametrize("call", ["cuMemAlloc_v2", "cuMemHostAlloc", "cuStreamCreate"])
def test_what_cannot_be_allocated_leaves_nothing_behind(
    built: Path, driver: Any, call: str
) -> None:
    driver.failing[call] = 2
    assert f"the GPU refuses {call}" in refusal(built)


@pytest.mark.parametrize("call", ["cuStreamEndCapture", "cuGraphInstantiateWithFlags"])
def test_a_step_that_cannot_be_captured_is_refused(built: Path, driver: Any, call: str) -> None:
    driver.failing[call] = 900
    assert "900" in refusal(built)


def test_an_engine_without_a_context_is_refused(built: Path, trt: Any) -> None:
    trt.no_context = True
    assert "execution context" in refusal(built)
    trt.refuses = True
    assert "magic tag does not match" in refusal(built)


def test_a_plan_whose_tensors_are_not_the_manifests_is_refused(
    built: Path, trt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stored,) = stored_plans(built)
    plan = stored.folder / PLAN
    graph = onnx.load_model_from_string(plan.read_bytes().removeprefix(b"plan of a fake:"))
    del graph.graph.output[-1]
    raw = b"plan of a fake:" + graph.SerializeToString()
    plan.write_bytes(raw)
    record: PlanRecord = msgspec.structs.replace(
        stored.record, plan=FileRef(PLAN, sha256(raw)), plan_bytes=len(raw)
    )
    (stored.folder / RECORD).write_bytes(canonical_json(record))
    monkeypatch.setattr(code, "_THIS_PROCESS", set())
    assert "it holds machine code" in refusal(built)  # a stranger's, as far as this machine knows
    code.accept_for_this_process(sha256(raw))
    assert "the plan's tensors are not those of the manifest" in refusal(built)


def test_a_record_that_guards_other_states_is_refused(built: Path) -> None:
    (stored,) = stored_plans(built)
    for guarded in (stored.record.guarded[::-1], ("h",), ()):
        record = msgspec.structs.replace(stored.record, guarded=guarded)
        (stored.folder / RECORD).write_bytes(canonical_json(record))
        assert "does not guard the states" in refusal(built)


def test_another_engine_is_taken_only_where_it_was_asked_for(built: Path) -> None:
    change_record(built, version="10.7.0")
    refusal(built)
    with (
        pytest.warns(EngineFallbackWarning, match="tensorrt cannot be had"),
        Session.open(built, engine="tensorrt,onnxruntime") as session,
    ):
        assert session.engine_name.startswith("onnxruntime ")
    with pytest.raises(EngineError, match="no CUDAExecutionProvider"):
        Session.open(built, engine="onnxruntime-cuda")
    with pytest.raises(SpecError, match="unknown engine"):
        Session.open(built, engine="onnxruntime,tensorflow")


def test_a_pool_and_spoilt_states_are_refused(built: Path) -> None:
    with pytest.raises(SpecError, match="a pool cannot step with tensorrt"):
        Pool.open(built, "tensorrt")
    with (
        Session.open(built, engine="tensorrt") as session,
        pytest.raises(SpecError, match="on the GPU"),
    ):
        inject(session, {1: "state"})


def test_a_session_that_cannot_open_frees_the_gpu(built: Path, tmp_path: Path) -> None:
    with (
        Session.open(built, snapshots=tmp_path / "s"),
        pytest.raises(SnapshotError, match="in use"),
    ):
        Session.open(built, engine="tensorrt", snapshots=tmp_path / "s")


def test_the_bundle_stays_as_it_was_sealed(built: Path) -> None:
    bundle = Bundle.open(built)
    assert bundle.undeclared_files() == []
    names = {path.name for path in stored_plans(built)[0].folder.iterdir()}
    assert names == {
        "step.plan", "step.onnx", "record.json", "build.log", "build-engine.sh", "timing.cache",
    }  # fmt: skip


class Sums(nn.Module):
    """A running sum of what is positive, with a chunk of four steps."""

    chunk_steps = 4

    def step_spec(self) -> StepSpec:
        return StepSpec(
            (TensorSpec("x", (1, 2)),),
            (TensorSpec("y", (1, 2)),),
            (StateSpec("s", (1, 2), gate="g"),),
            (GateSpec("g", "hard", (1, 1), 0.0, "threshold"),),
        )

    def step(self, inputs: dict, states: dict) -> StepResult:
        x, g = inputs["x"], inputs["x"][:, :1] * 1.0
        s = torch.where(g > inputs["threshold"], states["s"] + x, states["s"])
        return StepResult({"y": s + 1.0}, {"s": s}, {"g": g})

    def chunk(self, inputs: dict, states: dict, valid: torch.Tensor) -> StepResult:
        x, g = inputs["x"], inputs["x"][..., :1] * 1.0
        meant = (g > inputs["threshold"]) & valid.unsqueeze(-1)
        s = states["s"].unsqueeze(1) + torch.cumsum(torch.where(meant, x, 0.0), 1)
        return StepResult({"y": s + 1.0}, {"s": s[:, -1]}, {"g": g})


@pytest.fixture(scope="module")
def sums(seal_model: Callable[..., Bundle], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return seal_model(tmp_path_factory.mktemp("sums") / "b", Sums())


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("apart") / "aura"
    asked = ["export", "aura-hard", "--steps", "60", "--split", "read-write", "--out", str(out)]
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 0, done.output
    return Bundle.open(out)


def test_a_chunk_graph_never_sees_states_that_are_on_the_gpu(sums: Bundle, trt: Any) -> None:
    assert sums.manifest.chunk_graph is not None
    with closing(Cuda()) as cuda:
        keep_plan(build_engine(sums, trt, cuda, Settings(1 << 20)), sums)
    x = np.random.default_rng(3).standard_normal((11, 1, 2)).astype(np.float32)
    with Session.open(sums.path, engine="tensorrt") as gpu, Session.open(sums.path) as cpu:
        for session in (gpu, cpu):
            session.step(x=np.ones((1, 2), np.float32))
        np.testing.assert_allclose(gpu.prefill(x=x)["y"], cpu.prefill(x=x)["y"], rtol=1e-6)
        np.testing.assert_allclose(gpu.state("s"), cpu.state("s"), rtol=1e-6)
        assert gpu.ledger == cpu.ledger


def test_a_bundle_that_is_read_and_written_apart_steps_in_one_go_on_the_gpu(
    apart: Bundle, trt: Any
) -> None:
    assert apart.manifest.graph_of("read") is not None
    with closing(Cuda()) as cuda:
        keep_plan(build_engine(apart, trt, cuda, Settings(1 << 20)), apart)
    z = np.random.default_rng(4).standard_normal((60, 1, 64)).astype(np.float32)
    with Session.open(apart.path, engine="tensorrt") as gpu, Session.open(apart.path) as cpu:
        for one in z:
            ours, theirs = gpu.step(z=one), cpu.step(z=one)
            np.testing.assert_allclose(ours["action"], theirs["action"], rtol=1e-4, atol=1e-5)
        assert gpu.ledger == cpu.ledger and gpu.ledger.writes > 0
