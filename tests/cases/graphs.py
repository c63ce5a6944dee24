"""Writes the small ONNX files of README.md into the folder that is given: python graphs.py DIR."""

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

rng = np.random.default_rng(0)
FLOAT = TensorProto.FLOAT


def tensor(name, *shape):
    return numpy_helper.from_array(rng.normal(0, 0.4, shape).astype(np.float32), name)


def save(folder, name, nodes, inputs, outputs, weights, opset=18):
    value = lambda pair: helper.make_tensor_value_info(pair[0], FLOAT, pair[1])  # noqa: E731
    graph = helper.make_graph(nodes, name, [*map(value, inputs)], [*map(value, outputs)], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, folder / f"{name}.onnx")


def grus(first, second):
    """x (T, 1, 4) -> GRU 8 -> GRU 8 -> y; `first` and `second` name the initial states, or ''."""
    weights = [
        tensor("W1", 1, 24, 4),
        tensor("R1", 1, 24, 8),
        tensor("W2", 1, 24, 8),
        tensor("R2", 1, 24, 8),
    ]
    nodes = [
        helper.make_node("GRU", ["x", "W1", "R1", "", "", first], ["y1", "h1_next"], hidden_size=8),
        helper.make_node("Squeeze", ["y1", "axis"], ["s1"]),
        helper.make_node(
            "GRU", ["s1", "W2", "R2", "", "", second], ["y2", "h2_next"], hidden_size=8
        ),
        helper.make_node("Squeeze", ["y2", "axis"], ["y"]),
    ]
    return nodes, [*weights, numpy_helper.from_array(np.array([1]), "axis")]


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    nodes, weights = grus("h1", "zero")
    zero = numpy_helper.from_array(np.zeros((1, 1, 8), np.float32), "zero")
    save(
        folder,
        "half_hidden",
        nodes,
        [("x", [1, 1, 4]), ("h1", [1, 1, 8])],
        [("y", [1, 1, 8]), ("h1_next", [1, 1, 8])],
        [*weights, zero],
    )
    nodes, weights = grus("", "")
    save(folder, "all_hidden", nodes, [("x", ["frames", 1, 4])], [("y", ["frames", 1, 8])], weights)
    half = numpy_helper.from_array(np.float32(0.5), "half")
    nodes = [
        helper.make_node("Mul", ["state_in", "half"], ["kept"]),
        helper.make_node("Add", ["kept", "audio_in"], ["state_out"]),
        helper.make_node("Mul", ["state_out", "gain"], ["loud"]),
        helper.make_node("Tanh", ["loud"], ["audio_out"]),
    ]
    save(
        folder,
        "audio_pair",
        nodes,
        [("audio_in", [1, 64]), ("gain", [1, 1]), ("state_in", [1, 64])],
        [("audio_out", [1, 64]), ("state_out", [1, 64])],
        [half],
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
