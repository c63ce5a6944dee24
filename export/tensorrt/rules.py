"""What TensorRT takes of ONNX, asked before any build: the node, the rule, and the remedy.

Sources: NVIDIA's support matrices and release notes of TensorRT 8.5 to 11.4; of the eleventh
generation every refusal here was seen from its parser too (`make test-tensorrt`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx

from stategate.contract import StepSpec
from stategate.contract.errors import GraphError, TargetError
from stategate.export.passes.graph import CONTROL_FLOW, every_node, fixed_shape
from stategate.export.tensorrt.rewrite import Facts, Names, attribute_of, facts_of, rewritten

_DYNAMIC_QUANTISATION = frozenset(
    {"DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv"}
)
_DATA_DEPENDENT = frozenset({"NonZero", "Unique", "Compress", "NonMaxSuppression"})
_NEVER = frozenset({"Det", "DFT", "Bernoulli", "StringNormalizer", "TfIdfVectorizer"})
# Names of what the build adds to a graph.
_RESERVED = "stategate_"


@dataclass(frozen=True, slots=True)
class Generation:
    """Releases of TensorRT that take the same graphs.

    Attributes:
        name: Such as ``8.5``.
        opset: Newest opset of the default domain that the parser is given.
        strongly_typed: Whether the graph's own types are obeyed; without that the builder chooses,
            within its flags.
        lacks: Standard operators of that opset that its parser does not have; they are written in
            simpler ones.
        int64: Whether a graph may take or give int64.
    """

    name: str
    opset: int
    strongly_typed: bool
    lacks: frozenset[str] = frozenset()
    int64: bool = True


GENERATIONS = {
    one.name: one
    for one in (
        Generation("8.5", 17, False, frozenset({"LayerNormalization"}), int64=False),
        Generation("8.6", 17, False, int64=False),
        Generation("10", 20, True),
        Generation("11", 20, True),
    )
}


def generation_of(version: str, library: str = "tensorrt") -> Generation:
    """The generation of a version such as ``10.3.0``.

    Raises:
        TargetError: It is not known here.
    """
    major, _, rest = version.partition(".")
    if library == "tensorrt_rtx" and major == "1":
        return GENERATIONS["11"]  # TensorRT-RTX 1.x has the parser and builder of TensorRT 11
    name = f"8.{rest.partition('.')[0]}" if major == "8" else major
    if name not in GENERATIONS:
        raise TargetError(
            "this version of TensorRT is not supported",
            found=f"{library} {version}",
            expected=f"{', '.join(GENERATIONS)} or TensorRT-RTX 1.x",
            remedy="use JetPack 5.1 or newer, or step the bundle with onnxruntime or native",
        )
    return GENERATIONS[name]


@dataclass(frozen=True, slots=True)
class Finding:
    """One reason why TensorRT would not take a graph.

    Attributes:
        where: The node, or the input, output or state.
        rule: What is required.
        found: What is there.
        remedy: What to do.
    """

    where: str
    rule: str
    found: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.rule}; found {self.found}; {self.remedy}"


def findings(model: onnx.ModelProto, spec: StepSpec, generation: Generation) -> list[Finding]:
    """Everything in a step that a generation of TensorRT would not take; empty if it is legal."""
    found = [*_signature(model, spec, generation)]
    facts, names = facts_of(model), Names()
    for number, node in enumerate(every_node(model.graph)):
        where = f"node {node.name or number} ({node.op_type})"
        found += _operator(node, where, generation, facts, names)
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            found += _quantisation(node, where, facts)
    given = (*model.graph.input, *model.graph.initializer)
    for name in (*(v.name for v in given), *(n for node in model.graph.node for n in node.output)):
        if name.startswith(_RESERVED):
            rule = f"no tensor's name begins with {_RESERVED}"
            found.append(Finding(f"tensor {name}", rule, "one that does", "give it another name"))
    return found


def check_legal(model: onnx.ModelProto, spec: StepSpec, generation: Generation) -> None:
    """Refuse a step that a generation of TensorRT would not take.

    Raises:
        GraphError: It would not; the message has every finding.
    """
    found = findings(model, spec, generation)
    if found:
        raise GraphError(
            f"TensorRT {generation.name} would not take the graph",
            found="\n".join(str(one) for one in found),
            expected="no finding",
            remedy="change the model as each finding says, or use onnxruntime or native",
        )


def _signature(model: onnx.ModelProto, spec: StepSpec, generation: Generation) -> Iterator[Finding]:
    for state in spec.states:
        if state.dtype not in ("float32", "int32", "bool"):
            yield Finding(
                f"state {state.name}",
                "states are float32, int32 or bool",
                state.dtype,
                "count in int32" if state.dtype == "int64" else "export without --state-storage",
            )
    initial = {t.name for t in model.graph.initializer}
    allowed = {"float32", "float16", "int32", "bool"} | ({"int64"} if generation.int64 else set())
    sides = {"input": spec.graph_inputs(), "output": spec.graph_outputs()}
    judged = {s.name for s in spec.states} | {s.next_name for s in spec.states}
    judged |= {constant.name for constant in spec.constants}  # part of the graph
    for side, tensors in sides.items():
        for name, tensor in tensors.items():
            if tensor.dtype not in allowed and name not in judged:
                yield Finding(
                    f"{side} {name}",
                    f"types of TensorRT {generation.name}: {', '.join(sorted(allowed))}",
                    tensor.dtype,
                    "cast it in the model, so that the graph has another type at its border",
                )
    for value in model.graph.input:
        if value.name not in initial and fixed_shape(value) is None:
            yield Finding(
                f"input {value.name}",
                "every extent is a number",
                "an open extent",
                "export with fixed shapes",
            )


def _operator(
    node: onnx.NodeProto, where: str, generation: Generation, facts: Facts, names: Names
) -> Iterator[Finding]:
    operator = node.op_type
    if node.domain not in ("", "ai.onnx"):
        four = operator == "MatMulNBits"
        yield Finding(
            where,
            "operators of the ONNX standard alone",
            f"domain {node.domain}",
            "export with --precision int8-weights" if four else "export with --operators portable",
        )
    elif operator in CONTROL_FLOW:
        yield Finding(
            where, "no branch and no loop", operator, "choose with torch.where(condition, a, b)"
        )
    elif operator in _DYNAMIC_QUANTISATION:
        yield Finding(
            where,
            "explicit, symmetric QuantizeLinear and DequantizeLinear with constant scales",
            "integer arithmetic or scales found at run time",
            "quantise with stategate's own plans: --precision int8",
        )
    elif operator in _DATA_DEPENDENT:
        yield Finding(
            where,
            "shapes that do not depend on data",
            operator,
            "mask with torch.where instead of selecting",
        )
    elif operator in _NEVER or operator.startswith(("Sequence", "Optional", "String", "Regex")):
        yield Finding(
            where, "operators that TensorRT has", operator, "write it in simpler operations"
        )
    elif operator.startswith("Scatter") and attribute_of(node, "reduction", b"none") != b"none":
        yield Finding(
            where,
            "scatter without a reduction",
            f"reduction {attribute_of(node, 'reduction', b'none')!r}",
            "add with a one-hot matrix product",
        )
    else:
        try:
            rewritten(node, facts, generation.opset, generation.lacks, names)
        except GraphError as problem:
            yield Finding(
                where,
                f"operators as of opset {generation.opset}",
                str(problem),
                "export with --operators portable, or write it in simpler operations",
            )


def _quantisation(node: onnx.NodeProto, where: str, facts: Facts) -> Iterator[Finding]:
    rule = "symmetric int8: constant positive scales, zero points that are int8 and zero"
    remedy = "quantise symmetrically, as --precision int8 does"
    scale, shape = facts.constants.get(node.input[1]), facts.shapes.get(node.input[0])
    if scale is None:
        yield Finding(where, rule, "a scale that is computed", remedy)
    elif not (scale.astype(np.float64) > 0).all():
        yield Finding(where, rule, "a scale that is not positive", remedy)
    elif scale.size > 1 and shape is not None:
        axis = attribute_of(node, "axis", 1)
        inside = -len(shape) <= axis < len(shape)
        if scale.ndim != 1 or not inside or shape[axis] not in (0, scale.size):
            told = f"scales {list(scale.shape)} along axis {axis} of {list(shape)}"
            yield Finding(where, rule, told, "give one scale, or one for each row of an axis")
    if len(node.input) < 3 or not node.input[2]:
        if node.op_type == "QuantizeLinear":
            # Without a zero point ONNX quantises to uint8.
            yield Finding(where, rule, "no zero point, which makes it uint8", remedy)
        elif (stored := facts.constants.get(node.input[0])) is not None and stored.dtype != np.int8:
            yield Finding(where, rule, f"weights of {stored.dtype}", remedy)
        return
    zero = facts.constants.get(node.input[2])
    if zero is None:
        yield Finding(where, rule, "a zero point that is computed", remedy)
    elif zero.dtype != np.int8:
        yield Finding(where, rule, f"a zero point of {zero.dtype}", remedy)
    elif zero.any():
        yield Finding(where, rule, "a zero point that is not zero", remedy)
