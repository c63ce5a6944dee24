"""A frozen backbone as a file of the bundle, for a step that takes its features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stategate.contract import Episode, TensorSpec
from stategate.contract.backbone import BackboneRef
from stategate.contract.errors import ParityError, TraceError
from stategate.contract.failures import failures, first_line
from stategate.export.frontends.trace import as_onnx, quiet
from stategate.export.passes.graph import serialised
from stategate.export.timing import optimised
from stategate.models.load import in_evaluation

FILE, CHECK = "backbone.onnx", "backbone-check.npz"
FEATURES = "features"
_FRAMES = 32  # of the check
_ALIKE = 1e-4  # of the features' size: what two engines may differ by in float32


@dataclass(frozen=True, slots=True)
class CarriedBackbone:
    """A backbone that a bundle carries: what the manifest says of it, and its files by path."""

    ref: BackboneRef
    files: dict[str, bytes]


def carried(
    backbone: nn.Module | bytes,
    sha256: str,
    inputs: Sequence[TensorSpec],
    frames: Episode,
    features: NDArray[np.float32],
) -> CarriedBackbone:
    """A module in evaluation, or an ONNX file, once ONNX Runtime has given the same features.

    Features are ``(steps, 1, features)``, what the module gave for the frames.
    """
    raw = backbone if isinstance(backbone, bytes) else _as_onnx(backbone, inputs)
    at = np.linspace(0, frames.steps - 1, min(_FRAMES, frames.steps)).astype(int)
    check = Episode(
        {tensor.name: frames.inputs[tensor.name][at] for tensor in inputs},
        outputs={FEATURES: features[at]},
    )
    session = optimised(raw)
    takes = [tensor.name for tensor in session.get_inputs()]
    names = takes if len(takes) == 1 else [tensor.name for tensor in inputs]
    gives = [output.name for output in session.get_outputs()]
    output = FEATURES if FEATURES in gives else gives[0]
    gap = 0.0
    for frame, right in zip(check, features[at], strict=True):
        feeds = {
            name: np.ascontiguousarray(frame[t.name]) for name, t in zip(names, inputs, strict=True)
        }
        answer = np.asarray(session.run([output], feeds)[0], np.float32).reshape(-1)
        gap = max(gap, float(np.abs(answer - right.reshape(-1)).max()))
    size = float(np.abs(features).max()) or 1.0
    if not gap <= _ALIKE * size:
        raise ParityError(
            "the backbone gives other features in ONNX Runtime",
            found=f"an error of {gap / size:.2g} of their size",
            expected=f"at most {_ALIKE:g}",
            remedy="leave it in the step: --backbone inside",
        )
    ref = BackboneRef(FILE, CHECK, sha256, tuple(inputs))
    return CarriedBackbone(ref, {FILE: raw, CHECK: check.to_bytes()})


class _Flat(nn.Module):
    """Gives features as the memory takes them, ``(1, features)`` float32."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.backbone(*tensors)
        return answer.flatten(1).float()


def _as_onnx(backbone: nn.Module, inputs: Sequence[TensorSpec]) -> bytes:
    example = tuple(torch.zeros(t.shape, dtype=getattr(torch, t.dtype)) for t in inputs)
    try:
        with quiet(), in_evaluation(backbone):
            names = [tensor.name for tensor in inputs]
            return serialised(as_onnx(_Flat(backbone).eval(), names, [FEATURES], example))
    except failures(torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError) as problem:
        raise TraceError(
            "the backbone has no ONNX form",
            found=first_line(problem.__cause__ or problem),
            remedy="leave it in the step: --backbone inside; or give an .onnx file",
        ) from problem
