"""The onnxruntime engine: every buffer bound once, one binding for each parity of the banks.

With many independently gated groups the parities are too many; then there is one binding, in which
the banks of a group are exchanged when its parity has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stategate.common.onnx_runtime import one_thread
from stategate.contract import Bundle, TensorSpec
from stategate.contract.errors import EngineError, MissingDependencyError
from stategate.contract.failures import failures, first_line
from stategate.contract.manifest import GraphRef
from stategate.runtime.base.buffers import Array, Buffers
from stategate.runtime.engines.subnormals import flush_to_zero

try:
    import onnxruntime
except ImportError as missing:
    raise MissingDependencyError("onnxruntime", "ort") from missing

_CPU = "CPUExecutionProvider"
_MAX_PREMADE = 6  # 2**6 bindings of a few KiB, all made at open
Tensors = dict[str, TensorSpec]
_Banks = tuple[str, Callable[[str, Any], None], tuple[Any, Any]]
_ORT_TYPES = {"float32": "float", "float64": "double"}


class Function:
    """A graph without state, such as a backbone: inputs by name, its one output or ``features``."""

    def __init__(self, raw: bytes, names: list[str]) -> None:
        self._session = onnxruntime.InferenceSession(raw, _options(), providers=[_CPU])
        takes = [tensor.name for tensor in self._session.get_inputs()]
        self._names = dict(zip(names, takes if len(takes) == 1 else names, strict=True))
        gives = [tensor.name for tensor in self._session.get_outputs()]
        self._output = ["features" if "features" in gives else gives[0]]

    def __call__(self, inputs: Mapping[str, Array]) -> Array:
        """Its answer for one frame."""
        feeds = {self._names[name]: array for name, array in inputs.items()}
        answer: Array = self._session.run(self._output, feeds)[0]
        return answer


class OrtGraph:
    """One ONNX graph without copies around it, by default on the CPU in a single thread.

    Another provider of ONNX Runtime copies between the same buffers and its GPU in every step.
    """

    def __init__(
        self,
        bundle: Bundle,
        graph: GraphRef,
        signature: tuple[Tensors, Tensors],
        buffers: Buffers,
        provider: str = _CPU,
    ) -> None:
        """Load a graph and bind every tensor by its name."""
        self.name = f"onnxruntime {onnxruntime.__version__}"
        options = _options()
        if provider != _CPU:
            self.name += f", {provider}"
            # ONNX Runtime would put what the GPU cannot run on the CPU, and say so in a log.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            if provider not in onnxruntime.get_available_providers():
                raise EngineError(
                    f"this build of onnxruntime has no {provider}",
                    found=", ".join(onnxruntime.get_available_providers()),
                    remedy="install a build of onnxruntime for this GPU, see docs/guides/jetson.md",
                )
        self._session: Any = _loaded(bundle, graph, options, provider)
        # Its wrapper would keep the serialised graph for as long as the session is open.
        self._session._model_bytes = None
        if self._session.get_providers()[0] != provider:
            raise EngineError(
                f"ONNX Runtime left {provider} out",
                found=", ".join(self._session.get_providers()),
                remedy="look for the missing CUDA or TensorRT library: stategate doctor",
            )
        _check_signature(self._session, signature, graph.role in ("read", "write"))
        self.takes = [node.name for node in self._session.get_inputs()]
        self._mode = flush_to_zero()  # a step costs the same in silence
        self._buffers = buffers  # OrtValues alias this memory without owning it
        self._premade = len(buffers.groups) <= _MAX_PREMADE
        parities = range(1 << len(buffers.groups)) if self._premade else (0,)
        self._bindings = [self._session.io_binding() for _ in parities]
        for parity, binding in zip(parities, self._bindings, strict=True):
            self._bind(binding, buffers, parity)
        # None while banks are exchanged: who interrupts that leaves nobody knows which.
        self._bound_parity: int | None = 0
        self._banks = {} if self._premade else self._by_group(buffers)

    def _bind(self, binding: Any, buffers: Buffers, parity: int) -> None:
        """Bind what has one place, and each state to its banks."""
        slots = (*buffers.inputs, *buffers.constants, *buffers.outputs, *buffers.gates)
        values = {slot.name: _value(slot.array) for slot in (*slots, *buffers.payload)}
        for state in buffers.states:
            live = bool(parity & buffers.bit_of(state))
            values[state.spec.name] = _value(state.banks[live].array)
            values[state.spec.next_name] = _value(state.target(live).array)
        for name, bind in self._places(binding):
            bind(name, values[name])

    def _places(self, binding: Any) -> list[tuple[str, Callable[[str, Any], None]]]:
        """Every tensor of the graph, with what binds it."""
        takes = [(node.name, binding.bind_ortvalue_input) for node in self._session.get_inputs()]
        gives = [(node.name, binding.bind_ortvalue_output) for node in self._session.get_outputs()]
        return takes + gives

    def run(self, parity: int) -> bool:
        """Compute the graph; see `Engine.run`."""
        if self._premade:
            binding = self._bindings[parity]
        else:
            binding = self._bindings[0]
            self._exchange(parity)
        mode = self._mode
        mode.note()
        try:
            mode.note()
            mode.enter()
            # No RunOptions: passing them makes ONNX Runtime 1.32 raise and catch a C++ exception
            # in every call.
            self._session.run_with_iobinding(binding)
        except failures(library="onnxruntime") as problem:
            raise EngineError(
                "ONNX Runtime failed in a step; the state is that of the step before",
                found=first_line(problem),
            ) from problem
        finally:
            mode.leave()
        return False

    def _exchange(self, parity: int) -> None:
        """Bind the banks anew of every group whose parity is not the bound one."""
        bound, self._bound_parity = self._bound_parity, None
        for bit, banks in self._banks.items():
            if bound is None or (parity ^ bound) & bit:
                live = bool(parity & bit)
                for name, bind, values in banks:
                    bind(name, values[live])
        self._bound_parity = parity

    def _by_group(self, buffers: Buffers) -> dict[int, list[_Banks]]:
        """Both banks of every state that the graph takes or gives, by the bit of its group.

        Each as a name, what binds it, and what to bind where the group's bit is clear or set.
        """
        places = self._places(self._bindings[0])
        nodes: dict[int, list[_Banks]] = {}
        for group in buffers.groups:
            nodes[group.bit] = []
            for state in group.states:
                read = tuple(_value(bank.array) for bank in state.banks)
                written = tuple(_value(state.target(live).array) for live in (False, True))
                for name, bind in places:
                    if name == state.spec.name:
                        nodes[group.bit].append((name, bind, (read[0], read[1])))
                    elif name == state.spec.next_name:
                        nodes[group.bit].append((name, bind, (written[0], written[1])))
        return nodes

    def close(self) -> None:
        """Free the session and its bindings."""
        self._bindings, self._banks = [], {}
        self._session = None


class OrtEngine:
    """Steps a bundle in ONNX Runtime: with one graph, or with one to read and one to write.

    Attributes:
        write_takes: Tensors that `write` computes from; None where `run` has done all.
    """

    def __init__(self, step: OrtGraph, write: OrtGraph | None = None) -> None:
        """Take over loaded graphs."""
        self.name = step.name
        self._graphs = [step] if write is None else [step, write]
        self.run = step.run  # no call in between
        self._write = write
        self.write_takes = write.takes if write is not None else None

    def write(self, parity: int) -> None:
        """Compute the guarded next states; see `Engine.write`."""
        if self._write is not None:
            self._write.run(parity)

    def close(self) -> None:
        """Free both graphs."""
        for graph in self._graphs:
            graph.close()


def run_once(
    bundle: Bundle, graph: GraphRef, outputs: list[str]
) -> Callable[[Mapping[str, Array]], list[Array]]:
    """A graph that is not part of a step: called with its inputs, it gives outputs of its own."""
    session = _loaded(bundle, graph, one_thread(onnxruntime.SessionOptions()), _CPU)

    def call(inputs: Mapping[str, Array]) -> list[Array]:
        try:
            return list(session.run(outputs, dict(inputs)))
        except failures(library="onnxruntime") as problem:
            raise EngineError(
                f"ONNX Runtime failed in {graph.file.path}", found=first_line(problem)
            ) from problem

    return call


def _options() -> Any:
    options = one_thread(onnxruntime.SessionOptions())
    # A graph may name files with its weights, which ONNX Runtime would take from where the program
    # was started. What is not in the bundle was not checked; nothing can lie in this folder.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", "/dev/null/nothing"
    )
    return options


def _loaded(bundle: Bundle, graph: GraphRef, options: Any, provider: str) -> Any:
    try:
        return onnxruntime.InferenceSession(bundle.read(graph.file), options, providers=[provider])
    except failures(library="onnxruntime") as problem:
        raise EngineError(
            f"ONNX Runtime cannot load {graph.file.path}",
            found=first_line(problem),
            remedy="export again, or use a newer onnxruntime (this one is "
            f"{onnxruntime.__version__})",
        ) from problem


def _value(array: Array) -> Any:
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def _check_signature(session: Any, signature: tuple[Tensors, Tensors], part: bool) -> None:
    for side, promised, actual in (
        ("input", signature[0], session.get_inputs()),
        ("output", signature[1], session.get_outputs()),
    ):
        nodes = {node.name: node for node in actual}
        fewer = part and side == "input"
        if not set(nodes) <= set(promised) or (not fewer and len(nodes) < len(promised)):
            raise EngineError(
                f"the graph's {side}s are not those of the manifest",
                found=", ".join(sorted(nodes)),
                expected=", ".join(sorted(promised)),
                remedy="export the bundle again",
            )
        for name, node in nodes.items():
            tensor = promised[name]
            # Adopted graphs leave axes of outputs open; those are names or None here.
            extents = [e if isinstance(e, int) else None for e in node.shape or tensor.shape]
            same_shape = len(extents) == len(tensor.shape) and all(
                e in (None, s) for e, s in zip(extents, tensor.shape, strict=True)
            )
            ort_type = f"tensor({_ORT_TYPES.get(tensor.dtype, tensor.dtype)})"
            if not same_shape or node.type != ort_type:
                raise EngineError(
                    f"{side} {name!r} of the graph is not what the manifest says",
                    found=f"{node.type} {list(node.shape)}",
                    expected=f"{ort_type} {list(tensor.shape)}",
                    remedy="export the bundle again",
                )
