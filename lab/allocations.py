"""``python -m lab allocations``: how often a step asks malloc, counted under LD_PRELOAD."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from stategate.bench.measure.subject import opened
from stategate.cli.options import COUNT, bundle_verb, engine_option, option
from stategate.cli.show import show
from stategate.common.compiler import compile_library
from stategate.contract import Bundle
from stategate.contract.errors import EngineError, EpisodeError
from stategate.contract.staging import scratch_folder
from stategate.runtime.base.buffers import Array

_WARM_UP = 200


@dataclass(frozen=True, slots=True)
class Mallocs:
    """What a step asks malloc for, less what an empty loop does."""

    native: float  # calls of malloc, calloc and realloc a step; Python has its own pools
    native_bytes: float  # what they asked for
    all: float  # the same calls with Python's objects taken from malloc too


def measure_mallocs(bundle: Path, engine: str, steps: int) -> Mallocs:
    """Count in processes of their own, because counting slows a step down."""
    with counter() as library:
        native = _counted(bundle, engine, steps, LD_PRELOAD=str(library))
        both = _counted(bundle, engine, steps, LD_PRELOAD=str(library), PYTHONMALLOC="malloc")
    return Mallocs(native[0] / steps, native[1] / steps, both[0] / steps)


@contextmanager
def counter() -> Iterator[Path]:
    """The counting library, compiled for this machine."""
    # Its malloc is to be found by everybody else, which is the point of it.
    compiled = compile_library(
        {"malloc_count.c": Path(__file__).with_name("malloc_count.c").read_bytes()},
        cc=os.environ.get("CC", "cc"),
        extra=("-fvisibility=default", "-O2", "-fno-builtin"),
    )
    with scratch_folder() as folder:
        library = Path(folder) / "malloc_count.so"
        library.write_bytes(compiled.library)
        yield library


def _counted(bundle: Path, engine: str, steps: int, **env: str) -> list[int]:
    command = [sys.executable, "-m", "lab.allocations", str(bundle), engine, str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env})
    if done.returncode != 0:
        raise EngineError("the bundle could not be stepped", found=done.stderr[-500:])
    counts: list[int] = json.loads(done.stdout)
    return counts


def count_mallocs(bundle: str, engine: str, steps: int) -> list[int]:
    """Calls and bytes of all steps, by the library that was loaded before this process began."""
    golden = Bundle.open(bundle).golden()
    if golden is None:
        raise EpisodeError("the bundle carries no golden episode", found=bundle)
    feeds, library = list(golden), ctypes.CDLL(None)
    read: Array = np.zeros(2, np.int64)
    pointer = read.ctypes.data_as(ctypes.c_void_p)

    def counted(turn: Callable[[int], object]) -> Array:
        for i in range(_WARM_UP):
            turn(i)
        library.stategate_malloc_counts(pointer)
        before = read.copy()
        for i in range(steps):
            turn(i)
        library.stategate_malloc_counts(pointer)
        return read - before

    with opened(bundle, engine) as session:
        stepped = counted(lambda i: session.step(**feeds[i % len(feeds)]))
        counts: list[int] = (stepped - counted(lambda i: None)).tolist()
    return counts


@bundle_verb()
@engine_option
@option("--steps", type=COUNT, default=2000, help="How many to count over.")
def allocations(bundle: Path, engine: str, steps: int) -> None:
    """Count what a step of BUNDLE asks malloc for.

    \b
    Example:
      python -m lab allocations build/aura --engine native
    """
    counts = measure_mallocs(bundle, engine, steps)
    lines = [
        ("mallocs", f"{counts.native:.1f} a step, {counts.native_bytes:.0f} bytes"),
        ("with Python's", f"{counts.all:.1f} a step"),
    ]
    show(asdict(counts), lines)


if __name__ == "__main__":
    print(json.dumps(count_mallocs(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
