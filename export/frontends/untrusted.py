"""ONNX files of strangers: looked at before they are loaded, and run within limits.

A graph is a program. Its loops may never end, it may ask for any amount of memory, and its weights
may lie in other files, which may be anything.
"""

from __future__ import annotations

import resource
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from stategate.common.onnx_runtime import one_thread
from stategate.contract.errors import GraphError
from stategate.contract.failures import failures, first_line
from stategate.contract.reading import open_regular, read_bounded

GRAPH_BYTES = (1 << 31) - 1  # of a graph with its weights: what protobuf writes in one piece
# Of one plain step. A step that takes a second is of no use on a device; this one runs without
# optimisations, and perhaps on a busy machine.
STEP_SECONDS = 60.0


def load_graph(path: Path) -> tuple[bytes, onnx.ModelProto]:
    """A graph as its file has it, and parsed; weights that lie in other files are taken in."""
    try:
        raw = read_bounded(path, GRAPH_BYTES)
        model = onnx.load_model_from_string(raw)
        outside = [t for t in _tensors(model) if onnx.external_data_helper.uses_external_data(t)]
        if outside:
            _check_outside(path.parent, len(raw), outside)
            onnx.load_external_data_for_model(model, str(path.parent))
            raw = model.SerializeToString(deterministic=True)
        onnx.checker.check_model(model)
        # What looks into a graph later is stricter than the checker.
        ir.from_proto(model)
        for tensor in _tensors(model):
            if tensor.data_type:
                onnx.numpy_helper.to_array(tensor)  # a view where the bytes are raw
    except OSError as problem:
        raise GraphError("the file cannot be read", found=f"{path}: {problem}") from problem
    except GraphError:
        raise
    except failures() as problem:  # protobuf and the checker raise unrelated types
        raise GraphError(
            f"{path} is not a valid ONNX file",
            found=first_line(problem),
            expected="a complete .onnx file",
        ) from problem
    return raw, model


def _check_outside(folder: Path, size: int, tensors: Sequence[onnx.TensorProto]) -> None:
    """Look at the files of weights before they are read; one may be named many times."""
    for tensor in tensors:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        file = folder / entries.get("location", "")
        if not file.resolve().is_relative_to(folder.resolve()):
            raise GraphError(
                "the graph names weights outside of its folder",
                found=entries.get("location"),
                remedy="copy the file next to the graph, and correct the graph",
            )
        open_regular(file, GRAPH_BYTES).close()
        size += int(entries.get("length") or file.stat().st_size)
        if size > GRAPH_BYTES:
            raise GraphError(
                "the graph and its weights are too large for one file of ONNX",
                found=f"{size:,} bytes and more",
                expected=f"at most {GRAPH_BYTES:,}",
            )


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a file, wherever it is: what is missed here would be read unseen."""
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes += graph.node
        for attribute in (attribute for node in nodes for attribute in node.attribute):
            yield from (attribute.t, *attribute.tensors)  # a field that is not set is empty
            graphs += (attribute.g, *attribute.graphs)
        nodes = []


def unoptimised(graph: bytes) -> onnxruntime.InferenceSession:
    """The graph as its author would run it, in one thread."""
    options = one_thread(onnxruntime.SessionOptions())
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def run_within_limits(
    session: onnxruntime.InferenceSession,
    names: Sequence[str],
    feed: Mapping[str, np.ndarray],
    seconds: float | None = None,
    memory: int | None = None,
) -> list[np.ndarray]:
    """One run that ends in time, and takes no more memory than the machine has free.

    ``memory`` is what it may take on top of what the process has, in bytes, on Linux.
    """
    seconds = STEP_SECONDS if seconds is None else seconds
    options = onnxruntime.RunOptions()
    late = threading.Event()

    def stop() -> None:
        late.set()
        options.terminate = True

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        with _within_free_memory(memory):
            arrays: list[np.ndarray] = session.run(list(names), dict(feed), options)
        return arrays
    except failures() as problem:
        if not late.is_set():
            raise
        raise GraphError(
            "one step of the graph does not end",
            found=f"still running after {seconds:g} seconds",
            expected="a step for a device, which takes milliseconds",
            remedy="look for a Loop whose number of rounds is too large, or depends on an input",
        ) from problem
    finally:
        timer.cancel()


@contextmanager
def _within_free_memory(most: int | None) -> Iterator[None]:
    """Let an allocation beyond what is free fail, before the system ends some process for it."""
    if sys.platform != "linux":
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    free = Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]
    room = int(free) * 1024
    limit = pages * resource.getpagesize() + (room if most is None else min(room, most))
    if before[0] != resource.RLIM_INFINITY:
        limit = min(limit, before[0])
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
