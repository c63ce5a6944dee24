from __future__ import annotations

import re
import runpy
from pathlib import Path

import BeatNet
import numpy as np
import onnx
import pytest
import torch
from BeatNet.model import BDA
from click.testing import CliRunner
from torch import nn

from stategate.cli.main import main
from stategate.contract import Episode
from stategate.contract.errors import (
    GraphError,
    ParityError,
    SpecError,
    TraceError,
    UndeclaredStateError,
)
from stategate.export.frontends.trace import trace
from stategate.export.passes.graph import every_node
from stategate.models import lift
from stategate.models.lifting.lift import Lifted
from stategate.runtime import Session

pytestmark = pytest.mark.usefixtures("one_thread")

X = {"x": torch.zeros(1, 4)}

POLICY = '''
import torch
from torch import nn
from stategate.models import lift

class Policy(nn.Module):
    """Memory in place, by assignment, in int64, in bool, in a dict, and as a Python number."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Linear(4, 4)
        self.register_buffer("h", torch.full((1, 4), 0.5))
        self.register_buffer("count", torch.zeros(1, 1, dtype=torch.int64))
        self.up = torch.zeros(1, 1, dtype=torch.bool)
        self.mem = {"slow": torch.zeros(1, 4)}
        self.ticks = 0

    def forward(self, x):
        self.h.mul_(0.9).add_(0.1 * self.mix(x))
        self.count += 1
        y = self.h * torch.where(self.up, 2.0, 1.0) + torch.cos(self.count)
        self.up = x[:, :1] > 0
        self.mem["slow"] = 0.99 * self.mem["slow"] + 0.01 * y
        self.ticks += 1
        return {"action": y + self.mem["slow"], "phase": torch.full((1,), 1.0) * (self.ticks % 5)}

def make():
    states = ["h", "count", "up", "mem", "ticks"]
    return lift(Policy(), {"x": torch.zeros(1, 4)}, states=states)
'''


@pytest.mark.slow
def test_a_module_of_many_memories_is_exported_and_steps_as_it_did_alone(tmp_path: Path) -> None:
    file, out = tmp_path / "mine.py", tmp_path / "b"
    file.write_text(POLICY)
    result = CliRunner().invoke(main, ["export", f"{file}:make", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "1,000 steps of noise in x against Policy alone" in result.output
    for verb in (["verify", str(out)], ["run", str(out), "--steps", "300"]):
        assert CliRunner().invoke(main, verb).exit_code == 0
    alone = runpy.run_path(str(file))["Policy"]()
    x = np.random.default_rng(0).standard_normal((50, 1, 4)).astype(np.float32)
    with Session.open(out) as session, torch.no_grad():
        assert session.state("h").tolist() == [[0.5] * 4]
        for row in x:
            ours, theirs = session.step(x=row), alone(torch.from_numpy(row))
            np.testing.assert_allclose(ours["action"], theirs["action"], atol=1e-5)
            np.testing.assert_array_equal(ours["phase"], theirs["phase"])
        assert session.state("count").dtype == np.int64
        assert session.state("up").dtype == np.bool_
        assert int(session.state("count").item()) == int(session.state("ticks")) == 50
        np.testing.assert_allclose(session.state("mem['slow']"), alone.mem["slow"], atol=1e-5)
        session.reset()
        assert int(session.state("ticks")) == 0
        np.testing.assert_array_equal(session.state("h"), [[0.5] * 4])


def beat_net() -> BDA:
    net = BDA(272, 150, 2, "cpu")
    weights = Path(BeatNet.__file__).parent / "models" / "model_1_weights.pt"
    net.load_state_dict(torch.load(weights, weights_only=True), strict=False)
    return net


@pytest.mark.slow
def test_a_published_network_with_memory_in_attributes_is_lifted(
    tmp_path: Path, seal_model
) -> None:
    """BeatNet keeps h and c, (2, 1, 150), as attributes, for ever."""
    step = lift(
        beat_net(), {"data": torch.zeros(1, 1, 272)}, states=["hidden", "cell"],
        outputs=["beats"], session_axes={"hidden": 1, "cell": 1},
    )  # fmt: skip
    lstm = [n for n in every_node(trace(step).graph) if n.op_type == "LSTM"]
    assert len(lstm) == 2
    data = np.random.default_rng(0).standard_normal((2, 60, 1, 1, 272)).astype(np.float32)
    bundle = seal_model(tmp_path / "b", step)
    assert bundle.manifest.state_bytes == 2400
    net = beat_net().eval()
    with Session.open(bundle.path) as session, torch.no_grad():
        for row in data[0]:
            theirs = net(torch.from_numpy(row)).numpy()
            np.testing.assert_allclose(session.step(data=row)["beats"], theirs, atol=1e-5)
    pool = seal_model(tmp_path / "pool", step, sessions=2).manifest
    assert pool.sessions == 2 and pool.state_bytes == 4800


class Breaks(nn.Module):
    """A memory that is sound; subclasses break one thing."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("h", torch.zeros(1, 4))
        self.register_buffer("seen", torch.zeros(1, 4))
        self.k: object = None
        self.rows: list[torch.Tensor] = []
        self.ticks = 0

    def forward(self, x):
        self.h = 0.5 * self.h + x
        return self.breaks(x) + 0.0 * self.h

    def breaks(self, x):
        return x


class Undeclared(Breaks):
    def breaks(self, x):
        self.seen += x
        return self.seen


class UndeclaredPair(Breaks):
    def breaks(self, x):
        self.k = (x, x) if self.k is None else (self.k[0] + x, self.k[1])
        return self.k[0]


class UndeclaredCount(Breaks):
    def breaks(self, x):
        self.ticks += 1
        return x * self.ticks


class FirstCall(Breaks):
    def breaks(self, x):
        if self.ticks == 0:
            self.ticks = 1
            return x * 10.0
        return x


class ListCache(Breaks):
    def breaks(self, x):
        self.rows.append(x)
        return torch.stack(self.rows).sum(0)


class Cache(Breaks):
    def __init__(self) -> None:
        super().__init__()
        self.k = torch.zeros(1, 4)

    def breaks(self, x):
        self.k = torch.cat([self.k, x])
        return self.k.sum(0, keepdim=True)


@pytest.mark.parametrize(
    ("module", "finding", "remedy"),
    [
        (Undeclared(), "seen", "states=['h', 'seen']"),
        (UndeclaredPair(), "k[0], k[1], k", "states=['h', 'k']"),
        (UndeclaredCount(), "ticks", "states=['h', 'ticks']"),
        (FirstCall(), "ticks", "states=['h', 'ticks']), also for what only the first call sets"),
        (ListCache(), "rows[0]", "TRIM-KV"),
        (Cache(), "k", "TRIM-KV"),
    ],
)
def test_memory_that_lift_does_not_know_is_named(module, finding, remedy) -> None:
    with pytest.raises(UndeclaredStateError) as problem:
        trace(lift(module, X, states=["h"]))
    assert f"found: {finding}" in str(problem.value)
    assert remedy in str(problem.value) and "states of lift()" in str(problem.value)


class Branches(Breaks):
    def breaks(self, x):
        if x.sum() > 0:  # here
            return x * 2.0
        return x


class BranchesInside(Breaks):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Branches()

    def breaks(self, x):
        return self.inner.breaks(x)


class LeavesTorch(Breaks):
    def breaks(self, x):
        return torch.from_numpy(np.tanh(x.numpy()))  # there


class HasNoOnnxForm(Breaks):
    def breaks(self, x):
        y = self.h.T @ self.h + torch.eye(4)
        return torch.linalg.eigvalsh(y)[None] + x  # yonder


LINES = Path(__file__).read_text().splitlines()


def line_of(mark: str) -> str:
    number = next(i for i, line in enumerate(LINES, 1) if line.endswith(f"# {mark}"))
    return f"{__file__}:{number} in breaks: `{LINES[number - 1].strip()}`"


@pytest.mark.parametrize(
    ("module", "what", "mark"),
    [
        (Branches(), "cannot follow the step[\\s\\S]*data-dependent", "here"),
        (BranchesInside(), "cannot follow the step", "here"),
        (LeavesTorch(), "cannot follow the step[\\s\\S]*compute in torch", "there"),
        (HasNoOnnxForm(), "no ONNX form[\\s\\S]*aten._linalg_eigh", "yonder"),
    ],
)
def test_what_cannot_be_traced_names_file_and_line_of_the_user(module, what, mark, capfd) -> None:
    with pytest.raises(TraceError, match=what) as problem:
        trace(lift(module, X, states=["h"]))
    assert line_of(mark) in str(problem.value)
    assert capfd.readouterr().err == ""


def test_a_branch_in_the_graph_is_still_refused() -> None:
    class Conditional(Breaks):
        def breaks(self, x):
            return torch.cond(x.sum() > 0, lambda v: v * 2.0, lambda v: v + 1.0, (x,))

    with pytest.raises(GraphError, match="If"):
        trace(lift(Conditional(), X, states=["h"]))


def test_two_names_of_one_memory_stop_the_bundle(tmp_path: Path, seal_model) -> None:
    """The wrapper swaps one of them; beside the module alone it is found out."""

    class Aliased(Breaks):
        def __init__(self) -> None:
            super().__init__()
            self.view = self.h[:, :2]

        def forward(self, x):
            self.h.mul_(0.5).add_(x)
            return torch.cat([self.view, self.view], dim=1)

    with pytest.raises(ParityError, match="parts from Aliased alone"):
        seal_model(tmp_path / "b", lift(Aliased(), X, states=["h"]))
    assert list(tmp_path.iterdir()) == []


class Recurrent(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 4, num_layers=layers)

    def forward(self, x, hidden):
        y, hidden = self.rnn(x[None], hidden)
        return y[0], hidden

    def lifted(self, **options) -> Lifted:
        return lift(self, X, hidden={"hidden": torch.zeros(self.rnn.num_layers, 1, 4)}, **options)


def test_several_sessions_need_to_know_which_axis_is_theirs(tmp_path: Path, seal_model) -> None:
    with pytest.raises(SpecError, match=r"no row for each session[\s\S]*session_axes"):
        trace(Recurrent(2).lifted(), 3)
    with pytest.raises(TraceError, match=r'cannot serve 3[\s\S]*session_axes={"hidden": 1}'):
        trace(Recurrent(1).lifted(), 3)
    step = Recurrent(2).lifted(session_axes={"hidden": 1})
    assert seal_model(tmp_path / "b", step, sessions=3).manifest.sessions == 3
    assert step.step_spec().states[0].layout == "axis 1 of the module's"


def test_a_model_without_a_gate_has_nothing_to_calibrate(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(POLICY)
    (tmp_path / "e.npz").write_bytes(
        Episode({"x": np.zeros((5, 1, 4), np.float32)}, labels={"action": np.zeros(5, np.int64)})
        .to_bytes()
    )  # fmt: skip
    for options in ([], ["--episode", f"{tmp_path}/e.npz"]):
        arguments = ["calibrate", f"{file}:make", "--out", f"{tmp_path}/c.json", *options]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 1
        assert re.search(r"hard gates: none[\s\S]*lifted module, writes in every", result.output)


def test_the_graph_of_a_lifted_module_holds_no_copy_of_its_memory() -> None:
    graph: onnx.GraphProto = trace(lift(Undeclared(), X, states=["h", "seen"])).graph
    assert {v.name for v in graph.input} == {"x", "h", "seen"}
    assert not [t.name for t in graph.initializer if "seen" in t.name or t.name.endswith(".h")]


@pytest.mark.case("B5")
@pytest.mark.parametrize("dropped", [True, False])
def test_a_state_that_never_changed_is_named_at_export_and_by_inspect(
    dropped: bool, tmp_path: Path
) -> None:
    cases = Path(__file__).parents[1] / "cases/models.py"
    name = "dropped_state" if dropped else "leaky"
    arguments = ["export", f"{cases}:{name}", "--steps", "50", "--out", f"{tmp_path}/b"]
    exported = CliRunner().invoke(main, arguments)
    assert exported.exit_code == 0, exported.output
    assert ("note: state h kept its first value" in exported.output) == dropped
    inspected = CliRunner().invoke(main, ["inspect", str(tmp_path / "b")]).output
    assert bool(re.search(r"note +state h kept its first value", inspected)) == dropped


@pytest.mark.case("B5")
def test_a_state_of_an_adopted_file_that_never_changed_is_named(tmp_path: Path) -> None:
    """The file gives back what it was given: a memory that a converter lost."""
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Add", ["x", "h_in"], ["y"]),
            onnx.helper.make_node("Identity", ["h_in"], ["h_out"]),
        ],
        "lost",
        [value("x", 1, [1, 4]), value("h_in", 1, [1, 4])],
        [value("y", 1, [1, 4]), value("h_out", 1, [1, 4])],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10
    )
    onnx.save(model, tmp_path / "lost.onnx")
    arguments = ["adopt", f"{tmp_path}/lost.onnx", "--state", "h_in=h_out"]
    result = CliRunner().invoke(main, [*arguments, "--out", f"{tmp_path}/b"])
    assert result.exit_code == 0, result.output
    assert "note: state h_in kept its first value" in result.output
