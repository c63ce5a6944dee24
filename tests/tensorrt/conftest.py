"""A GPU and a TensorRT that are not there: strict where the real ones are merely undefined."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

# `make test-tensorrt` puts the parser and builder of TensorRT-RTX on the path.
collect_ignore = [] if find_spec("tensorrt_rtx") else ["test_rtx.py"]

# The GPU's addresses carry a tag: one side's address on the other side is an error and no luck.
DEVICE, MAPPED = 1 << 52, 1 << 53
INVALID_ADDRESS = 700


class FakeDriver:
    """libcuda in Python: nothing enqueued is done before somebody waits for it."""

    def __init__(self, *, integrated: bool = False, version: int = 12060) -> None:
        self.integrated, self.version = integrated, version
        self.free_bytes = 1 << 34
        self.gpu = b"Fake Orin"
        self.capability = (8, 7)
        self.failing: dict[str, int] = {}
        self.device: dict[int, np.ndarray] = {}
        self.host: dict[int, np.ndarray] = {}
        self.open: list[str] = []
        self.queue: list[Callable[[], None]] = []
        self.capturing: list[Callable[[], None]] | None = None
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.launched = 0
        self.broken = 0

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)
        call = type(self).__dict__.get(f"_{name}")
        if call is None:
            raise AttributeError(name)

        def checked(*arguments: Any) -> int:
            if self.failing.get(name):
                return self.failing[name]
            return call(self, *arguments) or 0

        return checked

    def real(self, address: int, size: int) -> np.ndarray:
        """The bytes behind an address of the GPU; it must be inside something that is allocated."""
        tag = address & (DEVICE | MAPPED)
        pool = {DEVICE: self.device, MAPPED: self.host}.get(tag, {})
        plain = address & ~(DEVICE | MAPPED)
        for base, array in pool.items():
            if base <= plain and plain + size <= base + array.nbytes:
                return array[plain - base : plain - base + size]
        raise RuntimeError(f"{address:#x} is no address of the GPU")

    def enqueue(self, work: Callable[[], None]) -> None:
        (self.queue if self.capturing is None else self.capturing).append(work)

    def _cuInit(self, _: int) -> None: ...

    def _cuDriverGetVersion(self, out: Any) -> None:
        out._obj.value = self.version

    def _cuDeviceGet(self, out: Any, number: int) -> None:
        out._obj.value = number

    def _cuDeviceGetName(self, out: Any, _size: int, _device: int) -> None:
        out.value = self.gpu

    def _cuDeviceGetAttribute(self, out: Any, which: int, _device: int) -> None:
        major, minor = self.capability
        known = {16: 8, 18: int(self.integrated), 19: 1, 75: major, 76: minor}
        out._obj.value = known[which]

    def _cuDevicePrimaryCtxRetain(self, out: Any, _device: int) -> None:
        out._obj.value = 7
        self.open.append("context")

    def _cuDevicePrimaryCtxRelease_v2(self, _device: int) -> None:
        self.open.remove("context")

    def _cuCtxSetCurrent(self, _context: int) -> None: ...

    def _cuMemGetInfo_v2(self, free: Any, total: Any) -> None:
        free._obj.value, total._obj.value = self.free_bytes, 1 << 35

    def _cuMemAlloc_v2(self, out: Any, size: int) -> None:
        array = np.full(size, 0xFF, np.uint8)  # NaN, wherever nothing was written
        self.device[array.ctypes.data] = array
        out._obj.value = array.ctypes.data | DEVICE

    def _cuMemFree_v2(self, address: int) -> None:
        del self.device[address & ~DEVICE]

    def _cuMemHostAlloc(self, out: Any, size: int, flags: int) -> None:
        assert flags == 2
        array = np.full(size, 0xFF, np.uint8)
        self.host[array.ctypes.data] = array
        out._obj.value = array.ctypes.data

    def _cuMemFreeHost(self, address: int) -> None:
        del self.host[address]

    def _cuMemHostGetDevicePointer_v2(self, out: Any, address: int, _flags: int) -> None:
        out._obj.value = address | MAPPED

    def _cuMemcpyHtoDAsync_v2(self, there: int, here: int, size: int, _stream: int) -> None:
        assert there & DEVICE and not here & (DEVICE | MAPPED)
        raw = (ctypes.c_uint8 * size).from_address(here)
        self.enqueue(lambda: np.copyto(self.real(there, size), np.ctypeslib.as_array(raw)))

    def _cuMemcpyDtoHAsync_v2(self, here: int, there: int, size: int, _stream: int) -> None:
        assert there & DEVICE and not here & (DEVICE | MAPPED)
        raw = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(here))
        self.enqueue(lambda: np.copyto(raw, self.real(there, size)))

    def _cuStreamCreate(self, out: Any, _flags: int) -> None:
        out._obj.value = 11
        self.open.append("stream")

    def _cuStreamDestroy_v2(self, _stream: int) -> None:
        self.open.remove("stream")

    def _cuStreamSynchronize(self, _stream: int) -> int:
        work, self.queue = self.queue, []
        try:
            for one in work:
                one()
        except RuntimeError:
            self.broken = INVALID_ADDRESS
        return self.broken

    def _cuStreamBeginCapture_v2(self, _stream: int, _mode: int) -> None:
        self.capturing = []

    def _cuStreamEndCapture(self, _stream: int, out: Any) -> None:
        number = 1000 + len(self.graphs)
        self.graphs[number], self.capturing = self.capturing or [], None
        out._obj.value = number

    def _cuGraphInstantiateWithFlags(self, out: Any, graph: int, _flags: int) -> None:
        out._obj.value = graph
        self.open.append("graph")

    def _cuGraphDestroy(self, _graph: int) -> None: ...

    def _cuGraphLaunch(self, graph: int, _stream: int) -> None:
        self.launched += 1
        self.queue += self.graphs[graph]

    def _cuGraphExecDestroy(self, _graph: int) -> None:
        self.open.remove("graph")

    def _cuGetErrorString(self, _code: int, out: Any) -> None:
        out._obj.value = b"a fault on purpose"


_KINDS = {
    TensorProto.FLOAT: "FLOAT",
    TensorProto.INT32: "INT32",
    TensorProto.BOOL: "BOOL",
    TensorProto.FLOAT16: "HALF",
}


class _ILogger:
    ERROR, INTERNAL_ERROR, WARNING = "ERROR", "INTERNAL_ERROR", "WARNING"


class _Engine:
    """Runs the graph in ONNX Runtime, on the bytes behind the GPU's addresses."""

    device_memory_size_v2 = 4096

    def __init__(self, trt: FakeTensorRt, graph: bytes, log: Any) -> None:
        self.trt, self.log = trt, log
        model = onnx.load_model_from_string(graph)
        self.tensors = {
            value.name: (mode, value.type.tensor_type)
            for mode, values in (("INPUT", model.graph.input), ("OUTPUT", model.graph.output))
            for value in values
        }
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(graph, options)
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return SimpleNamespace(name=self.tensors[name][0])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(d.dim_value for d in self.tensors[name][1].shape.dim)

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=_KINDS[self.tensors[name][1].elem_type])

    def create_execution_context(self) -> Any:
        return None if self.trt.no_context else _Context(self)


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self.engine = engine
        self.addresses: dict[str, int] = {}

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert name in self.engine.tensors
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 11
        driver, engine = self.engine.trt.driver, self.engine
        at = dict(self.addresses)  # as they are now: a captured graph keeps them
        assert set(at) == set(engine.tensors)

        def work() -> None:
            def view(name: str) -> np.ndarray:
                kind = helper.tensor_dtype_to_np_dtype(engine.tensors[name][1].elem_type)
                shape = engine.get_tensor_shape(name)
                size = int(np.prod(shape)) * kind.itemsize
                return driver.real(at[name], size).view(kind).reshape(shape)

            names = [n for n, (mode, _) in engine.tensors.items() if mode == "INPUT"]
            given = [n for n in engine.tensors if n not in names]
            answers = engine.session.run(given, {n: view(n).copy() for n in names})
            for name, answer in zip(given, answers, strict=True):
                np.copyto(view(name), answer)
            engine.trt.spoil(view)

        driver.enqueue(work)
        return True


@dataclass
class FakeTensorRt:
    """The module ``tensorrt``: as much of it as stategate calls."""

    driver: FakeDriver
    __version__: str = "10.3.0"
    library: str = "tensorrt"
    no_context: bool = False
    refuses: bool = False
    spoil: Callable[[Any], None] = lambda view: None
    flags: list[str] = field(default_factory=list)
    new_times: bytes = b"times"

    def __post_init__(self) -> None:
        self.__name__ = self.library
        trt = self
        self.ILogger = _ILogger
        names = ("EXPLICIT_BATCH", "STRONGLY_TYPED")
        self.NetworkDefinitionCreationFlag = SimpleNamespace(**{n: i for i, n in enumerate(names)})
        flags = ("TF32", "FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS", "STRIP_PLAN")
        flags += ("REFIT_IDENTICAL", "ERROR_ON_TIMING_CACHE_MISS")
        self.BuilderFlag = SimpleNamespace(**{name: name for name in flags})
        self.MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")

        class Runtime:
            def __init__(self, log: Any) -> None:
                self.log = log

            def deserialize_cuda_engine(self, plan: bytes) -> Any:
                if not plan.startswith(b"plan of a fake:") or trt.refuses:
                    self.log.log(_ILogger.ERROR, "magic tag does not match")
                    return None
                return _Engine(trt, plan.removeprefix(b"plan of a fake:"), self.log)

        class Parser:
            num_errors = 1

            def __init__(self, network: Any, log: Any) -> None:
                self.network = network

            def parse(self, graph: bytes) -> bool:
                self.network.graph = graph
                return True

        class Cache:
            def serialize(self) -> bytes:
                return trt.new_times

        class Config:
            def set_memory_pool_limit(self, pool: str, size: int) -> None:
                assert pool == "workspace" and size > 0

            def set_flag(self, flag: str) -> None:
                trt.flags.append(flag)

            def clear_flag(self, flag: str) -> None:
                assert flag == "TF32"

            def create_timing_cache(self, raw: bytes) -> Cache:
                return Cache()

            def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
                return not ignore_mismatch

        class Builder:
            def __init__(self, log: Any) -> None:
                self.log = log

            def create_network(self, flags: int) -> Any:
                return SimpleNamespace(graph=b"", flags=flags)

            def create_builder_config(self) -> Config:
                return Config()

            def build_serialized_network(self, network: Any, config: Config) -> Any:
                if trt.refuses:
                    self.log.log(_ILogger.ERROR, "Cuda failure: 35")
                    return None
                return b"plan of a fake:" + network.graph

        self.Runtime, self.OnnxParser, self.Builder = Runtime, Parser, Builder


@pytest.fixture(params=[False, True], ids=["discrete", "integrated"])
def driver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """A GPU; nothing on it may be left when the test is over."""
    fake = FakeDriver(integrated=request.param)
    monkeypatch.setattr("stategate.runtime.engines.cuda.load_driver", lambda: fake)
    return fake


@pytest.fixture
def trt(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    """TensorRT on that GPU."""
    fake = FakeTensorRt(driver)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    return fake


@pytest.fixture
def rtx(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    """TensorRT-RTX on that GPU."""
    fake = FakeTensorRt(driver, "1.7.1.116", "tensorrt_rtx")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake)
    return fake


@pytest.fixture
def built(trt: FakeTensorRt, tiny_bundle: Path, copy_of: Callable[[Path], Path]) -> Path:
    """A bundle with a plan beside it."""
    from stategate.contract import Bundle
    from stategate.export.tensorrt.build import Settings
    from stategate.export.tensorrt.plans import build_engine, keep_plan
    from stategate.runtime.engines.cuda import Cuda

    bundle = Bundle.open(copy_of(tiny_bundle))
    cuda = Cuda()
    keep_plan(build_engine(bundle, trt, cuda, Settings(1 << 20)), bundle)
    cuda.close()
    return bundle.path


@pytest.fixture
def nothing_left(driver: FakeDriver) -> Any:
    """Asks after the test that context, stream, graphs and memory were given back."""
    yield
    assert (driver.device, driver.host, driver.open) == ({}, {}, [])
