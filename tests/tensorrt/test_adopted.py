"""TensorRT engines of adopted files, whose axes and constants only the manifest knows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from stategate.cli.main import main
from stategate.contract import Bundle
from stategate.export.tensorrt.build import Settings
from stategate.export.tensorrt.plans import build_engine, keep_plan
from stategate.runtime import Session
from stategate.runtime.engines.cuda import Cuda

pytestmark = pytest.mark.usefixtures("nothing_left")
FLOAT = TensorProto.FLOAT


@pytest.fixture
def adopted(tmp_path: Path) -> Path:
    """h_next = gain * x + h - shape(x)[0], which is 1 once the axis is pinned."""
    nodes = [
        helper.make_node("Mul", ["x", "gain"], ["loud"]),
        helper.make_node("Shape", ["x"], ["batch"], end=1),
        helper.make_node("Cast", ["batch"], ["rows"], to=FLOAT),
        helper.make_node("Sub", ["loud", "rows"], ["moved"]),
        helper.make_node("Add", ["moved", "h"], ["h_next"]),
        helper.make_node("Tanh", ["h_next"], ["y"]),
    ]
    shapes = {"x": ["batch", 4], "gain": [], "h": ["batch", 4]}
    inputs = [helper.make_tensor_value_info(n, FLOAT, shape) for n, shape in shapes.items()]
    outputs = [helper.make_tensor_value_info(n, FLOAT, ["batch", 4]) for n in ("y", "h_next")]
    graph = helper.make_graph(nodes, "step", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "step.onnx")
    words = ["adopt", str(tmp_path / "step.onnx"), "--dim", "batch=1", "--const", "gain=3"]
    words += ["--state", "h=h_next", "--steps", "20", "--out", str(tmp_path / "bundle")]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    return tmp_path / "bundle"


@pytest.mark.case("C3")
def test_an_adopted_file_with_pinned_axes_and_constants_becomes_an_engine(
    adopted: Path, trt: object, tmp_path: Path
) -> None:
    bundle, cuda = Bundle.open(adopted), Cuda()
    keep_plan(build_engine(bundle, trt, cuda, Settings(1 << 20)), bundle)
    cuda.close()
    x = np.full((1, 4), 0.5, np.float32)
    with Session.open(adopted, engine="tensorrt") as session:
        for _ in range(2):
            given = session.step(x=x)["y"].copy()
        np.testing.assert_array_equal(session.state("h"), np.full((1, 4), 1.0, np.float32))
    np.testing.assert_allclose(given, np.tanh(np.ones((1, 4))), atol=1e-6)
    assert bundle.read(bundle.manifest.step_graph.file) == (tmp_path / "step.onnx").read_bytes()
