from __future__ import annotations

import subprocess
import sys
from collections import deque
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from stategate.contract import GateSpec, StateSpec, StepSpec, TensorSpec
from stategate.contract.errors import GraphError, TraceError, UndeclaredStateError
from stategate.export.frontends.trace import OPSET, trace
from stategate.export.passes.graph import check_graph, every_node
from stategate.models.step import StepResult

SPEC = StepSpec((TensorSpec("x", (1, 3)),), (TensorSpec("y", (1, 3)),), (StateSpec("s", (1, 3)),))


class Model(nn.Module):
    """A healthy step; subclasses break one thing."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def step_spec(self) -> StepSpec:
        return SPEC

    def step(self, inputs: dict, states: dict) -> StepResult:
        s = 0.9 * states["s"] + self.scale * inputs["x"]
        return StepResult({"y": s + self.remember(inputs["x"])}, {"s": s}, {})

    def remember(self, x: torch.Tensor) -> torch.Tensor:
        return x


class BufferInPlace(Model):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1, 3))

    def remember(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += x
        return self.seen


class BufferReassigned(BufferInPlace):
    def remember(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = self.seen + x
        return self.seen


class AttributeReassigned(Model):
    hidden = None

    def remember(self, x: torch.Tensor) -> torch.Tensor:
        self.hidden = x if self.hidden is None else self.hidden + x
        return self.hidden


class ListGrows(Model):
    def __init__(self) -> None:
        super().__init__()
        self.cache: list[torch.Tensor] = []

    def remember(self, x: torch.Tensor) -> torch.Tensor:
        self.cache.append(x)
        return torch.stack(self.cache).sum(0)


class InnerModuleRemembers(Model):
    def __init__(self) -> None:
        super().__init__()
        self.inner = BufferInPlace()

    def remember(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner.remember(x)


class DictRemembers(Model):
    def __init__(self) -> None:
        super().__init__()
        self.mem = {"h": torch.zeros(1, 3)}

    def remember(self, x: torch.Tensor) -> torch.Tensor:
        self.mem["h"] = self.mem["h"] * 0.99 + 1e-8 * x + 1e-8
        return self.mem["h"]


class DequeRemembers(Model):
    def __init__(self) -> None:
        super().__init__()
        self.past = deque([torch.zeros(1, 3)] * 2, maxlen=2)

    def remember(self, x: torch.Tensor) -> torch.Tensor:
        self.past.append(x)
        return self.past[0]


class Box:
    def __init__(self) -> None:
        self.h = torch.zeros(1, 3)


class ObjectRemembers(Model):
    def __init__(self) -> None:
        super().__init__()
        self.box = Box()

    def remember(self, x: torch.Tensor) -> torch.Tensor:
        self.box.h = self.box.h + x
        return self.box.h


class Counts(Model):
    ticks = 0

    def remember(self, x: torch.Tensor) -> torch.Tensor:
        self.ticks += 1
        return x * float(self.ticks)


class WritesThroughData(BufferInPlace):
    def remember(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.data.add_(1.0)
        return x + self.seen


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (DictRemembers, r"mem\['h'\]"),
        (DequeRemembers, r"past\[1\]"),
        (ObjectRemembers, r"box\.h"),
        (Counts, "ticks"),
        (WritesThroughData, "seen"),
        (BufferInPlace, "seen"),
        (BufferReassigned, "seen"),
        (AttributeReassigned, "hidden"),
        (InnerModuleRemembers, r"inner\.seen"),
    ],
)
def test_memory_that_is_not_declared_is_named_with_the_fix(model: type[Model], name: str) -> None:
    with pytest.raises(UndeclaredStateError, match=name) as problem:
        trace(model())
    assert "StateSpec(" in str(problem.value) and "StepResult.states" in str(problem.value)


def test_memory_that_grows_is_named_as_what_it_is() -> None:
    with pytest.raises(UndeclaredStateError, match=r"cache\[0\][\s\S]*fixed slots"):
        trace(ListGrows())


class Branches(Model):
    def remember(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2.0 if x.sum() > 0 else x


class BranchesInGraph(Model):
    def remember(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda v: v * 2.0, lambda v: v + 1.0, (x,))


class StateGrows(Model):
    def step(self, inputs: dict, states: dict) -> StepResult:
        return StepResult({"y": inputs["x"]}, {"s": torch.cat([states["s"], inputs["x"]])}, {})


class StateChangesDtype(Model):
    def step(self, inputs: dict, states: dict) -> StepResult:
        return StepResult({"y": inputs["x"]}, {"s": states["s"].double()}, {})


class ForgetsItsState(Model):
    def step(self, inputs: dict, states: dict) -> StepResult:
        return StepResult({"y": inputs["x"]}, {}, {})


class ReturnsATuple(Model):
    def step(self, inputs: dict, states: dict) -> tuple:
        return inputs["x"], states["s"]


class GatelessGate(Model):
    def step_spec(self) -> StepSpec:
        return StepSpec(
            SPEC.inputs,
            SPEC.outputs,
            (StateSpec("s", (1, 3), gate="g"),),
            (GateSpec("g", threshold=0.0),),
        )


class HasNoOnnxForm(Model):
    def remember(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.linalg.eigvalsh(x.T @ x)


class InPlace(Model):
    def step(self, inputs: dict, states: dict) -> StepResult:
        s = states["s"].mul_(0.5)
        return StepResult({"y": s + inputs["x"]}, {"s": s}, {})


class ShapeBug(Model):
    def step(self, inputs: dict, states: dict) -> StepResult:
        return StepResult({"y": inputs["x"] @ states["s"]}, {"s": states["s"]}, {})


class WrongName(Model):
    def step(self, inputs: dict, states: dict) -> StepResult:
        return StepResult({"y": inputs["observation"]}, {"s": states["s"]}, {})


class FloatOutput(Model):
    def step(self, inputs: dict, states: dict) -> StepResult:
        return StepResult({"y": 1.0}, {"s": states["s"] + inputs["x"]}, {})


class SpecFails(Model):
    def step_spec(self) -> StepSpec:
        raise KeyError("config")


class SpecIsADict(Model):
    def step_spec(self) -> dict:
        return {}


class UnknownStart(Model):
    def initial_states(self) -> dict:
        return {"typo": torch.ones(1, 3)}


class NanStart(Model):
    def initial_states(self) -> dict:
        return {"s": torch.full((1, 3), torch.nan)}


class NumpyStart(Model):
    def initial_states(self) -> dict:
        return {"s": [0.0, 0.0, 0.0]}


class ExtraOutput(Model):
    def step(self, inputs: dict, states: dict) -> StepResult:
        return StepResult({"y": inputs["x"], "debug": inputs["x"]}, {"s": states["s"]}, {})


@pytest.mark.parametrize(
    ("model", "finding"),
    [
        (Branches, r"data-dependent[\s\S]*test_trace.py:\d+ in remember"),
        (StateGrows, r"next state 's'.*\n.*\(2, 3\)"),
        (StateChangesDtype, "float64"),
        (ForgetsItsState, "does not return next state 's'"),
        (ReturnsATuple, "must return a StepResult"),
        (GatelessGate, "does not return gate 'g'"),
        (ExtraOutput, "debug"),
        (InPlace, "in place"),
        (ShapeBug, r"fails on its own spec[\s\S]*test_trace.py:\d+ in step: `return StepResult"),
        (WrongName, "observation"),
        (FloatOutput, "is no tensor"),
        (SpecFails, "config"),
        (SpecIsADict, "must give a StepSpec"),
        (UnknownStart, "typo"),
        (NanStart, "finite"),
        (NumpyStart, "list"),
        (
            HasNoOnnxForm,
            r"no ONNX form[\s\S]*eig[\s\S]*test_trace.py:\d+ in rem",
        ),
    ],
)
def test_a_step_that_cannot_be_exported_says_why(model: type[Model], finding: str) -> None:
    with pytest.raises(TraceError, match=finding):
        trace(model())


def test_control_flow_in_the_graph_is_refused() -> None:
    with pytest.raises(GraphError, match="If"):
        trace(BranchesInGraph())


def test_an_input_that_is_not_used_is_refused_or_kept() -> None:
    class Deaf(Model):
        def step(self, inputs: dict, states: dict) -> StepResult:
            return StepResult({"y": states["s"] * 1.5}, {"s": states["s"] + 1.0}, {})

    assert {v.name for v in trace(Deaf()).graph.input} == {"x", "s"}


def test_a_state_that_is_handed_through_keeps_its_names() -> None:
    class Constant(Model):
        def step(self, inputs: dict, states: dict) -> StepResult:
            return StepResult({"y": inputs["x"] + states["s"]}, {"s": states["s"]}, {})

    graph = trace(Constant()).graph
    assert {v.name for v in graph.output} == {"y", "s_next"}


def test_a_plain_object_is_no_model() -> None:
    with pytest.raises(TraceError, match="docs/tutorial"):
        trace(nn.Linear(2, 2))


def test_the_graph_is_one_static_branch_free_step() -> None:
    graph = trace(Model())
    assert graph.opset_import[0].version == OPSET == 20
    assert not {n.op_type for n in every_node(graph.graph)} & {"If", "Loop", "Scan"}
    for value in (*graph.graph.input, *graph.graph.output):
        assert all(d.HasField("dim_value") for d in value.type.tensor_type.shape.dim)


def test_nothing_of_the_exporting_machine_is_in_the_file() -> None:
    raw = trace(Model()).SerializeToString()
    assert str(Path.cwd()).encode() not in raw
    assert b"site-packages" not in raw and b".py" not in raw


@pytest.mark.slow
def test_two_processes_in_two_folders_export_the_same_bytes(tmp_path: Path) -> None:
    code = (
        "import hashlib\n"
        "from stategate.export.frontends.trace import trace\n"
        "from stategate.models.load import load_model\n"
        "raw = trace(load_model('aura-hard').model).SerializeToString(deterministic=True)\n"
        "print(hashlib.sha256(raw).hexdigest())"
    )
    (tmp_path / "elsewhere").mkdir()
    digests = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
        ).stdout
        for folder in (tmp_path, tmp_path / "elsewhere")
    }
    assert len(digests) == 1


def test_a_graph_is_held_against_its_spec() -> None:
    graph = trace(Model())
    wrong = StepSpec(SPEC.inputs, SPEC.outputs, (StateSpec("s", (1, 4)),))
    with pytest.raises(GraphError, match="differs from the spec"):
        check_graph(graph, wrong, branch_free=True)
    fewer = onnx.ModelProto()
    fewer.CopyFrom(graph)
    del fewer.graph.output[-1]
    with pytest.raises(GraphError, match="not those of the step's spec"):
        check_graph(fewer, SPEC, branch_free=True)
