from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stategate.contract.errors import ExportError, TraceError
from stategate.models.load import load_model
from stategate.models.step import StepResult, commit, initial_states

MODULE = """
import torch
from torch import nn
from stategate.contract import StateSpec, StepSpec, TensorSpec
from stategate.models import StepResult

class Sum(nn.Module):
    def step_spec(self):
        return StepSpec((TensorSpec("x", (1,)),), (TensorSpec("y", (1,)),), (StateSpec("s", (1,)),))

    def step(self, inputs, states):
        s = states["s"] + inputs["x"]
        return StepResult({"y": s}, {"s": s}, {})

def broken():
    raise OSError("no weights here")

def stateless():
    return nn.Linear(1, 1)
"""


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MODULE)
    return path


def test_a_users_class_is_loaded_by_path(module: Path) -> None:
    loaded = load_model(f"{module}:Sum")
    assert (loaded.name, loaded.family) == ("Sum", "custom")
    assert initial_states(loaded.model)["s"].tolist() == [0.0]


@pytest.mark.parametrize(
    ("factory", "finding"),
    [("broken", "no weights here"), ("stateless", "Linear"), ("nope", "nope")],
)
def test_a_factory_that_fails_is_reported_in_a_sentence(
    module: Path, factory: str, finding: str
) -> None:
    with pytest.raises(TraceError, match=finding):
        load_model(f"{module}:{factory}")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no such Python file"):
        load_model(f"{tmp_path}/none.py:Sum")


def test_an_unknown_zoo_name_offers_the_nearest() -> None:
    with pytest.raises(ExportError, match="aura-hard"):
        load_model("aura-hadr")


def test_a_closed_gate_keeps_its_states_and_no_others(tiny) -> None:
    old = {"h": torch.zeros(1, 4), "count": torch.zeros(1, 1)}
    new = {"h": torch.ones(1, 4), "count": torch.ones(1, 1)}
    for gate, kept in ((-1.0, "old"), (0.0, "old"), (1.0, "new")):
        result = StepResult({}, new, {"gate": torch.tensor([[gate]])})
        after = commit(tiny.step_spec(), old, result)
        assert after["h"] is (old if kept == "old" else new)["h"]
        assert after["count"] is new["count"]
