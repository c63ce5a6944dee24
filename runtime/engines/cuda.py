"""A handful of CUDA's driver calls through ctypes: memory, one stream, captured graphs.

The driver's library and not the toolkit's: ``libcuda.so.1`` has one name and one binary interface
from CUDA 11.4 to 13 and comes with the driver, on a Jetson with the board support package; see
docs/adr/0017. Nothing is loaded before `Cuda` is made. Names and meanings are those of the CUDA
Driver API reference.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stategate.contract.errors import EngineError

# The oldest driver that has every call below: cuGraphInstantiateWithFlags came with CUDA 11.4.
MIN_CUDA = (11, 4)

# CUdevice_attribute
_MULTIPROCESSORS, _INTEGRATED, _MAPS_HOST = 16, 18, 19
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
_HOST_MAPPED = 2  # CU_MEMHOSTALLOC_DEVICEMAP
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_CAPTURE_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY

_P = ctypes.POINTER
_CALLS: dict[str, list[Any]] = {
    "cuInit": [c_uint],
    "cuDriverGetVersion": [_P(c_int)],
    "cuDeviceGet": [_P(c_int), c_int],
    "cuDeviceGetName": [c_char_p, c_int, c_int],
    "cuDeviceGetAttribute": [_P(c_int), c_int, c_int],
    "cuDevicePrimaryCtxRetain": [_P(c_void_p), c_int],
    "cuDevicePrimaryCtxRelease_v2": [c_int],
    "cuCtxSetCurrent": [c_void_p],
    "cuMemGetInfo_v2": [_P(c_size_t), _P(c_size_t)],
    "cuMemAlloc_v2": [_P(c_uint64), c_size_t],
    "cuMemFree_v2": [c_uint64],
    "cuMemHostAlloc": [_P(c_void_p), c_size_t, c_uint],
    "cuMemFreeHost": [c_void_p],
    "cuMemHostGetDevicePointer_v2": [_P(c_uint64), c_void_p, c_uint],
    "cuMemcpyHtoDAsync_v2": [c_uint64, c_void_p, c_size_t, c_void_p],
    "cuMemcpyDtoHAsync_v2": [c_void_p, c_uint64, c_size_t, c_void_p],
    "cuStreamCreate": [_P(c_void_p), c_uint],
    "cuStreamDestroy_v2": [c_void_p],
    "cuStreamSynchronize": [c_void_p],
    "cuStreamBeginCapture_v2": [c_void_p, c_int],
    "cuStreamEndCapture": [c_void_p, _P(c_void_p)],
    "cuGraphInstantiateWithFlags": [_P(c_void_p), c_void_p, c_uint64],
    "cuGraphDestroy": [c_void_p],
    "cuGraphLaunch": [c_void_p, c_void_p],
    "cuGraphExecDestroy": [c_void_p],
    "cuGetErrorString": [c_int, _P(c_char_p)],
}


def load_driver() -> Any:
    """The driver of this machine."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as problem:
        raise EngineError(
            "this machine has no NVIDIA driver",
            found=problem,
            expected="libcuda.so.1",
            remedy="install the driver (on a Jetson: apt install nvidia-jetpack), or use "
            "onnxruntime or native",
        ) from problem
    return checked_driver(library)


def checked_driver(library: Any) -> Any:
    """The library with the types of its calls declared."""
    for name, types in _CALLS.items():
        try:
            call = getattr(library, name)
        except AttributeError as problem:
            raise _too_old(f"no {name}") from problem
        call.argtypes, call.restype = types, c_int
    return library


def _too_old(version: str) -> EngineError:
    return EngineError(
        "the NVIDIA driver is too old",
        found=version,
        expected=f"one for CUDA {MIN_CUDA[0]}.{MIN_CUDA[1]} or newer",
        remedy="update the driver; on a Jetson that means JetPack 5.1 or newer",
    )


class Cuda:
    """The primary context of one GPU, its memory and one stream.

    Everything that it gave out is freed by `close`.

    Attributes:
        gpu: The GPU's name.
        compute_capability: Such as ``8.7``.
        multiprocessors: How many it has.
        integrated: Whether it shares the processor's memory, as on a Jetson.
        version: CUDA version of the driver, such as ``12.6``.
        stream: Handle of the stream.
    """

    def __init__(self, driver: Any = None, device: int = 0) -> None:
        """Take the primary context, which TensorRT uses too."""
        self._driver = driver or load_driver()
        self._free: list[tuple[str, int]] = []
        self._call("cuInit", 0)
        version = self._integer("cuDriverGetVersion")
        self.version = f"{version // 1000}.{version % 1000 // 10}"
        if (version // 1000, version % 1000 // 10) < MIN_CUDA:
            raise _too_old(f"CUDA {self.version}")
        handle = c_int()
        self._call("cuDeviceGet", byref(handle), device)
        self._device = handle.value
        name = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", name, len(name), self._device)
        self.gpu = name.value.decode(errors="replace")
        major, minor = self._attribute(_CAPABILITY_MAJOR), self._attribute(_CAPABILITY_MINOR)
        self.compute_capability = f"{major}.{minor}"
        self.multiprocessors = self._attribute(_MULTIPROCESSORS)
        self.integrated = bool(self._attribute(_INTEGRATED) and self._attribute(_MAPS_HOST))
        context = c_void_p()
        self._call("cuDevicePrimaryCtxRetain", byref(context), self._device)
        self._context = context.value
        self._free.append(("cuDevicePrimaryCtxRelease_v2", self._device))
        try:
            self.use()
            self.stream = self._handle("cuStreamCreate", _NON_BLOCKING)
        except EngineError:
            self.close()
            raise
        self._free.append(("cuStreamDestroy_v2", self.stream))

    def use(self) -> None:
        """Make the context that of the calling thread; TensorRT looks for it there."""
        self._call("cuCtxSetCurrent", self._context)

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of the GPU's memory; free is what could be had."""
        free, total = c_size_t(), c_size_t()
        self._call("cuMemGetInfo_v2", byref(free), byref(total))
        if self.integrated:
            # A Jetson's driver does not count what the kernel would give back.
            _, _, available = Path("/proc/meminfo").read_text().partition("MemAvailable:")
            if available:
                return max(free.value, int(available.split()[0]) * 1024), total.value
        return free.value, total.value

    def device_bytes(self, size: int) -> int:
        """Address of new memory of the GPU."""
        address = c_uint64()
        self._call("cuMemAlloc_v2", byref(address), size)
        self._free.append(("cuMemFree_v2", address.value))
        return address.value

    def host_bytes(self, size: int) -> tuple[NDArray[np.uint8], int]:
        """New pinned memory: the array, and where the GPU sees the same bytes."""
        address = self._handle("cuMemHostAlloc", size, _HOST_MAPPED)
        self._free.append(("cuMemFreeHost", address))
        mapped = c_uint64()
        self._call("cuMemHostGetDevicePointer_v2", byref(mapped), address, 0)
        view = (ctypes.c_uint8 * size).from_address(address)
        array: NDArray[np.uint8] = np.ctypeslib.as_array(view)
        array.fill(0)
        return array, mapped.value

    def copy_in(self, device: int, host: int, size: int) -> None:
        """Enqueue a copy from the host to the GPU."""
        self._call("cuMemcpyHtoDAsync_v2", device, host, size, self.stream)

    def copy_out(self, host: int, device: int, size: int) -> None:
        """Enqueue a copy from the GPU to the host."""
        self._call("cuMemcpyDtoHAsync_v2", host, device, size, self.stream)

    def wait(self) -> None:
        """Return when everything that was enqueued is done."""
        self._call("cuStreamSynchronize", self.stream)

    def begin_capture(self) -> None:
        """Record what is enqueued from now on, instead of doing it."""
        self._call("cuStreamBeginCapture_v2", self.stream, _CAPTURE_THREAD_LOCAL)

    def end_capture(self) -> int:
        """Handle of what was recorded, ready to be launched."""
        graph = c_void_p()
        self._call("cuStreamEndCapture", self.stream, byref(graph))
        try:
            ready = c_void_p()
            self._call("cuGraphInstantiateWithFlags", byref(ready), graph.value, 0)
        finally:
            self._call("cuGraphDestroy", graph.value)
        self._free.append(("cuGraphExecDestroy", ready.value or 0))
        return ready.value or 0

    def launch(self, graph: int) -> None:
        """Enqueue what was recorded."""
        self._call("cuGraphLaunch", graph, self.stream)

    def close(self) -> None:
        """Free everything, last things first; a second call does nothing."""
        if self._free:
            self._driver.cuCtxSetCurrent(self._context)
        while self._free:
            call, handle = self._free.pop()
            getattr(self._driver, call)(handle)

    def _handle(self, call: str, *arguments: int) -> int:
        value = c_void_p()
        self._call(call, byref(value), *arguments)
        return value.value or 0

    def _integer(self, call: str, *arguments: int) -> int:
        value = c_int()
        self._call(call, byref(value), *arguments)
        return value.value

    def _attribute(self, which: int) -> int:
        return self._integer("cuDeviceGetAttribute", which, self._device)

    def _call(self, name: str, *arguments: Any) -> None:
        code: int = getattr(self._driver, name)(*arguments)
        if code:
            text = c_char_p()
            self._driver.cuGetErrorString(code, byref(text))
            reason = (text.value or b"unknown error").decode(errors="replace")
            raise EngineError(
                f"the GPU refuses {name}",
                found=f"CUDA error {code}: {reason}",
                remedy="free memory on the GPU, or use a smaller model"
                if code == _OUT_OF_MEMORY
                else None,
            )
