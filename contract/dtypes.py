"""One table of tensor element types: contract name, NumPy, ONNX."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stategate.contract.errors import SpecError


@dataclass(frozen=True, slots=True)
class Dtype:
    """One element type."""

    name: str  # the name used in manifests, equal to NumPy's
    onnx: int  # the value of ``onnx.TensorProto.DataType`` (onnx.proto, fixed by the format)

    @property
    def numpy(self) -> np.dtype[np.generic]:
        """The NumPy dtype."""
        return np.dtype(self.name)


DTYPES: dict[str, Dtype] = {
    dtype.name: dtype
    for dtype in (
        Dtype("float32", 1),
        Dtype("uint8", 2),
        Dtype("int8", 3),
        Dtype("uint16", 4),
        Dtype("int16", 5),
        Dtype("int32", 6),
        Dtype("int64", 7),
        Dtype("bool", 9),
        Dtype("float16", 10),
        Dtype("float64", 11),
    )
}
_BY_ONNX = {dtype.onnx: dtype for dtype in DTYPES.values()}


def dtype_named(name: str) -> Dtype:
    """Look a dtype up by its contract name."""
    if name not in DTYPES:
        raise SpecError(
            "unknown dtype",
            found=name,
            expected=", ".join(DTYPES),
            remedy="hand it in and out in float32: module.float(), with float32 inputs and first "
            "values"
            if "float" in name
            else None,
        )
    return DTYPES[name]


def dtype_from_onnx(code: int) -> Dtype:
    """Look a dtype up by its ONNX code."""
    if code not in _BY_ONNX:
        raise SpecError(
            "a tensor of this ONNX type cannot be an input, output or state",
            found=f"TensorProto type {code}",
            expected=", ".join(DTYPES),
        )
    return _BY_ONNX[code]
