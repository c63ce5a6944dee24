"""What a bundle's graph holds and does, counted from its ONNX file without running it."""

from __future__ import annotations

import math
from collections import Counter

import msgspec
import onnx
from onnx import GraphProto, NodeProto, helper, shape_inference

from stategate.contract import Bundle
from stategate.contract.c_library import Engine
from stategate.contract.errors import BundleError
from stategate.contract.failures import failures
from stategate.contract.precision import PRESETS, PrecisionPlan
from stategate.contract.reading import decode_json
from stategate.runtime.keep.snapshot import Codec
from stategate.targets.fits import Footprint

_DEQUANTIZE = "DequantizeLinear"
# A product cannot be written over its operands; what else has a dying operand of its size can.
_PRODUCTS = {"MatMul", "Gemm", "Conv", "MatMulInteger", "QLinearMatMul", "MatMulNBits", "Einsum"}
Shapes = dict[str, tuple[int, ...] | None]


def footprint(bundle: Bundle, engine: Engine = "onnxruntime") -> Footprint:
    """Count what a step of a bundle holds and does."""
    manifest, step = bundle.manifest, bundle.manifest.step
    raw = bundle.read(manifest.step_graph.file)
    try:
        model = shape_inference.infer_shapes(onnx.load_model_from_string(raw))
    except failures() as problem:  # protobuf and onnx raise a dozen unrelated types
        raise BundleError("the graph cannot be read", found=str(problem)) from problem
    graphs = _graphs(model.graph)
    nodes = _nodes(model.graph)
    shapes, sizes = _shapes_and_sizes(graphs)
    constants, widened = _constants(graphs, nodes)
    computed = [name for node in nodes for name in node.output if name]
    carried = {name for s in step.states for name in (s.name, s.next_name)}
    bound = {**step.graph_inputs(), **step.graph_outputs()}
    # A widened constant is never kept: engines compute with the integers.
    moving = {name for name in computed if name not in constants | widened.keys() | bound.keys()}
    narrow = set(widened.values())
    return Footprint(
        model=manifest.model.name,
        precision=manifest.step_graph.precision,
        sessions=manifest.sessions,
        graph_bytes=len(raw) if engine == "onnxruntime" else _library_bytes(bundle),
        constant_bytes=sum(sizes.get(name) or 0 for name in _used(nodes, constants) - narrow),
        dequantized_bytes=sum(sizes.get(name) or 0 for name in narrow),
        widest_bytes=max((sizes.get(name) or 0 for name in widened), default=0),
        nodes=len(nodes),
        state_bytes=manifest.state_bytes,
        # A zero that was never written costs no memory, so initial zeros count for nothing.
        state_buffer_bytes=sum(s.bytes * (3 if s.init_file else 2) for s in step.states),
        bound_bytes=sum(t.nbytes for name, t in bound.items() if name not in carried),
        activation_bytes=_activation_bytes(nodes, sizes, moving),
        multiply_adds=sum(_multiply_adds(node, shapes) for node in nodes),
        unsized=sum(sizes.get(name) is None for name in moving),
        branches=len(graphs) - 1,
        kv_bytes_per_step=manifest.model.kv_bytes_per_step,
        snapshot_bytes=Codec(manifest).file_bytes,
        in_tensorrt=manifest.sessions == 1 and all(s.cursor is None for s in step.states),
    )


def _library_bytes(bundle: Bundle) -> int:
    native = bundle.manifest.native
    if native is None or native.library is None:
        raise BundleError(
            "the bundle has no native library, whose size is asked",
            found=bundle.path,
            remedy="stategate export MODEL --engines onnxruntime,native, or build-native BUNDLE",
        )
    return (bundle.path / native.library).stat().st_size


def plan_of(bundle: Bundle) -> PrecisionPlan:
    """The precision that a bundle was made with, stored states included."""
    manifest, plan = bundle.manifest, PRESETS["float32"]
    for file in manifest.files:
        if file.path == "precision.json":
            try:
                plan = decode_json(bundle.read(file), PrecisionPlan)
            except msgspec.MsgspecError as problem:
                raise BundleError("precision.json is no plan", found=str(problem)) from problem
    # Storage that was asked for beside the plan shows in the states alone.
    stored = {s.name: s.dtype for s in manifest.states if s.dtype in ("float16", "int8")}
    return msgspec.structs.replace(plan, state_storage=plan.state_storage | stored)


def _graphs(graph: GraphProto) -> list[GraphProto]:
    """A graph and those inside it: branches that an adopted file may have."""
    inner = [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    return [graph, *(branch for one in inner for branch in _graphs(one))]


def _nodes(graph: GraphProto) -> list[NodeProto]:
    """All nodes, those of a branch before the node that has it."""
    nodes: list[NodeProto] = []
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                nodes += _nodes(attribute.g)
        nodes.append(node)
    return nodes


def _shapes_and_sizes(graphs: list[GraphProto]) -> tuple[Shapes, dict[str, int | None]]:
    """Shape and bytes of every value; None where an axis is open."""
    shapes: Shapes = {}
    sizes: dict[str, int | None] = {}
    for graph in graphs:
        for value in (*graph.value_info, *graph.input, *graph.output):
            kind = value.type.tensor_type
            axes = kind.shape.dim
            closed = kind.HasField("shape") and all(axis.HasField("dim_value") for axis in axes)
            shape = tuple(axis.dim_value for axis in axes) if closed else None
            shapes[value.name] = shape
            sizes[value.name] = None if shape is None else _bytes(shape, kind.elem_type)
        named = [(tensor.name, tensor) for tensor in graph.initializer]
        for node in graph.node:
            named += [(node.output[0], a.t) for a in node.attribute if a.HasField("t")]
        for name, tensor in named:
            shapes[name] = tuple(tensor.dims)
            sizes[name] = _bytes(tuple(tensor.dims), tensor.data_type)
    return shapes, sizes


def _bytes(shape: tuple[int, ...], element: int) -> int:
    # Four-bit types are packed in pairs; numpy has no such element.
    bits = 4 if onnx.TensorProto.DataType.Name(element) in ("INT4", "UINT4") else None
    bits = bits or 8 * helper.tensor_dtype_to_np_dtype(element).itemsize
    return -(-math.prod(shape) * bits // 8)


def _constants(graphs: list[GraphProto], nodes: list[NodeProto]) -> tuple[set[str], dict[str, str]]:
    """Names of constant values, and of widened integers with what they come from."""
    constants = {tensor.name for graph in graphs for tensor in graph.initializer}
    widened: dict[str, str] = {}
    for node in nodes:
        inputs = [name for name in node.input if name]
        # What a branch computes is not seen in the inputs of the node that has it.
        branches = any(attribute.HasField("g") for attribute in node.attribute)
        if not branches and all(name in constants for name in inputs):
            if node.op_type == _DEQUANTIZE:
                widened[node.output[0]] = inputs[0]
            else:
                constants |= set(node.output)
    return constants, widened


def _used(nodes: list[NodeProto], constants: set[str]) -> set[str]:
    """Constants that are still read once those that depend on constants alone are computed."""
    return {
        name
        for node in nodes
        if not constants.issuperset(node.output)
        for name in node.input
        if name in constants
    }


def _activation_bytes(
    nodes: list[NodeProto], sizes: dict[str, int | None], moving: set[str]
) -> int:
    """Largest sum of values between nodes that are alive at once, in the graph's own order."""
    reads = Counter(name for node in nodes for name in node.input if name in moving)
    alive = peak = 0
    for node in nodes:
        reads.subtract(name for name in node.input if name in moving)
        dying = [name for name in set(node.input) & moving if reads[name] == 0]
        results = [name for name in node.output if name in moving]
        freed = sum(sizes.get(name) or 0 for name in dying)
        needed = sum(sizes.get(name) or 0 for name in results)
        in_place = node.op_type not in _PRODUCTS and needed <= freed
        peak = max(peak, alive if in_place else alive + needed)
        alive += needed - freed
    return peak


def _multiply_adds(node: NodeProto, shapes: Shapes) -> int:
    """Of one node; 0 for everything but products, so that their sum is a lower bound."""
    out = shapes.get(node.output[0])
    left = shapes.get(node.input[0]) if node.input else None
    right = shapes.get(node.input[1]) if len(node.input) > 1 else None
    if out is None or left is None or right is None or node.op_type not in _PRODUCTS:
        return 0
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Conv":
        return math.prod(out) * math.prod(right[1:])
    if node.op_type == "MatMulNBits":
        return math.prod(out) * int(attributes["K"])
    if node.op_type == "Gemm":
        return math.prod(out) * left[0 if attributes.get("transA") else 1]
    # QLinearMatMul has scales between its operands, and Einsum a rule of its own.
    return math.prod(out) * left[-1] if node.op_type in ("MatMul", "MatMulInteger") and left else 0
