"""The TensorRT engine: states stay on the GPU in two banks, and a write swaps addresses.

A step copies its inputs to pinned memory, launches, waits, and copies the outputs and gates back; a
state crosses over only when somebody asks for it: a snapshot, a reset, `Session.state`. On a GPU
with memory of its own one copy each way is part of the launch; on a Jetson the GPU reads and writes
the pinned memory itself. With few gates each combination of banks is captured as a CUDA graph when
the engine opens.

One step's next states are never looked at from the host: the graph gives the sum of magnitudes of
each, and only where that is not finite is the state itself fetched to tell an overflow of the sum
from a fault.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from stategate.contract import Bundle, TensorSpec
from stategate.contract.errors import EngineError, MemoryBudgetError, StategateError
from stategate.contract.tensorrt_plan import GUARD, StoredPlan, plan_for, stored_plans
from stategate.runtime.base.buffers import Array, Buffers, Group, Slot, is_finite
from stategate.runtime.engines.cuda import Cuda
from stategate.runtime.engines.tensorrt_api import (
    LIBRARIES,
    importable,
    local_fingerprint,
    make_log,
    make_with_log,
    refusal,
)
from stategate.runtime.trust import code

_MAX_CAPTURED = 4  # 2**4 graphs, all captured at open
_ALIGNMENT = 256  # what cuMemAlloc gives, and enough for every kernel
_TYPES = {
    "float32": "FLOAT",
    "float16": "HALF",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
}


@dataclass(frozen=True, slots=True)
class _Arena:
    """Tensors side by side in one piece of memory."""

    offsets: dict[str, int]  # where each begins
    size: int  # bytes of all

    @classmethod
    def of(cls, tensors: Iterable[tuple[str, int]]) -> _Arena:
        offsets, size = {}, 0
        for name, count in tensors:
            offsets[name] = size
            size += -(-count // _ALIGNMENT) * _ALIGNMENT
        return cls(offsets, max(size, _ALIGNMENT))


def open_tensorrt(bundle: Bundle, buffers: Buffers) -> TensorRtEngine:
    """Load the plan that was built for this device; TensorRT's own where both libraries' may be."""
    if any(state.cursor is not None for state in bundle.manifest.states):
        raise EngineError(
            "TensorRT keeps the states itself, and appends no rows to them",
            found="a bundle in deferred form",
            remedy="engine='native' or 'onnxruntime'; or export the model without --defer",
        )
    built = {stored.record.fingerprint.library for stored in stored_plans(bundle.path)}
    bindings, missing = importable([name for name in LIBRARIES if name in built] or LIBRARIES[:1])
    if not bindings:
        raise missing[0]
    cuda = Cuda()
    try:
        graph = bundle.manifest.step_graph.file.sha256
        places = {local_fingerprint(trt, cuda, graph): trt for trt in bindings}
        stored, place = plan_for(bundle.path, list(places))
        return TensorRtEngine(bundle, buffers, stored, places[place], cuda)
    except BaseException:
        cuda.close()
        raise


class TensorRtEngine:
    """Steps a plan on the GPU; see `stategate.runtime.engines.engine.Engine` and `Resident`."""

    def __init__(
        self,
        bundle: Bundle,
        buffers: Buffers,
        stored: StoredPlan,
        trt: Any,
        cuda: Cuda,
        capture: bool | None = None,
    ) -> None:
        """Load a plan whose fingerprint was found to be that of this place."""
        record = stored.record
        self._buffers, self._cuda = buffers, cuda
        self._bits = {s.spec.name: buffers.bit_of(s) for s in buffers.states}
        self._bound = -1
        self._graphs: list[int] = []
        # Constants of an adopted file are part of the plan; thresholds are not.
        part = {constant.name for constant in bundle.manifest.step.constants}
        feeds = [*buffers.inputs, *(s for s in buffers.constants if s.name not in part)]
        answers = [*buffers.outputs, *buffers.gates]
        guard = [Slot.allocate(GUARD, (len(record.guarded),), "float32")] if record.guarded else []
        self._feed_arena = _arena_of(feeds)
        self._answer_arena = _arena_of([*answers, *guard])
        states = [(s.spec.name, s.spec.bytes) for s in buffers.states]
        self._banks = _Arena.of([(f"{bank}{n}", size) for bank in "01" for n, size in states])
        # Where the GPU has memory of its own, inputs and answers lie in both.
        copies = 1 if cuda.integrated else 2
        own = self._banks.size + copies * (self._feed_arena.size + self._answer_arena.size)
        plan = stored.read(record.plan)
        if not code.is_accepted(record.plan.sha256):
            raise EngineError(
                "the TensorRT engine beside the bundle is not loaded: it holds machine code",
                found=f"nobody on this machine has accepted the one in {stored.folder}",
                expected="one that was built here",
                remedy="build it here: stategate device build-engine BUNDLE; or, if you know who "
                "made it: stategate trust BUNDLE",
            )
        _check_free(cuda, record.plan_bytes + own)
        self._log = make_log(trt)
        self._runtime: Any = make_with_log(trt.Runtime, self._log)
        self._engine: Any = None
        self._context: Any = None
        try:
            self._load(trt, stored, plan, own)
            _check_signature(self._engine, bundle, record.guarded)
            self._allocate()
            self._feeds = self._views(self._host_in, self._feed_arena, feeds)
            self._answers = self._views(self._host_out, self._answer_arena, answers)
            self._sums: dict[str, Array] = {}
            for _, sums in self._views(self._host_out, self._answer_arena, guard):
                self._sums = {name: sums[i : i + 1] for i, name in enumerate(record.guarded)}
            capture = record.cuda_graph if capture is None else capture
            if capture and len(buffers.groups) <= _MAX_CAPTURED:
                self._capture_all(1 << len(buffers.groups))
            self.push(0)
        except BaseException:
            self._let_go()
            raise
        kind = "captured" if self._graphs else "enqueued"
        self.name = f"{trt.__name__} {trt.__version__}, {kind}"

    def run(self, parity: int) -> bool:
        """Compute one step; see `Engine.run`."""
        cuda = self._cuda
        try:
            cuda.use()
            for slot, host in self._feeds:
                np.copyto(host, slot)
            if self._graphs:
                cuda.launch(self._graphs[parity])
            else:
                self._enqueue(parity)
            cuda.wait()
        except EngineError as problem:
            raise EngineError(
                "TensorRT failed in a step; the state is that of the step before",
                found=problem,
                remedy="if every step fails from now on, the GPU has lost its memory: open a new "
                "session and restore the last snapshot",
            ) from problem
        for slot, host in self._answers:
            np.copyto(slot, host)
        return False

    def write(self, parity: int) -> None:
        """Do nothing: `run` has computed the guarded next states too; see `Engine.write`."""

    def finite(self, group: Group, parity: int) -> bool:
        """Whether the next values of a group's states hold neither NaN nor infinity."""
        doubtful = [
            state
            for state in group.states
            if state.spec.name in self._sums and not is_finite(self._sums[state.spec.name])
        ]
        spare = not parity & group.bit
        for state in doubtful:  # large finite numbers overflow the sum too
            slot = state.banks[spare]
            at = self._at_bank(state.spec.name, int(spare))
            self._cuda.copy_out(slot.array.ctypes.data, at, slot.array.nbytes)
        if doubtful:
            self._cuda.wait()
        return all(is_finite(state.banks[spare].flat) for state in doubtful)

    def fetch(self, parity: int) -> None:
        """Copy the live banks from the GPU into those of the buffers."""
        self._cuda.use()
        for array, address in self._live(parity):
            self._cuda.copy_out(array.ctypes.data, address, array.nbytes)
        self._cuda.wait()

    def push(self, parity: int) -> None:
        """Copy the live banks of the buffers to the GPU."""
        self._cuda.use()
        for array, address in self._live(parity):
            self._cuda.copy_in(address, array.ctypes.data, array.nbytes)
        self._cuda.wait()

    def close(self) -> None:
        """Free the context, the engine and all memory."""
        self._let_go()
        self._cuda.close()

    def _let_go(self) -> None:
        """Drop TensorRT's objects: they free on the GPU as they go, so before its context does."""
        self._context = self._engine = self._runtime = None
        self._graphs, self._feeds, self._answers, self._sums = [], [], [], {}

    def _load(self, trt: Any, stored: StoredPlan, plan: bytes, own: int) -> None:
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise self._refused("TensorRT does not load the plan that it built")
        if stored.record.stripped:
            self._refit(trt, stored.read(stored.record.variant))
        _check_free(self._cuda, own + _scratch_bytes(self._engine))
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise self._refused("TensorRT cannot make an execution context")

    def _allocate(self) -> None:
        """Pinned memory for what goes in and out, and the GPU's for states."""
        cuda = self._cuda
        self._host_in, self._at_in = cuda.host_bytes(self._feed_arena.size)
        self._host_out, self._at_out = cuda.host_bytes(self._answer_arena.size)
        if not cuda.integrated:
            self._at_in = cuda.device_bytes(self._feed_arena.size)
            self._at_out = cuda.device_bytes(self._answer_arena.size)
        self._at_banks = cuda.device_bytes(self._banks.size)
        for arena, base in ((self._feed_arena, self._at_in), (self._answer_arena, self._at_out)):
            for name, offset in arena.offsets.items():
                self._set_address(name, base + offset)

    def _views(self, host: Array, arena: _Arena, slots: list[Slot]) -> list[tuple[Array, Array]]:
        """Each slot's array, and the same tensor in pinned memory."""
        pairs = []
        for slot in slots:
            start = arena.offsets[slot.name]
            part = host[start : start + slot.array.nbytes]
            pairs.append((slot.array, part.view(slot.array.dtype).reshape(slot.array.shape)))
        return pairs

    def _set_address(self, name: str, address: int) -> None:
        if not self._context.set_tensor_address(name, address):
            raise self._refused(f"TensorRT does not take an address for {name!r}")

    def _bind(self, parity: int) -> None:
        """Give every state the addresses of its live and its spare bank."""
        self._bound = -1  # until all are given, whoever interrupts
        for state in self._buffers.states:
            name = state.spec.name
            live = int(bool(parity & self._bits[name]))
            self._set_address(name, self._at_bank(name, live))
            self._set_address(state.spec.next_name, self._at_bank(name, 1 - live))
        self._bound = parity

    def _at_bank(self, name: str, bank: int) -> int:
        return self._at_banks + self._banks.offsets[f"{bank}{name}"]

    def _enqueue(self, parity: int) -> None:
        cuda, context = self._cuda, self._context
        if parity != self._bound:
            self._bind(parity)
        if not cuda.integrated:
            cuda.copy_in(self._at_in, self._host_in.ctypes.data, self._feed_arena.size)
        if not context.execute_async_v3(cuda.stream):
            raise self._refused("TensorRT does not enqueue the step")
        if not cuda.integrated:
            cuda.copy_out(self._host_out.ctypes.data, self._at_out, self._answer_arena.size)

    def _capture_all(self, parities: int) -> None:
        """One CUDA graph for each combination of banks; it overwrites the states' memory."""
        self.push(0)  # bytes that nobody wrote could be indices outside of everything
        for parity in range(parities):
            # TensorRT finishes its preparations in the first run after addresses have changed, and
            # those cannot be captured.
            self._enqueue(parity)
            self._cuda.wait()
            self._cuda.begin_capture()
            try:
                self._enqueue(parity)
            finally:
                graph = self._cuda.end_capture()
            self._graphs.append(graph)

    def _live(self, parity: int) -> Iterator[tuple[Array, int]]:
        """The live bank of each state in the buffers, and where it is on the GPU."""
        for state in self._buffers.states:
            live = int(bool(parity & self._bits[state.spec.name]))
            yield state.banks[live].array, self._at_bank(state.spec.name, live)

    def _refit(self, trt: Any, variant: bytes) -> None:
        """Put the weights into a plan that was built without them."""
        refitter: Any = trt.Refitter(self._engine, self._log)
        reader: Any = trt.OnnxParserRefitter(refitter, self._log)
        if not reader.refit_from_bytes(variant) or not refitter.refit_cuda_engine():
            raise self._refused("TensorRT cannot put the weights into the plan")

    def _refused(self, what: str) -> StategateError:
        remedy = "build it again: stategate device build-engine BUNDLE"
        return refusal(what, self._log, remedy=remedy)


def _arena_of(slots: list[Slot]) -> _Arena:
    return _Arena.of([(slot.name, slot.array.nbytes) for slot in slots])


def _scratch_bytes(engine: Any) -> int:
    """Memory that a context needs for what is between layers."""
    newer: int | None = getattr(engine, "device_memory_size_v2", None)
    return newer if newer is not None else int(engine.device_memory_size)


def _check_free(cuda: Cuda, needed: int) -> None:
    free, total = cuda.memory()
    if needed > free:
        raise MemoryBudgetError(
            "the engine does not fit the GPU's free memory",
            found=f"{needed:,} bytes needed, {free:,} of {total:,} free on {cuda.gpu}",
            remedy="end what else runs on the GPU, or use onnxruntime or native",
        )


def _check_signature(engine: Any, bundle: Bundle, guarded: tuple[str, ...]) -> None:
    step = bundle.manifest.step
    floats = tuple(state.name for state in step.states if state.dtype == "float32")
    if guarded != floats:
        raise EngineError(
            "the engine's record does not guard the states of the bundle",
            found=guarded,
            expected=floats,
            remedy="build it again: stategate device build-engine BUNDLE",
        )
    part = {constant.name for constant in step.constants}
    feeds = {name: tensor for name, tensor in step.graph_inputs().items() if name not in part}
    promised = {"INPUT": feeds, "OUTPUT": step.graph_outputs()}
    if guarded:
        promised["OUTPUT"][GUARD] = TensorSpec(GUARD, (len(guarded),))
    expected = {
        (name, side, tuple(t.shape), _TYPES.get(t.dtype, t.dtype))
        for side, tensors in promised.items()
        for name, t in tensors.items()
    }
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    found = {
        (
            name,
            engine.get_tensor_mode(name).name,
            tuple(engine.get_tensor_shape(name)),
            engine.get_tensor_dtype(name).name,
        )
        for name in names
    }
    if found != expected:
        raise EngineError(
            "the plan's tensors are not those of the manifest",
            found=sorted(found - expected) or "nothing more",
            expected=sorted(expected - found) or "nothing else",
            remedy="build it again: stategate device build-engine BUNDLE",
        )
