"""build-engine: what it writes, what it refuses, and that a refusal leaves nothing behind."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

from stategate.cli.main import main
from stategate.contract import Bundle
from stategate.contract.bundle import write_bundle
from stategate.contract.errors import EngineError
from stategate.contract.tensorrt_plan import TIMING_CACHE, plans_folder, stored_plans
from stategate.export.tensorrt.plans import lock_plans
from stategate.runtime import Session
from stategate.runtime.check.golden import replay
from stategate.runtime.engines.cuda import Cuda


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture
def bundle(tiny_bundle: Path, copy_of: Callable[[Path], Path]) -> Path:
    return copy_of(tiny_bundle)


def test_an_engine_is_built_replayed_and_stepped(bundle: Path, trt: Any, driver: Any) -> None:
    done = run("build-engine", bundle, "--json")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record["fingerprint"]["gpu"] == "Fake Orin"
    assert record["fingerprint"]["flags"] == ["EXPLICIT_BATCH", "STRONGLY_TYPED", "noTF32"]
    assert trt.flags == []
    with Session.open(bundle, engine="tensorrt") as session:
        session.step(x=np.ones((1, 4), np.float32))
    assert driver.open == []
    assert Bundle.open(bundle).undeclared_files() == []
    assert run("verify", bundle, "--engine", "tensorrt").exit_code == 0
    message = run("run", bundle, "--steps", "20", "--engine", "tensorrt").output
    assert "on tensorrt 10.3.0, captured" in message
    text = run("build-engine", bundle).output
    assert "golden       " in text and "0 gate flips" in text


def test_stripped_weights_are_a_matter_of_flags(bundle: Path, trt: Any) -> None:
    refitted = []

    class Refitter:
        def __init__(self, engine: Any, log: Any) -> None: ...

        def refit_cuda_engine(self) -> bool:
            return True

    class Reader(Refitter):
        def refit_from_bytes(self, graph: bytes) -> bool:
            refitted.append(len(graph))
            return True

    trt.Refitter, trt.OnnxParserRefitter = Refitter, Reader
    assert run("build-engine", bundle, "--strip-weights").exit_code == 0
    assert trt.flags == ["STRIP_PLAN", "REFIT_IDENTICAL"]
    assert refitted
    del trt.BuilderFlag.STRIP_PLAN
    assert "no builder flag STRIP_PLAN" in run("build-engine", bundle, "--strip-weights").output


def test_a_timing_cache_is_pinned_and_a_build_that_would_change_it_refused(
    bundle: Path, trt: Any
) -> None:
    assert run("build-engine", bundle).exit_code == 0
    assert run("build-engine", bundle).exit_code == 0
    assert trt.flags == ["ERROR_ON_TIMING_CACHE_MISS"]
    kept = stored_plans(bundle)[0].record
    trt.new_times = b"other times"
    refused = run("build-engine", bundle)
    assert refused.exit_code == 1 and "would change the pinned timing cache" in refused.output
    assert stored_plans(bundle)[0].record == kept
    assert run("build-engine", bundle, "--new-timing-cache").exit_code == 0
    (stored_plans(bundle)[0].folder / TIMING_CACHE).write_bytes(b"cut")
    assert "build-engine BUNDLE --new-timing-cache" in run("build-engine", bundle).output
    assert run("build-engine", bundle, "--new-timing-cache").exit_code == 0


def test_an_engine_that_behaves_differently_is_not_kept(bundle: Path, trt: Any) -> None:
    trt.spoil = lambda view: np.add(view("y"), 0.5, out=view("y"))
    refused = run("build-engine", bundle)
    assert refused.exit_code == 1 and "does not repeat the golden episode" in refused.output
    assert stored_plans(bundle) == []


@pytest.mark.parametrize("end", ["wrong", "refused", "interrupted"])
def test_a_build_that_comes_to_nothing_leaves_the_older_engine_and_its_log(
    bundle: Path, trt: Any, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    assert run("build-engine", bundle).exit_code == 0
    (kept,) = stored_plans(bundle)
    before = {path.name: path.read_bytes() for path in kept.folder.iterdir()}
    if end == "wrong":
        trt.spoil = lambda view: np.add(view("y"), 0.5, out=view("y"))
    elif end == "refused":
        trt.refuses = True
    else:
        monkeypatch.setattr("stategate.export.tensorrt.plans.replay", interrupted)
    refused = run("build-engine", bundle, "--no-cuda-graph")
    assert refused.exit_code != 0
    assert {path.name: path.read_bytes() for path in kept.folder.iterdir()} == before
    log = plans_folder(bundle) / "failed-build.log"
    assert sorted(plans_folder(bundle).iterdir()) == sorted([kept.folder, log])
    if end == "refused":
        assert "ERROR: Cuda failure: 35" in log.read_text()
        assert f"what TensorRT said: {log}" in refused.output
        trt.refuses = False
        assert run("build-engine", bundle).exit_code == 0
        assert not log.exists()


def test_a_builder_that_is_killed_in_its_check_leaves_the_older_engine(
    bundle: Path, trt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("build-engine", bundle).exit_code == 0
    engines, killed = plans_folder(bundle), tmp_path / "as a kill leaves it"

    def look(path: Path, *rest: Any) -> Any:
        shutil.copytree(engines, killed, symlinks=True)
        return replay(path, *rest)

    monkeypatch.setattr("stategate.export.tensorrt.plans.replay", look)
    assert run("build-engine", bundle, "--no-cuda-graph").exit_code == 0
    shutil.rmtree(engines)
    killed.rename(engines)
    assert len(list(engines.rglob("step.plan"))) == 2
    (found,) = stored_plans(bundle)
    assert found.record.cuda_graph
    with Session.open(bundle, engine="tensorrt") as session:
        assert session.engine_name.endswith("captured")
    monkeypatch.setattr("stategate.export.tensorrt.plans.replay", replay)
    assert run("build-engine", bundle).exit_code == 0
    assert list(engines.iterdir()) == [stored_plans(bundle)[0].folder]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--script", "10.3", "--strip-weights"), "--script writes a script"),
        (("--script", "10.3", "--no-cuda-graph"), "--script writes a script"),
        (("--adopt-plan", "x.plan", "--script", "10.3"), "takes a plan as it is"),
        (("--adopt-plan", "x.plan", "--strip-weights"), "takes a plan as it is"),
        (("--adopt-plan", "x.plan", "--new-timing-cache"), "takes a plan as it is"),
        (("--tolerance", "nan"), "not a finite number"),
        (("--tolerance", "inf"), "not a finite number"),
        (("--workspace-mib", "0"), "not in the range"),
        (("--script", "9.0"), "not supported"),
        (("--script", ""), "not supported"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    bundle: Path, options: tuple[str, ...], message: str
) -> None:
    refused = run("build-engine", bundle, *options)
    assert refused.exit_code == 2 and message in refused.output
    assert not plans_folder(bundle).exists()


def test_two_builders_of_one_bundle_do_not_meet(bundle: Path, trt: Any) -> None:
    with lock_plans(Bundle.open(bundle)):
        refused = run("build-engine", bundle)
        assert refused.exit_code == 1 and "another process builds" in refused.output
        assert not plans_folder(bundle).exists()
    assert run("build-engine", bundle).exit_code == 0


def test_what_a_killed_builder_left_is_cleared_away(bundle: Path, trt: Any) -> None:
    left = plans_folder(bundle) / ".halfbuilt"
    left.mkdir(parents=True)
    (left / "step.plan").write_bytes(b"half")
    assert stored_plans(bundle) == []
    assert run("build-engine", bundle).exit_code == 0
    assert list(plans_folder(bundle).iterdir()) == [stored_plans(bundle)[0].folder]


def test_what_a_jetson_would_give_back_is_there_for_the_builder(
    bundle: Path, trt: Any, driver: Any
) -> None:
    driver.free_bytes = 1 << 20  # all else is file cache, which only the kernel counts
    done = run("build-engine", bundle, "--workspace-mib", "2")
    assert done.exit_code == int(not driver.integrated), done.output


def test_what_cannot_be_built_leaves_nothing(bundle: Path, trt: Any, driver: Any) -> None:
    trt.refuses = True
    refused = run("build-engine", bundle)
    assert refused.exit_code == 1 and "update the NVIDIA driver" in refused.output
    trt.refuses = False
    driver.free_bytes = 1 << 20
    message = run("build-engine", bundle, "--workspace-mib", str(1 << 40)).output
    assert "less free memory" in message
    trt.__version__ = "8.2.1"
    assert "not supported" in run("build-engine", bundle).output
    assert run("build-engine", bundle.parent / "nowhere").exit_code == 2
    assert not plans_folder(bundle).exists() and driver.open == []


@pytest.mark.parametrize("kind", ["Builder", "Runtime"])
def test_bindings_that_make_nothing_with_an_old_driver_are_reported(
    bundle: Path, trt: Any, driver: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def nothing(log: Any) -> None:
        log.log(trt.ILogger.ERROR, "CUDA initialization failure with error: 35. Please check")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    nothing.__name__ = kind
    if kind == "Runtime":
        assert run("build-engine", bundle).exit_code == 0
    monkeypatch.setattr(trt, kind, nothing)
    if kind == "Runtime":
        with pytest.raises(EngineError, match="cannot make a Runtime"):
            Session.open(bundle, engine="tensorrt")
    refused = run("build-engine", bundle)
    assert refused.exit_code == 1 and f"cannot make a {kind}" in refused.output
    assert "update the NVIDIA driver" in refused.output
    assert driver.open == []


def test_a_bundle_without_its_onnx_file_is_refused(bundle: Path, trt: Any) -> None:
    graph = bundle / Bundle.open(bundle).manifest.step_graph.file.path
    graph.unlink()
    refused = run("build-engine", bundle)
    assert refused.exit_code == 1 and "a file of the bundle is missing" in refused.output
    assert not plans_folder(bundle).exists()


def test_a_pool_bundle_is_refused(tiny_pool_bundle: Path, trt: Any) -> None:
    assert "a pool cannot step with tensorrt" in run("build-engine", tiny_pool_bundle).output
    assert not plans_folder(tiny_pool_bundle).exists()


def test_the_script_has_trtexec_build_the_graph_of_its_version(
    bundle: Path, tmp_path: Path
) -> None:
    script = Path(run("build-engine", bundle, "--script", "10.3").output.strip())
    calls = tmp_path / "calls"
    fake = tmp_path / "trtexec"
    fake.write_text(
        '#!/bin/sh\nif [ "$1" = --help ]; then echo "  --skipInference --stronglyTyped"; exit; fi\n'
        f'echo "$@" > {calls}; echo plan > trtexec.plan\n'
    )
    stategate = tmp_path / "stategate"
    stategate.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    for program in (fake, stategate):
        program.chmod(0o755)
    subprocess.run(
        [script],
        check=True,
        env=os.environ | {"TRTEXEC": str(fake), "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    built, adopted = calls.read_text().splitlines()
    assert "--onnx=step.onnx --saveEngine=trtexec.plan" in built
    assert "--noTF32 --stronglyTyped --skipInference" in " ".join(built.split())
    assert adopted == f"device build-engine ../../{bundle.name} --adopt-plan trtexec.plan"
    assert run("build-engine", bundle, "--script", "9.1").exit_code == 2


def test_a_plan_of_trtexec_is_adopted_if_it_loads_here(
    bundle: Path, trt: Any, tmp_path: Path
) -> None:
    script = Path(run("build-engine", bundle, "--script", "10.3").output.strip())
    plan = tmp_path / "trtexec.plan"
    plan.write_bytes(b"plan of a fake:" + (script.parent / "step.onnx").read_bytes())
    assert run("build-engine", bundle, "--adopt-plan", plan, "--no-cuda-graph").exit_code == 0
    adopted = stored_plans(bundle)[0].record
    assert adopted.built_by == "trtexec" and not (adopted.cuda_graph or adopted.stripped)
    assert run("build-engine", bundle).exit_code == 0
    (only,) = stored_plans(bundle)  # or a replay might check the one and a session load the other
    assert only.record.built_by == "python"
    plan.write_bytes(b"plan of another version")
    refused = run("build-engine", bundle, "--adopt-plan", plan)
    assert refused.exit_code == 1 and "does not load trtexec.plan" in refused.output
    missing = run("build-engine", bundle, "--adopt-plan", tmp_path / "none")
    assert missing.exit_code == 1 and "cannot be read" in missing.output


def test_a_plan_of_trtexec_is_not_adopted_where_nothing_could_check_it(
    bundle: Path, trt: Any, tmp_path: Path
) -> None:
    sealed = Bundle.open(bundle)
    files = {f.path: sealed.read(f) for f in sealed.manifest.all_files}
    draft = msgspec.structs.replace(
        sealed.manifest,
        golden=None,
        verification=None,
        files=tuple(f for f in sealed.manifest.files if f.path != sealed.manifest.golden),
    )
    write_bundle(bundle, draft, {f.path: files[f.path] for f in draft.all_files})
    plan = tmp_path / "trtexec.plan"
    plan.write_bytes(b"plan of a fake:" + files[sealed.manifest.step_graph.file.path])
    refused = run("build-engine", bundle, "--adopt-plan", plan)
    assert refused.exit_code == 1 and "without a golden episode" in refused.output
    assert not plans_folder(bundle).exists()


def test_a_machine_without_a_driver_or_bindings_is_reported(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    with pytest.raises(EngineError, match="no NVIDIA driver"):
        Cuda()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match="bindings of tensorrt are not installed"):
        Session.open(bundle, engine="tensorrt")
    assert "apt install python3-libnvinfer" in run("build-engine", bundle).output


@pytest.mark.slow
def test_export_says_what_tensorrt_on_the_target_would_not_take(tmp_path: Path) -> None:
    target = ("--target", "jetson-orin-nx-16gb", "--steps", "60")
    out = tmp_path / "b"
    done = run("export", "gru", *target, "--state-storage", "h=float16", "--out", out,
               "--max-output-error", "10", "--max-flip-rate", "1")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "TensorRT 8.5 would not take this step" in done.output
    assert "state h: states are float32" in done.output
    assert "export without --state-storage" in done.output
    assert Bundle.open(out).manifest.metadata["tensorrt"].startswith("8.5 refuses it")
    done = run("export", "gru", *target, "--require-tensorrt", "--out", tmp_path / "c")
    verdict = Bundle.open(tmp_path / "c").manifest.metadata["tensorrt"]
    assert verdict == "8.5 takes it, 8.6 takes it, 10 takes it"
    refused = run("export", "gru", *target, "--state-storage", "h=float16", "--require-tensorrt",
                  "--out", tmp_path / "d")  # fmt: skip
    assert refused.exit_code == 2 and not (tmp_path / "d").exists()
    other = run("export", "gru", "--target", "raspberry-pi-5", "--require-tensorrt", "--out",
                tmp_path / "e")  # fmt: skip
    assert "no TensorRT of target raspberry-pi-5" in other.output
