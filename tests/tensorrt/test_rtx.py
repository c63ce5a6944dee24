"""The parser and builder of TensorRT-RTX, without a GPU: `make test-tensorrt`.

It is the parser and builder of TensorRT 11. Nothing here loads a plan: that takes a GPU.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stategate.contract import StateSpec, StepSpec, TensorSpec
from stategate.contract.errors import BuildError
from stategate.contract.precision import PRESETS
from stategate.export.candidate import Candidate
from stategate.export.candidates import candidate_from
from stategate.export.passes.projections import chosen, projections
from stategate.export.passes.quantise import quantised
from stategate.export.tensorrt.build import Built, Settings, build_plan
from stategate.export.tensorrt.generations import GENERATIONS
from stategate.export.tensorrt.rules import findings
from stategate.export.tensorrt.variant import variant
from stategate.models.load import load_model
from stategate.models.zoo.catalogue import ZOO
from stategate.runtime.engines.tensorrt_api import load_tensorrt, make_log

ELEVEN = GENERATIONS["11"]
SETTINGS = Settings(64 << 20)
STEP = StepSpec((TensorSpec("x", (1, 8)),), (TensorSpec("y", (1, 8)),), (StateSpec("s", (1, 8)),))


@cache
def traced(name: str) -> Candidate:
    return candidate_from(load_model(name))


def graph_of(name: str, precision: str) -> bytes:
    candidate = traced(name)
    plan = PRESETS[precision]
    if plan.is_float:
        return candidate.graph
    model = onnx.load_model_from_string(candidate.graph)
    ranges = {p.data: 4.0 for p in chosen(plan, projections(model, candidate.spec))}
    return quantised(model, candidate.spec, plan, ranges).SerializeToString(deterministic=True)


def build(graph: bytes, settings: Settings = SETTINGS) -> Built:
    trt = load_tensorrt("tensorrt_rtx")
    return build_plan(trt, graph, settings, lambda _: None, make_log(trt))


@pytest.mark.parametrize("precision", sorted(PRESETS))
@pytest.mark.parametrize("name", sorted(ZOO))
def test_the_zoo_is_taken_or_refused_before_the_parser_sees_it(name: str, precision: str) -> None:
    raw, spec = graph_of(name, precision), traced(name).spec
    found = findings(onnx.load_model_from_string(raw), spec, ELEVEN)
    if precision == "int4-weights":
        assert found and all("com.microsoft" in one.found for one in found)
        with pytest.raises(BuildError, match="cannot parse"):
            build(raw)
        return
    assert found == []
    form = variant(raw, spec, ELEVEN)
    assert len(build(form.graph).plan) > 100_000


@pytest.fixture(scope="module")
def fixed_addresses() -> list[str]:
    """What starts a program at the same addresses every time."""
    alike = ["setarch", "-R"]
    if subprocess.run([*alike, "true"], check=False).returncode:
        pytest.skip("this machine does not let a process have fixed addresses")
    return alike


@pytest.mark.parametrize("name", ["aura-hard", "mingru", "trim-kv"])
def test_two_builds_at_the_same_addresses_give_the_same_bytes(
    name: str, tmp_path: Path, fixed_addresses: list[str]
) -> None:
    graph = tmp_path / "step.onnx"
    graph.write_bytes(variant(traced(name).graph, traced(name).spec, ELEVEN).graph)
    program = (
        "import sys, hashlib; from pathlib import Path\n"
        "from stategate.export.tensorrt.build import Settings, build_plan\n"
        "from stategate.runtime.engines.tensorrt_api import load_tensorrt, make_log\n"
        "graph, trt = Path(sys.argv[1]).read_bytes(), load_tensorrt('tensorrt_rtx')\n"
        "built = build_plan(trt, graph, Settings(64 << 20), print, make_log(trt))\n"
        "print(hashlib.sha256(built.plan).hexdigest())"
    )
    command = [*fixed_addresses, sys.executable, "-c", program, str(graph)]
    digests = {
        subprocess.run(
            command, capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": "0"},
        ).stdout.split()[-1]
        for _ in range(2)
    }  # fmt: skip
    assert len(digests) == 1


@pytest.mark.parametrize("name", ["aura-hard", "mingru", "trim-kv"])
def test_builds_at_other_addresses_have_the_same_bytes_in_another_order_at_most(name: str) -> None:
    graph = variant(traced(name).graph, traced(name).spec, ELEVEN).graph
    plans = [np.frombuffer(build(graph).plan, np.uint8) for _ in range(2)]
    assert len({hashlib.sha256(np.sort(plan).tobytes()).hexdigest() for plan in plans}) == 1


def test_progress_is_reported_to_the_end() -> None:
    told: list[int] = []
    graph = variant(traced("mingru").graph, traced("mingru").spec, ELEVEN).graph
    trt = load_tensorrt("tensorrt_rtx")
    build_plan(trt, graph, SETTINGS, told.append, make_log(trt))
    assert told[-1] == 100 and len(told) > 3


def refused_graph(kind: str) -> onnx.ModelProto:
    """A step of `STEP` with one thing in it that TensorRT does not take."""
    weight = numpy_helper.from_array(np.eye(8, dtype=np.float32), "w")
    extra: list[onnx.TensorProto] = []
    nodes = [helper.make_node("Add", ["x", "s"], ["s_next"])]
    if kind == "asymmetric":
        extra = [
            numpy_helper.from_array(np.float32(0.1), "scale"),
            numpy_helper.from_array(np.int8(3), "zero"),
        ]
        nodes += [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], "quantise"),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
            helper.make_node("MatMul", ["d", "w"], ["y"]),
        ]
    elif kind == "dynamic":
        nodes += [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"], "quantise"),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
            helper.make_node("MatMul", ["d", "w"], ["y"]),
        ]
    elif kind == "scatter":
        extra = [numpy_helper.from_array(np.zeros((1, 8), np.int64), "at")]
        nodes.append(
            helper.make_node(
                "ScatterElements", ["x", "at", "s"], ["y"], "quantise", axis=1, reduction="add"
            )
        )
    elif kind == "domain":
        nodes.append(helper.make_node("Gelu", ["x"], ["y"], "quantise", domain="com.microsoft"))
    signature = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 8])
        for n in ("x", "s", "y", "s_next")
    ]
    graph = helper.make_graph(nodes, "step", signature[:2], signature[2:], [weight, *extra])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize("kind", ["asymmetric", "dynamic", "scatter"])
def test_what_our_check_refuses_the_parser_refuses_too(kind: str) -> None:
    model = refused_graph(kind)
    found = findings(model, STEP, ELEVEN)
    assert any("node quantise" in one.where for one in found)
    with pytest.raises(BuildError, match="cannot"):
        build(model.SerializeToString())
