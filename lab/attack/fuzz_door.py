"""One fuzzer, in the process that calls it.

Atheris counts which branches of our own readers and of those below them an input takes, and keeps
the inputs that reach new ones. An exception that is no answer, a hang and too much memory end the
process and leave the input in a file.
"""

from __future__ import annotations

import io
import random
import resource
from contextlib import redirect_stderr
from pathlib import Path

import atheris

__all__ = ["DOORS", "enter"]
_READERS = ("contract", "runtime.keep", "runtime.check", "runtime.episodes", "export.frontends")
_MODULES = [*(f"stategate.{room}" for room in _READERS), "wave", "zipfile", "yaml", "tomllib"]
with redirect_stderr(io.StringIO()), atheris.instrument_imports(include=_MODULES):
    from lab.attack.around import MEMORY_BYTES, quiet
    from lab.attack.doors import DOORS, knock
    from lab.attack.places import PLACE


def enter(name: str, options: list[str]) -> None:
    """Fuzz a door until the options of libFuzzer say stop, and end the process."""
    door = DOORS[name]
    with quiet():  # everything that is loaded late is loaded now
        knock(name, next(iter((PLACE / "corpus" / name).iterdir())).read_bytes())
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))

    def change(raw: bytes) -> bytes:
        return bytes(atheris.Mutate(raw, door.most_bytes))

    def mutated(raw: bytes, most_bytes: int, seed: int) -> bytes:
        return door.mutate(raw, random.Random(seed), change)[:most_bytes]

    arguments = ["fuzz", *options, f"-max_len={door.most_bytes}"]
    atheris.Setup(arguments, lambda raw: knock(name, raw), custom_mutator=mutated)
    with quiet():
        atheris.Fuzz()
