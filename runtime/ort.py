"""The onnxruntime engine: every buffer bound once, one binding for each parity of the banks.

With many independently gated groups the parities are too many; then there is one binding, in which
the banks of a group are exchanged when its parity has changed.
"""

from __future__ import annotations

from typing import Any

from stategate.contract import Bundle, GraphRef, StateSpec, StepSpec
from stategate.contract.errors import EngineError, MissingDependencyError
from stategate.runtime.buffers import Array, Buffers

try:
    import onnxruntime
except ImportError as missing:
    raise MissingDependencyError("onnxruntime", "ort") from missing

_CPU = "CPUExecutionProvider"
_MAX_PREMADE = 6  # 2**6 bindings of a few KiB, all made at open
_ORT_TYPES = {"float32": "float", "float64": "double"}


class OrtEngine:
    """Steps an ONNX graph without copies around it, by default on the CPU in a single thread.

    Another provider of ONNX Runtime copies between the same buffers and its GPU in every step.
    """

    def __init__(
        self,
        bundle: Bundle,
        graph: GraphRef,
        spec: StepSpec,
        buffers: Buffers,
        provider: str = _CPU,
    ) -> None:
        self.name = f"onnxruntime {onnxruntime.__version__}"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # A spinning thread would take the core from the control loop.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if provider != _CPU:
            self.name += f", {provider}"
            # ONNX Runtime would put what the GPU cannot run on the CPU, and say so in a log.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            if provider not in onnxruntime.get_available_providers():
                raise EngineError(
                    f"this build of onnxruntime has no {provider}",
                    found=", ".join(onnxruntime.get_available_providers()),
                    remedy="install a build of onnxruntime for this GPU, see docs/jetson.md",
                )
        try:
            self._session: Any = onnxruntime.InferenceSession(
                bundle.read(graph.file), options, providers=[provider]
            )
        except Exception as problem:  # ONNX Runtime raises a dozen unrelated types
            raise EngineError(
                f"ONNX Runtime cannot load {graph.file.path}",
                found=str(problem).splitlines()[0],
                remedy="export again, or use a newer onnxruntime (this one is "
                f"{onnxruntime.__version__})",
            ) from problem
        if self._session.get_providers()[0] != provider:
            raise EngineError(
                f"ONNX Runtime left {provider} out",
                found=", ".join(self._session.get_providers()),
                remedy="look for the missing CUDA or TensorRT library: stategate doctor",
            )
        _check_signature(self._session, spec)
        self._buffers = buffers  # OrtValues alias this memory without owning it
        self._premade = len(buffers.groups) <= _MAX_PREMADE
        parities = range(1 << len(buffers.groups)) if self._premade else (0,)
        self._bindings = [self._bind(buffers, parity) for parity in parities]
        self._bound_parity = 0
        self._banks = {} if self._premade else _by_group(buffers)

    def _bind(self, buffers: Buffers, parity: int) -> Any:
        binding = self._session.io_binding()

        for slot in (*buffers.inputs, *buffers.constants):
            binding.bind_ortvalue_input(slot.name, _value(slot.array))
        for slot in (*buffers.outputs, *buffers.gates):
            binding.bind_ortvalue_output(slot.name, _value(slot.array))
        for state in buffers.states:
            live = bool(parity & buffers.bit_of(state))
            binding.bind_ortvalue_input(state.spec.name, _value(state.banks[live].array))
            binding.bind_ortvalue_output(state.spec.next_name, _value(state.banks[not live].array))
        return binding

    def run(self, parity: int) -> None:
        """Compute one step; see `Engine.run`."""
        if self._premade:
            binding = self._bindings[parity]
        else:
            binding = self._bindings[0]
            self._exchange(binding, parity)
        try:
            # No RunOptions: passing them makes ONNX Runtime 1.32 raise and catch a C++ exception
            # in every call.
            self._session.run_with_iobinding(binding)
        except Exception as problem:  # ONNX Runtime raises a dozen unrelated types
            raise EngineError(
                "ONNX Runtime failed in a step; the state is that of the step before",
                found=str(problem).splitlines()[0],
            ) from problem

    def _exchange(self, binding: Any, parity: int) -> None:
        """Bind the banks anew of every group whose parity is not the bound one."""
        changed = parity ^ self._bound_parity
        for bit, states in self._banks.items():
            if changed & bit:
                live = bool(parity & bit)
                for spec, values in states:
                    binding.bind_ortvalue_input(spec.name, values[live])
                    binding.bind_ortvalue_output(spec.next_name, values[not live])
        self._bound_parity = parity

    def close(self) -> None:
        """Free the session and its bindings."""
        self._bindings, self._banks = [], {}
        self._session = None


def _value(array: Array) -> Any:
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def _by_group(buffers: Buffers) -> dict[int, list[tuple[StateSpec, tuple[Any, Any]]]]:
    """Both banks of every state, ready to be bound, by the bit of its group."""
    return {
        group.bit: [
            (state.spec, (_value(state.banks[0].array), _value(state.banks[1].array)))
            for state in group.states
        ]
        for group in buffers.groups
    }


def _check_signature(session: Any, step: StepSpec) -> None:
    for side, promised, actual in (
        ("input", step.graph_inputs(), session.get_inputs()),
        ("output", step.graph_outputs(), session.get_outputs()),
    ):
        found = {node.name: node for node in actual}
        if set(found) != set(promised):
            raise EngineError(
                f"the graph's {side}s are not those of the manifest",
                found=", ".join(sorted(found)),
                expected=", ".join(sorted(promised)),
                remedy="export the bundle again",
            )
        for name, tensor in promised.items():
            node = found[name]
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
