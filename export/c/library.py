"""The library of a bundle that is being sealed: for its target, or the reason why there is none.

A library is an addition. What fails on the way to it costs the native engine and never the
bundle, which ONNX Runtime steps as well.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import msgspec

from stategate.common.compiler import BARE_METAL, compiler_for
from stategate.contract import Bundle, Manifest, write_bundle
from stategate.contract.errors import BuildError, StategateError

Files = dict[str, bytes]

# In a process of its own: code that nobody has run yet may end it, hang, or write anywhere.
_BUILD = """\
import sys
from stategate.contract import Bundle
from stategate.contract.errors import StategateError
from stategate.runtime.check.build_native import build_native
from stategate.runtime.trust.code import accept_for_this_process, code_digest
accept_for_this_process(code_digest(Bundle.open(sys.argv[1]).manifest))
try:
    build_native(sys.argv[1], cc=sys.argv[2], promise=True)
except StategateError as problem:
    sys.exit(str(problem))
"""
_SECONDS = 1800


def with_library(
    folder: Path, manifest: Manifest, files: Files, *, required: bool
) -> tuple[Manifest, Files]:
    """Manifest and files with the library that the target can load.

    They have C source alone where a compiler is missing or the target is a microcontroller, and no
    native engine where the C is not right. It is compiled for this machine first and held against
    the golden episode, because a library for another machine cannot be tried here.
    """
    machine = manifest.target.machine if manifest.target is not None else platform.machine()
    try:
        built = _built(folder, manifest, files, platform.machine())
        if built is not None:
            manifest = _with_promise(manifest, built.manifest)
        if machine in BARE_METAL:
            tried = "" if built is not None else "; no C compiler tried it where it was made"
            line = f"{BARE_METAL[machine]} -Inative -Wa,-Inative -c native/*.c"
            reason = f"{machine} loads none; in the bundle: {line}{tried}"
            return msgspec.structs.replace(manifest, no_native=reason), files
        if built is not None and machine != platform.machine():
            built = _built(folder, manifest, files, machine)
    except StategateError as problem:
        if required:
            raise
        return _without_native(manifest, files, " ".join(str(problem).split()))
    if built is not None:
        return built.manifest, {file.path: built.read(file) for file in built.manifest.all_files}
    cc = compiler_for(machine) or "CC"
    command = f"stategate device build-native BUNDLE --cc {cc}"
    reason = f"no C compiler for {machine} ({cc}) where it was made"
    if required:
        raise BuildError(f"the native library cannot be built: {reason}", remedy=command)
    return msgspec.structs.replace(manifest, no_native=f"{reason}: {command}"), files


def _built(folder: Path, manifest: Manifest, files: Files, machine: str) -> Bundle | None:
    """The bundle with a library for a machine; None where its compiler is not here."""
    cc = compiler_for(machine)
    if cc is None or shutil.which(cc) is None:
        return None
    trial = write_bundle(folder, manifest, files)
    command = [sys.executable, "-c", _BUILD, str(trial.path), cc]
    try:
        # What is only tried goes into no list that outlives the trial.
        trials = os.environ | {"STATEGATE_TRUST": f"{folder}.accepted"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, env=trials)
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise BuildError("the native library cannot be tried", found=problem) from problem
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise BuildError("the native library ended the process that tried it", found=name)
    if done.returncode != 0:
        raise BuildError("the native library was refused", found=done.stderr[-2000:].strip())
    return Bundle.open(trial.path)


def _with_promise(manifest: Manifest, built: Manifest) -> Manifest:
    """The manifest of a target with the digest that was made here: it holds there as well."""
    native, tried = manifest.native, built.native
    if native is None or tried is None:
        return manifest
    native = msgspec.structs.replace(native, golden_digest=tried.golden_digest)
    return msgspec.structs.replace(manifest, native=native)


def _without_native(manifest: Manifest, files: Files, reason: str) -> tuple[Manifest, Files]:
    native = manifest.native
    parts = {*native.sources, native.library} if native is not None else set()
    others = tuple(file for file in manifest.files if file.path not in parts)
    manifest = msgspec.structs.replace(manifest, files=others, native=None, no_native=reason)
    return manifest, {name: data for name, data in files.items() if name not in parts}
