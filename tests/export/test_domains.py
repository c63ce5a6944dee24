"""Random inputs of a check fit the model where its graph says what fits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import stategate
from stategate.contract import TensorSpec
from stategate.export.frontends.domains import domains
from stategate.export.inputs import drawn
from stategate.models import lift

pytestmark = pytest.mark.filterwarnings("ignore")  # those of torch's own exporter


class Normalised(nn.Module):
    """A normaliser as rsl_rl has it, which adds its epsilon to the deviation."""

    def __init__(self, mean: float, deviation: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((1, 4), mean))
        self.register_buffer("deviation", torch.full((1, 4), deviation))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / (self.deviation + 0.01)


class Multiplied(Normalised):
    """The same with the inverse, as VecNormalize is folded."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.reshape(4) - self.mean[0]) * torch.rsqrt(self.deviation[0] ** 2 + 1e-8)


class Batch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.norm.running_mean.fill_(50.0)
        self.norm.running_var.fill_(4.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class Codes(nn.Module):
    """Tokens in a table, a command as a one-hot code, and pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 4)

    def forward(self, token: Tensor, command: Tensor, pixels: Tensor) -> Tensor:
        code = nn.functional.one_hot(command[:, 0], 4)
        return self.table(token[:, 0]) + code + pixels / 255


def graph_of(module: nn.Module, **inputs: Tensor) -> tuple[onnx.ModelProto, list[TensorSpec]]:
    program = torch.onnx.export(
        module.eval(), kwargs=inputs, input_names=list(inputs), dynamo=True, verbose=False
    )
    specs = [
        TensorSpec(n, tuple(t.shape), str(t.dtype).partition(".")[2]) for n, t in inputs.items()
    ]
    return program.model_proto, specs


@pytest.mark.parametrize(
    "make", [lambda: Normalised(50.0, 2.0), lambda: Multiplied(50.0, 2.0), Batch]
)
def test_a_normaliser_says_where_its_input_lies(make) -> None:
    graph, specs = graph_of(make(), x=torch.zeros(1, 4))
    domain = domains(graph, specs)["x"]
    numbers = domain.draw(np.random.default_rng(0), (2000, 1, 4))
    assert domain.words == "x from the statistics of its normaliser"
    assert abs(numbers.mean() - 50.0) < 0.2 and abs(numbers.std() - 2.0) < 0.1
    assert numbers.min() > 43 and numbers.max() < 57


def test_a_normaliser_that_has_seen_nothing_says_nothing() -> None:
    assert not domains(*graph_of(Normalised(0.0, 1.0), x=torch.zeros(1, 4)))


def test_integers_are_rows_of_their_table_places_of_their_code_or_all_of_their_bits() -> None:
    zero = torch.zeros(1, 1, dtype=torch.int64)
    pixels = torch.zeros(1, 4, dtype=torch.uint8)
    by_name = domains(*graph_of(Codes(), token=zero, command=zero.clone(), pixels=pixels))
    limits = {name: (domain.numbers[0], domain.numbers[-1]) for name, domain in by_name.items()}
    assert limits == {"token": (0, 29), "command": (0, 3), "pixels": (0, 255)}


def test_noise_is_called_noise_beside_what_fits(tmp_path: Path) -> None:
    class Policy(Normalised):
        def forward(self, x: Tensor, goal: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            h = 0.5 * h + super().forward(x)
            return h + goal, h

    example = {"x": torch.zeros(1, 4), "goal": torch.zeros(1, 4)}
    step = lift(Policy(50.0, 2.0), example, hidden={"h": torch.zeros(1, 4)})
    bundle = stategate.make(step, tmp_path / "b", steps=20)
    inputs = bundle.manifest.verification.inputs
    assert inputs.words == "noise in goal; x from the statistics of its normaliser"
    graph = onnx.load(bundle.path / "graphs/step.onnx")
    episode, how = drawn(bundle.manifest.step, 20, {"goal": (0.0, 1.0)}, graph)
    assert how.kind == "fitting" and how.detail.endswith("normaliser, goal=0:1")
    assert episode.inputs["x"].min() > 40
