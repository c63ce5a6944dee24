"""Adopted files for several sessions: whose axis is whose, and what bleeds from row to row."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper, numpy_helper

import stategate
from stategate.cli.main import main
from stategate.contract import Bundle, Episode
from stategate.contract.errors import GraphError, SpecError
from stategate.export.frontends.adopt import Adopted, Request, adopt
from stategate.export.frontends.pooled import pooled
from stategate.export.frontends.untrusted import unoptimised
from stategate.runtime import Pool, Session
from tests.export.test_silero import WINDOW, at_16_khz, shipped

ROWS = 3
Extent = int | str | None


def constant(name: str, *shape: int) -> onnx.TensorProto:
    noise = np.random.default_rng(len(name)).standard_normal(shape)
    return numpy_helper.from_array((0.4 * noise).astype(np.float32), name)


def recurrent(path: Path, batch: Extent = "batch", extra: str = "", centre: str = "") -> Path:
    """An LSTM whose states have the batch on axis 1, behind a product."""
    nodes = [
        helper.make_node("MatMul", ["x", "into"], ["wide"], "into"),
        helper.make_node("Unsqueeze", ["wide", "zero"], ["frame"], "frame"),
        helper.make_node(
            "LSTM", ["frame", "W", "R", "B", "", "h", "c"], ["all", "h_out", "c_out"], "cell",
            hidden_size=8,
        ),
        helper.make_node("Squeeze", ["h_out", "zero"], ["last"], "last"),
        helper.make_node(extra or "Identity", ["last"], ["y"], "end", **(
            {"axes": [0], "keepdims": 0} if extra == "ReduceMean" else {}
        )),
    ]  # fmt: skip
    if extra == "Reshape":
        nodes[-1].input.append("one")
    if centre:
        nodes.insert(0, helper.make_node("ReduceMean", ["x"], ["m"], "mean", axes=[0]))
        nodes[1].input[0] = "centred"
        nodes.insert(1, helper.make_node("Sub", ["x", "m"], ["centred"], "centre"))
    info = helper.make_tensor_value_info
    inputs = [info("x", 1, [batch, 4]), *(info(n, 1, [1, batch, 8]) for n in "hc")]
    outputs = [info("y", 1, ["a"] if extra == "ReduceMean" else ["a", "b"])]
    outputs += [info(n, 1, [1, None, 8]) for n in ("h_out", "c_out")]
    weights = [constant("into", 4, 6), constant("W", 1, 32, 6), constant("R", 1, 32, 8)]
    weights += [constant("B", 1, 64), numpy_helper.from_array(np.array([0], np.int64), "zero")]
    weights += [numpy_helper.from_array(np.array([1, 8], np.int64), "one")]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def read_in(path: Path, **dims: int) -> Adopted:
    return adopt(path, Request(dims, {}, {}, {"h": "h_out", "c": "c_out"}))


@pytest.mark.case("D8")
def test_the_axis_of_the_batch_is_found_and_moved_to_the_front(tmp_path: Path) -> None:
    single = read_in(recurrent(tmp_path / "f.onnx"), batch=1).candidate
    pool, axes = pooled(single, ROWS, {})
    assert axes == {"x": 0, "h": 1, "c": 1, "y": 0, "h_out": 1, "c_out": 1}
    assert pool.sessions == ROWS and [s.shape for s in pool.spec.states] == [(ROWS, 1, 8)] * 2
    rng = np.random.default_rng(0)
    feeds = {
        n: rng.standard_normal(t.shape, np.float32) for n, t in pool.spec.graph_inputs().items()
    }
    together = dict(zip(names(pool), unoptimised(pool.graph).run(names(pool), feeds), strict=True))
    single_run = unoptimised(single.graph)
    for row in range(ROWS):
        one = {n: np.moveaxis(a[row : row + 1], 0, axes[n]) for n, a in feeds.items()}
        for name, array in zip(names(pool), single_run.run(names(pool), one), strict=True):
            its_row = np.moveaxis(together[name][row : row + 1], 0, axes[name])
            np.testing.assert_allclose(its_row, array, atol=1e-6)


def names(candidate: object) -> list[str]:
    return list(candidate.spec.graph_outputs())  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("file", "declared", "says"),
    [
        ({"extra": "Reshape"}, {}, "cannot serve 3 sessions at once"),
        ({"extra": "ReduceMean"}, {}, r"cannot serve 3 sessions[\s\S]*y of shape \[8\]"),
        ({"centre": "mean"}, {}, r"mixes its sessions[\s\S]*of row 0 depends on other rows"),
        ({"batch": 1}, {}, r"'x' has no open axis[\s\S]*--session-axis x=0"),
        ({}, {"x": 1}, r"axis 1 of 'x' cannot belong[\s\S]*x\[batch, 4\]"),
        ({}, {"z": 0}, r"a tensor that the file lacks[\s\S]*z=0"),
        ({}, {"y": 1}, r"axis 1 of 'y' does not belong[\s\S]*--session-axis y=0"),
    ],
)
def test_what_cannot_serve_several_is_refused_by_name(
    file: dict[str, Extent], declared: dict[str, int], says: str, tmp_path: Path
) -> None:
    dims = {} if "batch" in file else {"batch": 1}
    single = read_in(recurrent(tmp_path / "f.onnx", **file), **dims).candidate  # type: ignore[arg-type]
    with pytest.raises(GraphError, match=says):
        pooled(single, ROWS, declared)


def test_a_batch_that_is_fixed_at_the_edges_alone_is_opened_where_it_is_declared(
    tmp_path: Path,
) -> None:
    single = read_in(recurrent(tmp_path / "f.onnx", batch=1)).candidate
    pool, _ = pooled(single, ROWS, {"x": 0, "h": 1, "c": 1})
    assert pool.spec.inputs[0].shape == (ROWS, 4)


def test_which_of_two_open_axes_it_is_is_asked(tmp_path: Path) -> None:
    file = recurrent(tmp_path / "f.onnx", batch=None)
    model = onnx.load(file)
    model.graph.input[1].type.tensor_type.shape.dim[0].Clear()
    onnx.save(model, file)
    shapes = {"x": (1, 4), "h": (1, 1, 8), "c": (1, 1, 8)}
    single = adopt(file, Request({}, shapes, {}, {"h": "h_out", "c": "c_out"})).candidate
    with pytest.raises(GraphError, match=r"which axis of 'h' belongs to the sessions is in doubt"):
        pooled(single, ROWS, {})
    assert pooled(single, ROWS, {"h": 1})[1]["h"] == 1


@pytest.mark.case("D8")
def test_a_pool_of_an_adopted_file_steps_each_row_as_a_session_does(tmp_path: Path) -> None:
    file = recurrent(tmp_path / "f.onnx")
    x = np.random.default_rng(1).standard_normal((30, 1, 4)).astype(np.float32)
    log = tmp_path / "log.npz"
    log.write_bytes(Episode({"x": x}).to_bytes())
    words = ["--dim", "batch=1", "--state", "h=h_out", "--state", "c=c_out", "--steps", "20"]
    words += ["--episode", str(log), "--init", "h=0.25"]
    for name, more in (("one", []), ("pool", ["--sessions", "2", "--session-axis", "h=1"])):
        out = ["--out", str(tmp_path / name)]
        result = CliRunner().invoke(main, ["adopt", str(file), *words, *more, *out])
        assert result.exit_code == 0, result.output
    bundle = Bundle.open(tmp_path / "pool")
    attached = {each.path: each for each in bundle.manifest.files}
    assert bundle.read(attached["adopted/f.onnx"]) == file.read_bytes()
    with Session.open(tmp_path / "one") as session, Pool.open(tmp_path / "pool") as pool:
        early, late = pool.join(), pool.join()
        for t in range(10):
            both = np.concatenate([x[t], x[t + 7]])
            y = pool.step(x=both)["y"]
            np.testing.assert_allclose(y[early][None], session.step(x=x[t])["y"], atol=1e-6)
        session.reset()
        pool.reset(late)
        y = pool.step(rows=[late], x=np.concatenate([x[0], x[0]]))["y"]
        np.testing.assert_allclose(y[late][None], session.step(x=x[0])["y"], atol=1e-6)


@pytest.mark.slow
def test_adopting_for_several_sessions_needs_no_torch(tmp_path: Path) -> None:
    file = recurrent(tmp_path / "f.onnx")
    code = (
        "import sys; sys.modules['torch'] = None; import stategate; stategate.adopt("
        f"{str(file)!r}, {str(tmp_path / 'b')!r}, states={{'h': 'h_out', 'c': 'c_out'}}, "
        "dims={'batch': 1}, sessions=2, steps=5)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert Bundle.open(tmp_path / "b").manifest.sessions == 2


@pytest.mark.slow
@pytest.mark.case("D8")
def test_eight_streams_of_speech_in_int8_decide_as_eight_sessions_do(
    tmp_path: Path, speech: Callable[[str], tuple[np.ndarray, int]]
) -> None:
    """The package's own file, one pool in int8 beside eight float sessions."""
    samples = at_16_khz(*speech("two_cities.wav"))
    windows = samples[: len(samples) // WINDOW * WINDOW].reshape(-1, 1, WINDOW)
    log = Episode({"input": windows[:400]})
    options = {
        "states": {"state": "stateN"}, "shapes": {"input": (1, 576), "state": (2, 1, 128)},
        "constants": {"sr": 16000}, "contexts": {"input": 64}, "steps": 50, "episode": log,
    }  # fmt: skip
    file = shipped("silero_vad.onnx")
    single = stategate.adopt(file, tmp_path / "float", **options)
    pool_bundle = stategate.adopt(
        file, tmp_path / "pool", sessions=8, precision="int8-weights", **options
    )
    assert len(pool_bundle.read(pool_bundle.manifest.step_graph.file)) < 0.3 * len(
        single.read(single.manifest.step_graph.file)
    )
    with pytest.raises(SpecError, match=r"no row for each session[\s\S]*Session.open, or adopt"):
        Pool.open(single.path)
    starts = [row * 100 for row in range(8)]
    sessions = [Session.open(single.path) for _ in starts]
    alike, heard = [], []
    with Pool.open(pool_bundle.path) as pool:
        for _ in starts:
            pool.join()
        for t in range(400):
            now = np.concatenate([windows[start + t] for start in starts])
            together = pool.step(input=now)["output"][:, 0] > 0.5
            decisions = [
                session.step(input=now[row : row + 1])["output"].item() > 0.5
                for row, session in enumerate(sessions)
            ]
            alike.append(together == decisions)
            heard.append(decisions)
    for session in sessions:
        session.close()
    assert np.mean(alike) > 0.99
    assert 0.2 < np.mean(heard) < 0.95
