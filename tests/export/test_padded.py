"""A convolution or a pool over time that is handed one frame, and padding for all before it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import stategate
from stategate.contract import StateSpec, StepSpec, TensorSpec
from stategate.contract.errors import GraphError, UndeclaredStateError
from stategate.export.frontends.forgetting import check_nothing_is_forgotten
from stategate.export.frontends.lifting.find import Question
from stategate.export.frontends.padded import padded
from stategate.export.frontends.trace import quiet
from stategate.export.passes.dataflow import inferred
from stategate.models import lift


class Averages(nn.Module):
    """Remembers an average, and forgets what its window knew."""

    def __init__(self, part: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.part, self.call, self.average = part, call, torch.zeros(1, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.call(self.part, x)
        self.average = 0.9 * self.average + y.flatten(1)[:, :4]
        return self.average


def front(x: Tensor) -> Tensor:
    return functional.pad(x, (2, 0))


CONV = nn.Conv1d(4, 4, 3)
FORGETS = {
    "F.pad": (CONV, (1, 4, 1), lambda part, x: part(front(x))),
    "frames by features": (
        CONV,
        (1, 1, 4),
        lambda part, x: part(functional.pad(x, (0, 0, 2, 0)).transpose(1, 2)),
    ),
    "a vector": (CONV, (1, 4), lambda part, x: part(front(x.tanh().unsqueeze(-1)))),
    "zeros joined": (
        CONV,
        (1, 4, 1),
        lambda part, x: part(torch.cat((torch.zeros(1, 4, 2), x), 2)),
    ),
    "padding=": (
        nn.Conv1d(4, 4, 2, dilation=2, padding=2),
        (1, 4, 1),
        lambda part, x: part(x)[:, :, :-2],
    ),
    "pool": (nn.AvgPool1d(3), (1, 4, 1), lambda part, x: part(front(x))),
    "unfold": (
        nn.Linear(3, 1),
        (1, 4, 1),
        lambda part, x: part(front(x).unfold(2, 3, 1)),
    ),
    "two axes": (
        nn.Conv2d(1, 1, 3),
        (1, 1, 1, 6),
        lambda part, x: part(functional.pad(x, (0, 0, 2, 0))),
    ),
}


@pytest.mark.parametrize("kind", FORGETS)
def test_a_window_that_sees_one_frame_and_padding_is_refused_by_name(kind, tmp_path: Path) -> None:
    part, shape, call = FORGETS[kind]
    step = lift(Averages(part, call), {"x": torch.zeros(shape)}, states=["average"])
    name = {"pool": "pool", "unfold": "Gather"}.get(kind, "part")
    finding = rf"forgets everything after each step: .*{name}[\s\S]*reads 3 frames[\s\S]*past"
    with pytest.raises(UndeclaredStateError, match=finding):
        stategate.make(step, tmp_path / "b", steps=5)
    assert not (tmp_path / "b").exists()


class Mended(nn.Module):
    """As the remedy says."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Conv1d(4, 4, 3)
        self.register_buffer("past", torch.zeros([1, 4, 2]))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat((self.past, x), 2)
        self.past = x[:, :, 1:]
        return self.part(x)


def test_the_remedy_streams_as_the_whole_sequence_does(tmp_path: Path) -> None:
    module, frames = Mended(), torch.randn(6, 1, 4, 1)
    whole = module.part(front(frames[:, 0, :, 0].T[None]))
    step = lift(module, {"x": torch.zeros(1, 4, 1)}, states=["past"])
    assert stategate.make(step, tmp_path / "b", steps=10).manifest.verification.notes == ()
    with stategate.Session.open(tmp_path / "b") as session:
        for t, x in enumerate(frames):
            (y,) = session.step(x=x.numpy()).values()
            assert torch.allclose(torch.from_numpy(y)[..., 0], whole[..., t], atol=1e-5)


def test_a_window_of_frames_is_taken_with_a_note(tmp_path: Path) -> None:
    module = Averages(CONV, lambda part, x: part(front(x))[:, :, -1])
    step = lift(module, {"x": torch.zeros(1, 4, 6)}, states=["average"])
    (note,) = stategate.make(step, tmp_path / "b", steps=10).manifest.verification.notes
    assert note.startswith("part reads a window of 6 frames: what lies before")


class Net(nn.Module):
    """A U-Net of one level, whose inner frames are one long."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.inner = nn.Conv1d(4, 4, 2, 2), nn.Conv1d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.down(x) + x.mean(-1, keepdim=True))


@pytest.mark.parametrize(
    ("part", "shape"),
    [
        (nn.Conv2d(3, 4, 3, padding=1), (1, 3, 8, 8)),
        (nn.Conv2d(3, 4, 3, padding=1), (1, 3, 1, 8)),
        (nn.Sequential(nn.Conv2d(3, 4, 8), nn.Conv2d(4, 4, 3, padding=1)), (1, 3, 8, 8)),
        (nn.Conv1d(4, 4, 1), (1, 4, 1)),
        (nn.Conv1d(1, 1, 3, padding=1), (1, 1, 64)),
        (nn.MaxPool2d(3, 2, 1), (1, 3, 8, 8)),
        (Net(), (1, 4, 2)),
    ],
)
def test_pictures_features_and_inner_levels_are_no_time(part: nn.Module, shape) -> None:
    assert windows(part, shape) == []


def windows(part: nn.Module, shape: tuple[int, ...]) -> list:
    model, spec = file_of(part, shape)
    return padded(inferred(model).graph, spec)


def file_of(part: nn.Module, shape: tuple[int, ...]) -> tuple[onnx.ModelProto, StepSpec]:
    with quiet():
        program = torch.onnx.export(
        part.eval(), (torch.zeros(shape),), dynamo=True, input_names=["x"], output_names=["y"],
        verbose=False,
    )  # fmt: skip
    spec = StepSpec((TensorSpec("x", shape),), (TensorSpec("y", (1,)),), (StateSpec("s", (1,)),))
    return program.model_proto, spec


def test_an_onnx_file_that_pads_one_frame_is_refused_too() -> None:
    model, spec = file_of(nn.Sequential(nn.ConstantPad1d((2, 0), 0.0), CONV), (1, 4, 1))
    with pytest.raises(GraphError, match=r"window over time[\s\S]*reads 3 frames along axis 2"):
        check_nothing_is_forgotten(model, spec, Question({}, {}, {}, {}))
