"""Graphs in this machine's ONNX Runtime: whether they run, and which of them is faster."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto

from stategate.common.onnx_runtime import one_thread
from stategate.common.timing import TimedCall, time_in_turns
from stategate.contract import StepSpec
from stategate.contract.errors import GraphError
from stategate.contract.failures import failures, first_line

WARM_UP = 50
ROUNDS = 400


def optimised(graph: bytes) -> onnxruntime.InferenceSession:
    """The graph as the runtime steps it, in one thread."""
    options = one_thread(onnxruntime.SessionOptions())
    return onnxruntime.InferenceSession(graph, options, ["CPUExecutionProvider"])


def sample(spec: StepSpec) -> dict[str, np.ndarray]:
    """A value for every input of a step: noise, thresholds, and zeros for states and integers."""
    rng = np.random.default_rng(0)
    feeds = {name: np.zeros(t.shape, t.dtype) for name, t in spec.graph_inputs().items()}
    for tensor in spec.inputs:
        if tensor.dtype == "float32":
            feeds[tensor.name] = rng.standard_normal(tensor.shape).astype(np.float32)
    return feeds | {c.name: c.array() for c in spec.fixed_inputs}


def medians_us(graphs: Mapping[str, bytes], feeds: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Median microseconds of each graph that this ONNX Runtime can load, turn by turn."""
    calls = {}
    for name, graph in graphs.items():
        try:
            session = optimised(graph)
        except failures(library="onnxruntime"):  # an older one lacks operators
            continue
        binding = session.io_binding()
        for node in session.get_inputs():
            binding.bind_cpu_input(node.name, feeds[node.name])
        for node in session.get_outputs():
            binding.bind_output(node.name)
        calls[name] = TimedCall(session.run_with_iobinding, (binding,))
    spans_ns = time_in_turns(calls, rounds=ROUNDS, warm_up=WARM_UP)
    return {name: float(np.median(spans)) / 1000.0 for name, spans in spans_ns.items()}


def check_runs(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> None:
    """Run a step once if it computes in other numbers than float32.

    ONNX Runtime takes those in some operators only, and says so when a session is opened or run.
    """
    codes = {t.data_type for t in model.graph.initializer}
    codes |= {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.value_info)}
    codes |= {a.i for n in model.graph.node if n.op_type == "Cast" for a in n.attribute}
    kinds = {TensorProto.BFLOAT16: "bfloat16", TensorProto.FLOAT16: "float16"}
    kinds[TensorProto.DOUBLE] = "float64"
    others = [name for code, name in kinds.items() if code in codes]
    if not others:
        return
    try:
        optimised(model.SerializeToString()).run(None, dict(feeds))
    except failures() as problem:  # its errors have no common base
        raise GraphError(
            f"ONNX Runtime cannot compute this step in {' and '.join(others)}",
            found=first_line(problem),
            expected="float32",
            remedy="give lift or the step module.float(), with inputs and first values in float32, "
            "and leave casts to other types and torch.autocast out of its forward",
        ) from problem


def median_us(graph: bytes, spec: StepSpec) -> float:
    """Median time of one step, see `medians_us`; NaN where this ONNX Runtime cannot load it."""
    return medians_us({"step": graph}, sample(spec)).get("step", float("nan"))
