"""emx-onnx-cgen, which writes operators that nobody here does, with its mistakes mended."""

from __future__ import annotations

import re
from collections.abc import Callable, Container
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any

import onnx
from emx_onnx_cgen import Compiler
from emx_onnx_cgen.compiler import CompilerOptions

from stategate.contract.errors import LowerError
from stategate.contract.failures import failures

# What each of these remembers. In a reversed sequence they store the outputs at the wrong end, and
# of an empty one ONNX Runtime gives zeros, where they give what they began with.
_RECURRENT = {"gru_op.c.j2": "H", "lstm_op.c.j2": "HC", "rnn_op.c.j2": "H"}
# Their indices have 32 bits, and outside of a table they read or write what lies there. Now the
# first place is taken there, and `stategate_place` makes the step a fault.
_PLACES = {
    "gather_op.c.j2": ("gather_index = ", "{{ axis_dim }}"),
    "gather_elements_op.c.j2": ("gather_index = ", "{{ axis_dim }}"),
    "gather_nd_op.c.j2": ("index{{ idx }} = ", "{{ data_shape[batch_dims + idx] }}"),
    "scatter_op.c.j2": ("scatter_index = ", "{{ axis_dim }}"),
    "scatter_elements_op.c.j2": ("scatter_index = ", "{{ axis_dim }}"),
    "scatter_nd_op.c.j2": ("index{{ idx }} = ", "{{ data_shape[idx] }}"),
}
# What IEEE 754 and C define to the last bit; of anything else C libraries give other last bits.
_DEFINED = {
    "ceil", "copysign", "fabs", "floor", "fmod", "frexp", "isfinite", "isinf", "isnan", "ldexp",
    "memcpy", "memmove", "memset", "nearbyint", "rint", "round", "sqrt", "trunc",
    "for", "if", "return", "sizeof", "switch", "while",
}  # fmt: skip
# `stategate_math.h` has them, with the same bits on every machine.
_OWN_FUNCTIONS = ("expf", "tanhf", "logf", "log1pf", "erff", "sinf", "cosf")
# What generated code begins with.
OPENING = '#include "stategate_math.h"\n' + "".join(
    f"#define {name} stategate_{name}\n" for name in _OWN_FUNCTIONS
)
_CALL = re.compile(r"\b([A-Za-z_]\w*) ?\(")
_NO_CODE = re.compile(r"/\*.*?\*/|^#.*?$", re.DOTALL | re.MULTILINE)
_FUNCTION = re.compile(r"^[A-Za-z_][\w *]*?\b(\w+)\(.*\{$", re.MULTILINE)
# What it may write, by the inputs that have to be constants: of others it makes extents, places and
# numbers of turns without a look at what fits. What is not here has indices without bounds, results
# of no fixed extent or random numbers, or nobody compared it with ONNX Runtime.
_ANYTHING = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool
BatchNormalization BitCast BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike
CausalConvWithState Ceil Celu Clip Concat Conv ConvInteger ConvTranspose Cos Cosh DepthToSpace
DequantizeLinear Det Div DynamicQuantizeLinear Elu Equal Erf Exp EyeLike Flatten Floor GRU Gather
GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater
GreaterOrEqual GridSample GroupNormalization HardSigmoid HardSwish Hardmax Identity
InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual
LinearAttention Log LogSoftmax LpNormalization LpPool MatMul MatMulInteger Max MaxPool Mean
MeanVarianceNormalization Min Mish Mod Mul Neg Not Or PRelu Pow QLinearConv QLinearMatMul
QuantizeLinear RMSNormalization RNN Reciprocal Relu ReverseSequence Round Scatter ScatterElements
ScatterND Selu Shrink Sigmoid Sign Sin Sinh Softmax Softplus Softsign SpaceToDepth Sqrt Sub Sum
Swish Tan Tanh ThresholdedRelu Transpose Where Xor
"""
_SECOND = """
AffineGrid CenterCropPad CumProd CumSum Expand OneHot ReduceL1 ReduceL2 ReduceLogSum
ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Reshape Split
Squeeze Tile TopK Trilu Unsqueeze Upsample
"""
_TAKES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(_ANYTHING.split(), ()),
    **dict.fromkeys(_SECOND.split(), (1,)),
    "Col2Im": (1, 2),
    "DFT": (1, 2),
    "Dropout": (1, 2),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Resize": (1, 2, 3),
    "RotaryEmbedding": (3,),
    "STFT": (1, 3),
    "Slice": (1, 2, 3, 4),
}
# Forms of them that it gets wrong.
_WRONG: dict[str, Callable[[onnx.NodeProto], bool]] = {
    "Attention": lambda node: len(node.input) > 6,  # how much of each row is padding
    "SpaceToDepth": lambda node: any(a.name == "mode" and a.s != b"DCR" for a in node.attribute),
}
_BY_ZERO = {"Div", "Mod"}  # of integers, which end the process
_SEQUENCE = "            for (int step = 0; step < seq_limit; ++step) {\n"


def name() -> str:
    """What writes the operators, with its version."""
    return f"emx-onnx-cgen {version('emx-onnx-cgen')}"


def _mended(file: str, text: str) -> str:
    """A template of the generator without its mistakes."""
    if file in _PLACES:
        start, extent = _PLACES[file]
        before, found, rest = text.partition(f"idx_t {start}")
        assert found, f"{file} of {name()} is another than the one that is mended"
        index, _, rest = rest.partition(";")
        text = f"{before}{found}stategate_place({index}, {extent});{rest}"
    if memories := _RECURRENT.get(file):
        for place in ("[{}][dir][b][h]", "[b][{}][dir][h]"):
            wrong, right = (f"output_y }}}}{place.format(i)} = h_new;" for i in ("step", "t"))
            text = text.replace(wrong, right)
        zeros = "".join(f" {one}_prev[b][h] = {{{{ zero_literal }}}};" for one in memories)
        hidden = "(seq_limit ? 0 : {{ hidden_size }})"
        empty = f"            for (int h = 0; h < {hidden}; ++h) {{{zeros} }}"
        text = text.replace(_SEQUENCE, f"{empty}\n{_SEQUENCE}")
    return text


def refuse(node: onnx.NodeProto, constants: Container[str], dtype: str) -> None:
    """Refuse a node that it would write without bounds, or that nobody compared."""
    name = f"{node.domain or 'ai.onnx'}.{node.op_type}"
    takes = _TAKES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    wrong = _WRONG.get(node.op_type)
    if takes is None or (wrong and wrong(node)) or (node.op_type in _BY_ZERO and "int" in dtype):
        raise LowerError(
            "an operator is not written as C",
            found=f"{name}, which gives {dtype} {node.output[0]!r}",
        )
    inputs = [n for i, n in enumerate(node.input) if n and i in takes and n not in constants]
    if inputs:
        raise LowerError(
            "an extent or a place that the step computes is not written as C",
            found=f"{inputs[0]!r}, an input of {name}",
            expected="a constant",
            remedy="let it follow from shapes and numbers that stay the same, or the onnxruntime "
            "engine steps this model",
        )


def c_of(model: onnx.ModelProto, function: str) -> str:
    """The C of a graph as one function."""
    options = CompilerOptions(
        model_name=function,
        large_temp_threshold_bytes=0,
        large_weight_threshold=0,
    )
    try:
        text: str = _Compiler(options).compile(model)
    except failures() as problem:  # its refusals have no common base, and what it trips over none
        reason = re.split(r" Hint: | \(while |\n", str(problem))[0]
        raise LowerError(
            "the graph cannot be written as C",
            found=reason or type(problem).__name__,
        ) from problem
    return text


def inexact(text: str) -> bool:
    """Whether C libraries or compilers may differ in the last bits of what this C computes.

    It may call functions whose last bits a C library decides, or compute in half precision, which
    compilers widen or not.
    """
    code = _NO_CODE.sub("", text)
    own = {*_FUNCTION.findall(code), *_OWN_FUNCTIONS, "stategate_place"}
    called = {name for name in _CALL.findall(code) if name not in own}
    return "_Float16" in code or any(
        name not in _DEFINED and name.removesuffix("f") not in _DEFINED for name in called
    )


class _Template:
    """A template that is read where it is used: the generator asks for all 170 for each node."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = load

    def __getattr__(self, name: str) -> Any:
        return getattr(self._load(), name)


class _Compiler(Compiler):  # type: ignore[misc]
    """Hands attributes on as text, which ONNX keeps as bytes and GRU and RNN compare with text."""

    def __init__(self, options: CompilerOptions) -> None:
        super().__init__(options)
        environment = self._emitter._env
        source = environment.loader.get_source
        environment.loader.get_source = lambda *of: (_mended(of[1], source(*of)[0]), None, None)
        load = environment.get_template
        environment.get_template = lambda *name: _Template(partial(load, *name))

    def _lower_model(self, model: onnx.ModelProto, graph: Any) -> Any:
        nodes = [
            replace(node, attrs={key: _text(value) for key, value in node.attrs.items()})
            for node in graph.nodes
        ]
        return super()._lower_model(model, replace(graph, nodes=tuple(nodes)))


def _text(value: object) -> object:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value
