"""B13: files that torch wrote, given to export; and programs, given to lift."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from stategate.cli.main import main
from stategate.contract.errors import TraceError
from stategate.models import lift
from stategate.models.load import load_model
from stategate.runtime import Session

# Of torch, about TorchScript, about its own LSTM in a program, and about its own pytrees.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)


class Policy(nn.Module):
    """What legged_gym's exporter writes: an LSTM whose memory is in buffers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.memory, self.actor = nn.LSTM(6, 8), nn.Linear(8, 3)
        self.register_buffer("hidden_state", torch.zeros(1, 1, 8))
        self.register_buffer("cell_state", torch.zeros(1, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        out, (h, c) = self.memory(x.unsqueeze(0), (self.hidden_state, self.cell_state))
        self.hidden_state[:] = h
        self.cell_state[:] = c
        return self.actor(out.squeeze(0))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    policy, x = Policy().eval(), torch.zeros(1, 6)
    torch.jit.script(policy).save(tmp_path / "script.pt")
    torch.export.save(torch.export.export(policy, (x,)), tmp_path / "program.pt2")
    torch.save(policy.state_dict(), tmp_path / "weights.pth")
    torch.save(policy, tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "script.pt").read_bytes()[:300])
    (tmp_path / "w.safetensors").write_bytes(b"")
    return tmp_path


@pytest.mark.case("B13")
@pytest.mark.parametrize(
    ("file", "what", "remedy"),
    [
        ("script.pt", "a TorchScript program", "torch.jit.load"),
        ("program.pt2", "an exported program", "torch.export.load"),
        ("weights.pth", "a pickle of torch", "load_state_dict"),
        ("whole.pt", "a pickle of torch", "weights_only=False"),
        ("cut.pt", "a pickle of torch", "load_state_dict"),
        ("w.safetensors", "weights without the module", "load_file"),
    ],
)
def test_a_saved_file_given_to_export_is_answered_with_what_to_do(
    files: Path, file: str, what: str, remedy: str
) -> None:
    result = CliRunner().invoke(main, ["export", str(files / file), "--out", str(files / "b")])
    assert result.exit_code == 2, result.output
    assert what in result.output and remedy in result.output
    assert "Traceback" not in result.output


def test_the_remedy_for_a_program_works_when_it_is_pasted(files: Path) -> None:
    told = CliRunner().invoke(main, ["export", str(files / "program.pt2"), "--out", "b"]).output
    source = told[told.index("return stategate") : told.index("; hidden=")].replace(
        "1, ...", "1, 6"
    )
    source = source.replace('"program.NAME"', '"program.hidden_state", "program.cell_state"')
    source = f"import torch\nimport stategate.models\ndef policy():\n    {source}\n"
    (files / "mine.py").write_text(source)
    args = ["export", f"{files / 'mine.py'}:policy", "--steps", "20", "--out", str(files / "b")]
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 0, result.output
    policy, x = Policy().eval(), torch.randn(20, 1, 6)
    with Session.open(files / "b") as session, torch.no_grad():
        for row in x:
            ours = session.step(x=row.numpy())["output"]
            np.testing.assert_allclose(ours, policy(row).numpy(), atol=1e-5)


def test_a_program_takes_its_memory_as_an_argument_by_name() -> None:
    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(3, 4)

        def forward(self, seen: dict[str, Tensor], h: Tensor) -> tuple[Tensor, Tensor]:
            h = self.cell(seen["x"], h)
            return h * 2, h

    cell, x, h = Cell().eval(), torch.randn(1, 3), torch.zeros(1, 4)
    program = torch.export.export(cell, ({"x": x},), {"h": h})
    step = lift(program, {"seen_x": x}, hidden={"h": h}, returns=["y", "h"])
    after = step.step({"seen_x": x}, {"h": h})
    torch.testing.assert_close(after.states["h"], cell({"x": x}, h)[1])


FACTORY = """
import torch
def script(): return torch.jit.load("{folder}/script.pt")
def program(): return torch.export.load("{folder}/program.pt2")
def weights(): return torch.load("{folder}/weights.pth")
"""


@pytest.mark.case("B13")
def test_a_factory_that_returns_a_program_or_weights_is_answered_in_words(files: Path) -> None:
    (files / "mine.py").write_text(FACTORY.format(folder=files))
    for name in ("script", "program", "weights"):
        with pytest.raises(TraceError, match="load"):
            load_model(f"{files / 'mine.py'}:{name}")
    with pytest.raises(TraceError, match="TorchScript has lost"):
        lift(torch.jit.load(files / "script.pt"), {"x": torch.zeros(1, 6)}, states=["hidden_state"])
