"""The native engine in a bundle: its C source, and the library made of it."""

from __future__ import annotations

import re
from typing import Literal

from stategate.contract.errors import SpecError
from stategate.contract.reading import printable
from stategate.contract.specs import Record

# Counts up whenever the functions that the runtime calls change their meaning.
ABI = 2
LIBRARY_PATH = "native/libstep.so"
SOURCE_FOLDER = "native"

Engine = Literal["onnxruntime", "native"]


class NativeRef(Record, frozen=True, kw_only=True):
    """The native engine of a bundle; its files are among ``Manifest.files``."""

    abi: int  # version of the interface between library and runtime
    sources: tuple[
        str, ...
    ]  # paths of the C source, those that are compiled and those they include
    generator: str  # what made them of the graph
    # operators whose last bits a C library or a compiler decides. Without any, outputs and states
    # have the same bits in every build of the source
    inexact: tuple[str, ...] = ()
    # the chain of hashes over outputs, gates and states of the golden episode, 16 hexadecimal
    # digits, which every build of the source gives. Empty where none is promised: there are
    # ``inexact`` operators, there was no compiler, or the bundle is older
    golden_digest: str = ""
    library: str | None = None  # path of the shared object, or None until a compiler has run
    machine: str = ""  # CPU that it is for, as the kernel names it
    isa: str = ""  # instruction set that it needs, in the compiler's words for ``-march``
    # what the compiler made of that and of the flags: each feature of a CPU that it might use, as
    # ``/proc/cpuinfo`` spells it
    needs: tuple[str, ...] = ()
    compiler: str = ""  # first line of the compiler's version
    flags: tuple[str, ...] = ()  # flags of the compiler
    # largest difference of an output from the golden episode, when the library was built; None
    # where it could not be run
    max_output_error: float | None = None
    # median microseconds of a step by engine, measured side by side when the library was built;
    # empty where it could not be run
    step_us: dict[str, float] = {}

    def __post_init__(self) -> None:
        """Check that a library says what it is for."""
        if self.library is not None and not (self.machine and self.isa and self.compiler):
            raise SpecError(
                "a native library does not say what it is for",
                found=f"machine {self.machine!r}, isa {self.isa!r}, compiler {self.compiler!r}",
            )
        # Zeros are the chain over nothing: they would be kept by a library that did nothing.
        digest = self.golden_digest
        if digest and (re.fullmatch("[0-9a-f]{16}", digest) is None or not digest.strip("0")):
            raise SpecError(
                "the digest of the golden episode is malformed",
                found=printable(self.golden_digest),
                expected="16 hexadecimal digits that are not all 0, or nothing",
            )
        if self.golden_digest and self.inexact:
            raise SpecError(
                "a digest of the golden episode is promised, and cannot be kept everywhere",
                found=f"inexact operators {printable(', '.join(self.inexact))}",
                expected="one or the other",
            )

    @property
    def fastest(self) -> Engine:
        """The faster of the engines that were measured; onnxruntime where none was."""
        native_us, onnxruntime_us = self.step_us.get("native"), self.step_us.get("onnxruntime")
        faster = native_us is not None and (onnxruntime_us is None or native_us <= onnxruntime_us)
        return "native" if faster else "onnxruntime"


def tag(abi: int, graph_sha256: str) -> bytes:
    """What a library carries among its constants, so that it can be known from its bytes."""
    return f"stategate native abi {abi} graph {graph_sha256}".encode()
