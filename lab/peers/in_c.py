"""Steps in C: the generated one of the bundle, and those written by hand in C and with Eigen.

All have one signature. They answer through ctypes, and are timed in a loop of C as well, with the
gate held open or shut, so that no interpreter is in those figures.
"""

from __future__ import annotations

import ctypes
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from lab.peers.base import Peer, aura_weights, fixed, states
from stategate.common.compiler import compile_library
from stategate.common.cpu import LEAST, isa_of_this_machine
from stategate.contract import Bundle
from stategate.contract.c_library import NativeRef
from stategate.contract.errors import MeasurementError
from stategate.contract.staging import scratch_folder
from stategate.runtime.base.buffers import Array
from stategate.runtime.engines.native_call import pointers

# Steps of the loop in C that share a figure: two looks at a clock would be a tenth of one step.
_CHUNK = 50
_THRESHOLDS = {"open": -1e30, "shut": 1e30}
_SOURCES = Path(__file__).parent

# What people give their compilers: products and sums are fused where the CPU can, and rows of
# products are summed in whatever order is fastest.
_FLAGS = ("-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-trapping-math", "-fno-math-errno")
_ROWS = ("cc", "-std=gnu11", *_FLAGS, "-fassociative-math", "-fno-signed-zeros")
_EIGEN = ("c++", "-std=c++17", *_FLAGS, "-DNDEBUG", "-isystem", "/usr/include/eigen3")


def instruction_sets() -> list[str]:
    """What the generated C and the plain one are compiled for here: of x86-64 every level."""
    best = isa_of_this_machine() or LEAST.get(platform.machine(), "native")
    level = best.removeprefix("x86-64-v")
    return [f"x86-64-v{n}" for n in range(int(level), 1, -1)] if level.isdigit() else [best]


Held = Literal["open", "shut"]
Form = Literal["generated", "rows", "eigen"]


class InC(Peer):
    """A compiled step on two banks of states that take turns when the gate is open.

    Args:
        bundle: One with a native engine, and one gate at most, which is one number.
        form: The generated code, or one written by hand: in rows, or with Eigen.
        held: How the gate is held while bursts are timed in a loop of C; "open" where there is
            none; None times each call through ctypes, the gate deciding.
        isa: What the compiler gets as ``-march``; None is the best of this machine.
        policy: Factory in `lab.peers.policies` that has the weights; AURA-Mem's are in its graph.
    """

    def __init__(
        self,
        bundle: str,
        form: Form = "generated",
        held: Held | None = None,
        isa: str | None = None,
        policy: str | None = None,
    ) -> None:
        opened = Bundle.open(bundle)
        native, step = opened.manifest.native, opened.manifest.step
        if native is None or not native.library:
            raise MeasurementError(
                "the bundle has no native engine to measure",
                found=opened.manifest.model.name,
                remedy="stategate device build-native BUNDLE",
            )
        if len(step.gates) > 1 or any(gate.threshold_input is None for gate in step.gates):
            raise MeasurementError("the loop in C holds one gate, at an input of the graph")
        isa = isa or native.isa
        arrays = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in step.inputs}
        self._inputs = dict(arrays)
        arrays |= fixed(opened)
        for spec in step.states:
            arrays[spec.next_name] = np.zeros(spec.shape, spec.dtype)
        further = []
        if form == "generated":
            self._compute: Any = _generated(opened, native, isa).stategate_compute
        elif policy is not None:
            self._compute = _of_policy(policy, form, isa).peer_compute
        else:
            further = [aura_weights(opened)["c2"]]
            command = (*_ROWS, str(_SOURCES / "aura.c"))
            self._compute = _opened(command, isa, _graph_weights(opened)).peer_compute
        self.engine = f"C, {form}, {isa}"
        arrays |= states(opened)
        self._outputs = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in step.outputs}
        arrays |= self._outputs
        self._gate, self._threshold = np.ones(1, np.float32), np.zeros(1, np.float32)
        for gate in step.gates:
            arrays[gate.name] = np.zeros(gate.shape, np.float32)
            self._gate = arrays[gate.name].reshape(-1)
            self._threshold = arrays[str(gate.threshold_input)].reshape(-1)
        other = {spec.name: spec.next_name for spec in step.states}
        other |= {after: before for before, after in other.items()}
        self._rows = [
            [
                pointers([*(arrays[swapped.get(n, n)] for n in names), *more])
                for swapped in ({}, other)
            ]
            for names, more in ((step.graph_inputs(), further), (step.graph_outputs(), []))
        ]
        self._alive, self._turn = [arrays, further], 0  # the tables point into these
        self.bulk = None
        if held is not None:
            self._level = _THRESHOLDS[held]
            self._nanoseconds = _library((*_ROWS, str(_SOURCES / "loop.c"))).nanoseconds
            self._nanoseconds.restype = ctypes.c_double
            self.bulk = self._loop

    def step(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        """One step."""
        for name, array in inputs.items():
            self._inputs[name][...] = array
        input_rows, output_rows = self._rows
        self._compute(ctypes.byref(input_rows[self._turn]), ctypes.byref(output_rows[self._turn]))
        self._turn ^= bool(self._gate[0] > self._threshold[0])
        return self._outputs

    def _loop(self, feeds: list[dict[str, Array]], at: int, ns: Array) -> None:
        """Fill ``ns``; every ``_CHUNK`` of them share the input and the figure."""
        tables = [(ctypes.c_void_p * 2)(*map(ctypes.addressof, rows)) for rows in self._rows]
        self._threshold.fill(self._level)
        for i in range(0, len(ns), _CHUNK):
            for name, array in feeds[(at + i) % len(feeds)].items():
                self._inputs[name][...] = array
            ns[i : i + _CHUNK] = self._nanoseconds(self._compute, *tables, _CHUNK)


def _generated(bundle: Bundle, native: NativeRef, isa: str) -> ctypes.CDLL:
    """The library of the bundle, or one of its sources for another instruction set."""
    if isa == native.isa:
        return ctypes.CDLL(str((bundle.path / str(native.library)).resolve()))
    content = {file.path: bundle.read(file) for file in bundle.manifest.all_files}
    sources = {PurePosixPath(name).name: content[name] for name in native.sources}
    with scratch_folder() as folder:
        path = Path(folder) / "generated.so"
        path.write_bytes(compile_library(sources, isa=isa).library)
        return ctypes.CDLL(str(path))


def _of_policy(name: str, form: Form, isa: str) -> ctypes.CDLL:
    """One recurrent layer and a dense one, with the weights of a policy."""
    from lab.peers import policies

    tensors = [t.numpy() for t in getattr(policies, name)().state_dict().values()]
    units, (outputs, _) = tensors[1].shape[1], tensors[4].shape
    sizes = [f"-DIN={tensors[0].shape[1]}", f"-DUNITS={units}", f"-DOUT={outputs}"]
    sizes += ["-DGRU"] if len(tensors[0]) == 3 * units else []
    command = (*_EIGEN, "eigen.cpp") if form == "eigen" else (*_ROWS, "recurrent.c")
    return _opened((*command[:-1], str(_SOURCES / command[-1]), *sizes), isa, tensors)


def _graph_weights(bundle: Bundle) -> list[Array]:
    """The constants of AURA-Mem's graph as they lie in it."""
    import onnx
    from onnx import numpy_helper

    from stategate.export.passes.pinned import pinned

    graph = onnx.load_model_from_string(bundle.read(bundle.manifest.step_graph.file))
    arrays = map(numpy_helper.to_array, pinned(graph, bundle.manifest.step).graph.initializer)
    return [array for array in arrays if array.ndim and array.dtype == np.float32]


def _opened(command: tuple[str, ...], isa: str, tensors: list[Array]) -> ctypes.CDLL:
    """A step by hand, given its weights: each tensor at a multiple of 64 bytes."""
    library = _library((*command, f"-march={isa}"))
    raw = b"".join(t.tobytes() + bytes(-t.nbytes % 64) for t in tensors)
    library.peer_weight_bytes.restype = ctypes.c_size_t
    if library.peer_weight_bytes() != len(raw):
        raise MeasurementError("the weights are not those of the step that is written by hand")
    library.peer_open(raw)
    return library


def _library(command: tuple[str, ...]) -> ctypes.CDLL:
    with scratch_folder() as folder:
        path = Path(folder) / "peer.so"
        done = subprocess.run([*command, "-o", path, "-lm"], capture_output=True, text=True)
        if done.returncode != 0:
            raise MeasurementError("the compiler refused the peer", found=done.stderr[-500:])
        return ctypes.CDLL(str(path))


open_peer = InC
