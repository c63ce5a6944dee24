"""The bundle's float32 graph as a torch module, node by node: eager, compiled, in int8."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn.functional import softplus

from lab.peers.base import Peer, fixed, states
from stategate.contract import Bundle
from stategate.contract.errors import MeasurementError
from stategate.runtime.base.buffers import Array

_Call = Callable[..., Tensor]
_AS_THEY_ARE: dict[str, _Call] = {
    "Add": torch.add,
    "Div": torch.div,
    "Exp": torch.exp,
    "Greater": torch.gt,
    "Log": torch.log,
    "MatMul": torch.matmul,
    "Max": torch.maximum,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Pow": torch.pow,
    "Reciprocal": torch.reciprocal,
    "Sigmoid": torch.sigmoid,
    "Softplus": softplus,
    "Sqrt": torch.sqrt,
    "Sub": torch.sub,
    "Where": torch.where,
}
_REDUCTIONS: dict[str, _Call] = {
    "ReduceMax": torch.amax,
    "ReduceMean": torch.mean,
    "ReduceSum": torch.sum,
}


class GraphStep(nn.Module):
    """Takes what the graph takes and gives what it gives, in their order.

    Raises:
        MeasurementError: An operator of the graph is not known here.
    """

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        graph = onnx.load_from_string(bundle.read(bundle.manifest.step_graph.file)).graph
        self._constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self.linears = nn.ModuleList()
        self.takes = [value.name for value in graph.input]
        self.gives = [value.name for value in graph.output]
        self._calls = [self._call(node) for node in graph.node]
        self._names = {name for _, names, _ in self._calls for name in names} & set(self._constants)
        for i, name in enumerate(sorted(self._names)):
            self.register_buffer(f"c{i}", torch.from_numpy(self._constants[name].copy()))

    def forward(self, *arrays: Tensor) -> tuple[Tensor, ...]:
        """One step."""
        values = dict(zip(self.takes, arrays, strict=True))
        values |= {name: getattr(self, f"c{i}") for i, name in enumerate(sorted(self._names))}
        for call, names, output in self._calls:
            values[output] = call(*(values[name] for name in names))
        return tuple(values[name] for name in self.gives)

    def _call(self, node: onnx.NodeProto) -> tuple[_Call, Sequence[str], str]:
        """What computes a node, from what, and what that is called."""
        kind, names, output = node.op_type, list(node.input), node.output[0]
        more = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if kind in ("Gemm", "MatMul") and names[1] in self._constants:
            return self._linear(names, bool(more.get("transB"))), names[:1], output
        if kind in _AS_THEY_ARE:
            return _AS_THEY_ARE[kind], names, output
        if kind == "Concat":
            return (lambda *parts: torch.cat(parts, more["axis"])), names, output
        rest = [self._constants[name].tolist() if name else None for name in names[1:]]
        if kind in _REDUCTIONS:
            reduce, keep = _REDUCTIONS[kind], bool(more.get("keepdims", 1))
            return (lambda x: reduce(x, dim=rest[0], keepdim=keep)), names[:1], output
        if kind == "Clip":
            low, high = [*rest, None][:2]
            return (lambda x: torch.clamp(x, low, high)), names[:1], output
        shaped = _SHAPES.get(kind)
        if shaped is not None:
            return (lambda x: shaped(x, *rest)), names[:1], output
        raise MeasurementError(
            "the graph has an operator that is not written in torch here", found=kind
        )

    def _linear(self, names: Sequence[str], turned: bool) -> nn.Linear:
        weight = torch.from_numpy(self._constants[names[1]].copy())
        weight = weight if turned else weight.T.contiguous()
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=len(names) > 2)
        with torch.no_grad():
            linear.weight.copy_(weight)
            if len(names) > 2:
                linear.bias.copy_(torch.from_numpy(self._constants[names[2]].copy()))
        self.linears.append(linear)
        return linear


def _reshape(x: Tensor, shape: Sequence[int]) -> Tensor:
    return x.reshape([n or x.shape[i] for i, n in enumerate(shape)])


def _squeeze(x: Tensor, axes: Sequence[int]) -> Tensor:
    return x.squeeze(tuple(axes))


def _unsqueeze(x: Tensor, axes: Sequence[int]) -> Tensor:
    for axis in axes:  # one in every graph here
        x = x.unsqueeze(axis)
    return x


def _slice(x: Tensor, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Tensor:
    index = [slice(None)] * x.ndim
    for i, axis in enumerate(axes or range(len(starts))):
        index[axis] = slice(starts[i], ends[i], steps[i] if steps else None)
    return x[tuple(index)]


_SHAPES: dict[str, _Call] = {
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
}


def opening(bundle: Bundle) -> dict[str, Array]:
    """What the graph takes in the first step, by name, inputs at zero."""
    step = bundle.manifest.step
    inputs = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in step.inputs}
    return {**inputs, **fixed(bundle), **states(bundle)}


class GraphTorch(Peer):
    """The module, stepped without gradients on one thread."""

    def __init__(self, bundle: str, compiled: bool, int8: bool) -> None:
        torch.set_num_threads(1)
        opened = Bundle.open(bundle)
        module: Any = GraphStep(opened).eval().requires_grad_(False)
        how = "int8 weights, " if int8 else ""
        if int8:
            from torchao.quantization import Int8WeightOnlyConfig, quantize_

            quantize_(module, Int8WeightOnlyConfig())
        takes, self._gives = module.takes, module.gives
        self._call: Any = torch.compile(module, fullgraph=True) if compiled else module
        self._feeds = {name: torch.from_numpy(opening(opened)[name]) for name in takes}
        self._carried = [(spec.name, spec.next_name) for spec in opened.manifest.states]
        self.engine = f"torch {torch.__version__} {how}{'compile' if compiled else 'eager'}"

    @torch.inference_mode()
    def step(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        """One step."""
        for name, array in inputs.items():
            self._feeds[name] = torch.from_numpy(array)
        given = dict(zip(self._gives, self._call(*self._feeds.values()), strict=True))
        for name, next_name in self._carried:
            self._feeds[name] = given[next_name]
        return {name: tensor.numpy() for name, tensor in given.items()}


def open_peer(bundle: str, compiled: bool = False, source: str | None = None) -> GraphTorch:
    """Eager or through ``torch.compile``; in int8 weights of torchao's, made of ``source``."""
    return GraphTorch(source or bundle, compiled, source is not None)
