"""Whether the C library of a bundle may be loaded on this machine.

A shared object runs code as soon as it is mapped, so everything that can be known about it is
looked at while it is still bytes: digest, file format, machine, interface and graph.
"""

from __future__ import annotations

import mmap
import os
import platform
import struct
from pathlib import Path

from stategate.common import cpu
from stategate.contract.c_library import ABI, NativeRef, tag
from stategate.contract.errors import EngineError

# e_machine of the ELF header (System V ABI, chapter 4) by the name that the kernel gives the CPU.
_ELF_MACHINES = {"x86_64": 62, "aarch64": 183, "armv7l": 40, "riscv64": 243}


def load_obstacle(native: NativeRef) -> str | None:
    """Why this machine cannot load a bundle's library; None where it can."""
    if native.library is None:
        return "the bundle holds C source only; compile it with: stategate device build-native"
    if native.abi != ABI:
        return f"the C in the bundle speaks interface {native.abi}, this runtime {ABI}"
    if platform.system() != "Linux":
        return f"the library is for Linux, this is {platform.system()}"
    if native.machine != platform.machine():
        return f"the library is for {native.machine}, this machine is {platform.machine()}"
    features = cpu.features()
    if native.needs and features is None:
        return "what this CPU has cannot be read: /proc/cpuinfo is hidden"
    if missing := set(native.needs) - (features or frozenset()):
        return f"the library needs {', '.join(sorted(missing))}, which this CPU does not have"
    try:
        # The library's own bytes are mapped so, and some kernels forbid it (vm.memfd_noexec,
        # SELinux, seccomp).
        with os.fdopen(os.memfd_create("stategate"), "wb") as memory:
            memory.truncate(mmap.PAGESIZE)
            Path(f"/proc/self/fd/{memory.fileno()}").stat()  # what the loader is given
            mode = mmap.PROT_READ | mmap.PROT_EXEC
            mmap.mmap(memory.fileno(), mmap.PAGESIZE, mmap.MAP_PRIVATE, mode).close()
    except (AttributeError, OSError) as problem:  # the former where it is not Linux
        return f"this system runs no code from memory (memfd_create): {problem}"
    return None


def check_library(data: bytes, native: NativeRef, graph_sha256: str) -> None:
    """Hold the bytes of a shared object against what the manifest says, before it is mapped."""
    if len(data) < 20 or data[:4] != b"\x7fELF":
        raise _refused("it is not an ELF file", data[:4].hex(), b"\x7fELF".hex())
    # EI_CLASS, EI_DATA, then e_type and e_machine at byte 16 in the file's own byte order.
    order = {1: "<", 2: ">"}.get(data[5], "<")
    kind, machine = struct.unpack_from(f"{order}HH", data, 16)
    if kind != 3:
        raise _refused("it is not a shared object", f"e_type {kind}", "e_type 3")
    expected_machine = _ELF_MACHINES.get(native.machine)
    if machine != expected_machine:
        raise _refused(f"it is not for {native.machine}", f"e_machine {machine}", expected_machine)
    if tag(native.abi, graph_sha256) not in data:
        raise _refused(
            "it was made from another graph, or for another interface",
            "no such tag in it",
            tag(native.abi, graph_sha256).decode(),
        )


def _refused(why: str, found: object, expected: object) -> EngineError:
    return EngineError(
        f"the native library was not loaded: {why}",
        found=found,
        expected=expected,
        remedy="build it again: stategate device build-native",
    )
