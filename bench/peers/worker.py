"""Steps an ONNX file in another runtime, in a process and an environment of its own.

Started with a kind, a graph and a JSON file of shapes; says what it is on the first line, then
answers each number on its input with as many step times in nanoseconds. It imports nothing of
stategate, because it runs where only the peer is installed.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np


def filled(spec: Any) -> dict[str, Any]:
    """Every input of the graph: constants at their values, states at zero."""
    return {n: np.full(shape, value, dtype) for n, (shape, dtype, value) in spec["inputs"].items()}


def mnn(path: str, spec: Any) -> tuple[str, Any]:
    """MNN: converted by its own tool, stepped through its session interface."""
    import subprocess

    import MNN

    out = Path(tempfile.mkdtemp()) / "step.mnn"
    tool = Path(sys.executable).with_name("mnnconvert")
    words = [tool, "-f", "ONNX", "--modelFile", path, "--MNNModel", out, "--bizCode", "step"]
    subprocess.run(list(map(str, words)), check=True, capture_output=True)
    net = MNN.Interpreter(str(out))
    session = net.createSession({"numThread": 1})
    inputs = net.getSessionInputAll(session)
    outputs = net.getSessionOutputAll(session)

    def tensor(array: Any) -> Any:
        kind, order = MNN.Halide_Type_Float, MNN.Tensor_DimensionType_Caffe
        return MNN.Tensor(array.shape, kind, array, order)

    results = {name: tensor(np.zeros(shape, "float32")) for name, shape in spec["read"].items()}

    fixed = {n: tensor(a) for n, a in filled(spec).items() if n not in spec["fed"]}

    def step(feeds: Any) -> Any:
        # Every input anew: MNN lets intermediate results overwrite them.
        for name, held in fixed.items():
            inputs[name].copyFrom(held)
        for name, array in feeds.items():
            inputs[name].copyFrom(tensor(array))
        net.runSession(session)
        for name, result in results.items():
            outputs[name].copyToHostTensor(result)
        return {name: result.getNumpyData() for name, result in results.items()}

    return f"MNN {MNN.version()}", step


def openvino(path: str, spec: Any) -> tuple[str, Any]:
    """OpenVINO: one stream, one thread, the request's tensors set once."""
    import openvino as ov

    core = ov.Core()
    config = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    config["INFERENCE_PRECISION_HINT"] = "f32"  # bfloat16 by default where the CPU has it
    request = core.compile_model(core.read_model(path), "CPU", config).create_infer_request()
    arrays = {
        name: np.full(shape, value, dtype) for name, (shape, dtype, value) in spec["inputs"].items()
    }
    for name, array in arrays.items():
        request.set_tensor(name, ov.Tensor(array, shared_memory=True))
    given = {name: request.get_tensor(name).data for name in spec["read"]}

    def step(feeds: Any) -> Any:
        for name, array in feeds.items():
            arrays[name][...] = array
        request.infer()
        return given

    return f"OpenVINO {ov.__version__}", step


def litert(path: str, spec: Any) -> tuple[str, Any]:
    """LiteRT: a .tflite made beforehand beside the graph, signature called with views."""
    import ai_edge_litert
    from ai_edge_litert.interpreter import Interpreter

    net = Interpreter(str(Path(path).with_suffix(".tflite")), num_threads=1)
    net.allocate_tensors()
    runner = net.get_signature_runner()
    arrays = {
        name: np.full(shape, value, dtype) for name, (shape, dtype, value) in spec["inputs"].items()
    }

    def step(feeds: Any) -> Any:
        return runner(**{**arrays, **feeds})

    return f"LiteRT {ai_edge_litert.__version__}", step


def main() -> None:
    """Answer until the input ends."""
    kind, path, described = sys.argv[1:]
    # Runtimes greet on standard output; answers go where no greeting can.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    spec = json.loads(Path(described).read_text())
    name, step = {"mnn": mnn, "openvino": openvino, "litert": litert}[kind](path, spec)
    rng = np.random.default_rng(0)
    feeds = [
        {n: rng.standard_normal(spec["inputs"][n][0]).astype("float32") for n in spec["fed"]}
        for _ in range(64)
    ]
    for i in range(50):
        step(feeds[i])
    answer = {n: np.asarray(a).reshape(-1).tolist() for n, a in step(feeds[0]).items()}
    fed = {n: a.reshape(-1).tolist() for n, a in feeds[0].items()}
    told = {"name": name, "fed": fed, "answer": {n: answer[n] for n in spec["read"]}}
    print(json.dumps(told), file=answers, flush=True)
    for line in sys.stdin:
        times = []
        for i in range(int(line)):
            start = perf_counter_ns()
            step(feeds[i % 64])
            times.append(perf_counter_ns() - start)
        print(json.dumps(times), file=answers, flush=True)


main()
