"""Whatever a graph calls its tensors, its C compiles and computes the same."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import helper

from stategate.common.compiler import compile_library
from stategate.contract import GateSpec, StateSpec, StepSpec, TensorSpec
from stategate.contract.reading import text_with_controls
from stategate.export.c.interface import interface
from stategate.export.c.lower import source_of
from stategate.export.c.names import members

NASTY = """bool int linux true NULL NAN I errno stdout asm typeof and alignas int8_t size_t M_PI EOF
    expf memcpy main read in out state t_bool a.b a_b a-b a_b_2 1 _x __x é 日本 x""".split()  # noqa: SIM905


def prints(name: str) -> bool:
    return text_with_controls(name) is None


NAMES = st.lists(
    st.one_of(st.sampled_from(NASTY), st.text(min_size=1, max_size=80).filter(prints)),
    min_size=2,
    max_size=12,
    unique=True,
)

needs_compilers = pytest.mark.skipif(
    shutil.which("cc") is None or shutil.which("c++") is None, reason="needs compilers"
)


@pytest.mark.slow
@needs_compilers
@settings(max_examples=6, deadline=None)
@given(NAMES)
@example(NASTY)
@example(["x" * 900, "x" * 900 + "y"])
def test_a_header_of_any_names_is_c_and_c_plus_plus(names: list[str]) -> None:
    spec = StepSpec(
        inputs=tuple(TensorSpec(name, (1,)) for name in names),
        outputs=(TensorSpec(" y", (1,)),),
        states=(StateSpec(" h", (1,)),),
    )
    before = "#include <errno.h>\n#include <math.h>\n#include <stdio.h>\n"
    for words, more in (
        (["cc", "-std=gnu11", "-x", "c"], "#include <complex.h>\n"),
        (["c++", "-std=c++20", "-x", "c++"], ""),
    ):
        subprocess.run(
            [*words, "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-"],
            input=before + more + interface(spec, "0" * 64),
            text=True,
            check=True,
            capture_output=True,
        )


def test_names_that_c_allows_stay_what_they_are() -> None:
    kept = ["z", "S", "hidden_state", "Wq", "a_b", "x1"]
    assert members(["a.b", *kept, "a b"]) == dict(zip(kept, kept, strict=True)) | {
        "a.b": "a_b_2",
        "a b": "a_b_3",
    }


def _sums(
    x: str, y: str, h: str, after: str, gate: str, threshold: str, inner: str
) -> onnx.ModelProto:
    """Adds up what is positive; ``y`` is the hyperbolic tangent of the sum so far and the input."""

    def value(name: str, *shape: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    nodes = [
        helper.make_node("Add", [x, h], [inner], name="*/ #error"),
        helper.make_node("Tanh", [inner], [y], doc_string="*/ #error"),
        helper.make_node("ReduceSum", [x], [gate], keepdims=1),
        helper.make_node("Greater", [gate, threshold], [f"{inner}.open"]),
        helper.make_node("Where", [f"{inner}.open", inner, h], [after]),
    ]
    graph = helper.make_graph(
        nodes,
        "*/ #error",
        [value(x, 1, 2), value(h, 1, 2), value(threshold, 1)],
        [value(y, 1, 2), value(gate, 1, 1), value(after, 1, 2)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


@pytest.mark.corners("names0")
@needs_compilers
@pytest.mark.parametrize(
    "names",
    [
        ("bool", "int", "linux", "true", "NULL", "unix", "expf"),
        ("a.b", "a_b", "*/ #error", "#error", "é\\", "x" * 900, "tanhf"),
    ],
)
def test_a_graph_of_any_names_computes_the_same_in_c(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    x, y, h, after, gate, threshold, _ = names
    spec = StepSpec(
        inputs=(TensorSpec(x, (1, 2)),),
        outputs=(TensorSpec(y, (1, 2)),),
        states=(StateSpec(h, (1, 2), next_name=after, gate=gate),),
        gates=(GateSpec(gate, "hard", (1, 1), 0.0, threshold),),
    )
    sources = source_of(_sums(*names).SerializeToString(), spec, {}).files
    path = tmp_path / "lib.so"
    path.write_bytes(compile_library(sources, extra=("-O0",)).library)
    given = [np.array(v, np.float32) for v in ([0.5, 0.25], [0.0], [1.0, -1.0])]
    made = [np.zeros(n, np.float32) for n in (2, 1, 2)]
    tables = [(ctypes.c_void_p * 3)(*(a.ctypes.data for a in arrays)) for arrays in (given, made)]
    assert ctypes.CDLL(str(path)).stategate_compute(*tables) == 0
    np.testing.assert_allclose(made[0], np.tanh([1.5, -0.75]), rtol=1e-6)
    np.testing.assert_array_equal(made[1], [0.75])
    np.testing.assert_array_equal(made[2], [1.5, -0.75])
