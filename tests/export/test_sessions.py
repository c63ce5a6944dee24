from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from stategate.cli.main import main
from stategate.contract import Bundle, Episode, GateSpec, StateSpec, StepSpec, TensorSpec
from stategate.contract.errors import ParityError, SpecError, TraceError
from stategate.export.candidate import Candidate
from stategate.export.candidates import candidate_from, reference_for
from stategate.export.frontends.references import TorchReference
from stategate.export.frontends.rows import RowsReference, side_by_side, staggered
from stategate.export.frontends.trace import trace
from stategate.export.inputs import random_episode
from stategate.export.seal.pack import seal
from stategate.models.load import LoadedModel, load_model
from stategate.models.step import StepModel, StepResult
from stategate.runtime import Pool, Session

ROWS = 4


class Model(nn.Module):
    """A step for any leading extent; subclasses break one thing."""

    def step_spec(self) -> StepSpec:
        return StepSpec(
            (TensorSpec("x", (1, 3)),),
            (TensorSpec("y", (1, 3)),),
            (StateSpec("s", (1, 3), gate="g"),),
            (GateSpec("g", "hard", (1, 1), 0.0, "threshold"),),
        )

    def step(self, inputs: dict, states: dict) -> StepResult:
        x = self.seen(inputs["x"])
        gate = x[:, :1] * 1.0
        s = torch.where(self.opens(gate, inputs["threshold"]), 0.5 * states["s"] + x, states["s"])
        return StepResult({"y": s * 2.0}, {"s": s}, {"g": gate})

    def seen(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def opens(self, gate: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
        return gate > threshold


class KnowsItsBatch(Model):
    def seen(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(1, 3)


class TakesTheFirstRow(Model):
    def step(self, inputs: dict, states: dict) -> StepResult:
        result = super().step(inputs, states)
        return StepResult({"y": result.outputs["y"][:1]}, result.states, result.gates)


class Centres(Model):
    def seen(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0) + x[:, 1:2]


class Shifts(Model):
    def seen(self, x: torch.Tensor) -> torch.Tensor:
        return torch.roll(x, 1, 0)


class OpensForAll(Model):
    def opens(self, gate: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
        return (gate > threshold).any()


class SpreadsNan(Model):
    def seen(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.0 * x.sum(0)


@pytest.mark.parametrize(
    ("model", "finding"),
    [
        (KnowsItsBatch, "cannot serve 4 sessions[\\s\\S]*shape '\\[1, 3\\]'"),
        (TakesTheFirstRow, "cannot serve 4 sessions[\\s\\S]*output 'y' of shape \\[1, 3\\]"),
        (Centres, "mixes its sessions[\\s\\S]*row 0 depends"),
        (Shifts, "mixes its sessions"),
        (OpensForAll, "mixes its sessions[\\s\\S]*any\\(\\)"),
        (SpreadsNan, "mixes its sessions"),
    ],
)
def test_a_step_whose_rows_are_not_alone_is_refused_for_a_pool_only(
    model: type[Model], finding: str
) -> None:
    with pytest.raises(TraceError, match=finding):
        trace(model(), ROWS)
    trace(model())


def test_a_model_without_a_batch_axis_is_refused() -> None:
    class NoBatch(Model):
        def step_spec(self) -> StepSpec:
            return StepSpec(
                (TensorSpec("x", (2, 3)),),
                (TensorSpec("y", (2, 3)),),
                (StateSpec("s", (2, 3), gate="g"),),
                (GateSpec("g", "hard", (2, 1), 0.0, "threshold"),),
            )

    with pytest.raises(SpecError, match="no row for each session"):
        trace(NoBatch(), ROWS)


def test_the_graph_has_a_row_for_each_session_and_one_threshold() -> None:
    graph = trace(Model(), ROWS).graph
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*graph.input, *graph.output)
    }
    assert shapes == {
        "x": [4, 3], "threshold": [1], "s": [4, 3], "y": [4, 3], "g": [4, 1], "s_next": [4, 3],
    }  # fmt: skip


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def candidate(model: Model) -> Candidate:
    return candidate_from(LoadedModel("rows", "custom", "tests", model, model, None), ROWS)


def test_the_receipt_counts_the_openings_of_every_row(
    candidate: Candidate, model: StepModel, tmp_path: Path
) -> None:
    episode = random_episode(candidate.spec, 50)
    bundle = seal(tmp_path / "b", candidate, reference_for(model, candidate), episode)
    receipt = bundle.manifest.verification
    assert bundle.manifest.sessions == ROWS
    assert receipt is not None and receipt.steps == 50 and receipt.gate_flips == 0
    assert "4 sessions alone" in receipt.reference
    assert receipt.gate_openings == {"g": int((episode.inputs["x"][:, :, 0] > 0).sum())}


class Liar:
    """A reference of one session that parts from the model at one step, in one way."""

    def __init__(self, honest: TorchReference, step: int, part: int) -> None:
        self.name = "a liar"
        self._honest, self._step, self._part, self._t = honest, step, part, 0

    def step(self, inputs: Mapping) -> tuple[dict, dict, dict]:
        parts = [{n: np.array(a) for n, a in p.items()} for p in self._honest.step(inputs)]
        if self._t == self._step:
            name = next(iter(parts[self._part]))
            parts[self._part][name] = -parts[self._part][name] + 0.25
        self._t += 1
        return tuple(parts)


@pytest.mark.parametrize("row", range(ROWS))
@pytest.mark.parametrize("part", [0, 1, 2], ids=["output", "state", "gate"])
def test_one_row_that_parts_from_its_model_stops_the_bundle(
    candidate: Candidate, model: StepModel, tmp_path: Path, part: int, row: int
) -> None:
    references: list = [TorchReference(model, candidate.spec.thresholds) for _ in range(ROWS)]
    references[row] = Liar(references[row], 7, part)
    x = np.full((20, ROWS, 3), 0.75, np.float32)
    # Rows that are a thousand times louder must not hide it.
    x[:, [r for r in range(ROWS) if r != row]] *= 1000.0
    with pytest.raises(ParityError, match="step 7") as problem:
        seal(tmp_path / "b", candidate, RowsReference(references), Episode({"x": x}))
    assert (f"flipped gates: g in row {row}\n" in str(problem.value)) == (part == 2)
    assert list(tmp_path.iterdir()) == []


def test_every_row_of_one_recorded_stream_starts_at_another_place() -> None:
    stream = Episode({"x": np.arange(8.0, dtype=np.float32).reshape(8, 1, 1)})
    wide = staggered(stream, ROWS).inputs["x"]
    assert wide.shape == (8, ROWS, 1)
    assert wide[0, :, 0].tolist() == [0.0, 2.0, 4.0, 6.0]
    assert sorted(wide[:, 3, 0]) == list(range(8))
    both = side_by_side([stream, stream])
    assert staggered(both, 2) is both


def test_a_recorded_stream_of_one_session_verifies_a_pool(tmp_path: Path) -> None:
    module = tmp_path / "mine.py"
    module.write_text(MODULE)
    stream = np.random.default_rng(0).standard_normal((30, 1, 2)).astype(np.float32)
    (tmp_path / "e.npz").write_bytes(Episode({"x": stream}).to_bytes())
    arguments = ["export", f"{module}:Mine", "--sessions", "3", "--out", str(tmp_path / "b")]
    result = CliRunner().invoke(main, [*arguments, "--episode", f"{tmp_path}/e.npz", "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert (facts["sessions"], facts["verification"]["steps"]) == (3, 1000)
    assert facts["state_bytes"] == 3 * 8
    with Pool.open(tmp_path / "b") as pool:
        assert [pool.join() for _ in range(3)] == [0, 1, 2]
        assert [pool.state(row, "s").tolist() for row in range(3)] == [[[1.0, -1.0]]] * 3


MODULE = """
import torch
from torch import nn
from stategate.contract import StateSpec, StepSpec, TensorSpec
from stategate.models import StepResult

class Mine(nn.Module):
    def step_spec(self):
        return StepSpec((TensorSpec("x", (1, 2)),), (TensorSpec("y", (1, 2)),),
                        (StateSpec("s", (1, 2)),))

    def initial_states(self):
        return {"s": torch.tensor([[1.0, -1.0]])}

    def step(self, inputs, states):
        s = 0.5 * states["s"] + inputs["x"]
        return StepResult({"y": s + 1.0}, {"s": s}, {})
"""


def test_the_budget_is_for_all_sessions_together(tmp_path: Path) -> None:
    out = str(tmp_path / "b")
    arguments = ["export", "aura-hard", "--sessions", "2", "--steps", "3", "--out", out]
    result = CliRunner().invoke(main, [*arguments, "--max-state-bytes", "8447"])
    assert result.exit_code == 2 and "8448 bytes" in result.output
    assert list(tmp_path.iterdir()) == []


def test_no_session_is_wrong_use(tmp_path: Path) -> None:
    arguments = ["export", "aura-hard", "--sessions", "0", "--out", str(tmp_path / "b")]
    assert CliRunner().invoke(main, arguments).exit_code == 2


@pytest.mark.slow
def test_four_shipped_policies_in_one_step_agree_with_four_alone(
    aura_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "b"
    arguments = ["export", "aura-hard", "--sessions", "4", "--steps", "300", "--out", str(out)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    manifest = Bundle.open(out).manifest
    assert (manifest.state_bytes, manifest.state_bytes_per_session) == (4 * 4224, 4224)
    episode_of = load_model("aura-hard").episode
    assert episode_of is not None
    episode = side_by_side([episode_of(300, 20 + row) for row in range(ROWS)])
    sessions = [Session.open(aura_bundle) for _ in range(ROWS)]
    with Pool.open(out) as pool:
        rows = [pool.join() for _ in sessions]
        for t, inputs in enumerate(episode):
            # Every third step leaves one row out.
            stepped = rows if t % 3 else [r for r in rows if r != t // 3 % ROWS]
            outputs = pool.step(rows=stepped, **inputs)
            for row in stepped:
                alone = sessions[row].step(z=inputs["z"][row : row + 1])
                np.testing.assert_allclose(outputs["action"][row], alone["action"][0], atol=1e-4)
                assert (pool.gates["gate"][row] > 0) == (sessions[row].gates["gate"][0] > 0)
        for row, session in enumerate(sessions):
            assert pool.ledger(row) == session.ledger
            for name in ("S", "b"):
                np.testing.assert_allclose(pool.state(row, name), session.state(name), atol=1e-5)
    writes = {session.ledger.writes for session in sessions}
    assert len(writes) > 1 and min(writes) > 10
