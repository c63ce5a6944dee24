"""Small graphs in C that were wrong once: each computes what ONNX Runtime computes."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from stategate.common.compiler import compile_library
from stategate.common.onnx_runtime import one_thread
from stategate.contract import StateSpec, StepSpec, TensorSpec
from stategate.export.c import generator
from stategate.export.c.lower import source_of

Shapes = Mapping[str, tuple[int, ...]]
RNG = np.random.default_rng(5)


def in_c(
    folder: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Shapes,
    outputs: Shapes,
    arrays: Mapping[str, np.ndarray],
    flag: str = "-O0",
    opset: int = 18,
) -> tuple[bytes, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A graph with a state that only stands by, what it was fed, and what its C gave."""
    spec = StepSpec(
        inputs=tuple(TensorSpec(*item) for item in inputs.items()),
        outputs=tuple(TensorSpec(*item) for item in outputs.items()),
        states=(StateSpec("s", (1, 1)),),
    )
    infos = [
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, t.shape) for n, t in side.items()]
        for side in (spec.graph_inputs(), spec.graph_outputs())
    ]
    weights = [numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items()]
    body = helper.make_graph(
        [*nodes, helper.make_node("Neg", ["s"], ["s_next"])], "small", *infos, weights
    )
    opsets = [helper.make_opsetid("", opset)]
    graph = helper.make_model(body, opset_imports=opsets, ir_version=7).SerializeToString()
    rng = np.random.default_rng(6)
    takes = {
        name: rng.standard_normal(t.shape).astype(np.float32)
        for name, t in spec.graph_inputs().items()
    }
    results = {n: np.full(t.shape, np.nan, np.float32) for n, t in spec.graph_outputs().items()}
    (folder / "lib.so").write_bytes(
        compile_library(source_of(graph, spec, {}).files, extra=[flag]).library
    )
    tables = [
        (ctypes.c_void_p * len(side))(*(array.ctypes.data for array in side.values()))
        for side in (takes, results)
    ]
    assert ctypes.CDLL(str(folder / "lib.so")).stategate_compute(*tables) == 0
    return graph, takes, results


def agree(*arguments: Any, **options: Any) -> None:
    """Compare a graph in C with the same in ONNX Runtime; see `in_c`."""
    graph, takes, results = in_c(*arguments, **options)
    session = onnxruntime.InferenceSession(
        graph, one_thread(onnxruntime.SessionOptions()), ["CPUExecutionProvider"]
    )
    for (name, array), expected in zip(
        results.items(), session.run(list(results), takes), strict=True
    ):
        np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-5, err_msg=name)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


node = helper.make_node


@pytest.mark.slow
@pytest.mark.parametrize(
    ("columns", "bias"), [(5, (1, 1, 1, 5)), (5, (5,)), (1, ()), (1, (1, 1, 1)), (4, (4, 1))]
)
def test_a_bias_may_have_more_axes_than_its_product_or_none(
    tmp_path: Path, columns: int, bias: tuple[int, ...]
) -> None:
    rows = 4 if bias == (4, 1) else 1
    nodes = [
        node("MatMul", ["x", "w"], ["product"]),
        node("Add", ["product", "bias"], ["sum"]),
        node("Softmax", ["sum"], ["soft"]),
        node("Reshape", ["soft", "form"], ["y"]),
    ]
    arrays = {
        "w": floats(6, columns), "bias": floats(*bias), "form": np.array([1, rows * columns]),
    }  # fmt: skip
    agree(tmp_path, nodes, {"x": (rows, 6)}, {"y": (1, rows * columns)}, arrays)


@pytest.mark.parametrize("is_computed", [True, False])
def test_a_turned_column_may_be_computed_element_by_element(
    tmp_path: Path, is_computed: bool
) -> None:
    nodes = [
        node("Reshape", ["x", "column"], ["x_column"]),
        node("Tanh", ["x_column"], ["a"]),
        node("Neg", ["m"], ["b"]),
        node("Gemm", ["a", "b" if is_computed else "w"], ["y"], transA=1),
    ]
    arrays = {"column": np.array([6, 1]), "w": floats(6, 3)}
    agree(tmp_path, nodes, {"x": (1, 6), "m": (6, 3)}, {"y": (1, 3)}, arrays)


@pytest.mark.parametrize(
    ("operator", "dtype", "inexact"),
    [("Celu", "float32", False), ("Tan", "float32", True), ("Exp", "float64", True)],
)
def test_operators_whose_last_bits_a_c_library_decides_are_listed(
    operator: str, dtype: str, inexact: bool
) -> None:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    x, y, s, after = (helper.make_tensor_value_info(n, kind, (1, 4)) for n in "xyst")
    nodes = [node(operator, ["x"], ["y"]), node("Neg", ["s"], ["t"])]
    body = helper.make_graph(nodes, "small", [x, s], [y, after])
    opsets = [helper.make_opsetid("", 18)]
    x, y = (TensorSpec(name, (1, 4), dtype) for name in "xy")
    spec = StepSpec((x,), (y,), (StateSpec("s", (1, 4), dtype, next_name="t"),))
    graph = helper.make_model(body, opset_imports=opsets, ir_version=8).SerializeToString()
    assert source_of(graph, spec, {}).inexact == ((f"ai.onnx.{operator}",) if inexact else ())


def test_a_graph_may_have_the_names_that_the_engine_gives(tmp_path: Path) -> None:
    own = [
        "max",
        "sum",
        "minus",
        "exp",
        "mean",
        "centred",
        "square",
        "variance",
        "plus",
        "root",
        "unit",
        "scaled",
        "epsilon",
    ]
    other = ["copy", "product", "w", "init", "b", "bias", "turned", "last0"]
    names = [f"{of}.{what}" for of in ("soft", "norm", "dense", "h") for what in (*own, *other)]
    nodes = [node("Mul", ["x", f"{name} factor"], [name]) for name in names]
    nodes += [
        node("Softmax", ["x"], ["soft"]),
        node("LayerNormalization", ["soft", "scale", "bias"], ["norm"]),
        node("Gemm", ["norm", "weights", "x"], ["dense"]),
        node("Unsqueeze", ["dense", "first"], ["sequence"]),
        node("RNN", ["sequence", "rw", "rr"], ["h"], hidden_size=6),
        node("Concat", ["dense", *names], ["all"], axis=1),
        node("Reshape", ["h", "form"], ["last"]),
    ]
    arrays = {f"{name} factor": np.float32(i) for i, name in enumerate(names)} | {
        "scale": floats(6), "bias": floats(6), "weights": floats(6, 6), "first": np.array([0]),
        "rw": floats(1, 6, 6), "rr": floats(1, 6, 6), "form": np.array([1, 6]),
    }  # fmt: skip
    outputs = {"all": (1, 6 * len(names) + 6), "last": (1, 6)}
    agree(tmp_path, nodes, {"x": (1, 6)}, outputs, arrays)


def test_a_narrow_convolution_runs_with_few_optimisations_too(tmp_path: Path) -> None:
    """At -O1, gcc 12 copies a local array as if it lay at a multiple of 16 bytes."""
    nodes = [node("Conv", ["x", "w"], ["y"], pads=[3, 1])]
    agree(tmp_path, nodes, {"x": (1, 1, 8)}, {"y": (1, 3, 12)}, {"w": floats(3, 1, 1)}, "-O1")


@pytest.mark.parametrize(
    ("shape", "w", "attributes", "result"),
    [
        ((2, 3, 7, 9), (10, 3, 3, 2), {"strides": [2, 3], "pads": [1, 0, 2, 1]}, (2, 10, 4, 3)),
        ((1, 6, 5, 11), (24, 2, 2, 3), {"dilations": [3, 2], "group": 3}, (1, 24, 2, 7)),
        ((1, 4, 6, 5), (8, 4, 1, 1), {}, (1, 8, 6, 5)),
        ((1, 5, 13), (17, 5, 4), {"dilations": [2], "strides": [3], "pads": [6, 0]}, (1, 17, 5)),
        ((1, 5, 13), (9, 5, 3), {"auto_pad": "SAME_UPPER", "strides": [2]}, (1, 9, 7)),
        ((1, 3, 2), (8, 3, 2), {"pads": [4, 4], "dilations": [5], "strides": [4]}, (1, 8, 2)),
    ],
)
def test_convolutions_of_many_results_walk_strides_padding_and_groups(
    tmp_path: Path,
    shape: tuple[int, ...],
    w: tuple[int, ...],
    attributes: dict[str, Any],
    result: tuple[int, ...],
) -> None:
    nodes = [node("Conv", ["x", "w", "b"], ["y"], **attributes)]
    agree(tmp_path, nodes, {"x": shape}, {"y": result}, {"w": floats(*w), "b": floats(w[0])})


def test_a_convolution_whose_taps_all_lie_in_the_padding_is_its_bias(tmp_path: Path) -> None:
    nodes = [node("Conv", ["x", "w", "b"], ["y"], pads=[1, 1], dilations=[2], strides=[2])]
    arrays = {"w": floats(2, 1, 2), "b": floats(2)}
    agree(tmp_path, nodes, {"x": (1, 1, 1)}, {"y": (1, 2, 1)}, arrays)


Form = tuple[str, list[str], dict[str, Any], tuple[int, ...]]


PADS: dict[str, tuple[list[int], list[int] | None]] = {  # pads of the axes, and which axes
    "constant": ([0, 1, -1, 2, 0, 1], None),
    "reflect": ([0, 2, 3, 0, 1, 2], None),
    "edge": ([3, -1], [-1]),
    "wrap": ([2, -1, 3, 2], [2, 1]),
}


def test_pads_of_every_mode_are_loops_of_our_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generator, "c_of", None)
    arrays, nodes, shapes = {"seven": np.float32(7)}, [node("Tanh", ["x"], ["t"])], {}
    for mode, (pads, axes) in PADS.items():
        arrays[f"{mode} pads"] = np.array(pads)
        takes = [f"{mode} pads", "seven" if mode == "constant" else ""]
        if axes:
            arrays[f"{mode} axes"] = np.array(axes)
            takes.append(f"{mode} axes")
        form = [1, 3, 4]
        for i, axis in enumerate(axes or range(3)):
            form[axis] += sum(pads[i :: len(pads) // 2])
        for source in ("x", "t"):
            nodes.append(node("Pad", [source, *takes], [f"{mode} {source}"], mode=mode))
            shapes[f"{mode} {source}"] = tuple(form)
    nodes.append(node("Squeeze", ["v"], ["value"]))
    nodes.append(node("Pad", ["x", "constant pads", "value"], ["computed"]))
    shapes["computed"] = shapes["constant x"]
    agree(tmp_path, nodes, {"x": (1, 3, 4), "v": (1, 1)}, shapes, arrays, opset=20)


def forms_of(opset: int) -> tuple[list[Form], dict[str, np.ndarray]]:
    """Operators whose form or meaning an opset changed, of x (1, 3, 4), and constants of theirs."""
    x, flat = (1, 3, 4), (1, 1, 3, 4)
    scale = np.array([1, 1, 2, 2], np.float32)
    arrays = {"scale": scale, "roi": np.zeros(0, np.float32), "bn": np.full(3, 0.7, np.float32)}
    forms: list[Form] = [(s, ["x"], {}, x) for s in ("Softmax", "LogSoftmax", "Hardmax", "Dropout")]
    for axis in (1, -2, 2):
        forms += [(s, ["x"], {"axis": axis}, x) for s in ("Softmax", "LogSoftmax", "Hardmax")]
    forms.append(("BatchNormalization", ["x", *["bn"] * 4], {"epsilon": 0.1}, x))
    if opset < 10:
        forms.append(("Upsample", ["x4", "scale"], {"mode": "nearest"}, (1, 1, 6, 8)))
        forms.append(("Upsample", ["x4", "scale"], {"mode": "linear"}, (1, 1, 6, 8)))
    elif opset > 10:
        forms.append(("Resize", ["x4", "roi", "scale"], {"mode": "nearest"}, (1, 1, 6, 8)))
        forms.append(("Resize", ["x4", "roi", "scale"], {"mode": "linear"}, (1, 1, 6, 8)))

    def add(operator: str, since: int, form: tuple[int, ...], **values: Any) -> None:
        """With these as attributes before an opset, and as inputs from it on."""
        inputs = [f"{operator} {name}" for name in values]
        if opset >= since:
            kinds = {"Clip": np.float32}
            kind = kinds.get(operator, np.int64)
            arrays.update(zip(inputs, (np.array(v, kind) for v in values.values()), strict=True))
        as_inputs, as_attributes = (inputs, {}) if opset >= since else ([], values)
        forms.append((operator, ["x", *as_inputs], as_attributes, form))

    add("Slice", 10, (1, 2, 2), starts=[1, 0], ends=[3, 2], axes=[1, 2])
    add("Clip", 11, x, min=-0.2, max=0.3)
    add("Pad", 11, (1, 4, 6), pads=[0, 1, 2, 0, 0, 0])
    add("ReduceSum", 13, (1, 3, 1), axes=[-1] if opset > 10 else [2])
    add("ReduceL2", 18, (1, 1, 4), axes=[1])
    add("Squeeze", 13, (3, 4), axes=[0])
    add("Unsqueeze", 13, flat, axes=[0])
    return forms, arrays


@pytest.mark.slow
@pytest.mark.parametrize(
    "opset", [11, 18, *(pytest.param(opset, marks=pytest.mark.slow) for opset in (9, 10, 13))]
)
def test_operators_of_old_opsets_mean_what_they_meant_there(tmp_path: Path, opset: int) -> None:
    forms, arrays = forms_of(opset)
    nodes = [node("Reshape", ["x", "four"], ["x4"])]
    nodes += [node(o, takes, [f"y{i}"], **a) for i, (o, takes, a, _) in enumerate(forms)]
    # An output has a batch in front.
    outputs = {f"y{i}": form for i, (*_, form) in enumerate(forms) if form[0] == 1}
    for i, (*_, form) in enumerate(forms):
        if form[0] != 1:
            nodes.append(node("Reshape", [f"y{i}", f"batch{i}"], [f"z{i}"]))
            arrays[f"batch{i}"] = np.array([1, *form])
            outputs[f"z{i}"] = (1, *form)
    arrays["four"] = np.array([1, 1, 3, 4])
    used = {name for each in nodes for name in each.input}
    arrays = {name: array for name, array in arrays.items() if name in used}
    agree(tmp_path, nodes, {"x": (1, 3, 4)}, outputs, arrays, opset=opset)


def test_integers_and_casts_that_c_leaves_open_have_one_answer(tmp_path: Path) -> None:
    """Quotients towards zero, remainders with the sign that ONNX says, sums that go around."""
    large = float(2**31)
    numbers = np.array([[np.nan, np.inf, -np.inf, large, -large, 300.7, -1.5]], np.float32)
    ends = np.array([[2**31 - 1, -(2**31), 7, -7, -7, 7, 5]], np.int32)
    by = np.array([[-1, -1, 2, 2, -2, -2, 3]], np.int32)
    arrays = {"numbers": numbers, "ends": ends, "by": by}
    nodes = [
        node("Sub", ["x", "x"], ["zero"]),  # what is constant would be computed at export
        node("Add", ["numbers", "zero"], ["n"]),
        node("Cast", ["zero"], ["none"], to=TensorProto.INT32),
        node("Add", ["ends", "none"], ["a"]),
        node("Add", ["by", "none"], ["b"]),
        node("Cast", ["n"], ["i32"], to=TensorProto.INT32),
        node("Cast", ["n"], ["i64"], to=TensorProto.INT64),
        node("Cast", ["n"], ["truth"], to=TensorProto.BOOL),
        node("Add", ["a", "a"], ["sum"]),
        node("Mul", ["a", "b"], ["product"]),
        node("Sub", ["b", "a"], ["difference"]),
        node("Neg", ["a"], ["negative"]),
        node("Div", ["a", "b"], ["quotient"]),
        node("Mod", ["a", "b"], ["mod"]),
        node("Mod", ["a", "b"], ["fmod"], fmod=1),
    ]
    c = {
        "i32": [-large] * 5 + [300, -1], "i64": [-(2.0**63)] * 3 + [large, -large, 300, -1],
        "truth": [1] * 7, "sum": [-2, 0, 14, -14, -14, 14, 10],
        "product": [1 - large, -large, 14, -14, 14, -14, 15],
        "difference": [-large, large - 1, -5, 9, 5, -9, -2],
        "negative": [1 - large, -large, -7, 7, 7, -7, -5],
        "quotient": [1 - large, -large, 3, -3, 3, -3, 1],
        "mod": [0, 0, 1, 1, -1, -1, 2], "fmod": [0, 0, 1, -1, -1, 1, 2],
    }  # fmt: skip
    for name, right in c.items():
        arrays[f"right {name}"] = np.array([right], np.float64)
        nodes += [
            node("Cast", [name], [f"double {name}"], to=TensorProto.DOUBLE),
            node("Equal", [f"double {name}", f"right {name}"], [f"equal {name}"]),
            node("Cast", [f"equal {name}"], [f"y {name}"], to=TensorProto.FLOAT),
        ]
    outputs = {f"y {name}": (1, 7) for name in c}
    *_, results = in_c(tmp_path, nodes, {"x": (1, 1)}, outputs, arrays)
    for name in outputs:
        np.testing.assert_array_equal(results[name], np.ones((1, 7)), err_msg=name)


EQUATIONS = (
    "btgi,gih->btgh",
    "bhd,bhdm->bhm",
    "bhd,bhm->bhdm",
    "bhd,bhd",
    "dhb,bhx->xh",
    "bh,bh->hb",
    "b,->b",
    "bhtd->thb",  # one operand, summed over d
    "dbd->b",  # a trace
    "bdbd->db",  # two diagonals
    "bii,ib->b",
    "bhdm,bhgd,bhgm->bhg",  # test-time training of the second order
    "bhgd,bhgm,bhgi->bhdmi",
    "...d,...d->...",
    "...hd,...md",
    "d,...md->...m",
    "xh,bh->xb",  # x is 1
    "B h, B d -> B h d",
    "bhd,bdhm->mb",
    "bh,dig->b",  # letters that nothing else has
)


@pytest.mark.case("B18")
def test_einsum_is_written_here_whatever_its_letters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("stategate.export.c.generator.c_of")  # of the other generator
    sizes = {"b": 2, "t": 3, "g": 4, "i": 5, "h": 6, "d": 7, "m": 8, "x": 1, "B": 3}
    feeds: dict[str, np.ndarray] = {"p": floats(2, 4, 3), "q": floats(1, 1, 3)}
    right, nodes = {"z": np.einsum("abc,abc->ab", *feeds.values())}, []  # one place for all
    nodes.append(helper.make_node("Einsum", [*feeds], ["z"], equation="abc,abc->ab"))
    for number, equation in enumerate(EQUATIONS):
        terms = equation.replace(" ", "").partition("->")[0].split(",")
        shapes = [[2, 3] * ("..." in t) + [sizes[c] for c in t if c != "."] for t in terms]
        own = {f"x{number}_{i}": floats(*shape) for i, shape in enumerate(shapes)}
        feeds |= own
        right[f"z{number}"] = np.einsum(equation, *own.values())
        nodes.append(helper.make_node("Einsum", [*own], [f"z{number}"], equation=equation))
    inputs = {name: array.shape for name, array in feeds.items()}
    agree(tmp_path, nodes, inputs, {name: array.shape for name, array in right.items()}, {})


def test_einsum_of_half_floats_is_computed_in_whole_ones(tmp_path: Path) -> None:
    nodes = [node("Cast", [name], [f"{name}h"], to=TensorProto.FLOAT16) for name in "ab"]
    nodes.append(node("Einsum", ["ah", "bh"], ["h"], equation="xij,xjk->xik"))
    nodes.append(node("Cast", ["h"], ["y"], to=TensorProto.FLOAT))
    _, takes, results = in_c(
        tmp_path, nodes, {"a": (1, 2, 5), "b": (1, 5, 3)}, {"y": (1, 2, 3)}, {}
    )
    halves = [takes[name].astype(np.float16).astype(np.float32) for name in "ab"]
    expected = np.einsum("xij,xjk->xik", *halves)
    np.testing.assert_allclose(results["y"], expected, rtol=2**-10, atol=1e-6)


def test_einsum_over_several_letters_is_one_product_of_matrices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("stategate.export.c.program.Program.reduce")  # is fifty times slower
    nodes = [node("Einsum", ["x", "w"], ["y"], equation="bthd,hdk->btk")]
    agree(tmp_path, nodes, {"x": (1, 3, 4, 5)}, {"y": (1, 3, 9)}, {"w": floats(4, 5, 9)})
