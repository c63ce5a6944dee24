"""Graphs, weights and YAML of a stranger: endless, gigantic, or not what they are called."""

from __future__ import annotations

import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from stategate.cli.main import main
from stategate.contract import Bundle
from stategate.contract.errors import ExportError, GraphError, StategateError
from stategate.contract.npz import load_npy
from stategate.export.frontends import untrusted
from stategate.export.frontends.adopt import OnnxReference, adopt
from stategate.export.frontends.declared import Request
from stategate.export.frontends.leapp import read_export

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
REQUEST = Request({}, {}, {}, {"h": "h_next"})
value = helper.make_tensor_value_info


def model(nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto]) -> onnx.ModelProto:
    """``h_next`` comes from ``made``; ``y`` is the sum of ``x`` and the state."""
    nodes = [
        *nodes,
        helper.make_node("Identity", ["made"], ["h_next"]),
        helper.make_node("Add", ["x", "h"], ["y"]),
    ]
    inputs, outputs = ([value(n, FLOAT, [1, 4]) for n in names] for names in (("x", "h"), ("y",)))
    graph = helper.make_graph(
        nodes, "g", inputs, [*outputs, value("h_next", FLOAT, [1, 4])], weights
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def looped(rounds: onnx.TensorProto | None, given: list[onnx.NodeProto]) -> onnx.ModelProto:
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["a", "one"], ["b"]),
        ],
        "body",
        [value("i", INT64, []), value("go", BOOL, []), value("a", FLOAT, [1, 4])],
        [value("go_on", BOOL, []), value("b", FLOAT, [1, 4])],
    )
    weights = [numpy_helper.from_array(np.ones((1, 4), np.float32), "one")]
    return model(
        [*given, helper.make_node("Loop", ["rounds", "", "h"], ["made"], body=body)],
        weights + ([rounds] if rounds is not None else []),
    )


def saved(graph: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "stranger.onnx"
    onnx.save(graph, path)
    return path


@pytest.mark.case("E11")
def test_a_loop_that_does_not_end_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(untrusted, "STEP_SECONDS", 0.3)
    rounds = numpy_helper.from_array(np.array(2**62, np.int64), "rounds")
    with pytest.raises(GraphError, match="does not end"):
        adopt(saved(looped(rounds, []), tmp_path), REQUEST)


@pytest.mark.case("E11")
def test_a_loop_that_only_some_input_makes_endless_is_given_up_when_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shapes are asked with zeros, for which this graph has no rounds at all."""
    monkeypatch.setattr(untrusted, "STEP_SECONDS", 0.3)
    count = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Mul", ["largest", "many"], ["times"]),
        helper.make_node("Cast", ["times"], ["rounds"], to=INT64),
    ]
    graph = looped(None, count)
    graph.graph.initializer.append(numpy_helper.from_array(np.float32(1e18), "many"))
    adopted = adopt(saved(graph, tmp_path), REQUEST)
    reference = OnnxReference(adopted.candidate)
    reference.step({"x": np.zeros((1, 4), np.float32)})
    with pytest.raises(GraphError, match="does not end"):
        reference.step({"x": np.ones((1, 4), np.float32)})


def test_a_loop_of_a_few_rounds_is_adopted(tmp_path: Path) -> None:
    rounds = numpy_helper.from_array(np.array(5, np.int64), "rounds")
    adopted = adopt(saved(looped(rounds, []), tmp_path), REQUEST)
    _, states, _ = OnnxReference(adopted.candidate).step({"x": np.zeros((1, 4), np.float32)})
    assert np.array_equal(states["h"], np.full((1, 4), 5, np.float32))


@pytest.mark.case("E11")
def test_a_graph_that_asks_for_more_memory_than_there_is_fails_instead_of_the_machine(
    tmp_path: Path,
) -> None:
    graph = model(
        [
            helper.make_node("ConstantOfShape", ["size"], ["big"]),
            helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
            helper.make_node("Add", ["h", "sum"], ["made"]),
        ],
        [numpy_helper.from_array(np.array([2**42], np.int64), "size")],
    )
    with pytest.raises(GraphError, match="does not run"):
        adopt(saved(graph, tmp_path), REQUEST)


def with_weights_outside(folder: Path, times: int = 1, **entries: object) -> Path:
    weights = []
    for number in range(times):
        tensor = onnx.TensorProto(name=f"w{number}", data_type=FLOAT, dims=[1, 4])
        tensor.data_location = TensorProto.EXTERNAL
        for key, entry in {"location": "w.bin", **entries}.items():
            tensor.external_data.add(key=key, value=str(entry))
        weights.append(tensor)
    return saved(model([helper.make_node("Add", ["h", "w0"], ["made"])], weights), folder)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(200 * 2**30)


@pytest.mark.case("E11")
@pytest.mark.parametrize("plant", [sparse, os.mkfifo, Path.mkdir], ids=["sparse", "pipe", "folder"])
def test_weights_outside_of_the_graph_are_looked_at_before_they_are_read(
    tmp_path: Path, plant: Callable[[Path], None]
) -> None:
    plant(tmp_path / "w.bin")
    with pytest.raises(GraphError, match=r"pipe|folder|bytes"):
        adopt(with_weights_outside(tmp_path), REQUEST)


@pytest.mark.case("E11")
def test_weights_that_are_named_a_thousand_times_are_counted_a_thousand_times(
    tmp_path: Path,
) -> None:
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(2**27)
    path = with_weights_outside(tmp_path, times=1000)
    tracemalloc.start()
    try:
        with pytest.raises(GraphError, match="too large"):
            adopt(path, REQUEST)
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


@pytest.mark.case("E12")
def test_weights_behind_a_link_or_above_the_folder_are_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(16))
    with pytest.raises(GraphError, match="outside of its folder"):
        adopt(with_weights_outside(folder, location="../secret"), REQUEST)
    (folder / "w.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(GraphError, match="outside of its folder"):
        adopt(with_weights_outside(folder), REQUEST)


def test_weights_in_a_file_next_to_the_graph_are_taken_in(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(np.full(4, 3, "<f4").tobytes())
    adopted = adopt(with_weights_outside(tmp_path, length=16), REQUEST)
    (tmp_path / "w.bin").unlink()
    _, states, _ = OnnxReference(adopted.candidate).step({"x": np.zeros((1, 4), np.float32)})
    assert np.array_equal(states["h"], np.full((1, 4), 3, np.float32))


@pytest.mark.case("E11")
@pytest.mark.parametrize("suffix", ["onnx", "yaml"])
@pytest.mark.parametrize("plant", [sparse, os.mkfifo, Path.mkdir], ids=["sparse", "pipe", "folder"])
def test_adopt_looks_at_its_file_before_it_reads(
    tmp_path: Path, suffix: str, plant: Callable[[Path], None]
) -> None:
    plant(tmp_path / f"x.{suffix}")
    done = CliRunner().invoke(main, ["adopt", str(tmp_path / f"x.{suffix}"), "--out", "b"])
    assert done.exit_code == 2 and ("bytes" in done.output or "file" in done.output)


BOMB = b"a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 12)
)
MERGES = b"a0: &a0 {x: 1}\n" + b"".join(
    b"a%d: &a%d {<<: [%s]}\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 12)
)


@pytest.mark.case("E11")
@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (BOMB, "stands for more than"),
        (MERGES, "stands for more than"),
        (b"a: &a [*a]", "stands for more than"),
        (b"x: " + b"[" * 5000, "YAML"),
        (b"models: {}\nmodels: {}\n", "two values under one key"),
        (b'models: "\\e[2J"\n', "control character"),
        (b"", "YAML"),
        (b"x" * (2**20 + 1), "bytes"),
    ],
    ids=["aliases", "merges", "itself", "deep", "repeated", "escape", "empty", "long"],
)
def test_a_yaml_that_stands_for_too_much_is_refused_at_once(
    tmp_path: Path, raw: bytes, reason: str
) -> None:
    (tmp_path / "x.yaml").write_bytes(raw)
    start = time.process_time()
    with pytest.raises(ExportError, match=reason):
        read_export(tmp_path / "x.yaml")
    assert time.process_time() - start < 20  # nine to the twelfth would take days


@given(st.binary(max_size=200) | st.text("&*!|>{}[]:-, \n'\"%@`<ab01~?", max_size=60))
def test_any_text_as_a_yaml_is_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes | str
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_bytes(raw.encode() if isinstance(raw, str) else raw)
    with pytest.raises(ExportError):
        read_export(path)


@given(st.binary(min_size=1, max_size=200), st.integers(0, 176))
def test_any_bytes_as_an_array_or_a_graph_are_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, cut: int
) -> None:
    folder = tmp_path_factory.getbasetemp()
    np.save(folder / "fuzzed.npy", np.full((2, 3), 0.1))
    raw = (folder / "fuzzed.npy").read_bytes()
    # A whole header before as many bytes as it promises is an array, with other numbers.
    assume(cut < len(raw) - 48 or cut + len(noise) != len(raw))
    (folder / "fuzzed.npy").write_bytes(raw[:cut] + noise)
    with pytest.raises(StategateError):
        load_npy(folder / "fuzzed.npy")
    (folder / "fuzzed.onnx").write_bytes(noise)
    with pytest.raises(StategateError):
        adopt(folder / "fuzzed.onnx", REQUEST)


def test_a_loop_that_c_cannot_say_costs_the_native_engine_and_not_the_bundle(
    tmp_path: Path,
) -> None:
    """The reason has several lines, and what a manifest says has one."""
    rounds = numpy_helper.from_array(np.array(5, np.int64), "rounds")
    path = saved(looped(rounds, []), tmp_path)
    engines = ["--state", "h=h_next", "--engines", "onnxruntime,native", "--steps", "20"]
    done = CliRunner().invoke(main, ["adopt", str(path), *engines, "--out", str(tmp_path / "b")])
    assert done.exit_code == 0, done.output
    assert "Loop" in Bundle.open(tmp_path / "b").manifest.no_native
