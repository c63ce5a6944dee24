"""Operators that only pass frames on, and why the others do not.

Each question is the same: does an answer of this node for one frame look at other frames?
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from stategate.export.passes.dataflow import integers_of

Extents = Sequence[int]

# One answer for each element, from the elements at the same place.
_ELEMENTWISE = """Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot
BitwiseOr BitwiseXor Cast CastLike Ceil Celu Clip Cos Cosh DequantizeLinear Div Dropout Elu Equal
Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less
LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow QuantizeLinear Reciprocal Relu
Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh
ThresholdedRelu Where Xor"""
ELEMENTWISE = frozenset(_ELEMENTWISE.split())
# The new shape is what the run shows; what is in front of the time axis must stay in front of it.
RESHAPING = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
_REDUCTIONS = "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare"
_REDUCING = frozenset(f"Reduce{name}" for name in _REDUCTIONS.split())
# One axis, and its default.
_ALONG = {"ArgMax": 0, "ArgMin": 0, "TopK": -1, "LpNormalization": -1, "Concat": None}
_ALONG |= {"Split": 0, "Gather": 0, "GatherElements": 0, "CumSum": None, "Compress": None}
_SOFT = frozenset({"Softmax", "LogSoftmax", "Hardmax"})
_FROM_AXIS = frozenset({"LayerNormalization", "RMSNormalization"})
_SPATIAL = {
    "GlobalAveragePool": "averages all frames",
    "GlobalMaxPool": "takes the largest of all frames",
    "InstanceNormalization": "normalises over all frames",
    "GroupNormalization": "normalises over all frames",
}
_WHOLE = {
    "DynamicQuantizeLinear": "scales all frames by the largest of them",
    "DynamicQuantizeLSTM": "scales all frames by the largest of them",
    "MeanVarianceNormalization": "normalises over all frames",
    "Attention": "lets every frame look at every other",
    "MultiHeadAttention": "lets every frame look at every other",
}


def mixes(node: ir.Node, at: int, axis: int, shapes: Sequence[Extents], opset: int) -> str:
    """Why a node mixes the frames of an input; empty where each frame goes through by itself."""
    kind, rank = node.op_type, len(shapes[at])
    if kind in _WHOLE:
        return _WHOLE[kind]
    if node.domain not in ("", "ai.onnx"):
        return f"is an operator of {node.domain}, of which nothing is known"
    if kind in ELEMENTWISE | RESHAPING | {"Transpose", "Expand"}:
        return ""
    if kind in ("MatMul", "MatMulInteger"):
        summed = rank - 1 if at == 0 else max(rank - 2, 0)
        return "sums over all frames" if axis == summed else ""
    if kind == "Gemm":
        transposed = node.attributes.get_int("transA" if at == 0 else "transB", 0)
        free = (1 if transposed else 0) if at == 0 else (0 if transposed else 1)
        return "" if at == 2 or axis == free else "sums over all frames"
    if kind in _REDUCING:
        axes = node.attributes.get_ints("axes", None) or integers_of(node, 1)
        return "reduces over all frames" if not axes or axis in _positive(axes, rank) else ""
    if kind in _SOFT or kind in _FROM_AXIS:
        first = _positive([node.attributes.get_int("axis", -1 if opset >= 13 else 1)], rank)[0]
        several = kind in _FROM_AXIS or opset < 13
        within = axis >= first if several else axis == first
        return "normalises over all frames" if within and at == 0 else ""
    if kind in _SPATIAL:
        return _SPATIAL[kind] if axis >= 2 or (axis == 1 and "Norm" in kind) else ""
    if kind == "BatchNormalization":
        return "has a number of its own for each frame" if axis == 1 else ""
    if kind in _ALONG:
        default = _ALONG[kind]
        along = node.attributes.get_int("axis", 0 if default is None else default)
        if kind == "CumSum":
            along = (integers_of(node, 1) or [0])[0]
        if kind == "Gather" and at == 1:
            return ""
        if axis != _positive([along], rank)[0]:
            return ""
        return {"Split": "cuts the sequence into parts"}.get(kind, "picks among all frames")
    if kind == "OneHot":
        return ""
    if kind in ("Slice", "Pad", "Tile"):
        return ""  # who calls looks at the extents
    if kind == "Einsum":
        return _einsum(node, at, axis)
    if kind == "SpaceToDepth" and axis == 0:
        return ""
    return f"is a {kind}, of which is not known how it treats frames"


def reshapes_evenly(before: Extents, axis: int, after: Extents, new_axis: int) -> bool:
    """Whether frames are still in their order, and one after another, behind a reshape."""
    return math.prod(before[:axis]) == math.prod(after[:new_axis])


def _positive(axes: Extents, rank: int) -> list[int]:
    return [axis % rank if rank else 0 for axis in axes]


def _einsum(node: ir.Node, at: int, axis: int) -> str:
    terms, _, result = node.attributes["equation"].as_string().replace(" ", "").partition("->")
    term = terms.split(",")[at]
    if "..." in term or not result:
        return "is an Einsum without letters for its axes"
    return "" if term[axis] in result else "sums over all frames"
