"""Native code that the user of this machine accepts: a small file of digests, one a line.

A shared object runs code as soon as it is mapped, and C source as soon as it is compiled and
called. So neither happens before the digest of that code is in the list: what is sealed or built on
this machine is added there by the one who makes it, another bundle by ``stategate trust``, and for
one process by a signature that it accepts.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from stategate.contract import Bundle, Manifest, canonical_json, sha256
from stategate.contract.durable import write_whole
from stategate.contract.errors import EngineFallbackWarning, ResultError
from stategate.contract.failures import failures
from stategate.contract.reading import RECORD_BYTES, open_regular

VARIABLE = "STATEGATE_TRUST"
_DIGEST = re.compile(r"^[0-9a-f]{64}(?=\s)", re.MULTILINE)

# What a signature accepted, and what was made here where no list can be written.
_THIS_PROCESS: set[str] = set()
_IS_TRIAL = ContextVar("is_trial", default=False)


def code_digest(manifest: Manifest) -> str | None:
    """What is accepted: the code itself, and all that it must be called with to be safe.

    Another threshold, receipt or golden episode leaves it as it is; another library, source, graph,
    shape or initial state does not. None of a bundle without native code.
    """
    native = manifest.native
    if native is None:
        return None
    files = {file.path: file.sha256 for file in manifest.all_files}
    step = manifest.step
    tensors = (*step.graph_inputs().values(), *step.graph_outputs().values())
    parts = (
        native.abi,
        manifest.step_graph.file.sha256,
        sorted((path, files[path]) for path in {*native.sources, native.library} if path),
        [(tensor.name, tensor.shape, tensor.dtype) for tensor in tensors],
        [(s.name, s.gate, s.cursor, s.folds, files.get(s.init_file or "")) for s in step.states],
    )
    return sha256(canonical_json(parts))


def list_path() -> Path | None:
    """Where the list is: ``STATEGATE_TRUST``, or in the user's state folder; None without one."""
    if named := os.environ.get(VARIABLE):
        return Path(named)
    folder = Path(os.environ.get("XDG_STATE_HOME", ""))
    with suppress(RuntimeError):  # a user without a home
        folder = folder if folder.is_absolute() else Path.home() / ".local" / "state"
    return folder / "stategate" / "accepted" if folder.is_absolute() else None


def is_accepted(digest: str) -> bool:
    """Whether a digest is in the list, or was accepted by this process."""
    path = list_path()
    return digest in _THIS_PROCESS or (path is not None and digest in _listed(path)[0])


def refusal(bundle: Bundle) -> str | None:
    """Why the native code of a bundle must not run here, in words; None where it may."""
    digest = code_digest(bundle.manifest)
    if digest is None or is_accepted(digest):
        return None
    path = list_path()
    problem = _listed(path)[1] if path is not None else "this user has no home folder"
    return "nobody on this machine has accepted its native code" + (f" ({problem})" * bool(problem))


def remedy(bundle: Bundle) -> str:
    """What to paste where native code was refused."""
    prefix = "" if list_path() is not None else f"{VARIABLE}=/PATH/OF/A/FILE "
    return (
        f"if you know who made it: {prefix}stategate trust {shlex.quote(str(bundle.path))}; "
        "or open it with trust=, the key of its author"
    )


def accept_for_this_process(digest: str | None) -> None:
    """Accept code until this process ends."""
    if digest is not None:
        _THIS_PROCESS.add(digest)


def accept(digest: str, name: str, path: Path | None = None) -> str | None:
    """Add a digest to a list, for good; why that could not be done, None where it is there.

    ``name`` is that of its model, for whoever reads the list; the user's list is the default.
    """
    path = path or list_path()
    if path is None:
        return f"this user has no home folder; set {VARIABLE} to the path of a file"
    listed, problem = _listed(path)
    if digest in listed or problem:
        return problem
    line = f"{digest}  {' '.join(name.split())[:80]}\n".encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line  # of somebody whom a full disk cut short
            os.write(descriptor, line)  # in one call, so that lines of two processes do not mix
        finally:
            os.close(descriptor)
    except failures(OSError) as why:
        return f"{path}: {why.strerror or why}"
    return None if digest in _listed(path)[0] else f"{path}: the line is not there"


@contextmanager
def trials() -> Iterator[None]:
    """What is made meanwhile is thrown away, so this process alone accepts it."""
    before = _IS_TRIAL.set(True)
    try:
        yield
    finally:
        _IS_TRIAL.reset(before)


def accept_own(digest: str | None, name: str) -> None:
    """Accept what was sealed or built on this machine; a list that cannot be written costs a word.

    This process may run it in any case.
    """
    if digest is None:
        return
    accept_for_this_process(digest)
    problem = None if _IS_TRIAL.get() else accept(digest, name)
    if problem is not None:
        warnings.warn(
            "it cannot be written down that the native code made here is accepted, so other "
            f"processes step it with onnxruntime: {problem}\n"
            f"  what to do: export {VARIABLE}=/PATH/OF/A/FILE that can be written, and make it "
            "again",
            EngineFallbackWarning,
            stacklevel=2,
        )


def withdraw(digest: str) -> bool:
    """Take a digest out of the list; whether it was there."""
    path = list_path()
    if path is None or digest not in _listed(path)[0]:
        return False
    try:
        text = path.read_text(errors="replace")
        rest = [line for line in text.splitlines(True) if not line.startswith(digest)]
        write_whole(path, "".join(rest).encode())
        path.chmod(0o600)  # whatever this user's umask gives to others
    except failures(OSError) as problem:
        raise ResultError("the list of accepted code cannot be written", found=problem) from problem
    return True


def _listed(path: Path) -> tuple[frozenset[str], str | None]:
    """The digests in a list; and why nothing of it counts."""
    try:
        with open_regular(path, RECORD_BYTES) as file:
            status = os.fstat(file.fileno())
            if status.st_uid not in (0, os.geteuid()) or status.st_mode & (
                stat.S_IWGRP | stat.S_IWOTH
            ):
                return frozenset(), f"{path} can be written by others, so nothing in it counts"
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return frozenset(), None
    except failures(OSError) as problem:
        return frozenset(), f"{path}: {problem.strerror or problem}"
    return frozenset(_DIGEST.findall(text)), None
