"""Making a bundle's native library of the C source in it, on any machine with a compiler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import numpy as np

from stategate.common.build_time import may_measure
from stategate.common.c_library import check_library, load_obstacle
from stategate.common.compiler import compile_library
from stategate.common.timing import TimedCall, time_in_turns
from stategate.contract import Bundle, Episode, FileRef, sha256, write_bundle
from stategate.contract.c_library import ABI, LIBRARY_PATH, Engine
from stategate.contract.errors import BundleError, MissingDependencyError, ParityError, TrustError
from stategate.contract.staging import scratch_folder
from stategate.runtime.check.full_pool import Stepper, open_stepper
from stategate.runtime.check.golden import TOLERANCE, Replay, replay, tolerance_of
from stategate.runtime.trust.accepted import accepted
from stategate.runtime.trust.code import accept_own, code_digest
from stategate.runtime.trust.policy import Trust

_BURST = 32
_SECONDS = 0.5
_MOST_ROUNDING = 0.1


def build_native(
    path: str | Path,
    *,
    cc: str = "cc",
    isa: str | None = None,
    flags: Sequence[str] = (),
    promise: bool = False,
    trust: Trust | None = None,
) -> Bundle:
    """Compile, check against the golden episode, measure beside ONNX Runtime, and write it down.

    Nothing is measured where SOURCE_DATE_EPOCH asks for the same bytes every time.

    A library for another machine is neither run nor measured here.

    Args:
        path: A bundle with C source; it is replaced by one with the library, or stays as it is.
        cc: The compiler, such as ``aarch64-linux-gnu-gcc``.
        isa: Instruction set for ``-march``; by default that of the bundle's target, or what this
            machine has.
        flags: Further flags.
        promise: Write down the digest of the golden episode, for every later build to repeat.
        trust: Who may have signed the bundle; see `stategate.runtime.Session.open`.
    """
    bundle = Bundle.open(path)
    manifest, native = bundle.manifest, bundle.manifest.native
    if native is None:
        raise BundleError(
            "this bundle has no C source to compile",
            found=path,
            remedy="stategate export MODEL --engines onnxruntime,native",
        )
    if native.abi != ABI:
        raise BundleError(
            "the C source in this bundle is for another version of the runtime",
            found=f"interface {native.abi}",
            expected=f"interface {ABI}",
            remedy="stategate export MODEL --engines onnxruntime,native",
        )
    accepts = accepted(bundle, trust)
    if accepts.refusal is not None:
        raise TrustError(
            "the C source of this bundle is not compiled, because it would be run here",
            found=accepts.refusal,
            expected="code that was made on this machine, or that somebody here vouches for",
            remedy=accepts.remedy,
        )
    content = {file.path: bundle.read(file) for file in manifest.all_files}
    sources = {PurePosixPath(name).name: content[name] for name in native.sources}
    compiled = compile_library(sources, cc=cc, isa=isa, extra=flags, target=manifest.target)
    native = msgspec.structs.replace(
        native,
        library=LIBRARY_PATH,
        machine=compiled.machine,
        isa=compiled.isa,
        needs=compiled.needs,
        compiler=compiled.compiler,
        flags=compiled.flags,
        max_output_error=None,
        step_us={},
    )
    check_library(compiled.library, native, manifest.step_graph.file.sha256)
    content[LIBRARY_PATH] = compiled.library
    others = tuple(file for file in manifest.files if file.path != LIBRARY_PATH)
    files = (*others, FileRef(LIBRARY_PATH, sha256(compiled.library)))
    manifest = msgspec.structs.replace(manifest, files=files, native=native, no_native="")
    accept_own(code_digest(manifest), manifest.model.name)
    if load_obstacle(native) is None:
        with scratch_folder() as scratch:
            trial = write_bundle(Path(scratch) / "trial", manifest, content)
            result = _checked(trial)
            if result is not None:
                digest = result.digest if promise and not native.inexact else native.golden_digest
                native = msgspec.structs.replace(
                    native, max_output_error=result.max_output_error, golden_digest=digest
                )
            if may_measure():
                native = msgspec.structs.replace(native, step_us=measure_us(trial))
        manifest = msgspec.structs.replace(manifest, native=native)
    return write_bundle(path, manifest, content)


def _checked(bundle: Bundle) -> Replay | None:
    receipt = bundle.manifest.verification
    tolerance = most = max(TOLERANCE, tolerance_of(bundle.manifest))
    # Of activations in int8 a few lie between two integers, and engines take either. Such a step
    # may be as far off as int8 itself is. What is wrong parts in most steps, however little.
    label = bundle.manifest.step_graph.precision
    if receipt and (label == "int8" or "int8-activations" in label):
        tolerance = max(tolerance, min(receipt.max_output_error or 0.0, _MOST_ROUNDING))
    promised = bundle.manifest.native and bundle.manifest.native.golden_digest
    replayed = replay(bundle.path, tolerance, "native")
    if replayed is None:
        return None
    usual = (replayed.one_step or replayed).usual_output_error
    is_usual = tolerance == most or usual <= most
    if not (replayed.passed and is_usual):
        raise ParityError(
            "the native library does not repeat the golden episode",
            found=replayed.summary
            + ("" if is_usual else f"; in half of the steps {usual:.3g} and more"),
            expected=f"at most {tolerance:g} and no flip"
            + ("" if is_usual else f", and in half of the steps {most:g}")
            + (f", and the digest {promised}" if promised else ""),
            remedy="step this bundle with onnxruntime, or try other --flag; nothing was written",
        )
    return replayed


def measure_us(bundle: Bundle) -> dict[str, float]:
    """Median time of a counted step in the fastest burst of each engine that is here.

    Returns:
        Microseconds by engine. They take turns, and the fastest burst is what neighbours disturbed
        least.
    """
    golden = bundle.golden()
    zeros = Episode({t.name: np.zeros((1, *t.shape), t.dtype) for t in bundle.manifest.inputs})
    feeds = list(golden if golden is not None else zeros)
    engines: tuple[Engine, ...] = ("native", "onnxruntime")
    with ExitStack() as opened:
        calls: dict[str, TimedCall] = {}
        for engine in engines:
            try:
                stepper = opened.enter_context(closing(open_stepper(bundle.path, engine)))
            except MissingDependencyError:
                continue
            # Begun anew, so that no step is taken which the golden episode did not take.
            step = partial(_step, stepper)
            anew: Callable[[], object] = stepper.reset
            if golden is not None and golden.start:
                anew = partial(golden.begin, stepper, [s.name for s in bundle.manifest.states])
            calls[engine] = TimedCall(step, feeds, prepare=anew)
        spans_ns = time_in_turns(
            calls, rounds=1, burst=min(_BURST, len(feeds)), warm_up=0, seconds=_SECONDS
        )
    return {name: float(np.median(ns, axis=1).min()) / 1e3 for name, ns in spans_ns.items()}


def _step(stepper: Stepper, feed: dict[str, Any]) -> object:
    return stepper.step(**feed)
