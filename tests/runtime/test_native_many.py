"""The native engine where there is more of something: gates, and sessions."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable
from pathlib import Path
from threading import Timer

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from stategate.common.compiler import compile_library
from stategate.contract import Bundle, GateSpec, StateSpec, StepSpec, TensorSpec
from stategate.models.step import StepResult
from stategate.runtime import Pool, Session
from stategate.runtime.check.golden import replay
from stategate.runtime.engines.native import _MAX_PREMADE, NativeEngine
from stategate.runtime.engines.native_call import FINITE, stepping
from stategate.runtime.engines.opening import allocate

GATES = _MAX_PREMADE + 1


class ManyGates(nn.Module):
    """Adds each input to a sum of its own, if it is positive."""

    def step_spec(self) -> StepSpec:
        return StepSpec(
            inputs=(TensorSpec("x", (1, GATES)),),
            outputs=(TensorSpec("y", (1, GATES)),),
            states=tuple(StateSpec(f"h{i}", (1, 1), gate=f"g{i}") for i in range(GATES)),
            gates=tuple(GateSpec(f"g{i}", "hard", (1, 1), 0.0, f"t{i}") for i in range(GATES)),
        )

    def step(self, inputs: dict, states: dict) -> StepResult:
        gates = {f"g{i}": inputs["x"][:, i : i + 1] * 1.0 for i in range(GATES)}
        new = {
            f"h{i}": torch.where(g > inputs[f"t{i}"], states[f"h{i}"] + g, states[f"h{i}"])
            for i, g in enumerate(gates.values())
        }
        return StepResult({"y": torch.cat(tuple(new.values()), 1)}, new, gates)


@pytest.fixture(scope="module")
def many(seal_model: Callable[..., Bundle], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("many") / "bundle"
    return seal_model(out, ManyGates(), native=True).path


def test_more_gates_than_have_tables_made_beforehand_keep_sums_of_their_own(many: Path) -> None:
    xs = np.random.default_rng(3).standard_normal((200, 1, GATES)).astype(np.float32)
    wanted = np.zeros((1, GATES), np.float32)
    with Session.open(many, engine="native") as session:
        assert session.engine_name.startswith("native")
        for x in xs:
            wanted += np.maximum(x, 0.0)
            np.testing.assert_array_equal(session.step(x=x)["y"], wanted)
        held = [session.state(f"h{i}").item() for i in range(GATES)]
    np.testing.assert_array_equal(held, wanted[0])


def test_each_bundle_in_a_folder_runs_its_own_code(
    many: Path, native_bundle: Path, tmp_path: Path
) -> None:
    place = tmp_path / "bundle"
    for source in (native_bundle, many, native_bundle):
        shutil.copytree(source, place)
        seen = replay(place, engine="native")
        assert seen is not None and seen.passed
        shutil.rmtree(place)


@pytest.mark.slow
def test_a_pool_steps_natively_as_on_onnxruntime(
    seal_model: Callable[..., Bundle],
    tiny_model: type[nn.Module],
    tmp_path: Path,
) -> None:
    path = seal_model(tmp_path / "pool", tiny_model(), sessions=4, native=True).path
    xs = np.random.default_rng(4).standard_normal((60, 4, 4)).astype(np.float32)
    seen = {}
    for engine in ("native", "onnxruntime"):
        with Pool.open(path, engine=engine) as pool:
            assert pool.engine_name.startswith(engine)
            rows = [pool.join() for _ in range(3)]
            outputs = [pool.step(x=x)["y"][rows].copy() for x in xs]
            seen[engine] = (np.array(outputs), [pool.ledger(row) for row in rows])
    np.testing.assert_allclose(seen["native"][0], seen["onnxruntime"][0], atol=1e-5)
    assert seen["native"][1] == seen["onnxruntime"][1]
    assert all(ledger.writes and ledger.quiet_steps for ledger in seen["native"][1])


@pytest.mark.parametrize(("us", "keeps"), [(2.5, True), (2500.0, False), (None, False)])
def test_only_a_step_known_to_be_short_keeps_the_lock_of_the_interpreter(
    many: Path, us: float | None, keeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(many)
    native = bundle.manifest.native
    assert native is not None
    asked: list[bool] = []

    def noted(
        library: ctypes.CDLL, taken: list, given: list, gives_lock_away: bool, results: list
    ) -> object:
        asked.append(gives_lock_away)
        return stepping(library, taken, given, gives_lock_away, results)

    monkeypatch.setattr("stategate.runtime.engines.native.stepping", noted)
    known = msgspec.structs.replace(native, step_us={} if us is None else {"native": us})
    NativeEngine(bundle, known, allocate(bundle)).run(0)
    assert set(asked) == {not keeps}


def with_step(bundle: Path, step: bytes, path: Path) -> ctypes.CDLL:
    """A library whose step is other C than the bundle's."""
    names = ("stategate.h", "stategate_chain.h", "stategate_model.h", "python.c")
    source = {name: (bundle / "native" / name).read_bytes() for name in names}
    path.write_bytes(compile_library({**source, "step.c": step}).library)
    return ctypes.CDLL(str(path))


NOTHING = b"""
#include "stategate.h"
int stategate_compute(void *const *in, void *const *out) { (void)in, (void)out; return 0; }
"""


@pytest.mark.case("A1")
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_library_says_that_results_are_finite_only_where_every_one_is(
    many: Path, tmp_path: Path, dtype: type
) -> None:
    largest, smallest = np.finfo(dtype).max, np.finfo(dtype).smallest_subnormal
    results = [np.array([0, largest, -largest], dtype), np.array([smallest], dtype)]
    counts = np.array([np.iinfo(np.int64).max], np.int64)  # as float64 these bits are a NaN
    library = with_step(many, NOTHING, tmp_path / "nothing.so")
    step = stepping(library, [], [], gives_lock_away=False, results=[*results, counts])
    assert step() == FINITE
    for array in results:
        for index, value in enumerate(array.copy()):
            for bad in (np.nan, np.inf, -np.inf):
                array[index] = bad
                assert step() == 0
            array[index] = value
    assert step() == FINITE


@pytest.mark.case("A1")
def test_a_library_that_does_not_look_is_looked_at_by_the_session(
    many: Path, tmp_path: Path
) -> None:
    class Older:
        """What the first edition built."""

        def __init__(self, library: ctypes.CDLL) -> None:
            self.stategate_python_run = library.stategate_python_run

    result = np.zeros(1, np.float32)
    library = Older(with_step(many, NOTHING, tmp_path / "nothing.so"))
    step = stepping(library, [], [], gives_lock_away=False, results=[result])  # type: ignore[arg-type]
    assert step() == 0


WAITS = b"""
#include "stategate.h"
int stategate_compute(void *const *in, void *const *out)
{
    (void)out;
    for (long i = 0; i < 2000000000; ++i) {
        if (*(volatile float *)in[0] != 0.0f) {
            return 5;
        }
    }
    return 7;
}
"""


def test_a_long_step_lets_other_threads_run_meanwhile(many: Path, tmp_path: Path) -> None:
    flag = np.zeros(1, np.float32)
    library = with_step(many, WAITS, tmp_path / "waits.so")
    step = stepping(library, [flag], [], gives_lock_away=True, results=[])
    setter = Timer(0.05, flag.fill, (1.0,))
    setter.start()
    assert step() == 5
    setter.join()
