"""An output that holds NaN or Inf is no answer: not from an engine, a chunk, a row, or in C."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from stategate.cli.device import describe
from stategate.cli.main import main
from stategate.contract import (
    GateSpec,
    StateSpec,
    StepSpec,
    TensorSpec,
)
from stategate.contract.errors import PoolFault, SpecError, StateFault
from stategate.export.candidates import candidate_from, reference_for
from stategate.export.inputs import random_episode
from stategate.export.seal.pack import seal
from stategate.models.load import load_model
from stategate.models.step import StepResult
from stategate.runtime import Pool, Session
from stategate.runtime.base.buffers import finiteness, is_finite

ROOT = Path(__file__).parents[2]
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


class Inverse(nn.Module):
    """Answers one over what it remembers: finite states, and an output that may not be.

    Rows of a pool see inputs of their own; the gate is closed where the input's second number is
    not positive.
    """

    def step_spec(self) -> StepSpec:
        return StepSpec(
            (TensorSpec("x", (1, 2)),),
            (TensorSpec("y", (1, 1)), TensorSpec("steps", (1, 1), "int64")),
            (StateSpec("h", (1, 1), gate="g"), StateSpec("t", (1, 1), "int64")),
            (GateSpec("g", "hard", (1, 1), 0.0, "threshold"),),
        )

    def step(self, inputs: dict, states: dict) -> StepResult:
        x, gate = inputs["x"][:, :1], inputs["x"][:, 1:]
        h = torch.where(gate > inputs["threshold"], x, states["h"])
        t = states["t"] + 1
        return StepResult({"y": 1.0 / (h - 3.0), "steps": t * 1}, {"h": h, "t": t}, {"g": gate})


def x(value: float, gate: float = 1.0) -> np.ndarray:
    return np.array([[value, gate]], dtype=np.float32)


@pytest.fixture(scope="module")
def inverse(tmp_path_factory: pytest.TempPathFactory, seal_model) -> Path:
    native = shutil.which("cc") is not None
    return seal_model(tmp_path_factory.mktemp("inverse") / "b", Inverse(), native=native).path


@pytest.fixture(params=["onnxruntime", pytest.param("native", marks=needs_compiler)])
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


def in_c(bundle: Path, tmp_path: Path) -> list[str]:
    """A good step, one whose output is infinite, and a good one, in a program of C."""
    source = tmp_path / "main.c"
    source.write_text(
        """
        #include <stdio.h>
        #include "stategate.h"
        static stategate_session s;
        static stategate_inputs in;
        static stategate_outputs out;
        static int step(float x)
        {
            in.x[0] = x;
            in.x[1] = 1.0f;
            return stategate_step(&s, &in, &out);
        }
        int main(void)
        {
            stategate_init(&s);
            printf("%d ", step(1.0f));
            printf("%d ", step(3.0f) == STATEGATE_BAD_OUTPUT);
            printf("%g %d ", out.y[0], (int)out.steps[0]);
            printf("%d ", step(2.0f));
            printf("%g %d %d %d\\n", out.y[0], (int)out.steps[0], (int)s.counters.faults,
                (int)s.counters.writes);
            return 0;
        }
        """
    )
    folder, program = bundle / "native", tmp_path / "main"
    parts = [str(path) for path in folder.glob("*.c")]
    words = ["cc", "-std=gnu11", "-O2", f"-I{folder}", f"-Wa,-I{folder}", str(source), *parts]
    subprocess.run([*words, "-lm", "-o", str(program)], check=True)
    return subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.case("A1")
def test_the_state_before_stays_and_nothing_counts_as_written(inverse: Path, engine: str) -> None:
    with Session.open(inverse, engine=engine) as session:
        session.step(x=x(1.0))
        before = session.ledger
        for value, gate in ((3.0, 1.0), (3.0, 1.0)):
            with pytest.raises(StateFault, match="output 'y' holds NaN or Inf"):
                session.step(x=x(value, gate))
        assert session.state("h") == 1.0 and session.state("t") == 1
        ledger = session.ledger
        assert (ledger.faults, ledger.suppressed_writes) == (2, 2)
        assert ledger.memory_bytes_written == before.memory_bytes_written
        assert ledger.steps == ledger.writes + ledger.quiet_steps + ledger.suppressed_writes
        assert session.step(x=x(2.0))["y"] == -1.0


@pytest.mark.case("A1")
def test_a_quiet_step_may_have_no_answer_either(inverse: Path, engine: str) -> None:
    with Session.open(inverse, engine=engine) as session:
        session.load_state({"h": np.full((1, 1), 3.0, np.float32), "t": np.ones((1, 1), np.int64)})
        with pytest.raises(StateFault, match="output"):
            session.step(x=x(1.0, gate=-1.0))
        assert session.state("t") == 1


@pytest.mark.case("A1")
def test_holding_answers_with_the_last_good_outputs(inverse: Path, engine: str) -> None:
    with Session.open(inverse, engine=engine, on_fault="hold") as session:
        session.step(x=x(1.0))
        held = session.step(x=x(3.0))
        assert held["y"] == -0.5 and held["steps"] == 1
        assert session.step(x=x(2.0))["steps"] == 2


@pytest.mark.case("A1")
def test_the_action_that_leaves_the_finite_numbers_is_held(tmp_path: Path) -> None:
    """The case of the list: 1 / (h - 1), and tanh(40) in float32 puts 1 into h."""
    loaded = load_model(f"{ROOT}/tests/cases/models.py:inf_output")
    candidate = candidate_from(loaded)
    reference, episode = reference_for(loaded.model, candidate), random_episode(candidate.spec, 20)
    bundle = seal(tmp_path / "b", candidate, reference, episode)
    with Session.open(bundle.path, on_fault="hold") as session:
        good = session.step(x=np.zeros((1, 2), np.float32))["action"].copy()
        assert (good == -1.0).all()
        assert (session.step(x=np.full((1, 2), 40.0, np.float32))["action"] == -1.0).all()
        assert session.ledger.faults == 1


@pytest.mark.case("A1")
def test_a_row_of_a_pool_is_refused_and_keeps_its_last_good_answer(
    tmp_path: Path, seal_model
) -> None:
    with Pool.open(seal_model(tmp_path / "pool", Inverse(), sessions=3).path) as pool:
        for _ in range(3):
            pool.join()
        rows = np.concatenate([x(1.0), x(2.0), x(5.0)])
        pool.step(x=rows)
        rows[:2, 0] = 2.0, 3.0
        with pytest.raises(PoolFault, match="output 'y' in row 1") as fault:
            pool.step(x=rows)
        assert fault.value.rows == (1,)
        np.testing.assert_array_equal(pool.outputs["y"][:, 0], [-1.0, -1.0, 0.5])
        np.testing.assert_array_equal(pool.outputs["steps"][:, 0], [2, 1, 2])
        assert [pool.state(row, "h").item() for row in range(3)] == [2.0, 2.0, 5.0]
        assert [pool.ledger(row).faults for row in range(3)] == [0, 1, 0]
        assert [pool.ledger(row).writes for row in range(3)] == [2, 1, 2]


class Safe(Inverse):
    """The same with declared safe outputs."""

    def step_spec(self) -> StepSpec:
        outputs = (TensorSpec("y", (1, 1), safe=0.25), TensorSpec("steps", (1, 1), "int64", (7,)))
        return msgspec.structs.replace(super().step_spec(), outputs=outputs)


@pytest.mark.case("A3", "A4")
@pytest.mark.parametrize("on_fault", ["hold", "reset"])
def test_a_declared_safe_answer_is_given_where_an_episode_has_none(
    tmp_path: Path, seal_model, on_fault: str
) -> None:
    with Session.open(seal_model(tmp_path / "b", Safe()).path, on_fault=on_fault) as session:
        for _ in range(2):
            answer = session.step(x=x(3.0))
            assert (answer["y"].item(), answer["steps"].item()) == (0.25, 7)
            assert session.step(x=x(1.0))["y"] == -0.5
            session.reset()
        assert session.ledger.faults == 2


@pytest.mark.case("A3", "A4")
def test_a_row_without_a_good_answer_shows_the_safe_one(tmp_path: Path, seal_model) -> None:
    with Pool.open(seal_model(tmp_path / "pool", Safe(), sessions=2).path) as pool:
        pool.join(), pool.join()
        pool.step(x=np.concatenate([x(1.0), x(2.0)]))
        pool.reset(1)
        with pytest.raises(PoolFault, match="output 'y' in row 1"):
            pool.step(x=np.concatenate([x(2.0), x(3.0)]))
        np.testing.assert_array_equal(pool.outputs["y"][:, 0], [-1.0, 0.25])
        np.testing.assert_array_equal(pool.outputs["steps"][:, 0], [2, 7])


@pytest.mark.slow
@pytest.mark.case("A3")
def test_the_command_line_declares_what_is_safe(tmp_path: Path) -> None:
    module = tmp_path / "mine.py"
    module.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_outputs_not_finite import Inverse\n"
    )
    words = [f"{module}:Inverse", "--steps", "20", "--out", str(tmp_path / "b")]
    refused = CliRunner().invoke(main, ["export", *words, "--safe", "y=0.5"])
    assert "a safe answer needs a safe value for every output" in refused.output
    assert "found: none for steps" in refused.output
    for wrong in ("z=1", "y=one"):
        assert CliRunner().invoke(main, ["export", *words, "--safe", wrong]).exit_code == 2
    done = CliRunner().invoke(main, ["export", *words, "--safe", "y=0.5", "--safe", "steps=-1"])
    assert done.exit_code == 0, done.output
    with Session.open(tmp_path / "b", on_fault="hold") as session:
        shown = [text for label, text in describe(session.manifest) if label == "output"]
        assert [text.partition(", safe ")[2] for text in shown] == ["0.5", "-1.0"]
        answer = session.step(x=x(3.0))
        assert (answer["y"].item(), answer["steps"].item()) == (0.5, -1)


@pytest.mark.parametrize(
    ("dtype", "safe"),
    [("float32", (1.0, 2.0)), ("float32", np.inf), ("float16", 1e6), ("bool", 2.0), ("int8", 0.5)],
)
def test_a_safe_value_that_does_not_fit_is_refused(dtype: str, safe: object) -> None:
    with pytest.raises(SpecError, match="safe value"):
        TensorSpec("y", (1, 3), dtype, safe)


@pytest.mark.slow
@needs_compiler
@pytest.mark.case("A3")
def test_c_answers_a_fault_with_what_is_declared_safe(tmp_path: Path, seal_model) -> None:
    bundle = seal_model(tmp_path / "b", Safe(), native=True).path
    assert in_c(bundle, tmp_path) == ["1", "1", "0.25", "7", "1", "-1", "2", "1", "2"]


@needs_compiler
@pytest.mark.case("A1")
def test_c_answers_a_negative_result_with_a_name_and_keeps_the_state(
    inverse: Path, tmp_path: Path
) -> None:
    first, named, *_, y, steps, faults, writes = in_c(inverse, tmp_path)
    assert (first, named) == ("1", "1")
    assert (y, steps, faults, writes) == ("-1", "2", "1", "2")


@pytest.mark.case("A1")
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("size", [1, 5, 16, 17, 8192, 8193, 20_000])
def test_every_value_that_is_not_finite_is_found_and_no_other(dtype: str, size: int) -> None:
    info = np.finfo(dtype)
    rng = np.random.default_rng(size)
    limits = np.array([info.max, -info.max, info.tiny, info.smallest_subnormal, 0.0, -0.0], dtype)
    values = rng.choice(limits, size)
    assert is_finite(values) and is_finite(values[::2]) and finiteness(values)()
    largest = np.full(size, info.max, dtype)
    assert is_finite(largest) and finiteness(largest)()
    for bad in (np.nan, np.inf, -np.inf):
        for at in (0, size // 2, size - 1):
            spoilt = values.copy()
            spoilt[at] = bad
            assert not is_finite(spoilt) and not finiteness(spoilt)()
    opposite = np.resize(np.array([np.inf, -np.inf], dtype), size)
    assert not is_finite(opposite) and not finiteness(opposite)()


def test_a_buffer_is_looked_at_as_it_is_now() -> None:
    for size in (3, 300, 30_000):
        values = np.zeros(size, np.float32)
        finite = finiteness(values)
        assert finite()
        values[-1] = np.nan
        assert not finite()
        values[-1] = 1.0
        assert finite()


@pytest.mark.parametrize("engine, most", [("native", 12), ("onnxruntime", 20)])
def test_a_quiet_step_makes_no_more_calls_than_it_needs(
    native_bundle: Path, engine: str, most: int
) -> None:
    """Looks at outputs and the mode for subnormal numbers cost a third of a native step once."""
    seen: list[str] = []

    def watch(frame: Any, event: str, called: Any) -> None:
        where = frame.f_code.co_filename
        if event in ("call", "c_call") and "onnxruntime" not in where:
            seen.append(frame.f_code.co_name if event == "call" else repr(called))

    with Session.open(native_bundle, engine=engine) as session:
        inputs = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in session.manifest.inputs}
        for _ in range(3):
            session.step(**inputs)
        writes = session.ledger.writes
        sys.setprofile(watch)
        try:
            session.step(**inputs)
        finally:
            sys.setprofile(None)
        assert session.ledger.writes == writes
    assert len(seen) <= most, seen


def test_integers_are_finite() -> None:
    assert is_finite(np.full(3, np.iinfo(np.int64).max)) and is_finite(np.ones(2, bool))
