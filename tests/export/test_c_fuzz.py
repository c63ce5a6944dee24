"""Graphs at random in C: what ONNX Runtime computes, in bounds, the same bits in three builds."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from stategate.bench.certify.builds import PLAIN, write_weights
from stategate.common.compiler import MATHS
from stategate.common.onnx_runtime import one_thread
from stategate.contract import GateSpec, StateSpec, StepSpec, TensorSpec
from stategate.contract.errors import LowerError
from stategate.export.c.lower import source_of

Shape = tuple[int, ...]
BUILDS = {
    # Without -fwrapv, and with every undefined conversion: nothing may rest upon either.
    "checked": ("-O0", "-fsanitize=address,undefined,float-cast-overflow", *MATHS[:3]),
    "fast": ("-O3", "-march=native", *MATHS),
    "plain": ("-O2", PLAIN, "weights.c", *MATHS),
}
MAIN = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
int stategate_compute(void *const *in, void *const *out);
static const size_t takes[] = {%s}, gives[] = {%s};
enum { INPUTS = sizeof takes / sizeof *takes, OUTPUTS = sizeof gives / sizeof *gives };
static void *in[INPUTS], *out[OUTPUTS];
int main(void)
{
    /* each of its own, so that what is beyond one is seen */
    for (int i = 0; i < INPUTS; ++i) in[i] = malloc(takes[i]);
    for (int i = 0; i < OUTPUTS; ++i) memset(out[i] = malloc(gives[i]), 7, gives[i]);
    for (;;) {
        for (int i = 0; i < INPUTS; ++i)
            if (fread(in[i], 1, takes[i], stdin) != takes[i]) return 0;
        if (stategate_compute(in, out) != 0) return 1;
        for (int i = 0; i < OUTPUTS; ++i) fwrite(out[i], 1, gives[i], stdout);
    }
}
"""
EXACT = ("Floor", "Ceil", "Round", "Sign", "Neg", "Abs", "Relu")
SMOOTH = (
    "Tanh", "Sigmoid", "Softplus", "Sin", "Cos", "Erf", "Softsign", "LeakyRelu", "Elu",
    "HardSigmoid", "Celu", "Mish", "HardSwish", "Selu", "ThresholdedRelu",
)  # fmt: skip
INTEGERS = ("int8", "uint8", "int32", "int64")


@dataclass(frozen=True)
class Value:
    """A tensor of the graph; exact where every engine gives the same bits of it."""

    name: str
    dtype: str
    shape: Shape
    exact: bool


class Graph:
    """A graph that grows node by node, each of tensors that are there."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.arrays: dict[str, np.ndarray] = {}
        shapes = [(1, self.size()), (1, self.size(), self.size())]
        self.values = [Value(f"x{i}", "float32", shape, True) for i, shape in enumerate(shapes)]
        self.values += [
            Value(dtype, dtype, (1, self.size()), True)
            for dtype in ("float64", "float16", "bool", *INTEGERS)
            if self.maybe(0.3)
        ]
        self.values.append(Value("s", "float32", (1, self.size()), True))
        self.inputs = tuple(self.values)

    def maybe(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def one(self, among: Sequence[Any]) -> Any:
        return among[int(self.rng.integers(len(among)))]

    def size(self) -> int:
        return int(self.one([1, 2, 3, 4, 5, 8, 16, 17, 33]))

    def constant(self, array: Any) -> str:
        name = f"c{len(self.arrays)}"
        self.arrays[name] = np.asarray(array)
        return name

    def number(self, *shape: int, dtype: str = "float32") -> np.ndarray:
        """Eighths, of which sums are exact, or small integers."""
        if dtype == "bool":
            return self.rng.random(shape) < 0.5
        if "int" in dtype:
            least = 0 if dtype[0] == "u" else -9
            return self.rng.integers(least, 10, shape).astype(dtype)
        return (self.rng.integers(-24, 25, shape) / 8).astype(dtype)

    def operand(self, array: Any, dtype: str, *, exact: bool = True) -> Value:
        """A constant as an operand."""
        return Value(self.constant(array), dtype, np.shape(array), exact)

    def add(
        self, operator: str, takes: Sequence[Value | str], shape: Sequence[int], *, dtype: str = "",
        exact: bool = True, **attributes: Any,
    ) -> Value:  # fmt: skip
        operands = [t for t in takes if isinstance(t, Value)]
        name = f"t{len(self.nodes)}"
        names = [t.name if isinstance(t, Value) else t for t in takes]
        more = [f"{name} places"] if operator == "TopK" else []
        self.nodes.append(helper.make_node(operator, names, [name, *more], **attributes))
        exact = exact and all(v.exact for v in operands)
        value = Value(name, dtype or operands[0].dtype, tuple(int(n) for n in shape), exact)
        if prod(shape) < 4000:
            self.values.append(value)
        return value

    def any(self, *dtypes: str, exact: bool = False, rank: int = 0) -> Value | None:
        result = [
            v
            for v in self.values
            if (not dtypes or v.dtype in dtypes) and v.exact >= exact and len(v.shape) >= rank
        ]
        return self.one(result[-8:] if self.maybe(0.6) else result) if result else None

    def partner(self, x: Value) -> Value:
        """Something to broadcast with."""
        if self.maybe(0.5):
            fitting = [v for v in self.values if v.dtype == x.dtype and joined(x.shape, v.shape)]
            return self.one(fitting)
        shape = [n if self.maybe(0.6) else 1 for n in x.shape[int(self.rng.integers(3)) :]]
        return self.operand(self.number(*shape, dtype=x.dtype), x.dtype)

    def axis(self, x: Value) -> int:
        return int(self.rng.integers(-len(x.shape), len(x.shape)))

    # Kinds of nodes.

    def unary(self) -> None:
        if x := self.any("float32", "float64"):
            self.add(self.one(EXACT[4:]), [x], x.shape)
        if x := self.any("float32", "float64", exact=True):
            self.add(self.one(EXACT), [x], x.shape)
        if x := self.any("float32"):
            self.add(self.one(SMOOTH), [x], x.shape, exact=False)

    def binary(self) -> None:
        if x := self.any("float32", "float64"):
            y = self.partner(x)
            operators = ["Add", "Sub", "Mul", "Max", "Min", "Mean", "Sum", "PRelu", "Div"]
            operator = self.one(operators[: 9 if x.dtype == "float32" else 5])
            if operator == "PRelu" and joined(x.shape, y.shape) != x.shape:
                operator = "Mul"
            if operator == "Div":
                y = self.add("Exp", [self.add("Tanh", [y], y.shape)], y.shape, exact=False)
            exact = operator not in ("Mul", "Mean", "PRelu", "Div")
            self.add(operator, [x, y], joined(x.shape, y.shape) or (), exact=exact)

    def integer(self) -> None:
        if x := self.any(*INTEGERS):
            y = self.partner(x)
            shape = joined(x.shape, y.shape) or ()
            self.add(self.one(["Add", "Sub", "Mul", "Max", "Min"]), [x, y], shape)
            by = self.operand(self.one([[3], [5]] if x.dtype[0] == "u" else [[-3], [7]]), x.dtype)
            self.arrays[by.name] = self.arrays[by.name].astype(x.dtype)
            self.add(self.one(["Div", "Mod"]), [x, by], x.shape)

    def logic(self) -> None:
        if x := self.any("float32", "int32", "int64", exact=True):
            y = self.partner(x)
            if y.exact:
                operator = self.one(["Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"])
                self.add(operator, [x, y], joined(x.shape, y.shape) or (), dtype="bool")
        if b := self.any("bool"):
            c = self.partner(b)
            shape = joined(b.shape, c.shape) or ()
            self.add(self.one(["And", "Or", "Xor"]), [b, c], shape)
            x = self.any("float32", "float64", "int64", "uint8")
            if x and joined(b.shape, x.shape):
                y = self.partner(x)
                if result := joined(joined(b.shape, x.shape) or (), y.shape):
                    self.add("Where", [b, x, y], result, dtype=x.dtype)

    def cast(self) -> None:
        if x := self.any(exact=True):
            dtype = self.one(["float32", "float64", "float16", "bool", *INTEGERS])
            if x.dtype.startswith("float") and "int" in dtype and dtype != "int64":
                dtype = "int32"  # of narrower ones machines disagree about what does not fit
            kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
            self.add("Cast", [x], x.shape, dtype=dtype, to=kind)

    def move(self) -> None:
        x = self.any(rank=1)
        if x is None:
            return
        at = self.axis(x)
        n, order = x.shape[at], [int(i) for i in self.rng.permutation(len(x.shape))]

        def resized(count: int) -> list[int]:
            return [count if i == at % len(x.shape) else n for i, n in enumerate(x.shape)]

        kind = self.one(["Reshape", "Transpose", "Slice", "Concat", "Gather", "Tile", "Pad"])
        if kind == "Reshape":
            form = [[prod(x.shape)], [1, *x.shape], [*x.shape, 1], [-1, 1]][int(order[0] % 4)]
            shape = [prod(x.shape), 1] if form[0] < 0 else form
            self.add("Reshape", [x, self.constant(np.array(form))], shape)
        elif kind == "Transpose":
            self.add("Transpose", [x], [x.shape[i] for i in order], perm=order)
        elif kind == "Slice":
            step = int(self.one([1, 1, 2, -1, -2]))
            ends = [0, n] if step > 0 else [n - 1, -n - 1]
            parts = [[ends[0]], [ends[1]], [at], [step]]
            shape = resized(len(range(n)[slice(ends[0], ends[1] if step > 0 else None, step)]))
            self.add("Slice", [x, *(self.constant(np.array(p)) for p in parts)], shape)
        elif kind == "Concat":
            self.add("Concat", [x, x], resized(2 * n), axis=at)
        elif kind == "Gather":
            places = self.rng.integers(-n, n, int(self.rng.integers(1, 4)))
            self.add("Gather", [x, self.constant(places)], resized(len(places)), axis=at)
        elif kind == "Tile" and x.dtype != "bool":
            times = [2 if i == at % len(x.shape) else 1 for i in range(len(x.shape))]
            self.add("Tile", [x, self.constant(np.array(times))], resized(2 * n))
        elif kind == "Pad" and x.dtype in ("float32", "int64"):
            pads = np.zeros(2 * len(x.shape), np.int64)
            pads[at % len(x.shape)] = n > 1
            mode = self.one(["constant", "edge", "reflect"])
            self.add("Pad", [x, self.constant(pads)], resized(n + int(n > 1)), mode=mode)

    def lookup(self) -> None:
        """Places that an input says."""
        i, x = self.any("int64", rank=1), self.any("float32", "int64", rank=2)
        if i is None or x is None:
            return
        n = x.shape[-1]
        place = self.add("Mod", [i, self.operand(np.array([n]), "int64")], i.shape)
        self.add("Gather", [x, place], [*x.shape[:-1], *i.shape], axis=-1)
        flat = self.add("Reshape", [place, self.constant([-1])], [prod(i.shape)])
        rows = self.add("Reshape", [x, self.constant([-1, n])], [prod(x.shape) // n, n])
        column = self.add("Unsqueeze", [flat, self.constant([0])], [1, prod(i.shape)])
        update = self.operand(self.number(1, prod(i.shape), dtype=x.dtype), x.dtype)
        self.add("ScatterElements", [rows, column, update], rows.shape, axis=1, reduction="add")
        self.add("GatherElements", [rows, column], column.shape, axis=1)

    def reduction(self) -> None:
        if x := self.any("float32", "int64", "int32", rank=1):
            axes = [int(a) for a in range(len(x.shape)) if self.maybe(0.5)]
            axes = axes or [len(x.shape) - 1]
            keep = int(self.maybe(0.5))
            shape = [1 if i in axes else n for i, n in enumerate(x.shape) if keep or i not in axes]
            kinds = ["ReduceSum", "ReduceMax", "ReduceMin"]
            if x.dtype == "float32":
                kinds += ["ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare"]
            kind = self.one(kinds)
            at = self.constant(np.array([a - len(x.shape) if self.maybe(0.3) else a for a in axes]))
            exact = kind in kinds[:3]
            self.add(kind, [x, at], shape, exact=exact, keepdims=keep)
        if x := self.any("float32", exact=True, rank=1):  # ties are the rule
            at = self.axis(x)
            one = [1 if i == at % len(x.shape) else n for i, n in enumerate(x.shape)]
            last = int(self.maybe(0.5))
            kind = self.one(["ArgMax", "ArgMin"])
            self.add(kind, [x], one, dtype="int64", axis=at, select_last_index=last)
            self.add("TopK", [x, self.constant([1])], one, axis=at, largest=last)
            self.add("CumSum", [x, self.constant(at)], x.shape, reverse=last)
            if x.exact:
                self.add("Hardmax", [x], x.shape, axis=at)

    def norm(self) -> None:
        if x := self.any("float32", rank=2):
            at = self.axis(x)
            self.add(self.one(["Softmax", "LogSoftmax"]), [x], x.shape, exact=False, axis=at)
            n = x.shape[-1]
            scale = self.constant(self.number(n))
            self.add("LayerNormalization", [x, scale], x.shape, exact=False, epsilon=0.5)

    def product(self) -> None:
        x = self.any("float32", rank=2)
        if x is None:
            return
        k, n = x.shape[-1], self.size()
        w = self.operand(self.number(k, n) / np.float32(k), "float32", exact=False)
        if self.maybe(0.5):
            quantised = self.rng.integers(-127, 128, (k, n)).astype(np.int8)
            scale = self.constant(np.full(n, 0.01 / k, np.float32))
            parts: list[Value | str] = [self.operand(quantised, "int8"), scale]
            w = self.add("DequantizeLinear", parts, (k, n), dtype="float32", exact=False, axis=1)
        self.add("MatMul", [x, w], [*x.shape[:-1], n], exact=False)
        if len(x.shape) == 3:
            weights = self.constant(self.number(n, x.shape[1], 1) / np.float32(x.shape[1]))
            self.add("Conv", [x, weights], [x.shape[0], n, k], exact=False)
            if x.shape[0] == 1:
                parts = [self.number(1, 3 * n, m) / np.float32(m) for m in (k, n)]
                names = [self.constant(p) for p in parts]
                y = self.add(
                    "GRU", [x, *names], (x.shape[0], 1, x.shape[1], n), exact=False, hidden_size=n
                )
                self.add("ReduceMean", [y, self.constant([1])], (1, x.shape[1], n), keepdims=0)
        if x.exact:
            zero = self.constant(np.int8(3))
            q = [x, self.constant(np.float32(0.25)), zero]
            self.add("QuantizeLinear", q, x.shape, dtype="int8")


def joined(a: Shape, b: Shape) -> Shape | None:
    try:
        return np.broadcast_shapes(a, b)
    except ValueError:
        return None


def built(seed: int) -> tuple[bytes, StepSpec, Graph]:
    """A step with outputs, a gate that opens in about half of all steps, and what it guards."""
    graph = Graph(seed)
    kinds: list[Callable[[], None]] = [
        graph.unary, graph.binary, graph.binary, graph.integer, graph.logic, graph.cast, graph.move,
        graph.move, graph.lookup, graph.reduction, graph.norm, graph.product,
    ]  # fmt: skip
    for _ in range(int(graph.rng.integers(4, 16))):
        graph.one(kinds)()
    results = [v for v in graph.values if v not in graph.inputs]
    results = [results[i] for i in graph.rng.permutation(len(results))[:12]] or [graph.inputs[0]]
    outputs = []
    for v in results:
        name, shape = f"y{len(outputs)}", (1, *v.shape)
        form = graph.constant(np.array(shape))
        graph.nodes.append(helper.make_node("Reshape", [v.name, form], [name]))
        outputs.append(TensorSpec(name, shape, v.dtype))
    state = graph.inputs[-1]
    gate = helper.make_node("ReduceMean", ["x0", graph.constant([1])], ["g"])
    source = graph.one([v for v in results if v.dtype == "float32"] or [state])
    total = helper.make_node("ReduceSum", [source.name], ["sum"], keepdims=0)
    after = helper.make_node("Add", ["s", "sum"], ["s_next"])
    graph.nodes += [gate, total, after]
    spec = StepSpec(
        inputs=tuple(TensorSpec(v.name, v.shape, v.dtype) for v in graph.inputs[:-1]),
        outputs=tuple(outputs),
        states=(StateSpec("s", state.shape, gate="g"),),
        gates=(GateSpec("g", "hard", (1, 1), 0.0, "threshold"),),
    )
    infos = [
        [
            helper.make_tensor_value_info(
                n, helper.np_dtype_to_tensor_dtype(np.dtype(t.dtype)), t.shape
            )
            for n, t in side.items()
        ]
        for side in (spec.graph_inputs(), spec.graph_outputs())
    ]
    weights = [numpy_helper.from_array(a, n) for n, a in graph.arrays.items()]
    body = helper.make_graph(graph.nodes, f"seed{seed}", *infos, weights)
    opsets = [helper.make_opsetid("", 18)]
    model = helper.make_model(body, opset_imports=opsets, ir_version=9)
    return model.SerializeToString(), spec, graph


def results_of(
    folder: Path, spec: StepSpec, files: Mapping[str, bytes], data: bytes, steps: int
) -> dict[str, list[dict[str, np.ndarray]]]:
    """What the C gives for each step, by build."""
    sizes = [
        ", ".join(str(t.nbytes) for t in side.values())
        for side in (spec.graph_inputs(), spec.graph_outputs())
    ]
    for name, text in {**files, "main.c": (MAIN % tuple(sizes)).encode()}.items():
        (folder / name).write_bytes(text)
    sources = [n for n in (*files, "main.c") if n[-2:] == ".c" and n not in ("python.c",)]
    write_weights(folder, folder)
    results = {}
    for build, flags in BUILDS.items():
        words = ["cc", "-std=gnu11", "-w", *flags, "-fno-sanitize-recover=all", *sources, "-lm"]
        subprocess.run([*words, "-o", build], cwd=folder, check=True)
        run = subprocess.run([folder / build], input=data, capture_output=True, cwd=folder)
        assert run.returncode == 0, run.stderr.decode()[-2000:]
        at, results[build] = 0, []
        for _ in range(steps):
            result = {}
            for name, t in spec.graph_outputs().items():
                part = run.stdout[at : at + t.nbytes]
                result[name] = np.frombuffer(part, t.dtype).reshape(t.shape)
                at += t.nbytes
            results[build].append(result)
    return results


def check(seed: int, folder: Path) -> str:
    """Compare one graph; what became of it."""
    raw, spec, graph = built(seed)
    session = onnxruntime.InferenceSession(
        raw, one_thread(onnxruntime.SessionOptions()), ["CPUExecutionProvider"]
    )
    try:
        source = source_of(raw, spec, {})
    except LowerError as problem:
        return str(problem)
    takes = spec.graph_inputs()
    feeds = [{n: graph.number(*t.shape, dtype=t.dtype) for n, t in takes.items()} for _ in range(3)]
    for feed in feeds:
        feed["threshold"][...] = 0.0
    feeds.append(feeds[0])  # nothing is left behind by the steps between
    data = b"".join(array.tobytes() for feed in feeds for array in feed.values())
    results = results_of(folder, spec, source.files, data, len(feeds))
    names = list(spec.graph_outputs())
    for i, feed in enumerate(feeds):
        expected = dict(zip(names, session.run(names, feed), strict=True))
        checked, *others = (results[build][i] for build in BUILDS)
        is_open = bool(expected["g"].item() > 0)
        for name in names if is_open else names[:-1]:
            result, right = checked[name], expected[name]
            if not source.inexact:
                for other in others:
                    assert result.tobytes() == other[name].tobytes(), f"{name}: two builds differ"
            limit = 0.02 if right.dtype == np.float16 else 2e-4
            np.testing.assert_allclose(
                result, right, rtol=limit, atol=limit, equal_nan=True, err_msg=name
            )
            if i == 3:
                assert result.tobytes() == results["checked"][0][name].tobytes(), name
    return "right"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(24))
def test_graphs_at_random_compute_in_c_what_onnxruntime_computes(seed: int, tmp_path: Path) -> None:
    result = check(seed, tmp_path)
    assert result == "right" or "is not written as C" in result, result
