"""Exports of whole sequences, as people write them, become streams that equal the whole."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stategate
from stategate.runtime import Session

pytestmark = pytest.mark.slow  # torch.onnx.export takes seconds
FRAMES = 60


class Chomp(nn.Module):
    """Padding on both sides, and what is too long behind cut off: the TCN of Bai et al. (2018)."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.surplus = 2 * dilation
        self.conv = nn.Conv1d(6, 6, 3, padding=self.surplus, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)[:, :, : -self.surplus].relu()


class Spectral(nn.Module):
    """A causal picture of frequencies, then a GRU: how noise suppressors begin."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, (3, 5), padding=(0, 2))
        self.gru = nn.GRU(24, 16, batch_first=True)
        self.mask = nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        picture = self.conv(F.pad(x[:, None], (0, 0, 2, 0))).relu().permute(0, 2, 1, 3)
        return self.mask(self.gru(picture.flatten(2))[0]).sigmoid() * x


class DualPath(nn.Module):
    """Both ways along frequencies within a frame, forward along time: ``(1, T, 6, 4)``."""

    def __init__(self) -> None:
        super().__init__()
        self.across = nn.GRU(4, 2, batch_first=True, bidirectional=True)
        self.along = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        frames, rows, channels = x.shape[1:]
        x = x + self.across(x.reshape(-1, rows, channels))[0].reshape(1, -1, rows, channels)
        turned = x.permute(0, 2, 1, 3).reshape(rows, -1, channels)
        return self.along(turned)[0].reshape(1, rows, -1, channels).permute(0, 2, 1, 3)


class Recurrent(nn.Module):
    def __init__(self, last: bool = False) -> None:
        super().__init__()
        self.layers, self.head, self.last = (
            nn.LSTM(6, 8, 2, batch_first=True),
            nn.Linear(8, 3),
            last,
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)[0]
        return self.head(y[:, -1] if self.last else y)


def beatnet() -> nn.Module:
    """The trained beat tracker, whose states are attributes; the export makes constants of them."""
    import BeatNet
    from BeatNet.model import BDA

    module = BDA(272, 150, 2, "cpu")
    weights = Path(BeatNet.__file__).parent / "models" / "model_1_weights.pt"
    module.load_state_dict(torch.load(weights, map_location="cpu"), strict=False)
    return module


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "lstm": (Recurrent, (1, FRAMES, 6), 1),
    "one answer": (lambda: Recurrent(last=True), (1, FRAMES, 6), 1),
    "tcn": (lambda: nn.Sequential(*map(Chomp, (1, 2, 4))), (1, 6, FRAMES), 2),
    "spectral": (Spectral, (1, FRAMES, 6), 1),
    "dual path": (DualPath, (1, FRAMES, 6, 4), 1),
    "beatnet": (beatnet, (1, FRAMES, 272), 1),
}


@pytest.mark.case("B2")
@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_an_export_over_a_sequence_streams_as_torch_answers_to_the_whole(
    name: str, dynamo: bool, tmp_path: Path
) -> None:
    if dynamo and name in ("dual path", "beatnet"):
        pytest.skip("torch.export fixes the length that its reshape sees")
    if dynamo and name == "one answer":
        pytest.skip("torch.export fixes the length of a class that it exported before")
    torch.manual_seed(0)
    build, shape, axis = MODELS[name]
    module, x, file = build().eval(), torch.randn(shape), tmp_path / "model.onnx"
    names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"]}
    if dynamo:
        length = torch.export.Dim("T", min=2, max=4096)
        names["dynamic_shapes"] = ({axis: length},)
    else:
        names |= {"dynamic_axes": {"x": {axis: "T"}}, "dynamo": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        torch.onnx.export(module, (x,), file, **names)
    out = tmp_path / "bundle"
    stategate.adopt(
        file, out, lift=True, accept_pairs=True, steps=FRAMES, engines="onnxruntime,native"
    )
    whole = onnxruntime.InferenceSession(str(file)).run(None, {"x": x.numpy()})[0]
    for engine in ("onnxruntime", "native"):
        with Session.open(out, engine=engine) as session:
            pieces = np.split(x.numpy(), FRAMES, axis)
            answers = [session.step(x=piece)["y"].copy() for piece in pieces]
        frames = 2 if name == "beatnet" else axis  # it turns its answer around
        streamed = answers[-1] if name == "one answer" else np.concatenate(answers, frames)
        np.testing.assert_allclose(streamed, whole, atol=1e-5 * np.abs(whole).max())
    if name != "beatnet":  # whose module has gone on since
        torch.testing.assert_close(torch.from_numpy(whole), module(x), atol=1e-5, rtol=1e-4)
