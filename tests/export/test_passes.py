"""Graph passes: what they change, what they leave alone, and what they say about it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from stategate.contract import ConstantSpec, StateSpec, StepSpec, TensorSpec
from stategate.contract.errors import GraphError
from stategate.export.passes.constants import FoldConstants, TakeDecidedBranches
from stategate.export.passes.graph import after_passes, serialised, without_traces_of_the_build
from stategate.export.passes.pinned import PinSignature, pinned

node = helper.make_node


def row(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape or [1, 4])


def weights(name: str, seed: int, *shape: int) -> onnx.TensorProto:
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return numpy_helper.from_array(values, name)


def branching() -> onnx.ModelProto:
    """A step whose rate picks a branch; both have a weight ``w`` and a value ``t``, and an If."""

    def branch(seed: int, operator: str) -> onnx.GraphProto:
        sides = [
            helper.make_graph([node(each, ["t"], ["u"])], each, [], [row("u")])
            for each in ("Neg", "Abs")
        ]
        nodes = [
            node("MatMul", ["x", "w"], ["t"]),
            node("If", ["is_other"], ["v"], then_branch=sides[0], else_branch=sides[1]),
            node(operator, ["v", "h"], ["r"]),
        ]
        return helper.make_graph(nodes, operator, [], [row("r")], [weights("w", seed, 4, 4)])

    nodes = [
        node("Equal", ["rate", "sixteen"], ["is_fast"]),
        node("Not", ["is_fast"], ["is_other"]),
        node("If", ["is_fast"], ["a"], then_branch=branch(1, "Add"), else_branch=branch(2, "Sub")),
        node("Shape", ["x"], ["shape"]),
        node("ConstantOfShape", ["shape"], ["zeros"]),
        node("Add", ["a", "zeros"], ["h_next"]),
        node("Identity", ["sixteen"], ["y"]),
    ]
    rate = helper.make_tensor_value_info("rate", TensorProto.INT64, [])
    y = helper.make_tensor_value_info("y", TensorProto.INT64, [])
    sixteen = numpy_helper.from_array(np.array(16, np.int64), "sixteen")
    inputs = [row("x", "rows", 4), row("h", "rows", 4), rate]
    graph = helper.make_graph(nodes, "step", inputs, [row("h_next", "rows", 4), y], [sixteen])
    opsets = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def spec_of(rate: int) -> StepSpec:
    return StepSpec(
        inputs=(TensorSpec("x", (1, 4)),),
        outputs=(TensorSpec("y", (), "int64"),),
        states=(StateSpec("h", (1, 4)),),
        constants=(ConstantSpec("rate", (), "int64", rate),),
    )


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(serialised(model), providers=["CPUExecutionProvider"])
    return session.run(None, feed)


@pytest.mark.parametrize("rate", [8, 16])
def test_a_decided_branch_gives_what_the_graph_gives_though_both_use_the_same_names(rate) -> None:
    model = branching()
    small = pinned(model, spec_of(rate))
    feed = {name: weights("", i, 1, 4) for i, name in enumerate("xh")}
    feed = {name: numpy_helper.to_array(tensor) for name, tensor in feed.items()}
    whole = run(model, {**feed, "rate": np.array(rate, np.int64)})
    assert all(map(np.array_equal, run(small, feed), whole))
    assert [v.name for v in small.graph.input] == ["x", "h"]
    assert "If" not in {n.op_type for n in small.graph.node} and len(model.graph.input) == 3


def test_a_pass_says_whether_it_changed_anything() -> None:
    work = after_passes(branching(), PinSignature(spec_of(16)))
    model = ir.from_proto(onnx.shape_inference.infer_shapes(work))
    fold, take = FoldConstants(), TakeDecidedBranches()
    assert [fold(model).modified for _ in range(2)] == [True, False]
    # The branch that is taken has a decided one inside of it.
    assert [take(model).modified for _ in range(3)] == [True, True, False]


def test_sparse_weights_are_refused_where_the_library_would_drop_them() -> None:
    model = branching()
    values = numpy_helper.from_array(np.ones(1, np.float32), "sparse")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    with pytest.raises(GraphError, match="sparse"):
        pinned(model, spec_of(16))


def test_notes_of_the_exporting_machine_leave_every_part_of_a_graph() -> None:
    model = branching()
    inner = model.graph.node[2].attribute[0].g
    for part in (model, model.graph, inner, inner.node[0], inner.initializer[0], inner.output[0]):
        part.doc_string = "/home/someone/policy.py, line 3"
        part.metadata_props.add(key="trace", value="/home/someone")
    assert b"/home/someone" not in serialised(without_traces_of_the_build(model))
    assert b"/home/someone" in serialised(model)


@pytest.mark.slow
def test_graphs_and_c_have_the_same_bytes_in_every_process() -> None:
    code = (
        "import hashlib\n"
        "from stategate.contract.precision import PrecisionPlan\n"
        "from stategate.export.c.lower import source_of\n"
        "from stategate.export.passes.graph import serialised\n"
        "from stategate.export.passes.quantise import quantised\n"
        "from stategate.export.passes.split import read_write\n"
        "from stategate.export.frontends.trace import trace\n"
        "from stategate.models.load import load_model\n"
        "model = load_model('aura-hard').model\n"
        "graph, spec = trace(model), model.step_spec()\n"
        "split = read_write(graph, spec)\n"
        "plans = [f'{kind}-weights' for kind in ('float16', 'int8', 'int4')]\n"
        "graphs = [quantised(graph, spec, PrecisionPlan.named(plan)) for plan in plans]\n"
        "parts = [serialised(g) for g in (split.read, split.write, *graphs)]\n"
        "parts += source_of(serialised(graph), spec, {}).files.values()\n"
        "print(*(hashlib.sha256(part).hexdigest()[:8] for part in parts))\n"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1
